"""GRUB: what its commands and the files that it reads add to PCR 8 and 9 (grub-core/commands/tpm.c), followed by
running its configuration: the embedded one, then grub.cfg on the EFI system partition.

Each command is measured as its words with one space between; each file by its contents; `linux` once more by the
command line that the kernel gets. Commands whose outcome cannot be told (searching for a file system that is not
read here, loops, what the user types) end the prediction: what follows is not guessed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from casemate.measure import boot
from casemate.measure.fat import Fat
from casemate.measure.gpt import Read
from casemate.measure.grub_script import Command, If, NotUnderstoodError, Script, Word, parse_script
from casemate.measure.labels import FileSystem
from casemate.measure.linux import measures_for_td
from casemate.measure.pe import Pe
from casemate.measure.registers import Steps
from casemate.measure.shim import Vendor

MAX_COMMANDS: Final = 10_000
MAX_DEPTH: Final = 40
_MAX_WORDS: Final = 64
_VERSION: Final = re.compile(rb"^grub\.debian,\d+,Debian,grub2,(\d+\.\d+)[^,\n]*,", re.MULTILINE)
_MEMDISK, _CONFIG, _PREFIX = 1, 2, 3
_SILENT: Final = frozenset({"export", "echo", "true", "setparams"})
_TERMINALS: Final = frozenset({"terminal", "terminal_input", "terminal_output"})
_PLAIN_TERMINALS: Final = frozenset({"console", "serial"})
_MODULES: Final = "x86_64-efi"
_AWKWARD: Final = frozenset("\\'\" \t")


class Dialect(msgspec.Struct, frozen=True):
    """How a version behaves. ``config_reads``: how often it opens grub.cfg. ``checked``, ``loaded``: how often the
    kernel is measured with Secure Boot (by shim) and without (by the firmware). ``options``: what ends the kernel's
    load options; None when it does not start the kernel's EFI stub, which then measures nothing. ``for_td``: whether it
    measures in a trust domain that has no TPM: 2.12 knows the protocol, and looks for a TPM before it uses it."""

    config_reads: int
    checked: int
    loaded: int
    options: str | None
    for_td: bool


DIALECTS: Final = {
    "2.06": Dialect(1, 2, 0, None, False),
    "2.12": Dialect(2, 1, 0, "", False),
    "2.14": Dialect(2, 1, 1, "\0", True),
}
"""Debian's, each compared with real boots; in a trust domain by their source (grub_tpm_present) and what their tpm
module calls."""


class Place(msgspec.Struct, frozen=True):
    """Where GRUB was started from, and what it finds. ``device``: its name of the EFI system partition, ``hd0,gpt1``.
    ``files``: of other partitions, by GRUB's full path. ``systems``: the file systems of the disk, in order."""

    volume: Fat
    device: str
    files: Mapping[str, bytes]
    systems: tuple[FileSystem, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """A menu entry: its title and what it does."""

    title: str
    body: str


class Runner:
    """Runs a configuration.

    Args:
        is_td: whether the registers of a trust domain take the place of a TPM.
    """

    def __init__(self, steps: Steps, dialect: Dialect, vendor: Vendor, place: Place, *, is_td: bool = False) -> None:
        self._steps = steps
        self._own = Steps(steps.banks) if is_td and not dialect.for_td else steps
        self._is_td = is_td
        self._dialect = dialect
        self._vendor = vendor
        self._where = place
        self._count = self._depth = 0
        self._functions: dict[str, str] = {}
        self.variables: dict[str, str] = {"root": place.device, "cmdpath": f"({place.device})/EFI/BOOT"}
        self.entries: list[Entry] = []
        self.kernel: tuple[bytes, str] | None = None
        self.initrds: list[bytes] = []
        self.booted = False

    def run(self, script: Script) -> bool:
        """Run commands until one boots; returns the status of the last one."""
        status = True
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstoodError("configurations that call each other too deeply")
        for statement in script:
            if self.booted:
                break
            status = self._if(statement) if isinstance(statement, If) else self._command(statement)
        self._depth -= 1
        return status

    def _if(self, statement: If) -> bool:
        for condition, body in statement.branches:
            if self.run(condition):
                return self.run(body)
        return self.run(statement.otherwise)

    def _command(self, command: Command) -> bool:
        self._count += 1
        if self._count > MAX_COMMANDS:
            raise NotUnderstoodError("too many commands")
        words = [text for word in command.words for text in self._expand(word)]
        if not words:
            return True
        name, rest = words[0], words[1:]
        if name == "function" and command.block is not None and rest:
            self._functions[rest[0]] = command.block[1:-1]
            return True
        if name in self._functions:
            raise NotUnderstoodError(f"a call of the function {name}")
        self._measured(" ".join([*words, *([command.block] if command.block is not None else [])]))
        if command.block is not None:
            if name != "menuentry" or not rest:
                raise NotUnderstoodError(f"the command {name}")
            self.entries.append(Entry(rest[0], command.block[1:-1]))
            return True
        return self._does(name, rest)

    def _does(self, name: str, rest: list[str]) -> bool:
        if name == "set" and all("=" in item for item in rest):
            if any(item.startswith("prefix=") for item in rest):
                raise NotUnderstoodError("another prefix, from which lists of modules are read")
            self.variables.update({item.partition("=")[0]: item.partition("=")[2] for item in rest})
        elif name in ("[", "test"):
            return self._test(rest[:-1] if name == "[" else rest)
        elif name == "false":
            return False
        elif name in ("source", "configfile", ".") and len(rest) == 1:
            return self.run(parse_script(_text(self._read(rest[0]))))
        elif name == "linux" and rest:
            self._linux(rest)
        elif name == "initrd" and rest:
            self.initrds += [self._read(item) for item in rest]
        elif name == "boot" and not rest:
            self.booted = True
        elif name == "insmod":
            self._insmod(rest)
        elif name == "search":
            return self._search(rest)
        elif name not in _SILENT and not (name in _TERMINALS and _PLAIN_TERMINALS.issuperset(rest)):
            raise NotUnderstoodError(f"the command {name}")
        return True

    def _search(self, rest: list[str]) -> bool:
        """Sets a variable to the first file system of this name. One whose name is not known might be meant, too."""
        variable = next((item[6:] for item in rest if item.startswith("--set=")), "")
        kinds = [item for item in rest if item in ("--label", "-l", "--fs-uuid", "-u")]
        others = [item for item in rest if item not in kinds and item not in ("--no-floppy", f"--set={variable}")]
        if len(kinds) != 1 or len(others) != 1 or others[0].startswith("-") or not variable:
            raise NotUnderstoodError(f"the search {' '.join(rest)}")
        for item in self._where.systems:
            name = item.label if kinds[0] in ("--label", "-l") else item.identity
            if name is None:
                raise NotUnderstoodError(f"the file system of {item.device}, which a search comes to")
            if name == others[0] or (kinds[0] in ("--fs-uuid", "-u") and name.lower() == others[0].lower()):
                self.variables[variable] = item.device
                return True
        raise NotUnderstoodError(f"a file system {others[0]!r} on another disk, or on none")

    def _insmod(self, rest: list[str]) -> None:
        """A module that is built in needs no file. Others come from below the prefix, where there are none: looked at
        before anything runs."""
        if any(not module.replace("_", "").isalnum() for module in rest):
            raise NotUnderstoodError(f"the module {' '.join(rest)}")

    def _measured(self, text: str) -> None:
        self._own.data(8, f"grub_cmd: {text}"[:120], text.encode())

    def _expand(self, word: Word) -> list[str]:
        """The words that one gives: an unquoted variable splits at spaces, and is no word when it is empty."""
        found, is_there = [""], False
        for part in word:
            text = part.text if part.kind == "text" else self.variables.get(part.text, "")
            if part.kind == "variable" and not part.quoted:
                pieces = text.split()
                if not pieces:
                    continue
                found[-1] += pieces[0]
                found += pieces[1:]
            else:
                found[-1] += text
            is_there = True
        return found if is_there else []

    def _test(self, words: list[str]) -> bool:
        """test(1) as GRUB has it: -a and -o from left to right, without precedence."""
        if len(words) > _MAX_WORDS:
            raise NotUnderstoodError("a test of that many words")
        for joint in ("-o", "-a"):
            if joint in words:
                at = words.index(joint)
                left, right = self._test(words[:at]), self._test(words[at + 1 :])
                return left or right if joint == "-o" else left and right
        if words[:1] == ["!"]:
            return not self._test(words[1:])
        if len(words) == 1:
            return bool(words[0])
        if len(words) == 2 and words[0] in ("-z", "-n"):
            return (not words[1]) == (words[0] == "-z")
        if len(words) == 2 and words[0] in ("-e", "-f", "-d", "-s"):
            return self._exists(words[1], words[0])
        if len(words) == 3 and words[1] in ("=", "==", "!="):
            return (words[0] == words[2]) == (words[1] != "!=")
        raise NotUnderstoodError(f"the test {' '.join(words)}")

    def _exists(self, path: str, kind: str) -> bool:
        where, inside = self._place(path)
        if where != self._where.device:
            raise NotUnderstoodError(f"whether {path} is there")
        data = self._where.volume.file(inside)
        is_directory = data is None and self._where.volume.names(inside) is not None
        if kind == "-s":
            return bool(data)
        return is_directory if kind == "-d" else data is not None or (kind == "-e" and is_directory)

    def _place(self, path: str) -> tuple[str, str]:
        """(device, path on it)."""
        if path.startswith("("):
            device, found, inside = path[1:].partition(")")
            if found:
                return device, inside
        return self.variables.get("root", ""), path

    def _find(self, path: str) -> bytes | None:
        where, inside = self._place(path)
        given = self._where.files.get(f"({where}){inside}")
        return given if given is not None or where != self._where.device else self._where.volume.file(inside)

    def _read(self, path: str, times: int = 1) -> bytes:
        data = self._find(path)
        if data is None:
            where, inside = self._place(path)
            raise NotUnderstoodError(f"the file ({where}){inside}, which is not at hand (--grub-file PATH=FILE)")
        for _ in range(times):
            self._own.data(9, path, data)
        return data

    def config(self, path: str) -> bool:
        """The configuration that GRUB looks for by itself."""
        return self.run(parse_script(_text(self._read(path, self._dialect.config_reads))))

    def _linux(self, rest: list[str]) -> None:
        if any(character in _AWKWARD for item in rest for character in item):
            raise NotUnderstoodError("a command line with quotes or backslashes")
        data = self._read(rest[0])
        self._vendor.check(data, rest[0], self._dialect.checked, self._dialect.loaded)
        text = " ".join(rest)
        self._own.data(8, f"kernel_cmdline: {text}"[:120], text.encode())
        self.kernel, self.initrds = (data, text), []

    def start(self) -> None:
        """The entry that is chosen, unless the configuration itself has booted; then the kernel."""
        if not self.booted:
            entry = self._chosen()
            self._measured(f"setparams {entry.title}")
            self.run(parse_script(entry.body))
        if self.kernel is None:
            raise NotUnderstoodError("a configuration that boots no kernel")
        data, text = self.kernel
        if self._dialect.options is not None:
            if len(self.initrds) > 1:
                raise NotUnderstoodError("several initrds, which the kernel measures as one")
            options = f"BOOT_IMAGE={text}{self._dialect.options}".encode("utf-16-le")
            if self._is_td and not measures_for_td(data):
                return
            boot.measure_linux(self._steps, data, options, self.initrds[0] if self.initrds else None)

    def _chosen(self) -> Entry:
        if not self.entries or self.variables.get("timeout", "") in ("", "-1"):
            raise NotUnderstoodError("a menu that waits for somebody")
        default = self.variables.get("default", "0")
        if default.isdigit() and int(default) < len(self.entries):
            return self.entries[int(default)]
        found = [entry for entry in self.entries if entry.title == default]
        if not found:
            raise NotUnderstoodError(f"the default entry {default}")
        return found[0]


def run_grub(steps: Steps, image: Pe, vendor: Vendor, place: Place, *, is_td: bool = False) -> None:
    """Everything that GRUB measures, from its start to the kernel's.

    Raises:
        NotUnderstoodError: from here on it cannot be followed.
    """
    version = _version(image)
    dialect = DIALECTS.get(version)
    if dialect is None:
        raise NotUnderstoodError(f"GRUB {version or 'of an unknown make'}; known are Debian's {', '.join(DIALECTS)}")
    parts = _parts(image)
    prefix = parts.get(_PREFIX, b"").split(b"\0")[0].decode("latin-1")
    if not prefix.startswith("/"):
        raise NotUnderstoodError(f"the prefix {prefix!r}")
    if place.volume.names(f"{prefix}/{_MODULES}") is not None:
        raise NotUnderstoodError(f"{prefix}/{_MODULES}, from which lists and modules are read")
    runner = Runner(steps, dialect, vendor, place, is_td=is_td)
    runner.variables["prefix"] = f"({place.device}){prefix}"
    embedded = parts.get(_CONFIG, b"").rstrip(b"\0\n")
    if not embedded:
        runner.config(f"({place.device}){prefix}/grub.cfg")
    elif embedded == b"normal (memdisk)/grub.cfg":
        text = Fat(_reader(parts.get(_MEMDISK, b""))).file("grub.cfg")
        runner.run(parse_script(_text(text or b"")))
    else:
        raise NotUnderstoodError("its embedded configuration")
    runner.start()


def _version(image: Pe) -> str:
    found = _VERSION.search(image.section(".sbat") or b"")
    return found[1].decode() if found else ""


def _parts(image: Pe) -> dict[int, bytes]:
    """What is built in, by kind (include/grub/kernel.h): "mimg", padding (4), offset (8), size (8); type, size each."""
    section = image.section("mods") or b""
    if section[:4] != b"mimg" or len(section) < 24:
        raise NotUnderstoodError("its built-in modules")
    at, size = struct.unpack_from("<QQ", section, 8)
    found: dict[int, bytes] = {}
    while at + 8 <= min(size, len(section)):
        kind, length = struct.unpack_from("<II", section, at)
        if length < 8 or at + length > len(section):
            break
        found.setdefault(kind, section[at + 8 : at + length])
        at += length
    return found


def _reader(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise NotUnderstoodError("a configuration that is no text") from None
