"""``[confidential]``: memory that the host cannot read, and what the launch says of itself to whoever verifies it.

One object for plan, measurement and verification: the launch policy is computed here and nowhere else.

SEV-SNP, guest policy (firmware ABI 56860, table 9):

    7:0 ABI minor   15:8 ABI major   16 SMT allowed   17 always 1   18 migration agent   19 debug   24 ciphertext hiding

TDX, attributes of a TD: bit 0 debug, which QEMU does not offer; bit 28 SEPT_VE_DISABLE, always set: without it the
host could make the guest's kernel handle exceptions on pages that it took away.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from msgspec import Meta

from casemate.spec.closed import Closed, HostPath


class Kind(enum.StrEnum):
    """AMD SEV-SNP, Intel TDX, IBM Secure Execution (s390x)."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"
    SE = "se"


DEFAULT_CPU: Final = "EPYC-v4"
"""What every QEMU with SEV-SNP and every processor that has it can do."""
ID_BLOCK_BYTES: Final = 96
ID_AUTH_BYTES: Final = 4096
_ID_BLOCK_POLICY: Final = 88
"""ID block: launch digest (48), family id, image id (16 each), version, guest SVN (4 each), policy (8)."""

_BASE64 = r"^[A-Za-z0-9+/]+={0,2}$"
_SHA384 = r"^[0-9a-f]{96}$"


class Confidential(Closed, frozen=True):
    """A guest whose memory the processor keeps from the host. Each key belongs to one ``kind``, see docs/spec.md."""

    kind: Annotated[Kind, Meta(description="sev-snp: AMD; tdx: Intel; se: IBM Secure Execution, s390x only.")]
    firmware: Annotated[HostPath, Meta(description="The OVMF that is measured; without it the host's.")] | None = None
    cpu: Annotated[
        str,
        Meta(
            pattern=r"^EPYC(-(Rome|Milan|Genoa|Turin))?(-v[0-9]{1,2})?$",
            description="sev-snp: QEMU's CPU model, whose signature is measured.",
        ),
    ] = DEFAULT_CPU
    smt: Annotated[
        bool, Meta(description="sev-snp: may run where the processor's threads are on; false needs them off.")
    ] = True
    host_may_debug: Annotated[
        bool, Meta(description="sev-snp: the host may read and write the guest's memory. Ends its confidentiality.")
    ] = False
    migration_agent: Annotated[
        bool, Meta(description="sev-snp: a migration agent may be bound to the guest and gets its memory.")
    ] = False
    ciphertext_hiding: Annotated[
        bool, Meta(description="sev-snp: only where the host cannot even see the ciphertext (Turin).")
    ] = False
    abi_minimum: (
        Annotated[
            str,
            Meta(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$", description='sev-snp: oldest firmware ABI, for example "1.55".'),
        ]
        | None
    ) = None
    host_data: (
        Annotated[
            str,
            Meta(pattern=r"^[0-9a-f]{64}$", description="sev-snp: 32 bytes that every report repeats, hexadecimal."),
        ]
        | None
    ) = None
    id_block: (
        Annotated[str, Meta(pattern=_BASE64, max_length=128, description="sev-snp: the ID block, base64 (96 bytes).")]
        | None
    ) = None
    id_auth: (
        Annotated[
            str, Meta(pattern=_BASE64, max_length=5464, description="sev-snp: its signature, base64 (4096 bytes).")
        ]
        | None
    ) = None
    author_key: Annotated[bool, Meta(description="sev-snp: id_auth holds an author key, which reports then name.")] = (
        False
    )
    mrconfigid: (
        Annotated[str, Meta(pattern=_SHA384, description="tdx: MRCONFIGID that every quote repeats, hexadecimal.")]
        | None
    ) = None
    mrowner: Annotated[str, Meta(pattern=_SHA384, description="tdx: MROWNER, hexadecimal.")] | None = None
    mrownerconfig: Annotated[str, Meta(pattern=_SHA384, description="tdx: MROWNERCONFIG, hexadecimal.")] | None = None
    quote_socket: (
        Annotated[HostPath, Meta(description="tdx: the Unix socket of the host's quote generation service.")] | None
    ) = None


SNP_KEYS: Final = (
    *("cpu", "smt", "host_may_debug", "migration_agent", "ciphertext_hiding", "abi_minimum", "host_data", "id_block"),
    *("id_auth", "author_key"),
)
TDX_KEYS: Final = ("mrconfigid", "mrowner", "mrownerconfig", "quote_socket")
KEYS: Final = {Kind.SEV_SNP: ("firmware", *SNP_KEYS), Kind.TDX: ("firmware", *TDX_KEYS), Kind.SE: ()}
"""The keys that each kind takes."""

_SMT, _RESERVED_ONE, _MIGRATION_AGENT, _DEBUG, _CIPHERTEXT_HIDING = 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 24
TDX_ATTRIBUTES: Final = 1 << 28


def snp_policy(wanted: Confidential) -> int:
    """The guest policy of SNP_LAUNCH_START: 0x30000 unless something was asked for."""
    major, _, minor = (wanted.abi_minimum or "0.0").partition(".")
    policy = _RESERVED_ONE | int(major) << 8 | int(minor)
    for is_set, bit in (
        (wanted.smt, _SMT),
        (wanted.migration_agent, _MIGRATION_AGENT),
        (wanted.host_may_debug, _DEBUG),
        (wanted.ciphertext_hiding, _CIPHERTEXT_HIDING),
    ):
        policy |= bit if is_set else 0
    return policy


def id_block_policy(block: bytes) -> int:
    """The guest policy that an ID block of the right size was signed for."""
    return int.from_bytes(block[_ID_BLOCK_POLICY:ID_BLOCK_BYTES], "little")
