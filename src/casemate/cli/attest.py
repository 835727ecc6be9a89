"""attest: the face of `casemate.attests`."""

from __future__ import annotations

import argparse

from casemate import attests
from casemate.cli import output
from casemate.errors import CasemateError, ExitCode, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.evidence.policy import Policy
    from casemate.evidence.verdict import Verified


def attest(arguments: argparse.Namespace) -> int:
    """Verify each file; exit 1 when one is refused, 2 when one cannot be read. One that cannot hides no other."""
    policy, policy_text = attests.read_policy(arguments.policy)
    inputs = attests.gather(
        certificates=arguments.certs,
        collateral=arguments.collateral,
        event_log=arguments.event_log,
        nonce=arguments.nonce,
        at=arguments.at,
        anchors=arguments.trust,
        signature=arguments.signature,
        pcrs=arguments.pcrs,
        request_key=arguments.request_key,
    )
    documents: list[dict[str, Any]] = []
    verdicts: dict[str, Verified] = {}
    unreadable = False
    for name in dict.fromkeys(arguments.evidence):
        try:
            found = attests.verify_evidence(name, inputs, policy)
        except CasemateError as error:
            output.print_error(error)
            documents.append(attests.document_of_unreadable(name, error))
            unreadable = True
            continue
        verdicts[name] = found
        documents.append(attests.document_of(name, found))
        if not arguments.json and arguments.ear != "-":
            print(output.plain(attests.render_text(name, found), keep_lines=True))
    if arguments.json:
        output.print_json(documents if len(documents) > 1 else documents[0])
    if arguments.ear is not None and verdicts:
        _write_ear(arguments, verdicts, policy, policy_text, inputs.nonce)
    if unreadable:
        return ExitCode.USAGE
    return ExitCode.DONE if all(found.is_accepted for found in verdicts.values()) else ExitCode.FINDINGS


def _write_ear(
    arguments: argparse.Namespace,
    verdicts: dict[str, Verified],
    policy: Policy,
    policy_text: bytes,
    nonce: bytes | None,
) -> None:
    """The signed result, to a file or to stdout."""
    from casemate.cli.misc import version_text

    token = attests.signed_ear(
        list(verdicts.values()),
        policy,
        policy_text=policy_text,
        nonce=nonce,
        build=version_text(),
        profile=arguments.ear_profile,
    )
    if arguments.ear == "-":
        print(token)
        return
    try:
        with open(arguments.ear, "w", encoding="ascii") as file:
            print(token, file=file)
    except OSError as error:
        raise InputError(f"cannot write {arguments.ear}", got=str(error.strerror)) from None
