"""Plan a launch without starting anything and without leaving anything behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from casemate.controls.judge import refusal_error, refusals
from casemate.controls.model import Finding
from casemate.controls.policy import controls_under
from casemate.engine import files, identity, views
from casemate.engine import start as engine
from casemate.engine.opening import open_spec_files
from casemate.engine.paths import Paths
from casemate.engine.policy_file import read_policy
from casemate.jail.policy import Identity
from casemate.plan.model import LaunchPlan
from casemate.plan.provisioning import is_provisioned
from casemate.spec.model import Spec

PLAN_ID = "0" * 16
"""Stands where a VM's id would."""


def plan_launch(spec: Spec, paths: Paths, policy_file: str | None) -> dict[str, Any]:
    """The plan as plain data, with ``refused_by``: ids of the launch controls that would stop it."""
    plan, findings = _plan(spec, paths, policy_file)
    refused = [finding.control_id for finding in refusals(findings)]
    return {**views.plan_view(plan, findings), "refused_by": refused}


def check_launch(spec: Spec, paths: Paths, policy_file: str | None) -> None:
    """Plan, and raise what the launch would raise.

    Raises:
        CasemateError: among them RefusedError for a launch control.
    """
    plan, findings = _plan(spec, paths, policy_file)
    engine.check_host(plan)
    refused = refusals(findings)
    if refused:
        raise refusal_error(refused)


def _plan(spec: Spec, paths: Paths, policy_file: str | None) -> tuple[LaunchPlan, tuple[Finding, ...]]:
    policy = read_policy(Path(policy_file) if policy_file else None)
    waivers = engine.waivers_of(spec, policy)
    if is_provisioned(spec):
        from casemate.engine.provisioning import check_documents

        check_documents(spec)
    opened = open_spec_files(spec)
    try:
        who, tpm_who = _free_identities(paths, policy.identity.uids(), beside=spec.tpm.enabled)
        plan = engine.make_plan(spec, paths, PLAN_ID, spec.name or "(new)", who, opened.sizes, tpm_identity=tpm_who)
        engine.declare_origin(plan, paths, policy)
    finally:
        opened.close()
    return plan, engine.judge_declared(plan, waivers, controls_under(policy, engine.launch_controls_of(spec)))


def _free_identities(paths: Paths, reserved: range, *, beside: bool) -> tuple[Identity, Identity | None]:
    """The identity that a launch would get now, and with ``beside`` a helper's; nothing of the claim stays."""
    before = set(os.listdir(f"{paths.runtime}/ids"))
    who, lock = identity.claim(paths, reserved)
    locks, second = [lock], None
    try:
        if beside:
            second, more = identity.claim_beside(paths, reserved, who)
            locks += more
        held = {os.fstat(descriptor).st_ino for descriptor in locks}
        for name in set(os.listdir(f"{paths.runtime}/ids")) - before:
            path = f"{paths.runtime}/ids/{name}"
            if os.stat(path).st_ino in held:
                files.unlink_if_there(path)  # while we hold it: who waits for it sees that it is gone and starts anew
    finally:
        for descriptor in locks:
            os.close(descriptor)
    return who, second
