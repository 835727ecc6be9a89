"""systemd-stub: what a unified kernel image (UKI) measures into PCR 11, and what it hands to its kernel.

Which sections count, in which order, follows systemd's src/fundamental/uki.h of each version; the stub says its
version in .sdmagic. Each section gives two events: its name with a NUL, then its contents. From the embedded sections
the stub makes archives that follow the initrd (src/boot/cpio.c), and the kernel measures all of it together.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import InputError
from casemate.measure.pe import Pe

OLDEST: Final = 252
_MAGIC: Final = re.compile(rb"#### LoaderInfo: systemd-stub (\d{3})[^#]{0,64} ####")
_MEASURED: Final = (
    # section, measured since
    (".linux", 0),
    (".osrel", 0),
    (".cmdline", 0),
    (".initrd", 0),
    (".ucode", 256),
    (".splash", 0),
    (".dtb", 0),
    (".uname", 253),
    (".sbat", 254),
    (".pcrpkey", 0),
)
_ARCHIVED: Final = (
    # section, file, since
    (".pcrsig", "tpm2-pcr-signature.json", 0),
    (".pcrpkey", "tpm2-pcr-public-key.pem", 0),
    (".osrel", "os-release", 257),
)
_CHOSEN: Final = (".profile", ".dtbauto", ".hwids", ".efifw")
_TRAILER: Final = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8 + b"TRAILER!!!" + bytes(4)


def stub_version(image: Pe) -> int | None:
    """systemd's version; None when it is no UKI of systemd-stub."""
    magic = image.section(".sdmagic")
    found = _MAGIC.search(magic) if magic is not None else None
    return int(found[1]) if found and image.section(".linux") is not None else None


def unpredictable(image: Pe) -> str:
    """Why what this UKI measures cannot be computed; empty when it can."""
    version = stub_version(image) or 0
    if version < OLDEST:
        return f"systemd-stub {version} is older than {OLDEST}"
    chosen = [name for name in _CHOSEN if image.section(name) is not None]
    if chosen:
        return f"the stub chooses among its {', '.join(chosen)} sections when it runs"
    if (command_line(image) or " ")[0].isspace():
        return "its command line is empty or begins with a space: the stub may take the boot entry's"
    return ""


def loads_kernel_by_firmware(image: Pe) -> bool:
    """Whether the stub has the firmware load its kernel, which measures it into PCR 4: until version 258, which starts
    it directly."""
    return (stub_version(image) or 0) < 258


def program(image: Pe) -> bytes:
    """The stub's own code and constants."""
    return b"".join(image.section(name) or b"" for name in (".text", ".rodata", ".data", ".sdata"))


def asks_firmware_first(image: Pe) -> bool:
    """Whether, under Secure Boot, the stub overrides the firmware's check of the kernel only after it failed."""
    return (stub_version(image) or 0) < 254


def measured_sections(image: Pe) -> list[tuple[str, bytes]]:
    """(name, contents) in the order in which they are measured."""
    version = stub_version(image) or 0
    found = []
    for name, since in _MEASURED:
        contents = image.section(name) if version >= since else None
        if contents is not None:
            found.append((name, contents))
    return found


def command_line(image: Pe) -> str | None:
    """The command line that the kernel gets: control characters are spaces, those at the end go."""
    section = image.section(".cmdline")
    if section is None:
        return None
    text = section.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(" " if character <= "\x1f" else character for character in text).rstrip(" ")


def initrd(image: Pe) -> bytes:
    """What the kernel gets as its initrd: the section, and the archives that follow it.

    Raises:
        InputError: a section is too large for an archive.
    """
    version = stub_version(image) or 0
    parts = [image.section(name) or b"" for name in (".ucode", ".initrd")]
    for section, file, since in _ARCHIVED:
        contents = image.section(section) if version >= since else None
        if contents:
            parts.append(_archive(file, contents))
    used = [part for part in parts if part]
    if len(used) == 1:
        return used[0]
    return b"".join(part + bytes(-len(part) % 4) for part in used)


def _archive(file: str, contents: bytes) -> bytes:
    """One directory with one file, as the stub's own writer makes it (its trailer is spelt with upper case)."""
    if len(contents) > 0xFFFFFFFF:
        raise InputError(f"the UKI's section for {file}", got=f"{len(contents)} bytes")
    directory = _entry(".extra", 1, 0o040555, b"")
    return directory + _entry(f".extra/{file}", 2, 0o100444, contents) + _TRAILER


def _entry(name: str, inode: int, mode: int, contents: bytes) -> bytes:
    fields = (inode, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + contents + bytes(-len(contents) % 4)
