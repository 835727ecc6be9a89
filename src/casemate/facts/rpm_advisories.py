"""Security advisories that dnf has in its cache (``updateinfo.xml`` of each repository), read offline and in bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from casemate.facts.fact import Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_packages import PACKAGE_KEY, Package
from casemate.facts.zchunk import unpack_zchunk

CACHES: Final = ("/var/cache/dnf", "/var/cache/libdnf5")
MAX_PACKED_BYTES: Final = 64 << 20
MAX_XML_BYTES: Final = 512 << 20
_MAX_REPOMD_BYTES: Final = 4 << 20
_PIECE: Final = 1 << 20
_DEPTH: Final = 16
_UNIX: Final = re.compile(r"[0-9]{9,12}(\.[0-9]+)?")
_GENERATION: Final = re.compile(r"-[0-9a-f]{16}")
_ATTRIBUTE_CHARS: Final = 256
_ADVISORIES: Final = ("updateinfo", "updateinfo_zck")
_HREFS_MAX: Final = 4
_KERNEL: Final = re.compile(r"kernel(-[a-z0-9-]+)?")


class Offered(msgspec.Struct, frozen=True):
    """What advisories of security offer. ``packages``: the highest version by name, architecture and whether it is of a
    module. ``made_s``: Unix time of the oldest repository's metadata. ``source``: whose they are."""

    packages: dict[tuple[str, str, bool], Package]
    made_s: int
    source: str


class _Repository(msgspec.Struct, frozen=True):
    """``advisories``: where they may lie; dnf keeps the form in zchunk where the repository offers one."""

    folder: str
    made_s: int
    advisories: tuple[str, ...]


def offered_by_advisories(root: Root, wanted: re.Pattern[str]) -> Offered | Unknown:
    """The security updates that the repositories offer, as of their cached metadata.

    Args:
        wanted: names of packages that matter.
    """
    from xml.parsers.expat import ExpatError

    try:
        repositories = tuple(_repositories(root))
        if not repositories:
            return Unknown(f"{' and '.join(CACHES)}: no repository with advisories; run dnf updateinfo")
        names = ", ".join(sorted(repository.folder.rpartition("/")[2] for repository in repositories)[:4])
        packages: dict[tuple[str, str, bool], Package] = {}
        updates = _Updates(wanted)
        for repository in repositories:
            for package in _advised(root, repository.advisories, updates):
                key = package.name, package.arch, is_of_module(package)
                if key not in packages or PACKAGE_KEY(package) > PACKAGE_KEY(packages[key]):
                    packages[key] = package
    except (OSError, ValueError, ExpatError) as error:
        return Unknown(f"{getattr(error, 'filename', None) or 'dnf'}: {getattr(error, 'strerror', None) or error}")
    if not updates.names_a_kernel:
        # A distribution without advisories (CentOS Stream) beside a collection with some (EPEL): silence is no word.
        return Unknown(f"advisories of {names}: none is about a kernel, so they are not the distribution's own")
    return Offered(packages, min(repository.made_s for repository in repositories), f"advisories of {names}")


def is_of_module(package: Package) -> bool:
    """Whether it belongs to a stream of a module: those are compared with their like only."""
    return ".module" in package.release


def _repositories(root: Root) -> Iterator[_Repository]:
    """The newest generation of each repository that has advisories; a folder is a repository's id and a digest."""
    newest: dict[str, _Repository] = {}
    for cache in CACHES:
        try:
            names = root.list_dir(cache)
        except FileNotFoundError:
            continue
        for name in names:
            folder = f"{cache}/{name}"
            try:
                metadata = _Metadata(root.read_bytes(f"{folder}/repodata/repomd.xml", _MAX_REPOMD_BYTES))
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not metadata.hrefs:
                continue
            places = tuple(f"{folder}/repodata/{href.rpartition('/')[2]}" for href in metadata.hrefs)
            found = _Repository(folder, metadata.made_s, places)
            key = _GENERATION.sub("", name)
            if key not in newest or found.made_s > newest[key].made_s:
                newest[key] = found
    yield from newest.values()


def _parser() -> Any:
    """Expat without entities: a document that declares a type is refused."""
    from xml.parsers.expat import ParserCreate

    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    return parser


def _refuse(*_: object) -> None:
    raise ValueError("the metadata declare a document type")


class _Metadata:
    """repomd.xml: ``made_s``, Unix time of its newest part, and ``hrefs``, where the advisories may lie."""

    def __init__(self, data: bytes) -> None:
        self.made_s = 0
        self.hrefs: list[str] = []
        self._kind, self._path = "", [""]
        parser = _parser()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda name: self._path.pop()
        parser.CharacterDataHandler = self._text
        parser.Parse(data, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        if len(self._path) > _DEPTH:
            raise ValueError("repomd.xml is too deep")
        if name == "data":
            self._kind = attributes.get("type", "")
        if name == "location" and self._kind in _ADVISORIES and len(self.hrefs) < _HREFS_MAX:
            self.hrefs.append(attributes.get("href", "")[:4096])

    def _text(self, words: str) -> None:
        if self._path[-1] in ("timestamp", "revision") and _UNIX.fullmatch(words.strip()):
            self.made_s = max(self.made_s, int(words.strip().partition(".")[0]))


class _Updates:
    """updateinfo.xml, one after the other, fed piece by piece: ``found`` are packages of security advisories since it
    was last emptied; ``names_a_kernel``: an advisory, of whatever kind, was about one."""

    def __init__(self, wanted: re.Pattern[str]) -> None:
        self.found: list[Package] = []
        self.names_a_kernel = False
        self._wanted = wanted
        self._is_security = False

    def parser(self) -> Any:
        """For the next file."""
        self._is_security = False
        parser = _parser()
        parser.StartElementHandler = self._start
        return parser

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "update":
            self._is_security = attributes.get("type") == "security"
        elif name == "package":
            about = _name_of(attributes)
            self.names_a_kernel = self.names_a_kernel or bool(_KERNEL.fullmatch(about))
            if self._is_security and self._wanted.fullmatch(about):
                self.found.append(_package(attributes))


def _advised(root: Root, places: Sequence[str], updates: _Updates) -> Iterator[Package]:
    """Packages of security advisories, from the first of the places where there is something."""
    path = next((place for place in places[:-1] if root.exists(place)), places[-1])
    parser = updates.parser()
    taken = 0
    for piece in unpacked_advisories(root.read_bytes(path, MAX_PACKED_BYTES), path):
        taken += len(piece)
        if taken > MAX_XML_BYTES:
            raise ValueError(f"{path}: larger than {MAX_XML_BYTES >> 20} MiB when unpacked")
        parser.Parse(piece, False)
        yield from updates.found
        updates.found.clear()
    parser.Parse(b"", True)
    yield from updates.found


def _name_of(attributes: dict[str, str]) -> str:
    return attributes.get("name", "")[:_ATTRIBUTE_CHARS]


def _package(attributes: dict[str, str]) -> Package:
    values = {name: attributes.get(name, "")[:_ATTRIBUTE_CHARS] for name in ("name", "version", "release", "arch")}
    epoch = attributes.get("epoch") or "0"
    if not re.fullmatch(r"[0-9]{1,9}", epoch):
        raise ValueError(f"an advisory of epoch {epoch[:32]!r}")
    return Package(values["name"], int(epoch), values["version"], values["release"], values["arch"])


def unpacked_advisories(data: bytes, path: str) -> Iterator[bytes]:
    """The text in pieces of at most `_PIECE` bytes.

    Raises:
        ValueError: damaged, or packed in a way nobody here understands.
    """
    import lzma
    import zlib

    if path.endswith(".xml") or data.startswith(b"<"):  # a capture keeps the text
        yield data
        return
    if path.endswith(".zck"):
        try:
            yield from unpack_zchunk(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return
    try:
        if path.endswith(".xz"):
            yield from _unpacked_xz(data)
            return
        stream = _stream(data, path)
        while piece := stream.read(_PIECE):
            yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def _stream(data: bytes, path: str) -> Any:
    import io

    packed = io.BytesIO(data)
    if path.endswith(".gz"):
        import gzip

        return gzip.GzipFile(fileobj=packed)
    if path.endswith(".bz2"):
        import bz2

        return bz2.BZ2File(packed)
    if path.endswith(".zst"):
        import zstandard

        return _Zst(zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(packed))
    raise ValueError(f"{path}: packed as .{path.rpartition('.')[2][:16]}, which is not understood")


class _Zst:
    """A stream of zstandard whose errors are those of the others."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        import zstandard

        try:
            return bytes(self._stream.read(size))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from None


def _unpacked_xz(data: bytes) -> Iterator[bytes]:
    import lzma

    unpacker = lzma.LZMADecompressor(memlimit=256 << 20)
    piece = unpacker.decompress(data, _PIECE)
    while piece or not unpacker.eof:
        if not piece and unpacker.needs_input:
            raise EOFError("it ends too early")
        yield piece
        piece = b"" if unpacker.eof else unpacker.decompress(b"", _PIECE)
