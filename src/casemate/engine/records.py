"""Write the signed launch record: one file per launch, chained per host under a lock.

records/chain.lock           flock while the chain grows
records/chain.json           the chain's end: sequence and digest of the last record
records/<sequence>-<id>.json the signed records, never changed
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from casemate.controls.model import Finding
from casemate.engine import files
from casemate.engine.keys import load_or_create_key
from casemate.engine.launch import Launched
from casemate.engine.paths import Paths, own_directory
from casemate.engine.state import Definition, now
from casemate.errors import HostError
from casemate.evidence.record import (
    ChainLink,
    FileDigest,
    LaunchRecord,
    RecordedFinding,
    canonical_json,
    link_of,
    sha256_hex,
    sign_record,
)
from casemate.plan.model import LaunchPlan


def write_record(
    paths: Paths, definition: Definition, plan: LaunchPlan, launched: Launched, sizes: dict[str, int]
) -> str:
    """Sign the record of a launch and append it to the chain.

    Returns:
        the record's path.

    Raises:
        HostError: key or chain cannot be read or written.
    """
    directory = f"{paths.data}/records"
    own_directory(directory)
    key = load_or_create_key(Path(paths.data))
    lock = files.take_lock(f"{directory}/chain.lock", wait=True)
    try:
        link = _chain_end(directory)
        spec = canonical_json(plan.spec).decode()
        record = LaunchRecord(
            sequence=link.sequence + 1,
            previous=link.sha256,
            key_sha256=sha256_hex(key.public),
            vm_id=definition.id,
            name=definition.name,
            released_at=now(),
            accel=plan.accel,
            spec=spec,
            spec_sha256=sha256_hex(spec.encode()),
            plan_sha256=sha256_hex(canonical_json(plan)),
            findings=tuple(_recorded(finding) for finding in launched.findings),
            files=tuple(
                FileDigest(role=role, sha256=digest, size_bytes=sizes.get(role, 0))
                for role, digest in sorted({**launched.digests, **_tpm_key(paths, plan)}.items())
            ),
            versions={"qemu": launched.qemu_version, "kernel": os.uname().release},
        )
        data = sign_record(record, key.private)
        path = f"{directory}/{record.sequence:08d}-{definition.id}.json"
        files.write_atomic(path, data)
        files.write_json(f"{directory}/chain.json", link_of(data, record))
    finally:
        if lock is not None:
            os.close(lock)
    return path


def _tpm_key(paths: Paths, plan: LaunchPlan) -> dict[str, str]:
    if not plan.spec.tpm.enabled:
        return {}
    from casemate.engine.tpm_state import attestation_digest

    return attestation_digest(paths, plan.vm_id)


def _recorded(finding: Finding) -> RecordedFinding:
    return RecordedFinding(
        control=finding.control_id,
        verdict=finding.verdict.value,
        severity=finding.severity.value,
        gate=finding.gate.value,
        evidence=finding.evidence,
        expected=finding.expected,
        why=finding.why,
    )


def _chain_end(directory: str) -> ChainLink:
    path = f"{directory}/chain.json"
    try:
        return msgspec.json.decode(files.read_bounded(path, 4096), type=ChainLink)
    except FileNotFoundError:
        return ChainLink()
    except (OSError, msgspec.MsgspecError) as fault:
        raise HostError(
            f"{path} is damaged", got=str(fault)[:200], next_step="casemate verify-record shows which records hold"
        ) from fault


def record_paths(paths: Paths) -> list[str]:
    """All records, oldest first."""
    directory = f"{paths.data}/records"
    try:
        names = sorted(name for name in os.listdir(directory) if name[:8].isdigit() and name.endswith(".json"))
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in names]
