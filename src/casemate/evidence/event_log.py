"""Firmware event logs (TCG PC Client Platform Firmware Profile), bytes to events and to the PCRs they replay to.

Two forms: SHA-1 only (TCG 1.2), and crypto-agile, whose first event announces the digests ("Spec ID Event03"). In a
CCEL of TDX the register n+1 of an event is RTMR n.

A log proves nothing by itself: only what a signed quote repeats is true, and of an event only its digests; the text
beside them counts where its own digest is the event's (`Event.is_data_measured`).
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.octets import Octets
from casemate.evidence.tpm import DIGEST_BYTES, HASHES

LOG_HASHES: Final = {**HASHES, 0x0012: "sm3", 0x0027: "sha3_256", 0x0028: "sha3_384", 0x0029: "sha3_512"}
"""By TCG's numbers, as hashlib has their names: a log may have digests that no quote here is over."""
_SIZES: Final = {**DIGEST_BYTES, "sm3": 32, "sha3_256": 32, "sha3_384": 48, "sha3_512": 64}
MAX_BYTES: Final = 16 << 20
MAX_EVENTS: Final = 100_000
MAX_DATA: Final = 8 << 20
EV_NO_ACTION: Final = 3
EV_SEPARATOR: Final = 4
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0
_OLD: Final = struct.Struct("<II20sI")
_MOST_HEAD: Final = 256
_SPEC_ID: Final = b"Spec ID Event03\0"
_FIRST_REGISTERS: Final = (bytes(4), b"\x01\0\0\0")
_FIRST_EVENTS: Final = (b"\x03\0\0\0", b"\x08\0\0\0", b"\x01\0\0\0")
_EFI_GLOBAL_VARIABLE: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_LOCALITY: Final = b"StartupLocality\0"


def _hash_of(name: str) -> Callable[[bytes], hashlib._Hash]:
    """The hash as hashlib has it.

    Raises:
        InputError: this machine's OpenSSL does not have it (SM3).
    """
    made = getattr(hashlib, name, None)
    if made is not None:
        return made  # type: ignore[no-any-return]
    if name not in hashlib.algorithms_available:
        raise InputError(f"this machine has no {name}")
    return functools.partial(hashlib.new, name)


class Event(msgspec.Struct, frozen=True):
    """One event. ``register``: PCR, or measurement register. ``digests``: by hash name."""

    register: int
    kind: int
    digests: dict[str, bytes]
    data: bytes

    def is_data_measured(self) -> bool:
        """Whether the data beside the digests are what was measured: in every bank, for a log may be made to agree in
        one that no quote covers."""
        return bool(self.digests) and all(
            _hash_of(name)(self.data).digest() == digest for name, digest in self.digests.items()
        )


class EventLog(msgspec.Struct, frozen=True):
    """``banks``: the hashes that every event has. ``locality``: that PCR 0 started at."""

    events: tuple[Event, ...]
    banks: tuple[str, ...]
    locality: int

    @property
    def is_ccel(self) -> bool:
        """Whether it is of a TD: no event of its register 0, and the announcement in register 1 (RTMR 0)."""
        return self.events[0].register == 1


def looks_like_event_log(data: bytes) -> bool:
    """Whether it begins like a log: in the first register (the second in a CCEL) an event without action, or of a
    firmware's version or contents."""
    return len(data) > 32 and data[:4] in _FIRST_REGISTERS and data[4:8] in _FIRST_EVENTS


def parse_event_log(data: bytes) -> EventLog:
    """All events of a log.

    Raises:
        InputError: it is cut off, or contradicts itself.
    """
    if len(data) > MAX_BYTES:
        raise InputError("event log is too long", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES}")
    first, offset = _old_event(data, 0)
    banks = _banks(first.data) if first.kind == EV_NO_ACTION and first.data.startswith(_SPEC_ID) else None
    events = [first, *(_old_events(data, offset) if banks is None else _agile_events(data, offset, banks))]
    locality = next(
        (
            event.data[16]
            for event in events
            if event.kind == EV_NO_ACTION and event.data[:16] == _LOCALITY and len(event.data) > 16
        ),
        0,
    )
    return EventLog(tuple(events), tuple(banks or {"sha1": 20}), locality)


def _end_of_events(data: bytes) -> int:
    """From where on all is one octet, 0xff in a CCEL: the rest of the firmware's area, when that is at least eight."""
    return min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\0")))


def _cut_off(offset: int) -> InputError:
    return InputError("event log is cut off", got=f"an event at {offset} that is longer than the log")


def _too_many() -> InputError:
    return InputError("event log has too many events", expected=f"at most {MAX_EVENTS}")


def _old_event(data: bytes, offset: int) -> tuple[Event, int]:
    """TCG_PCR_EVENT: register, type, SHA-1 digest, size, data; (the event, where the next one begins)."""
    begin = offset + _OLD.size
    if begin > len(data):
        raise _cut_off(offset)
    register, kind, digest, size = _OLD.unpack_from(data, offset)
    if size > MAX_DATA or begin + size > len(data):
        raise _cut_off(offset)
    return Event(register, kind, {"sha1": digest}, data[begin : begin + size]), begin + size


def _old_events(data: bytes, offset: int) -> list[Event]:
    events: list[Event] = []
    end, last = len(data), _end_of_events(data)
    while offset < last or end - 8 < offset < end:
        if len(events) >= MAX_EVENTS:
            raise _too_many()
        event, offset = _old_event(data, offset)
        events.append(event)
    return events


def _agile_events(data: bytes, offset: int, banks: dict[str, int]) -> list[Event]:
    """TCG_PCR_EVENT2s: register, type, digests, size, data.

    Nearly all events have the announced digests in the announced order: those are read at one go, the rest singly.
    """
    names = tuple(banks)
    numbers = {name: identifier for identifier, name in LOG_HASHES.items()}
    identifiers = [numbers[name] for name in names]
    usual = struct.Struct("<III" + "".join(f"H{banks[name]}s" for name in names) + "I")
    head = struct.pack("<I", len(names)) + struct.pack("<H", identifiers[0])
    events: list[Event] = []
    end, unpack, size_of = len(data), usual.unpack_from, usual.size
    last = _end_of_events(data)
    while offset < last or end - 8 < offset < end:
        if len(events) >= MAX_EVENTS:
            raise _too_many()
        if data[offset + 8 : offset + 14] == head and offset + size_of <= end:
            fields = unpack(data, offset)
            if list(fields[3:-1:2]) == identifiers:
                begin, size = offset + size_of, fields[-1]
                if size > MAX_DATA or begin + size > end:
                    raise _cut_off(offset)
                digests = dict(zip(names, fields[4:-1:2], strict=True))
                offset = begin + size
                events.append(Event(fields[0], fields[1], digests, data[begin:offset]))
                continue
        event, offset = _agile_event(data, offset, banks)
        events.append(event)
    return events


def _agile_event(data: bytes, offset: int, banks: dict[str, int]) -> tuple[Event, int]:
    octets = Octets(data[offset : offset + _MOST_HEAD], "event log", "little")
    register, kind, count = octets.number(4, "register"), octets.number(4, "event type"), octets.number(4, "digests")
    if count > len(LOG_HASHES):
        raise InputError("event log: too many digests of one event", got=str(count))
    digests: dict[str, bytes] = {}
    for _ in range(count):
        name = LOG_HASHES.get(octets.number(2, "hash"), "")
        if name not in banks or name in digests:
            raise InputError("event log: a digest that was not announced, or twice", got=name or "unknown hash")
        digests[name] = octets.take(banks[name], f"{name} digest")
    size = octets.number(4, "length of event data")
    begin = offset + octets.offset
    if size > MAX_DATA or begin + size > len(data):
        raise _cut_off(offset)
    return Event(register, kind, digests, data[begin : begin + size]), begin + size


def _banks(data: bytes) -> dict[str, int]:
    """Hashes and digest sizes that the Spec ID event announces."""
    octets = Octets(data, "Spec ID event", "little")
    octets.take(24, "signature, class, versions")
    count = octets.number(4, "number of algorithms")
    if not 1 <= count <= len(LOG_HASHES):
        raise InputError("event log: number of hash algorithms", got=str(count))
    banks = {}
    for _ in range(count):
        identifier, size = octets.number(2, "algorithm"), octets.number(2, "digest size")
        name = LOG_HASHES.get(identifier, "")
        if _SIZES.get(name) != size:
            raise InputError("event log: a hash that is not known", got=f"{identifier:#06x} of {size} bytes")
        banks[name] = size
    return banks


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """The registers after the log, of one bank; those without events are not in it.

    Raises:
        InputError: the log has no digests of this bank.
    """
    if bank not in log.banks:
        raise InputError(f"event log has no {bank} digests", got=", ".join(log.banks))
    found: dict[int, bytes] = {}
    make = _hash_of(bank)
    zeros = bytes(_SIZES[bank])
    for event in log.events:
        if event.kind == EV_NO_ACTION:
            continue
        digest = event.digests.get(bank)
        if digest is None:
            raise InputError(f"event log: an event without a {bank} digest", got=f"register {event.register}")
        start = found.get(event.register)
        if start is None:
            start = zeros[:-1] + bytes([log.locality]) if event.register == 0 else zeros
        found[event.register] = make(start + digest).digest()
    return found


def secure_boot(log: EventLog, register: int = 7) -> bool | None:
    """Whether Secure Boot was on, by the measured variable; None when the log does not say.

    Firmware measures ``SecureBoot`` once, in register 7 of a TPM or 1 of a CCEL (RTMR 0), before the separator with
    which it hands over: who runs afterwards can extend the same register with the same words. A separator is known by
    its digest in any bank, for an event's type is measured by nobody. Worth what that register's quote is worth.
    """
    states = set()
    for event in log.events:
        if event.register != register or event.kind == EV_NO_ACTION:
            continue
        if _is_separator(event):
            break
        if event.kind == EV_EFI_VARIABLE_DRIVER_CONFIG and event.is_data_measured():
            vendor, name, value = _variable(event.data)
            if (vendor, name) == (_EFI_GLOBAL_VARIABLE, "SecureBoot"):
                states.add(value == b"\x01")
    else:
        return None  # the firmware never handed over: not its log, or not all of it
    return states.pop() if len(states) == 1 else None


def _is_separator(event: Event) -> bool:
    return any(event.digests.get(bank) in digests for bank, digests in _separators().items())


@functools.cache
def _separators() -> dict[str, frozenset[bytes]]:
    """Digests of EV_SEPARATOR's data: zeros, or after a firmware's error ones."""
    return {
        bank: frozenset(_hash_of(bank)(data).digest() for data in (bytes(4), b"\xff" * 4, b"\1\0\0\0"))
        for bank in LOG_HASHES.values()
        if bank in hashlib.algorithms_available
    }


def _variable(data: bytes) -> tuple[bytes, str, bytes]:
    """UEFI_VARIABLE_DATA: (vendor, name, value), all empty when it is none."""
    try:
        octets = Octets(data, "UEFI variable", "little")
        vendor = octets.take(16, "vendor")
        characters, size = octets.number(8, "name length"), octets.number(8, "data length")
        name = octets.take(2 * characters if characters < 4096 else -1, "name").decode("utf-16-le", "replace")
        return vendor, name, octets.take(size if size < MAX_DATA else -1, "value")
    except InputError:
        return b"", "", b""
