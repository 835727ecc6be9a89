"""The ELF reader and the closure, on files written by elf_builder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.elf_builder import Elf, put

from casemate.errors import HostError
from casemate.facts.closure import cached_closure, needed_closure, search_path
from casemate.facts.elf import ElfFormatError, read_elf
from casemate.facts.root import Root

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIB = "/lib/x86_64-linux-gnu"
DEBIAN_DIRS = b"/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0"


def fake_tree(base: Path, **program: object) -> Root:
    """A tree with a loader, libc and /bin/prog."""
    put(base, LOADER, Elf(soname="ld-linux-x86-64.so.2", payload=DEBIAN_DIRS))
    put(base, f"{LIB}/libc.so.6", Elf(soname="libc.so.6", needed=("ld-linux-x86-64.so.2",)))
    arguments = {"needed": ("libc.so.6",), "interpreter": LOADER} | program
    put(base, "/bin/prog", Elf(**arguments))  # type: ignore[arg-type]
    return Root(base)


def targets(root: Root, *modules: str) -> list[str]:
    return [item.target for item in needed_closure("/bin/prog", root, tuple(modules))]


def test_reads_what_was_written(tmp_path: Path) -> None:
    elf = Elf(needed=("a.so", "b.so.1"), soname="me.so.2", runpath="/x:/y::", interpreter="/ld", extra=((24, 0),))
    put(tmp_path, "/f", elf)
    image = read_elf(Root(tmp_path), "/f")
    assert (image.needed, image.soname, image.runpath, image.rpath) == (("a.so", "b.so.1"), "me.so.2", ("/x", "/y"), ())
    assert (image.interpreter, image.machine, image.is_pie) == ("/ld", 62, True)
    assert (image.bind_now, image.has_relro, image.stack_executable, image.has_writable_code) == (
        True,
        True,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"relro": False}, "has_relro", False),
        ({"stack_flags": 7}, "stack_executable", True),
        ({"stack_flags": None}, "stack_executable", None),
        ({"load_flags": 7}, "has_writable_code", True),
        ({"elf_type": 2}, "is_pie", False),
        ({"extra": ((30, 8),)}, "bind_now", True),
        ({"extra": ((0x6FFFFFFB, 1),)}, "bind_now", True),
        ({"extra": ()}, "bind_now", False),
    ],
)
def test_hardening_marks(tmp_path: Path, change: dict[str, object], field: str, value: object) -> None:
    put(tmp_path, "/f", Elf(interpreter="/ld", **change))  # type: ignore[arg-type]
    assert getattr(read_elf(Root(tmp_path), "/f"), field) == value


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no ELF header"),
        (b"#!/bin/sh\n" * 20, "no ELF header"),
        (b"\x7fELF\x01\x01" + bytes(100), "not ELF64 little-endian"),
        (b"\x7fELF\x02\x02" + bytes(100), "not ELF64 little-endian"),
        (Elf().build()[:70], "program headers beyond"),
        (Elf().build()[:0x810], "dynamic section beyond"),
        (Elf(phnum=60000).build(), "60000 program headers"),
        (Elf(needed=("libc.so.6",), strsz=2).build(), "string without end"),
        (Elf(needed=("libc.so.6",), strsz=1).build(), "string outside"),
        (Elf(needed=("bad\nname",)).build(), "control character"),
        (Elf(extra=((1, 1 << 60),)).build(), "string outside"),
        (Elf(needed=("x",), strsz=1 << 62, extra=((1, 1 << 61),)).build(), "string without end"),
        (Elf(interpreter="x" * 900).build(), None),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, text: str | None) -> None:
    put(tmp_path, "/f", content)
    if text is None:
        assert read_elf(Root(tmp_path), "/f").interpreter == "x" * 900
        return
    with pytest.raises(ElfFormatError, match=text):
        read_elf(Root(tmp_path), "/f")


def test_closure_is_breadth_first_and_holds_the_loader_once(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("liba.so.1", "libb.so.1", "libc.so.6"))
    put(tmp_path, f"{LIB}/liba.so.1", Elf(needed=("libd.so.1", "libc.so.6")))
    put(tmp_path, f"{LIB}/libb.so.1", Elf(needed=("liba.so.1",)))
    put(tmp_path, f"/usr{LIB}/libd.so.1", Elf(needed=("libb.so.1",)))
    assert targets(root) == [
        LOADER,
        f"{LIB}/liba.so.1",
        f"{LIB}/libb.so.1",
        f"{LIB}/libc.so.6",
        f"/usr{LIB}/libd.so.1",
    ]


def test_source_is_the_real_file_and_target_the_name_asked_for(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libz.so.1",))
    put(tmp_path, "/opt/libz.so.1.2.13", Elf(soname="libz.so.1"))
    (tmp_path / f"{LIB[1:]}/libz.so.1").symlink_to("/opt/libz.so.1.2.13")
    last = needed_closure("/bin/prog", root)[-1]
    assert (last.target, last.source) == (f"{LIB}/libz.so.1", "/opt/libz.so.1.2.13")
    assert last.stamp.inode == (tmp_path / "opt/libz.so.1.2.13").stat().st_ino


def test_configured_directory_wins_and_moves_to_where_the_loader_looks(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libq.so",))
    put(tmp_path, f"{LIB}/libq.so", Elf())
    put(tmp_path, "/opt/lib/libq.so", Elf())
    put(tmp_path, "/etc/ld.so.conf", "# comment\ninclude ld.so.conf.d/*.conf\n")
    put(tmp_path, "/etc/ld.so.conf.d/b.txt", "/ignored\n")
    put(tmp_path, "/etc/ld.so.conf.d/a.conf", "/opt/lib/  # mine\nrelative/dir\nhwcap 0 nosegneg\n")
    assert search_path(root, LOADER).configured == ("/opt/lib",)
    last = needed_closure("/bin/prog", root)[-1]
    assert (last.target, last.source) == (f"{LIB}/libq.so", "/opt/lib/libq.so")


def test_configuration_that_includes_itself_ends(tmp_path: Path) -> None:
    root = fake_tree(tmp_path)
    put(tmp_path, "/etc/ld.so.conf", "include /etc/*.conf\n/opt/lib\n")
    put(tmp_path, "/etc/more.conf", "include /etc/*.conf\n")
    assert search_path(root, LOADER).configured == ("/opt/lib",)


def test_fedora_loader_directories(tmp_path: Path) -> None:
    put(tmp_path, LOADER, Elf(payload=b"/lib64/\0/usr/lib64/\0"))
    assert search_path(Root(tmp_path), LOADER).builtin == ("/lib64", "/usr/lib64")


def test_runpath_with_origin_is_for_the_object_alone(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libown.so",), runpath="$ORIGIN/../priv:${ORIGIN}/$LIB:relative")
    put(tmp_path, "/priv/libown.so", Elf(needed=("libdeep.so",)))
    put(tmp_path, "/priv/libdeep.so", Elf())
    with pytest.raises(HostError, match=r"libdeep\.so"):
        targets(root)
    put(tmp_path, f"{LIB}/libdeep.so", Elf())
    assert targets(root)[1:] == ["/priv/libown.so", f"{LIB}/libdeep.so"]


def test_rpath_is_inherited(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libown.so",), rpath="/priv")
    put(tmp_path, "/priv/libown.so", Elf(needed=("libdeep.so",)))
    put(tmp_path, "/priv/libdeep.so", Elf())
    assert targets(root)[1:] == ["/priv/libown.so", "/priv/libdeep.so"]


def test_library_for_another_machine_is_passed_over(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libm.so",))
    put(tmp_path, f"{LIB}/libm.so", Elf(machine=3))
    put(tmp_path, f"/usr{LIB}/libm.so", Elf())
    assert targets(root)[-1] == f"/usr{LIB}/libm.so"


def test_soname_of_a_loaded_library_satisfies_a_need(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, needed=("libreal.so", "libalias.so"))
    put(tmp_path, f"{LIB}/libreal.so", Elf(soname="libalias.so"))
    assert targets(root) == [LOADER, f"{LIB}/libreal.so"]


def test_modules_bring_their_own_needs(tmp_path: Path) -> None:
    root = fake_tree(tmp_path)
    put(tmp_path, "/usr/lib/qemu/accel.so", Elf(needed=("libc.so.6", "libextra.so")))
    put(tmp_path, f"{LIB}/libextra.so", Elf())
    assert targets(root, "/usr/lib/qemu/accel.so")[-2:] == ["/usr/lib/qemu/accel.so", f"{LIB}/libextra.so"]


def test_static_program_needs_nothing(tmp_path: Path) -> None:
    put(tmp_path, "/bin/prog", Elf(elf_type=2))
    assert needed_closure("/bin/prog", Root(tmp_path)) == ()


@pytest.mark.parametrize("what", ["missing", "script", "library"])
def test_errors_name_the_file(tmp_path: Path, what: str) -> None:
    root = fake_tree(tmp_path, needed=("libgone.so",))
    if what == "missing":
        (tmp_path / "bin/prog").unlink()
    elif what == "script":
        put(tmp_path, "/bin/prog", "#!/bin/sh\n" + "x" * 100)
    with pytest.raises(HostError) as caught:
        needed_closure("/bin/prog", root)
    expected = "library libgone.so of /bin/prog" if what == "library" else "/bin/prog (needed by the program itself)"
    assert caught.value.what == expected
    assert caught.value.got


class TestCache:
    """A cache is used while nothing changed, and not a moment longer."""

    MODULE = "/usr/lib/qemu/accel.so"

    @pytest.fixture
    def root(self, tmp_path: Path) -> Root:
        base = tmp_path / "tree"
        root = fake_tree(base, needed=("liba.so", "libc.so.6"))
        put(base, f"{LIB}/liba.so", Elf())
        put(base, self.MODULE, Elf(needed=("libc.so.6",)))
        put(base, "/etc/ld.so.conf", "include ld.so.conf.d/*.conf\n")
        put(base, "/etc/ld.so.conf.d/a.conf", "/opt/lib\n")
        # Kernels before 6.13 take a directory's time from a clock that ticks every few milliseconds.
        os.utime(base / "etc/ld.so.conf.d", ns=(10**18, 10**18))
        return root

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        return tmp_path / "cache/closure.json"

    def get(self, root: Root, cache: Path) -> list[str]:
        return [item.source for item in cached_closure("/bin/prog", (self.MODULE,), cache, root)]

    def poison(self, cache: Path) -> None:
        """Change the cached answer, so that a test can see whether it was used."""
        text = cache.read_text()
        assert "liba.so" in text
        cache.write_text(text.replace(f'"target":"{LIB}/liba.so"', '"target":"/poisoned"'))

    def is_used(self, root: Root, cache: Path) -> bool:
        found = cached_closure("/bin/prog", (self.MODULE,), cache, root)
        return "/poisoned" in [item.target for item in found]

    def test_same_answer_and_private_file(self, root: Root, cache: Path) -> None:
        first = self.get(root, cache)
        assert cache.stat().st_mode & 0o777 == 0o600
        assert cache.parent.stat().st_mode & 0o777 == 0o700
        assert os.listdir(cache.parent) == [cache.name]
        self.poison(cache)
        assert self.is_used(root, cache)
        assert self.get(root, cache) == first

    @pytest.mark.parametrize(
        "change",
        [
            lambda base: put(base, f"{LIB}/liba.so", Elf(payload=b"new")),
            lambda base: put(base, "/bin/prog", Elf(needed=("liba.so",), interpreter=LOADER, payload=b"new")),
            lambda base: put(base, TestCache.MODULE, Elf(needed=("libc.so.6",), payload=b"new")),
            lambda base: put(base, "/opt/lib/liba.so", Elf()),
            lambda base: put(base, "/etc/ld.so.conf.d/b.conf", "/srv/lib\n"),
            lambda base: put(base, "/etc/ld.so.conf", "include ld.so.conf.d/*.conf\n/srv/lib\n"),
            lambda base: os.utime(base / f"{LIB[1:]}/liba.so", ns=(1, 1)),
        ],
    )
    def test_any_change_ends_it(self, root: Root, cache: Path, change: object) -> None:
        self.get(root, cache)
        self.poison(cache)
        change(root.base)  # type: ignore[operator]
        assert not self.is_used(root, cache)

    def test_other_modules_are_another_question(self, root: Root, cache: Path) -> None:
        self.get(root, cache)
        self.poison(cache)
        assert "/poisoned" not in [item.target for item in cached_closure("/bin/prog", (), cache, root)]

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_a_cache_that_others_can_write_is_not_read(self, root: Root, cache: Path, mode: int) -> None:
        self.get(root, cache)
        self.poison(cache)
        cache.chmod(mode)
        assert not self.is_used(root, cache)

    def test_a_symlink_is_not_read(self, root: Root, cache: Path, tmp_path: Path) -> None:
        self.get(root, cache)
        self.poison(cache)
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
        assert not self.is_used(root, cache)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"x" * (5 << 20), b'{"format":1}'])
    def test_a_broken_cache_is_replaced(self, root: Root, cache: Path, content: bytes) -> None:
        cache.parent.mkdir()
        cache.write_bytes(content)
        assert len(self.get(root, cache)) == 4
        assert b'"format":1' in cache.read_bytes()
        assert len(cache.read_bytes()) > 100

    def test_a_cache_that_cannot_be_written_costs_only_time(self, root: Root, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert len(self.get(root, tmp_path / "file/closure.json")) == 4
