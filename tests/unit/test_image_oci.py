"""OCI layout directories: the disk is found and pinned by its digest; every other shape is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.support.foreign_images import MIB

from casemate.errors import CasemateError, ExitCode, ImageError, InputError
from casemate.image.oci_layout import find_container_disk, open_disk
from casemate.image.reader import ImageReader

INDEX, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
RAW, LAYER = "application/vnd.example.disk.raw", "application/vnd.oci.image.layer.v1.tar+gzip"
DISK = bytes(510) + b"\x55\xaa" + b"disk" * 100 + bytes(MIB - 912)


class Layout:
    """Writes a layout directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """A blob, and the descriptor of it."""
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def json(self, document: object, media_type: str) -> dict[str, Any]:
        """A document as a blob."""
        return self.blob(json.dumps(document).encode(), media_type)

    def index(self, *manifests: dict[str, Any]) -> str:
        """The index; the directory's path."""
        (self.directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests)}))
        return str(self.directory)

    def image(self, *layers: dict[str, Any]) -> str:
        """An image with these layers."""
        return self.index(self.json({"schemaVersion": 2, "layers": list(layers)}, MANIFEST))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def found(path: str) -> tuple[str, str, bytes]:
    disk = open_disk(path)
    try:
        return disk.name, disk.sha256, os.pread(disk.fd, 2 * MIB, 0)
    finally:
        os.close(disk.fd)


def test_a_blob_that_is_a_disk(layout: Layout) -> None:
    digest = hashlib.sha256(DISK).hexdigest()
    titled = layout.blob(DISK, RAW, annotations={"org.opencontainers.image.title": "web.raw"})
    assert found(layout.image(titled)) == ("web.raw", digest, DISK)
    assert found(layout.image(layout.blob(DISK, RAW)))[0] == "layout"
    nested = layout.json({"manifests": [layout.json({"layers": [layout.blob(DISK, RAW)]}, MANIFEST)]}, INDEX)
    assert found(layout.index(nested))[1] == digest


def bad_digest(layout: Layout) -> str:
    return layout.image({**layout.blob(DISK, RAW), "digest": "sha256:../../../etc/passwd"})


def bad_manifest(layout: Layout) -> str:
    manifest = layout.json({"layers": [layout.blob(DISK, RAW)]}, MANIFEST)
    path = layout.directory / "blobs" / "sha256" / manifest["digest"][7:]
    path.write_bytes(path.read_bytes() + b" ")
    return layout.index(manifest)


def linked(layout: Layout) -> str:
    layer = layout.blob(DISK, RAW)
    path = layout.directory / "blobs" / "sha256" / layer["digest"][7:]
    path.unlink()
    path.symlink_to("/etc/passwd")
    return layout.image(layer)


def linked_directory(layout: Layout) -> str:
    path = layout.image(layout.blob(DISK, RAW))
    (layout.directory / "blobs").rename(layout.directory.parent / "elsewhere")
    (layout.directory / "blobs").symlink_to(layout.directory.parent / "elsewhere")
    return path


def fifo(layout: Layout) -> str:
    layer = layout.blob(DISK, RAW)
    path = layout.directory / "blobs" / "sha256" / layer["digest"][7:]
    path.unlink()
    os.mkfifo(path)
    return layout.image(layer)


def loop(layout: Layout) -> str:
    one = layout.json({"manifests": []}, INDEX)
    for _ in range(4):
        one = layout.json({"manifests": [one]}, INDEX)
    return layout.index(one)


def text(layout: Layout, data: str) -> str:
    (layout.directory / "index.json").write_text(data)
    return str(layout.directory)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda layout: layout.index(), "0 manifests"),
        (lambda layout: layout.image(), "0 layers"),
        (lambda layout: layout.image(layout.blob(DISK, RAW), layout.blob(b"x", RAW)), "2 layers"),
        (lambda layout: layout.index(layout.blob(b"{}", "text/plain")), "a manifest of type"),
        (lambda layout: layout.image({**layout.blob(DISK, RAW), "size": 5}), "another size than 5"),
        (lambda layout: layout.image({**layout.blob(DISK, RAW), "digest": "sha256:" + "0" * 64}), "no blob"),
        (lambda layout: layout.index({**layout.blob(DISK, MANIFEST), "digest": "sha256:" + "0" * 64}), "no blob"),
        (bad_digest, "the digest"),
        (bad_manifest, "another content"),
        (linked, "symbolic links"),
        (linked_directory, "symbolic links"),
        (fifo, "which is no file"),
        (loop, "indexes of indexes"),
        (lambda layout: text(layout, "{"), "no OCI image"),
        (lambda layout: text(layout, '{"manifests": 1}'), "no OCI image"),
        (lambda layout: text(layout, " " * (5 << 20)), "more than"),
    ],
)
def test_odd_layouts_are_refused(build: Callable[[Layout], str], words: str, layout: Layout) -> None:
    with pytest.raises(ImageError) as error:
        open_disk(build(layout))
    assert words in str(error.value)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="oci://HOST/NAME:TAG"):
        open_disk(str(tmp_path))
    with pytest.raises(InputError, match="cannot open"):
        open_disk(str(tmp_path / "nothing"))


def layer_of(*members: tuple[str, bytes, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def container_disk(data: bytes) -> tuple[str, bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        reader = ImageReader(file.fileno(), "layer")
        member = find_container_disk(reader)
        return member.name, reader.read(member.offset, member.size_bytes)


def test_the_disk_of_a_container_disk() -> None:
    for prefix in ("", "./"):
        data = layer_of((f"{prefix}disk/", tarfile.DIRTYPE, b""), (f"{prefix}disk/web.raw", tarfile.REGTYPE, DISK))
        assert container_disk(data) == (f"{prefix}disk/web.raw", DISK)
    for members in (
        (("etc/passwd", tarfile.REGTYPE, b"x"),),
        (("disk/a", tarfile.REGTYPE, b"x"), ("disk/b", tarfile.REGTYPE, b"x")),
        (("disk/a", tarfile.SYMTYPE, b""),),
        (("disk/../../x", tarfile.REGTYPE, b"x"),),
        (("disk/a", tarfile.CHRTYPE, b""),),
        tuple((f"x{number}", tarfile.REGTYPE, b"") for number in range(65)),
    ):
        with pytest.raises(CasemateError, match="no OCI image"):
            container_disk(layer_of(*members))


def test_layouts_go_into_the_store(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "home").mkdir()
    cli = Cli(tmp_path / "home")
    cli.ok("image", "add", layout.image(layout.blob(DISK, RAW)), "--name", "plain")
    packed = gzip.compress(layer_of(("disk/web.raw", tarfile.REGTYPE, DISK)))
    cli.ok("image", "add", layout.image(layout.blob(packed, LAYER)), "--name", "layer")
    (image,) = cli.json("image", "ls", "--json")["images"]
    assert image["names"] == ["layer", "plain"]
    assert image["digest"] == hashlib.sha256(DISK).hexdigest()
    assert image["origin"]["oci_media_type"] == RAW
    layer = layout.blob(DISK, RAW)
    blob = layout.directory / "blobs" / "sha256" / layer["digest"][7:]
    blob.write_bytes(DISK[:-1] + b"x")
    assert "not what was promised" in cli.fails(ExitCode.USAGE, "image", "add", layout.image(layer))
    assert "asked for" in cli.fails(ExitCode.USAGE, "image", "add", layout.image(layer), "--sha256", "0" * 64)


def test_standard_input(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "home").mkdir()
    cli = Cli(tmp_path / "home")
    child = cli.open("image", "add", "-", "--name", "piped", stdin=subprocess.PIPE)
    out, errors = child.communicate(gzip.compress(DISK), timeout=60)
    assert child.returncode == 0, errors
    assert out.decode().strip() == hashlib.sha256(DISK).hexdigest()
    assert "too large" in cli.fails(ExitCode.USAGE, "image", "add", "-", "--quota", "1M", stdin="x" * (3 * MIB))
