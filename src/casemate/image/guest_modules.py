"""Which kernel modules the built-in guest needs, and in which order they load: the module files' own ``depends``
fields, no depmod.

A kernel package holds each feature as a built-in (named in ``modules.builtin``) or as ``NAME.ko`` with the section
``.modinfo``::

    license=GPL NUL depends=virtio,virtio_ring NUL name=virtio_blk NUL ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

from casemate.errors import HostError

MAX_MODULE_BYTES = 16 << 20

REQUIRED: tuple[tuple[str, str], ...] = (
    ("virtio_mmio", "virtio devices of microvm"),
    ("virtio_pci", "virtio devices of q35"),
    ("virtio_blk", "disks"),
    ("virtio_net", "the network card"),
    ("virtio_rng", "entropy"),
    ("virtio_console", "the console hvc0"),
    ("evdev", "lets acpid see the power button"),
    ("button", "the ACPI power button"),
)
OPTIONAL: tuple[tuple[str, str], ...] = (("pvpanic_mmio", "tells the host that the guest panicked"),)
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


def module_name(path: str) -> str | None:
    """Return the canonical name (``-`` becomes ``_``) of a module file, ``None`` when ``path`` is none."""
    base = PurePosixPath(path).name
    for suffix in _SUFFIXES:
        if base.endswith(suffix):
            return base.removesuffix(suffix).replace("-", "_")
    return None


def decompress_module(path: str, data: bytes) -> bytes:
    """Return the ELF bytes of a module file; Debian 13 ships them as xz.

    Raises:
        HostError: a compression that Python's library lacks, damage, or more than 16 MiB.
    """
    import lzma  # here: a launch reads this module too, for the names above
    import zlib

    try:
        if path.endswith(".xz"):
            plain = lzma.LZMADecompressor(memlimit=256 << 20).decompress(data, MAX_MODULE_BYTES + 1)
        elif path.endswith(".gz"):
            plain = zlib.decompressobj(wbits=31).decompress(data, MAX_MODULE_BYTES + 1)
        elif path.endswith(".zst"):
            raise HostError(f"kernel module {path}", got="zstd compression", expected=".ko, .ko.xz or .ko.gz")
        else:
            plain = data
    except (lzma.LZMAError, zlib.error) as error:
        raise HostError(f"kernel module {path}", got=str(error)) from error
    if len(plain) > MAX_MODULE_BYTES:
        raise HostError(f"kernel module {path}", got="more than 16 MiB")
    if plain[:4] != b"\x7fELF":
        raise HostError(f"kernel module {path}", got=repr(plain[:4]), expected="an ELF file")
    return plain


def module_depends(elf: bytes) -> tuple[str, ...]:
    """Return the names in the module's ``depends`` field, canonical; empty when it has none.

    The field is found by its text: package bytes are signed, and a wrong order shows at once when the module does not
    load.
    """
    start = elf.find(b"\0depends=")
    if start < 0:
        return ()
    end = elf.find(b"\0", start + 1)
    names = elf[start + len(b"\0depends=") : end].decode("ascii", "replace")
    return tuple(name.replace("-", "_") for name in names.split(",") if name)


def load_order(
    available: Mapping[str, str],
    builtin: frozenset[str],
    read_elf: Callable[[str], bytes],
    required: Sequence[tuple[str, str]] = REQUIRED,
    optional: Sequence[tuple[str, str]] = OPTIONAL,
) -> tuple[tuple[str, bytes], ...]:
    """Return ``(name, elf)`` of every module to load, dependencies first.

    Args:
        available: module name to the path ``read_elf`` takes.
        builtin: names compiled into the kernel; they need no file.
        read_elf: path to decompressed bytes.

    Raises:
        HostError: a required feature is neither built in nor a module, or a dependency is missing or circular.
    """
    missing = [f"{name} ({why})" for name, why in required if name not in builtin and name not in available]
    if missing:
        raise HostError(
            f"the kernel has no {', '.join(missing)}", next_step="sudo apt-get install linux-image-cloud-amd64"
        )
    ordered: dict[str, bytes] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered or name in builtin:
            return
        if name in path or name not in available:
            raise HostError(f"kernel module {' -> '.join((*path, name))}", got="a circular or missing dependency")
        elf = read_elf(available[name])
        for needed in module_depends(elf):
            visit(needed, (*path, name))
        ordered[name] = elf

    for name, _why in (*required, *optional):
        if name in available or name in builtin:
            visit(name, ())
    return tuple(ordered.items())
