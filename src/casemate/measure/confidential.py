"""What the specification of a confidential guest makes its evidence say beside the measurement. Pure.

The same fields give QEMU's arguments (`plan/confidential.py`): what a launch asks for is what a verifier wants.

ID block (SEV-SNP ABI 56860, table 75):  launch digest (48), family id (16), image id (16), version, guest SVN, policy
ID authentication (table 76):            0x240 ID public key, 0x880 author public key, 0x404 bytes each
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from casemate.errors import InputError
from casemate.evidence.policy import Policy, SnpPolicy, TdxPolicy
from casemate.spec.confidential import Confidential, Kind

_ID_KEY, _AUTHOR_KEY, _KEY_BYTES = 0x240, 0x880, 0x404
_DIGEST: Final = slice(0, 48)
_FAMILY, _IMAGE = slice(48, 64), slice(64, 80)
_GUEST_SVN: Final = slice(84, 88)


def wanted_policy(wanted: Confidential) -> Policy:
    """The policy without a measurement. What the specification leaves open, the policy leaves open."""
    if wanted.kind is Kind.TDX:
        return Policy(
            tdx=TdxPolicy(
                mrconfigid=_one(wanted.mrconfigid),
                mrowner=_one(wanted.mrowner),
                mrownerconfig=_one(wanted.mrownerconfig),
            )
        )
    if wanted.kind is not Kind.SEV_SNP:
        return Policy()
    family, image, svn, id_key, author_key = _identity(wanted)
    return Policy(
        sev_snp=SnpPolicy(
            host_data=_one(wanted.host_data),
            family_id=family,
            image_id=image,
            minimum_guest_svn=svn,
            id_key_digest=id_key,
            author_key_digest=author_key,
            refuse_smt=not wanted.smt,
            accept_debug_guest_that_its_host_can_read=wanted.host_may_debug,
            accept_migration_agent_that_can_move_the_guest=wanted.migration_agent,
        )
    )


def check_id_block(wanted: Confidential, measurement: str) -> None:
    """The firmware starts the guest only when the ID block is for this measurement.

    Raises:
        InputError: it is for another one.
    """
    if wanted.id_block is None:
        return
    signed = base64.b64decode(wanted.id_block)[_DIGEST].hex()
    if signed != measurement:
        raise InputError(
            "the ID block is for another launch: the firmware would refuse it",
            got=f"a block for {signed}",
            expected=measurement,
            next_step="sign a block for the expected measurement; or --explain the one of the block",
        )


def _one(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def _identity(
    wanted: Confidential,
) -> tuple[tuple[str, ...], tuple[str, ...], int, tuple[str, ...], tuple[str, ...]]:
    """Family, image, guest SVN, and digests of the keys, each as a report repeats it."""
    if wanted.id_block is None or wanted.id_auth is None:
        return (), (), 0, (), ()
    block, auth = base64.b64decode(wanted.id_block), base64.b64decode(wanted.id_auth)
    author = (_key_digest(auth, _AUTHOR_KEY),) if wanted.author_key else ()
    svn = int.from_bytes(block[_GUEST_SVN], "little")
    return (block[_FAMILY].hex(),), (block[_IMAGE].hex(),), svn, (_key_digest(auth, _ID_KEY),), author


def _key_digest(auth: bytes, offset: int) -> str:
    return hashlib.sha384(auth[offset : offset + _KEY_BYTES]).hexdigest()
