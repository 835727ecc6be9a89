"""One host as a tree of files, shared by the tests of every layer of the audit.

Each module ``tests/support/tree_<layer>.py`` describes its part of a host on which everything is right, and one minimal
change per control that makes exactly that control fail. `tests/unit/test_audit_host_mutation.py` finds the modules by
their name and merges them. A module defines:

    CONTROLS        tuple[Control, ...]: the controls it answers for; each needs an entry in MUTATIONS
    COLLECTORS      tuple[Callable[[Root], Facts], ...]: the readers whose facts those controls judge
    PASSING         Files: path -> content
    MUTATIONS       dict[control id, Mutation | Files]; a plain dict of files is short for Mutation(files)
    FACTS           (optional) Facts that no tree can give (answers of the running kernel); they go over collected ones
    NOT_APPLICABLE  (optional) like MUTATIONS: the control becomes not-applicable
    UNKNOWN         (optional) like MUTATIONS: the control becomes unknown
    CONTEXT         (optional) dict[control id, Files]: another good host, for a control that does not apply to the
                    common one; its mutation is a change of that host
    MORE_FAILURES   (optional) tuple[tuple[control id, Mutation | Files], ...]: further ways for it to fail

Content of a path, the parents of which are made as needed:

    "text"          a regular file, 0644, root's
    File(...)       the same with a mode and an owner
    Node(...)       a character device; on disk an empty file, ``stat`` through `tree_root` says what is written here
    Folder(...)     a directory that has to exist, with a mode and an owner
    Link("target")  a symbolic link
    Words("a b")    one line of words that several layers share (/proc/cmdline): the words of all layers are joined. In
                    a mutation ``Words(plus="…", minus="…")`` changes what is there
    Lines("a\nb\n") the same for a file of lines
    None            only in a mutation: the path (and what is below it) is gone

Two layers may give one path only with equal content, or with Words or Lines on both sides.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import tests.support

from casemate.controls.model import Control, Verdict
from casemate.facts.fact import Facts
from casemate.facts.root import Root

KERNEL_RELEASE = "6.12.110"


class File(msgspec.Struct, frozen=True):
    """A regular file with a mode and an owner."""

    text: str | bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


class Node(msgspec.Struct, frozen=True):
    """A character device."""

    mode: int = 0o600
    uid: int = 0
    gid: int = 0


class Folder(msgspec.Struct, frozen=True):
    """A directory."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class Link(msgspec.Struct, frozen=True):
    """A symbolic link."""

    target: str


class Words(msgspec.Struct, frozen=True):
    """Words of one line that layers share. In a tree: ``plus`` only."""

    plus: str = ""
    minus: str = ""


class Lines(msgspec.Struct, frozen=True):
    """Lines of a file that layers share. In a tree: ``plus`` only."""

    plus: str = ""
    minus: str = ""


Content = str | File | Node | Folder | Link | Words | Lines | None
Files = Mapping[str, Content]


class Mutation(msgspec.Struct, frozen=True):
    """A change: of files, of FACTS, which controls fail with it beside the one it stands under, and which get another
    verdict (a control that applies, or can be known, only with or without the change)."""

    files: Mapping[str, Content] = {}
    facts: Facts = {}
    also: tuple[str, ...] = ()
    other: Mapping[str, Verdict] = {}


class Layer(msgspec.Struct, frozen=True):
    """What one tree module says."""

    name: str
    controls: tuple[Control, ...]
    collectors: tuple[Callable[[Root], Facts], ...]
    passing: Files
    facts: Facts
    mutations: dict[str, Mutation]
    more_failures: tuple[tuple[str, Mutation], ...]
    context: dict[str, Mutation]
    not_applicable: dict[str, Mutation]
    unknown: dict[str, Mutation]


BASE: dict[str, Content] = {
    "/proc/sys/kernel/osrelease": f"{KERNEL_RELEASE}\n",
    "/proc/sys/kernel/ostype": "Linux\n",
    "/proc/version": f"Linux version {KERNEL_RELEASE} (builder@example) (gcc 14.2.0) #1 SMP PREEMPT_DYNAMIC\n",
    "/proc/cmdline": Words("BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 ro"),
    "/etc/group": Lines("root:x:0:\nkvm:x:104:\n"),
    "/etc/passwd": Lines("root:x:0:0:root:/root:/bin/bash\n"),
}
"""What more than one layer reads; a layer adds Words or Lines to it."""


def layers() -> tuple[Layer, ...]:
    """All tree modules there are."""
    names = [info.name for info in pkgutil.iter_modules(tests.support.__path__) if info.name.startswith("tree_")]
    return tuple(_layer(name) for name in sorted(names))


def merged(parts: tuple[Files, ...]) -> dict[str, Content]:
    """One tree out of several.

    Raises:
        ValueError: two parts say different things about one path.
    """
    found: dict[str, Content] = {}
    for part in parts:
        for path, content in part.items():
            if content is None or not path.startswith("/"):
                raise ValueError(f"{path}: a tree holds absolute paths with content")
            before = found.get(path)
            if isinstance(before, Words) and isinstance(content, Words):
                found[path] = Words(f"{before.plus} {content.plus}")
            elif isinstance(before, Lines) and isinstance(content, Lines):
                found[path] = Lines(before.plus + content.plus)
            elif before is not None and before != content:
                raise ValueError(f"{path}: two layers say different things: {before!r} and {content!r}")
            else:
                found[path] = content
    return found


def write_tree(base: Path, files: Files) -> None:
    """Write ``files`` below ``base``; None removes a path, Words and Lines with ``minus`` change one."""
    for path, content in files.items():
        _write(base / path.lstrip("/"), content)


@contextmanager
def mutated(base: Path, tree: Files, change: Files) -> Iterator[None]:
    """The tree below ``base`` with ``change``, put back afterwards.

    Raises:
        ValueError: a Words or Lines removes what is not there.
    """
    after = {path: _changed(tree.get(path), content, path) for path, content in change.items()}
    made = [_first_missing(base / path.lstrip("/")) for path in change]
    try:
        write_tree(base, after)
        yield
    finally:
        for target in (*(base / path.lstrip("/") for path in change), *made):
            _remove(target)
        # A removed directory takes what was below it along.
        write_tree(base, {p: c for p, c in tree.items() if any(p == q or p.startswith(f"{q}/") for q in change)})


class TreeRoot(Root):
    """A Root whose ``stat`` gives the modes, owners and kinds of the description: a test need not be root for them."""

    def __init__(self, base: Path, files: Files) -> None:
        super().__init__(base)
        self._files = files

    def stat(self, path: str | Path, *, follow: bool = True) -> os.stat_result:
        """The real stat with mode, uid and gid of the description."""
        real = super().stat(path, follow=follow)
        kind = stat.S_IFMT(real.st_mode)
        if kind == stat.S_IFLNK:
            return real
        mode, uid, gid = 0o755 if kind == stat.S_IFDIR else 0o644, 0, 0
        said = self._files.get(self.real_path(path))
        if isinstance(said, File | Node | Folder):
            mode, uid, gid = said.mode, said.uid, said.gid
        if isinstance(said, Node):
            kind = stat.S_IFCHR
        numbers = list(real)
        numbers[0], numbers[4], numbers[5] = kind | mode, uid, gid
        return os.stat_result(numbers)


def tree_root(base: Path, tree: Files, change: Files | None = None) -> Root:
    """The tree below ``base`` as readers of facts see it."""
    return TreeRoot(base, {**tree, **{p: c for p, c in (change or {}).items() if not isinstance(c, Words | Lines)}})


def _layer(name: str) -> Layer:
    module = importlib.import_module(f"tests.support.{name}")
    return Layer(
        name=name,
        controls=module.CONTROLS,
        collectors=module.COLLECTORS,
        passing=module.PASSING,
        facts=getattr(module, "FACTS", {}),
        mutations=_mutations(module.MUTATIONS),
        more_failures=tuple((i, _mutation(m)) for i, m in getattr(module, "MORE_FAILURES", ())),
        context=_mutations(getattr(module, "CONTEXT", {})),
        not_applicable=_mutations(getattr(module, "NOT_APPLICABLE", {})),
        unknown=_mutations(getattr(module, "UNKNOWN", {})),
    )


def _mutations(said: Mapping[str, Mutation | Files]) -> dict[str, Mutation]:
    return {control: _mutation(change) for control, change in said.items()}


def _mutation(change: Mutation | Files) -> Mutation:
    return change if isinstance(change, Mutation) else Mutation(dict(change))


def _changed(before: Content, change: Content, path: str) -> Content:
    """The content after a mutation; only Words and Lines depend on what was there."""
    if isinstance(change, Words):
        words = before.plus.split() if isinstance(before, Words) else []
        return Words(" ".join([*_without(words, change.minus.split(), path), *change.plus.split()]))
    if isinstance(change, Lines):
        lines = before.plus.splitlines() if isinstance(before, Lines) else []
        kept = [*_without(lines, change.minus.splitlines(), path), *change.plus.splitlines()]
        return Lines("".join(f"{line}\n" for line in kept))
    return change


def _without(there: list[str], gone: list[str], path: str) -> list[str]:
    missing = [word for word in gone if word not in there]
    if missing:
        raise ValueError(f"{path}: cannot take away {missing}, it is not there")
    return [word for word in there if word not in gone]


def _write(target: Path, content: Content) -> None:
    _remove(target)
    if content is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Folder):
        target.mkdir()
    elif isinstance(content, Link):
        target.symlink_to(content.target)
    else:
        target.write_bytes(_bytes(content))


def _bytes(content: str | File | Node | Words | Lines) -> bytes:
    if isinstance(content, Node):
        return b""
    if isinstance(content, File):
        return content.text if isinstance(content.text, bytes) else content.text.encode()
    if isinstance(content, Words):
        return f"{' '.join(content.plus.split())}\n".encode()
    return (content.plus if isinstance(content, Lines) else content).encode()


def _first_missing(target: Path) -> Path:
    """The topmost part of ``target`` that does not exist yet (``target`` itself when its directory is there)."""
    while not target.parent.exists():
        target = target.parent
    return target


def _remove(target: Path) -> None:
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
