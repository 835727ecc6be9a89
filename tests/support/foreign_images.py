"""Small sound images of every format that can be imported, built byte by byte so that tests can make each field lie."""

from __future__ import annotations

import struct

from casemate.image import vhdx
from casemate.image.crc32c import crc32c

SECTOR = 512
MIB = 1 << 20
_CONSTANT = b"\xff" * 8

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=0a0b0c0d
parentCID=ffffffff
createType="{kind}"

# Extent description
RW {sectors} SPARSE "{file}"

# The Disk Data Base
ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def vmdk(
    *,
    magic: bytes = b"KDMV",
    version: int = 1,
    flags: int = 3,
    capacity: int = 2048,
    grain: int = 128,
    descriptor_at: int = 1,
    descriptor_size: int = 20,
    entries: int = 512,
    redundant_at: int = 21,
    directory_at: int = 22,
    data_at: int = 128,
    line_ends: bytes = b"\n \r\n",
    compression: int = 0,
    kind: str = "monolithicSparse",
    file: str = "disk.vmdk",
    text: str | None = None,
) -> bytes:
    """One MiB as monolithicSparse; ``text`` in place of the descriptor."""
    head = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(magic, version, flags, capacity, grain, descriptor_at, descriptor_size, entries, redundant_at),
        *(directory_at, data_at, 0, line_ends, compression),
    )
    body = bytearray(128 * SECTOR)
    body[: len(head)] = head
    described = (text if text is not None else DESCRIPTOR.format(kind=kind, sectors=capacity, file=file)).encode()
    body[SECTOR : SECTOR + len(described)] = described
    for directory in (21, 22):
        struct.pack_into("<I", body, directory * SECTOR, 24)
    return bytes(body)


def stream_vmdk(**fields: object) -> bytes:
    """One MiB as streamOptimized, with its footer; ``footer_`` before a name changes only the footer."""
    only_footer = {key.removeprefix("footer_"): value for key, value in fields.items() if key.startswith("footer_")}
    given = {key: value for key, value in fields.items() if not key.startswith("footer_")}
    common: dict[str, object] = {"version": 3, "flags": 0x30001, "compression": 1, "kind": "streamOptimized", **given}
    head = vmdk(directory_at=(1 << 64) - 1, **common)  # type: ignore[arg-type]
    foot = vmdk(**{"directory_at": 22, **common, **only_footer})[:SECTOR]  # type: ignore[arg-type]
    marker = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    return head + marker + foot + bytes(SECTOR)


def vhd_footer(
    *,
    kind: int = 3,
    size: int = 2 * MIB,
    dynamic_at: int = 512,
    maker: bytes = b"win ",
    version: int = 0x10000,
    geometry: tuple[int, int, int] = (60, 4, 17),
    saved: int = 0,
    cookie: bytes = b"conectix",
) -> bytes:
    """A footer with a true checksum."""
    fields = (
        cookie,
        2,
        version,
        dynamic_at,
        0,
        maker,
        0x10000,
        b"Wi2k",
        size,
        size,
        *geometry,
        kind,
        0,
        bytes(16),
        saved,
    )
    data = struct.pack(">8sIIQI4sI4sQQHBBII16sB", *fields).ljust(512, b"\0")
    return data[:64] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[68:]


def vhd(
    *,
    entries: int = 1,
    block: int = 2 * MIB,
    table_at: int = 1536,
    cookie: bytes = b"cxsparse",
    parent_uuid: bytes = bytes(16),
    parent_name: bytes = b"",
    locators: bytes = b"",
    header_version: int = 0x10000,
    following: bytes = _CONSTANT,
    **footer: object,
) -> bytes:
    """Two MiB as a dynamic VHD without any block."""
    last = vhd_footer(**footer)  # type: ignore[arg-type]
    data = struct.pack(
        ">8s8sQIIII16sII512s",
        *(cookie, following, table_at, header_version, entries, block, 0, parent_uuid, 0, 0, parent_name),
    )
    data = (data + locators).ljust(1024, b"\0")
    data = data[:36] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[40:]
    return last + data + b"\xff" * 512 + last


def fixed_vhd(content: int = 2 * MIB, **footer: object) -> bytes:
    """Two MiB of zeros as a fixed VHD."""
    return bytes(content) + vhd_footer(**{"kind": 2, "dynamic_at": (1 << 64) - 1, **footer})  # type: ignore[arg-type]


def with_crc(data: bytes, at: int = 4) -> bytes:
    """``data`` with its CRC-32C at ``at``."""
    return data[:at] + struct.pack("<I", crc32c(data[:at] + bytes(4) + data[at + 4 :])) + data[at + 4 :]


def vhdx_image(
    *,
    log_guid: bytes = bytes(16),
    log_version: int = 0,
    header_version: int = 1,
    regions: list[tuple[bytes, int, int, int]] | None = None,
    second_regions: list[tuple[bytes, int, int, int]] | None = None,
    block: int = 8 * MIB,
    flags: int = 0,
    size: int = 16 * MIB,
    sector: int = 512,
    items: list[tuple[bytes, bytes, int]] | None = None,
    sequences: tuple[int, int] = (1, 2),
    length: int = 4 * MIB,
) -> bytes:
    """16 MiB as a dynamic VHDX without any block; 4 MiB of file."""
    image = bytearray(length)
    image[:8] = b"vhdxfile"
    for place, sequence in zip(vhdx.HEADERS_AT, sequences, strict=True):
        guids = bytes(16) + b"\x01" * 16 + log_guid
        head = struct.pack("<4sIQ48sHHIQ", b"head", 0, sequence, guids, log_version, header_version, MIB, MIB)
        image[place : place + 4096] = with_crc(head.ljust(4096, b"\0"))
    first = regions if regions is not None else [(vhdx.BAT, 3 * MIB, MIB, 1), (vhdx.METADATA, 2 * MIB, MIB, 1)]
    for place, table in zip(vhdx.REGIONS_AT, (first, second_regions or first), strict=True):
        data = struct.pack("<4sIII", b"regi", 0, len(table), 0)
        data += b"".join(struct.pack("<16sQII", *region) for region in table)
        image[place : place + 65536] = with_crc(data.ljust(65536, b"\0"))
    found = items if items is not None else vhdx_items(block, flags, size, sector)
    table_data, values = struct.pack("<8sHH", b"metadata", 0, len(found)).ljust(32, b"\0"), b""
    for guid, value, item_flags in found:
        table_data += struct.pack("<16sIIII", guid, 65536 + len(values), len(value), item_flags, 0)
        values += value
    image[2 * MIB : 2 * MIB + len(table_data)] = table_data
    image[2 * MIB + 65536 : 2 * MIB + 65536 + len(values)] = values
    return bytes(image)


def vhdx_items(
    block: int = 8 * MIB, flags: int = 0, size: int = 16 * MIB, sector: int = 512
) -> list[tuple[bytes, bytes, int]]:
    """The metadata that every image has: identifier, value, flags."""
    return [
        (vhdx.FILE_PARAMETERS, struct.pack("<II", block, flags), 4),
        (vhdx.VIRTUAL_SIZE, struct.pack("<Q", size), 6),
        (vhdx.PAGE_83, b"\x02" * 16, 6),
        (vhdx.LOGICAL_SECTOR, struct.pack("<I", sector), 6),
        (vhdx.PHYSICAL_SECTOR, struct.pack("<I", 512), 6),
    ]


def vdi(
    *,
    version: int = 0x10001,
    header_bytes: int = 0x190,
    kind: int = 1,
    map_at: int = 512,
    data_at: int = 1024,
    sector: int = 512,
    size: int = 2 * MIB,
    block: int = MIB,
    extra: int = 0,
    blocks: int = 2,
    allocated: int = 0,
    link: bytes = bytes(16),
    parent: bytes = bytes(16),
    signature: int = 0xBEDA107F,
) -> bytes:
    """Two MiB as a dynamic VDI without any block."""
    head = struct.pack(
        "<64sIIIII256sIIIIIIIQIIII16s16s16s16s",
        *(
            b"<<< Oracle VM VirtualBox Disk Image >>>\n",
            signature,
            version,
            header_bytes,
            kind,
            0,
            b"",
            map_at,
            data_at,
        ),
        *(0, 0, 0, sector, 0, size, block, extra, blocks, allocated, b"\x01" * 16, b"\x02" * 16, link, parent),
    )
    return head.ljust(512, b"\0") + b"\xff" * 512 + bytes(allocated * MIB)


SOUND: dict[str, bytes] = {
    "sparse.vmdk": vmdk(),
    "stream.vmdk": stream_vmdk(),
    "dynamic.vhd": vhd(),
    "fixed.vhd": fixed_vhd(),
    "dynamic.vhdx": vhdx_image(),
    "dynamic.vdi": vdi(),
}
"""Every one is accepted."""


def mended(data: bytes, image_format: str) -> bytes:
    """With its checksums true again, so that a mutation gets behind them."""
    if image_format == "vhdx":
        out = bytearray(data)
        for place, length in ((65536, 4096), (131072, 4096), (196608, 65536), (262144, 65536)):
            out[place : place + length] = with_crc(bytes(out[place : place + length]))
        return bytes(out)
    if image_format == "vhd":
        return _mended_vhd(data)
    return data


def _mended_vhd(data: bytes) -> bytes:
    def summed(block: bytes, at: int) -> bytes:
        blank = block[:at] + bytes(4) + block[at + 4 :]
        return blank[:at] + struct.pack(">I", ~sum(blank) & 0xFFFFFFFF) + blank[at + 4 :]

    if not data.startswith(b"conectix"):
        return data[:-512] + summed(data[-512:], 64)
    foot = summed(data[:512], 64)
    return foot + summed(data[512:1536], 36) + data[1536:-512] + foot
