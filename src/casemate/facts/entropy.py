"""The health of the host's random numbers, which every guest's virtio-rng is fed from (``ent.host-*``).

Since Linux 5.18 (and 5.10.119, 5.15.44, which took the change over) /proc/sys/kernel/random/entropy_avail no longer
counts what is left: it says how much of the 256 bits that start the generator has come in, and stays at 256 for good.
Older kernels have a poolsize of 4096; there the number rises and falls with readers and says nothing about health, and
only a live host can be asked, by getrandom(2) without waiting.
Source: drivers/char/random.c, Documentation/admin-guide/sysctl/kernel.rst.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.sysfiles import line

_AVAILABLE: Final = "/proc/sys/kernel/random/entropy_avail"
_POOL_SIZE: Final = "/proc/sys/kernel/random/poolsize"
_POOL_BITS: Final = 256
_HWRNG: Final = "/sys/class/misc/hw_random"
_SEED: Final = "/var/lib/systemd/random-seed"
_SEED_MIN_BYTES: Final = 32
_BIN: Final = ("/usr/sbin", "/usr/bin")
_DAEMONS: Final = ("haveged", "pollinate", "jitterentropy-rngd")


def collect_entropy(root: Root) -> Facts:
    """All ``ent.host-*`` facts; reads files, and on a live host asks getrandom(2) once."""
    return {
        "ent.host-ready": _ready(root),
        "ent.host-sources": _sources(root),
        "ent.host-seed": _seed(root),
        "ent.host-daemons": _daemons(root),
    }


def _ready(root: Root) -> Fact:
    """Whether the kernel's generator has been started with 256 bits."""
    if root.is_live:
        try:
            os.getrandom(1, os.GRND_NONBLOCK)
        except BlockingIOError:
            return Known(False, "getrandom(GRND_NONBLOCK): EAGAIN")
        except OSError as error:
            return Unknown(f"getrandom: {errno.errorcode.get(error.errno or 0, 'failed')}")
        return Known(True, "getrandom(GRND_NONBLOCK)")
    size, text = line(root, _POOL_SIZE), line(root, _AVAILABLE)
    if isinstance(size, Unknown):
        return size
    if isinstance(text, Unknown):
        return text
    if size != str(_POOL_BITS):
        return Unknown(f"{_POOL_SIZE}: {size[:16]}: in this kernel no file says whether the generator is ready")
    if not text.isdigit() or len(text) > 6:
        return Unknown(f"{_AVAILABLE}: no number")
    return Known(int(text) >= _POOL_BITS, f"{_AVAILABLE}: {text}")


def _sources(root: Root) -> Fact:
    """What feeds the generator beside interrupts and jitter: ``rdseed``, ``rdrand``, ``hwrng NAME``."""
    found, sources = [], []
    try:
        flags = re.search(r"^flags\s*:(.*)$", root.read_text("/proc/cpuinfo", 1 << 22), re.MULTILINE)
    except OSError as error:
        return Unknown(f"/proc/cpuinfo: {error.strerror or error}")
    if flags is not None:
        words = flags[1].split()
        found += [name for name in ("rdseed", "rdrand") if name in words]
        sources.append("/proc/cpuinfo")
    try:
        current = root.read_text(f"{_HWRNG}/rng_current", 256).strip()
        sources.append(f"{_HWRNG}/rng_current")
        if current and current != "none":
            found.append(f"hwrng {current}")
    except FileNotFoundError:
        pass
    except OSError as error:
        return Unknown(f"{_HWRNG}/rng_current: {error.strerror or error}")
    if not sources:
        return Unknown("/proc/cpuinfo has no flags and there is no hw_random")
    return Known(tuple(found), ", ".join(sources))


def _seed(root: Root) -> Fact:
    """The seed that one boot leaves for the next: ``kept``, ``none``, or ``readable`` by others than root."""
    try:
        status = root.stat(_SEED)
    except FileNotFoundError:
        return Known("none", _SEED)
    except OSError as error:
        return Unknown(f"{_SEED}: {error.strerror or error}")
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o077:
        return Known("readable", f"{_SEED}: mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}")
    if status.st_size < _SEED_MIN_BYTES:
        return Known("none", f"{_SEED}: {status.st_size} bytes")
    return Known("kept", _SEED)


def _daemons(root: Root) -> Fact:
    """User space entropy daemons that are installed."""
    try:
        if not root.exists(_BIN[1]):
            return Unknown(f"{_BIN[1]} does not exist here, so a missing program says nothing")
        found = [f"{place}/{name}" for place in _BIN for name in _DAEMONS if root.exists(f"{place}/{name}")]
    except OSError as error:
        return Unknown(f"{_BIN[1]}: {error.strerror or error}")
    return Known(tuple(found), ", ".join(_BIN))
