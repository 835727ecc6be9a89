"""Verify signed launch records on disk: single files, or this host's chain from its first record to its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from casemate.engine import files, records, state
from casemate.engine.keys import load_or_create_key
from casemate.engine.paths import Paths
from casemate.errors import CasemateError, InputError
from casemate.evidence.record import (
    RECORD_MAX_BYTES,
    ChainLink,
    LaunchRecord,
    link_of,
    parse_public_key,
    sha256_hex,
    verify_record,
)

VERIFY_SCHEMA = "casemate.verify-record/1"


def verify(paths: Paths, names: Sequence[str], key: str | None) -> dict[str, Any]:
    """See docs/json.md. A record that does not hold is a finding, not an error.

    Args:
        names: files, or VMs, which stand for all records of theirs on this host.

    Raises:
        InputError: the key is none, a file cannot be read, a VM has no record, or this host has none yet.
    """
    public = _public_key(paths, key)
    chained = not names
    found = [path for name in names for path in _files_of(paths, name)] or records.record_paths(paths)
    if not found:
        raise InputError("this host has no launch records yet", next_step="casemate run -d builtin writes one")
    results, link = [], ChainLink()
    for name in found:
        data = _read(name)
        result: dict[str, Any] = {"file": name, "ok": True, "why": ""}
        try:
            record = verify_record(data, public)
        except InputError as fault:
            results.append({**result, "ok": False, "why": str(fault)})
            link = ChainLink(link.sequence + 1, sha256_hex(data))
            continue
        why = _chain_fault(record, link) if chained else ""
        results.append({**result, **_summary(record), "ok": not why, "why": why})
        link = link_of(data, record)
    if chained:
        results += _end_fault(paths, link)
    return {
        "schema": VERIFY_SCHEMA,
        "ok": all(result["ok"] for result in results),
        "chain": chained,
        "key_sha256": sha256_hex(public),
        "records": results,
    }


def _files_of(paths: Paths, name: str) -> list[str]:
    """A file stays what it is; a VM becomes its records. Those of a VM that was removed go by its whole id."""
    if "/" in name or os.path.lexists(name):
        return [name]
    try:
        vm_id = state.resolve(paths, name).id
    except InputError:
        vm_id = name
    found = [path for path in records.record_paths(paths) if path.endswith(f"-{vm_id}.json")]
    if not found:
        raise InputError(
            f"no launch record of {name}",
            expected="a file, or a VM that was started here: its name, or the whole id of one that was removed",
            next_step="casemate verify-record lists all records of this host",
        )
    return found


def _public_key(paths: Paths, key: str | None) -> bytes:
    if key is None:
        return load_or_create_key(Path(paths.data)).public
    if os.path.exists(key):
        key = _read(key)[:4097].decode("utf-8", "replace")
    return parse_public_key(key)


def _read(name: str) -> bytes:
    try:
        return files.read_bounded(name, RECORD_MAX_BYTES)
    except OSError as fault:
        raise InputError(f"cannot read {name}", got=(fault.strerror or str(fault)).lower()) from None


def _chain_fault(record: LaunchRecord, link: ChainLink) -> str:
    if record.sequence != link.sequence + 1:
        return f"sequence {record.sequence} where {link.sequence + 1} was due: records are missing or out of order"
    if record.previous != link.sha256:
        return "the record before it was replaced: its digest is not the one named here"
    return ""


def _end_fault(paths: Paths, link: ChainLink) -> list[dict[str, Any]]:
    """The end of the chain as noted when it was last extended: tells records that were cut off."""
    path = f"{paths.data}/records/chain.json"
    try:
        noted = msgspec.json.decode(_read(path), type=ChainLink)
    except (CasemateError, msgspec.MsgspecError) as fault:
        return [{"file": path, "ok": False, "why": f"the note of the chain's end cannot be read: {fault}"}]
    if noted == link:
        return []
    why = f"the chain ends at record {link.sequence}, but the note says {noted.sequence}: records were cut off or added"
    return [{"file": path, "ok": False, "why": why}]


def _summary(record: LaunchRecord) -> dict[str, Any]:
    return {
        "sequence": record.sequence,
        "id": record.vm_id,
        "name": record.name,
        "released_at": record.released_at,
        "accel": record.accel,
        "spec_sha256": record.spec_sha256,
        "findings": len(record.findings),
        "failed": [item.control for item in record.findings if item.verdict in {"fail", "unknown"}],
    }
