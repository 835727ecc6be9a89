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
    """Verify, fetch what is needed to verify, or ask a TPM whose an attestation key is."""
    if arguments.action in ("challenge", "answer"):
        from casemate.cli import attest_challenge

        asks = arguments.action == "challenge"
        return attest_challenge.challenge(arguments) if asks else attest_challenge.answer(arguments)
    return _fetch(arguments) if arguments.action == "fetch" else _verify(arguments)


def _fetch(arguments: argparse.Namespace) -> int:
    """Fill the cache; exit 1 when something could not be had."""
    found = attests.fetch_collateral(
        arguments.evidence,
        amd=arguments.kds,
        intel=arguments.pcs,
        ca_file=arguments.ca_file,
        refresh=arguments.refresh,
        progress=lambda what: output.note(f"fetching {what}"),
    )
    if arguments.json:
        output.print_json({"schema": "casemate.attest-fetch/1", "items": found})
    elif not found:
        print("nothing to fetch: this evidence brings along what there is")
    for item in () if arguments.json else found:
        good = f", good until {item['until']}" if item["until"] else ""
        why = f": {item['error']}" if item["error"] else ""
        print(output.plain(f"{item['state']:<8} {item['what']}{good}{why}"))
    return ExitCode.FINDINGS if any(item["state"] == "failed" for item in found) else ExitCode.DONE


def _verify(arguments: argparse.Namespace) -> int:
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
            found = attests.verify_evidence(name, inputs, policy, use_cache=not arguments.no_cache)
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
    from casemate.installed import installed_version

    token = attests.signed_ear(
        list(verdicts.values()),
        policy,
        policy_text=policy_text,
        nonce=nonce,
        build=installed_version(),
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
