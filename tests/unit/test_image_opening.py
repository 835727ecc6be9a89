"""Opening files that a user named: regular files only, through links that may be followed, and what was checked."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from casemate.errors import ExitCode, ImageError, InputError
from casemate.image.opening import MAX_LINKS, identity_of, open_image, open_regular_file, verify_unchanged


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path.resolve() / "disk, a=b %s.img"
    path.write_bytes(b"x" * 512)
    return path


def refused(path: Path | str, writable: bool = False) -> InputError:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError) as caught:
        open_image(str(path), writable)
    assert os.listdir("/proc/self/fd") == before
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


def test_regular_file(image: Path) -> None:
    fd = open_image(str(image))
    try:
        assert os.pread(fd, 3, 0) == b"xxx"
        assert not os.get_inheritable(fd)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(OSError, match="Bad file"):
            os.write(fd, b"y")
    finally:
        os.close(fd)


def test_writable(image: Path) -> None:
    fd = open_image(str(image), writable=True)
    try:
        assert os.pwrite(fd, b"y", 0) == 1
    finally:
        os.close(fd)
    assert image.read_bytes()[:2] == b"yx"


def test_no_descriptor_is_left(image: Path) -> None:
    before = os.listdir("/proc/self/fd")
    os.close(open_image(str(image)))
    assert os.listdir("/proc/self/fd") == before


def test_link_as_the_file_itself(image: Path) -> None:
    link = image.parent / "link"
    link.symlink_to(image)
    error = refused(link)
    assert error.got == f"a symbolic link to {str(image)!r}"
    assert "readlink -f" in error.next_step


def test_own_link_on_the_way(image: Path) -> None:
    (image.parent / "absolute").symlink_to(image.parent)
    (image.parent / "relative").symlink_to(f"../{image.parent.name}/./absolute")
    for link in ("absolute", "relative"):
        fd = open_image(str(image.parent / link / image.name))
        assert os.path.samestat(os.fstat(fd), image.stat())
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a link that belongs to another uid")
def test_link_of_somebody_else_on_the_way(image: Path) -> None:
    link = image.parent / "theirs"
    link.symlink_to(image.parent)
    os.chown(link, 12_345, 12_345, follow_symlinks=False)
    assert "belongs to uid 12345" in refused(link / image.name).got


def test_loop_of_links(image: Path) -> None:
    (image.parent / "loop").symlink_to("loop")
    assert refused(image.parent / "loop" / "x").got == "too many symbolic links"


def test_longest_chain_of_links(image: Path) -> None:
    (image.parent / "l0").symlink_to(".")
    for number in range(1, MAX_LINKS):
        (image.parent / f"l{number}").symlink_to(f"l{number - 1}")
    os.close(open_image(str(image.parent / f"l{MAX_LINKS - 1}" / image.name)))
    (image.parent / "more").symlink_to(f"l{MAX_LINKS - 1}")
    assert refused(image.parent / "more" / image.name).got == "too many symbolic links"


def test_special_files_are_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        assert refused(tmp_path / "socket").got == "a socket"
    assert refused(tmp_path / "fifo").got == "a FIFO"
    assert refused(tmp_path / "fifo", writable=True).got == "a FIFO"
    assert refused(tmp_path).got == "a directory"
    assert refused("/").got == "a directory"
    assert refused("/dev/null").got == "a character device"
    assert refused("/proc/self/fd/0").got.startswith("a symbolic link")


def test_missing_and_impossible(image: Path) -> None:
    assert refused(image.parent / "none").got == "no such file or directory"
    assert refused(image / "below").got == "not a directory"
    assert "NUL" in refused(f"{image}\0").got
    assert refused("/" + "x" * 300).got == "file name too long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(image: Path) -> None:
    image.chmod(0o400)
    error = refused(image, writable=True)
    assert error.got == "permission denied"
    assert "overlay or read-only" in error.next_step


def test_message_names_the_role(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the kernel"):
        open_regular_file(str(tmp_path / "k"), what="kernel")


def test_relative_path_is_our_bug() -> None:
    with pytest.raises(RuntimeError, match="must be absolute"):
        open_image("disk.img")


def test_change_between_check_and_use(image: Path) -> None:
    fd = open_image(str(image), writable=True)
    try:
        identity = identity_of(fd)
        verify_unchanged(fd, identity, "disk")
        os.ftruncate(fd, 1024)
        with pytest.raises(ImageError, match="changed between check and use; got another size_bytes"):
            verify_unchanged(fd, identity, "disk")
    finally:
        os.close(fd)


def test_replaced_file_does_not_reach_the_descriptor(image: Path) -> None:
    fd = open_image(str(image))
    try:
        identity = identity_of(fd)
        other = image.parent / "other"
        other.write_bytes(b"z" * 512)
        other.rename(image)
        assert os.pread(fd, 1, 0) == b"x"
        replaced = open_image(str(image))
        try:
            with pytest.raises(ImageError, match="inode"):
                verify_unchanged(replaced, identity, "disk")
        finally:
            os.close(replaced)
    finally:
        os.close(fd)
