"""The variable store of OVMF (edk2's authenticated variables): bytes to the variables that it holds.

volume header; store: GUID, size (4), 0x5a, 0xfe, …; then variables, each 4-aligned:
0x55aa (2), state, 0, attributes (4), count (8), time (16), key (4), name length (4), data length (4), vendor GUID;
name in UTF-16 with its NUL; data
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from casemate.errors import InputError

GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM: Final = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
ENABLE: Final = (uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44"), "SecureBootEnable")
"""The switch in the firmware's menu, by vendor and name. A guest may give that name to a variable of its own."""
CUSTOM: Final = (uuid.UUID("c076ec0c-7028-4399-a072-71ee5c448b9f"), "CustomMode")
Variables = dict[tuple[uuid.UUID, str], bytes]

MAX_STORE: Final = 8 << 20
MAX_NAME: Final = 1024
_NVRAM: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_AUTHENTICATED: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_HEADER: Final = struct.Struct("<HBBIQ16sIII16s")
_ADDED: Final = 0x3F
_IN_TRANSITION: Final = 0x3E


def parse_variables(store: bytes) -> Variables:
    """The variables of a store, by vendor and name; deleted ones are not among them.

    Raises:
        InputError: it is no variable store, or contradicts itself.
    """
    if len(store) > MAX_STORE:
        raise _fault(f"{len(store)} bytes")
    if store[16:32] != _NVRAM or store[40:44] != b"_FVH":
        raise _fault(f"{len(store)} bytes beginning {store[:8].hex()}")
    start = int.from_bytes(store[48:50], "little")
    head = store[start : start + 28]
    if len(head) < 28 or head[:16] != _AUTHENTICATED or head[20:22] != b"\x5a\xfe":
        raise _fault("no authenticated variables, or a store that is not formatted")
    end = start + int.from_bytes(head[16:20], "little")
    if end > len(store):
        raise _fault("a store larger than its file")
    found: Variables = {}
    old: Variables = {}
    at = start + 28
    while (at := -(-at // 4) * 4) + _HEADER.size <= end:
        magic, state, _, _, _, _, _, name_bytes, data_bytes, vendor = _HEADER.unpack_from(store, at)
        if magic != 0x55AA:
            break
        body = at + _HEADER.size
        at = body + name_bytes + data_bytes
        if name_bytes > MAX_NAME or at > end:
            raise _fault("a variable larger than its store")
        if state in (_ADDED, _IN_TRANSITION):
            name = store[body : body + name_bytes].decode("utf-16-le", "replace").rstrip("\0")
            key, data = (uuid.UUID(bytes_le=vendor), name), store[body + name_bytes : at]
            if state == _ADDED:
                found.setdefault(key, data)  # of two the firmware takes the first (edk2, FindVariableEx)
            else:
                old[key] = data
    return old | found


def variable_event(vendor: uuid.UUID, name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA: what is measured of a variable (TCG PC Client PFP, 10.2.6)."""
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def _fault(what: str) -> InputError:
    return InputError("not a variable store", got=what, expected="OVMF_VARS.fd, as the firmware formats it")
