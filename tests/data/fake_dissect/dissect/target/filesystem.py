# ruff: noqa
# mypy: ignore-errors
"""A file system with one directory; the first bytes of the image choose what the parser does to its host."""

import io
import os
import socket
import stat
import types

NAMES = ("etc", "os-release", "etc/content")


class Entry:
    """A file or directory."""

    def __init__(self, path, content=None):
        self.path, self.name, self.content = path, path.rsplit("/", 1)[-1], content

    def is_dir(self):
        return self.content is None

    def lstat(self):
        mode = stat.S_IFDIR | 0o755 if self.is_dir() else stat.S_IFREG | 0o644
        return types.SimpleNamespace(
            st_mode=mode, st_size=len(self.content or b""), st_mtime=5, st_uid=1, st_gid=2, st_nlink=1, st_ino=3
        )

    def open(self):
        return io.BytesIO(self.content)

    def scandir(self):
        return [] if self.path else [Entry("etc/os-release", b"ID=fake\n"), Entry("tried", TRIED.encode())]

    def get(self, name):
        return Entry(name, b"")


TRIED = ""


class FileSystem:
    """Holds /etc/os-release and /tried."""

    __type__ = "fakefs"

    def get(self, path):
        path = path.strip("/")
        if path == "tried":
            return Entry(path, TRIED.encode())
        if path == "etc/os-release":
            return Entry(path, b'ID=fake\nPRETTY_NAME="Fake OS"\n')
        if path in {"", "etc"}:
            return Entry(path)
        raise KeyError(path)


def attempt(name, action):
    """Note whether an attack on the host works."""
    global TRIED
    try:
        action()
        TRIED += f"{name}: reached\n"
    except BaseException as error:
        TRIED += f"{name}: {type(error).__name__}\n"


def open(handle):
    handle.seek(0)
    word = handle.read(8).rstrip(b"\0").decode()
    if word == "memory":
        bytearray(4 << 30)
    elif word == "spin":
        while True:
            pass
    elif word == "fork":
        os.fork()
    elif word == "write":
        os.write(4, b"\xff" * 64)
    elif word == "reach":
        attempt("passwd", lambda: io.open("/etc/passwd"))
        attempt("proc", lambda: os.listdir("/proc"))
        attempt("image by path", lambda: io.open("/proc/self/fd/3", "rb"))
        attempt("write", lambda: io.open("/new", "w"))
        attempt("socket", lambda: socket.socket())
        attempt("image for writing", lambda: os.write(3, b"x"))
    return FileSystem()
