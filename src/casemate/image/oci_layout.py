"""A disk in an OCI image layout directory (``oci-layout``, ``index.json``, ``blobs/``), as skopeo and oras write it.

    index.json ─► manifest ─► one layer
                              ├─ of any media type that is no tar: the blob is the disk (packed or not)
                              └─ tar, tar+gzip, tar+zstd: a containerDisk, one file below ``disk/``

Every blob is opened below the directory without following a link (openat2, RESOLVE_BENEATH), read at most as far as its
descriptor says, and its digest is compared: the manifest here, the disk by the import, which is given the digest to
expect. Layout: OCI image-spec v1.1, image-layout.md, manifest.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

from casemate.errors import ImageError, InputError
from casemate.image.ova import Member
from casemate.image.reader import ImageReader
from casemate.sys.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

MAX_JSON_BYTES: Final = 4 << 20
MAX_MEMBERS: Final = 64
MAX_DEPTH: Final = 3
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
T = TypeVar("T")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
TITLE: Final = "org.opencontainers.image.title"


class Platform(msgspec.Struct, frozen=True):
    """What a manifest of an index is for, in Go's words."""

    architecture: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    """What points to a blob."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None


class _Index(msgspec.Struct, frozen=True):
    manifests: list[Descriptor]


class _Manifest(msgspec.Struct, frozen=True):
    layers: list[Descriptor]


class OciDisk(NamedTuple):
    """The blob with the disk: open, the caller's to close. ``sha256`` is what it must hash to."""

    fd: int
    name: str
    sha256: str
    media_type: str


def open_disk(directory: str) -> OciDisk:
    """Open the one disk of a layout directory.

    Raises:
        InputError: no layout directory. ImageError: not exactly one disk, or a blob that is not what it should be.
    """
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise InputError(f"cannot open the directory {directory!r}", got=(fault.strerror or "").lower()) from None
    try:
        return _find(place, directory)
    finally:
        os.close(place)


def _find(place: int, name: str) -> OciDisk:
    try:
        _read(place, "oci-layout", name)
        found = _decode(_read(place, "index.json", name), _Index, name).manifests
    except FileNotFoundError:
        raise InputError(
            f"{name!r} is a directory and no OCI image layout",
            expected="oci-layout and index.json in it",
            next_step="for a registry: casemate image add oci://HOST/NAME:TAG",
        ) from None
    return _open_layer(place, find_layer(found, lambda descriptor: _blob(place, descriptor, name), name), name)


def find_layer(found: list[Descriptor], read: Callable[[Descriptor], bytes], name: str) -> Descriptor:
    """From the manifests of an index to the one layer of the one manifest that is for this host.

    Args:
        read: gives what a descriptor points to; its digest is compared here.

    Raises:
        ImageError: not exactly one, another content than its digest says, or nothing of OCI.
    """
    for _ in range(MAX_DEPTH):
        one = _only(_for_this_host(found), "manifests", name)
        data = read(one)
        digest = checked_digest(one, name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _refused(name, f"a blob {digest[:16]} with another content", "what its digest says")
        if one.media_type in MANIFESTS:
            return _only(_decode(data, _Manifest, name).layers, "layers", name)
        if one.media_type not in INDEXES:
            raise _refused(name, f"a manifest of type {one.media_type[:80]!a}")
        found = _decode(data, _Index, name).manifests
    raise _refused(name, "indexes of indexes")


def _for_this_host(found: list[Descriptor]) -> list[Descriptor]:
    """Of several manifests those for this architecture; a single one is taken as it is."""
    if len(found) < 2:
        return found
    wanted = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    return [item for item in found if item.platform is not None and item.platform.architecture == wanted]


def _only(found: list[Descriptor], what: str, name: str) -> Descriptor:
    if len(found) != 1:
        raise _refused(name, f"{len(found)} {what}", "one: copy a single image (skopeo copy, without --all)")
    return found[0]


def _open_layer(place: int, layer: Descriptor, name: str) -> OciDisk:
    digest = checked_digest(layer, name)
    try:
        fd = _open(place, f"blobs/sha256/{digest}", name)
    except FileNotFoundError:
        raise _refused(name, f"no blob {digest[:16]}", "a copy that is whole") from None
    if os.fstat(fd).st_size != layer.size:
        os.close(fd)
        raise _refused(name, f"a disk of another size than {layer.size} bytes", "a copy that is whole")
    title = layer.annotations.get(TITLE, "")
    return OciDisk(fd, title or os.path.basename(name.rstrip("/")), digest, layer.media_type)


def checked_digest(descriptor: Descriptor, name: str) -> str:
    """The SHA-256 that a descriptor names, in hexadecimal."""
    match = _DIGEST.fullmatch(descriptor.digest)
    if match is None or descriptor.size < 0:
        raise _refused(name, f"the digest {descriptor.digest[:80]!a}", "sha256:HEX")
    return match[1]


def _blob(place: int, descriptor: Descriptor, name: str) -> bytes:
    digest = checked_digest(descriptor, name)
    try:
        return _read(place, f"blobs/sha256/{digest}", name)
    except FileNotFoundError:
        raise _refused(name, f"no blob {digest[:16]}", "a copy that is whole") from None


def _read(place: int, path: str, name: str) -> bytes:
    fd = _open(place, path, name)
    try:
        data = b""
        while len(data) <= MAX_JSON_BYTES and (part := os.read(fd, MAX_JSON_BYTES + 1 - len(data))):
            data += part
    finally:
        os.close(fd)
    if len(data) > MAX_JSON_BYTES:
        raise _refused(name, f"{path} of more than {MAX_JSON_BYTES} bytes")
    return data


def _open(place: int, path: str, name: str) -> int:
    try:
        fd = openat2(place, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        raise
    except OSError as fault:
        raise _refused(name, f"{path}: {(fault.strerror or '').lower()}", "plain files and no links") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refused(name, f"{path}, which is no file")
    return fd


def _decode(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise _refused(name, str(fault)[:160]) from None


def find_container_disk(reader: ImageReader) -> Member:
    """The one file below ``disk/`` in the layer of a containerDisk (a tar archive).

    Raises:
        ImageError: not exactly one, or members that are neither plain files nor directories.
    """
    from casemate.image.ova import BLOCK_BYTES, header_of

    found: list[Member] = []
    at = count = 0
    while at + BLOCK_BYTES <= reader.size_bytes:
        head = reader.read(at, BLOCK_BYTES)
        if not head.strip(b"\0"):
            break
        member, kind = header_of(reader, head, at + BLOCK_BYTES)
        count += 1
        path = member.name.removeprefix("./").strip("/")
        if count > MAX_MEMBERS or kind not in {b"0", b"\0", b"5"} or ".." in path.split("/"):
            raise _refused(reader.name, f"a member {path[:80]!r} that is no plain file", "a containerDisk")
        if kind != b"5" and path.startswith("disk/"):
            found.append(member)
        at = member.offset + -(-member.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
    if len(found) != 1:
        raise _refused(reader.name, f"{len(found)} files below disk/", "one")
    return found[0]


def _refused(name: str, got: str, expected: str = "") -> ImageError:
    return ImageError(
        f"{name} is no OCI image with one disk",
        got=got,
        expected=expected,
        next_step="see docs/images.md for what is taken from registries",
    )
