"""attest challenge, attest answer: the face of `casemate.challenges`."""

from __future__ import annotations

import argparse

from casemate import attests, challenges
from casemate.cli import output
from casemate.errors import ExitCode, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.evidence.verdict import Verified


def challenge(arguments: argparse.Namespace) -> int:
    """Judge the endorsement key's certificate and write the challenge; exit 1, and nothing written, when refused."""
    missing = [
        name
        for name, value in (
            ("--ek-cert", arguments.ek_cert),
            ("--blob", arguments.blob),
            ("--challenge", arguments.challenge),
        )
        if not value
    ]
    if missing:
        raise InputError(
            f"attest challenge needs {', '.join(missing)}", next_step="casemate attest --help has examples"
        )
    name = _only(arguments.evidence, "one attestation key's public area")
    policy, _ = attests.read_policy(arguments.policy)
    inputs = attests.gather(certificates=arguments.certs, at=arguments.at, anchors=arguments.trust)
    found = challenges.write_challenge(
        name,
        arguments.ek_cert,
        inputs,
        policy,
        blob=arguments.blob,
        asked=arguments.challenge,
        area=arguments.ek,
    )
    _show(arguments, arguments.ek_cert, found)
    if found.is_accepted:
        output.note(f"in the guest: tpm2_activatecredential -c AK -C EK -i {arguments.blob} -o secret.bin")
        output.note(f"then here: casemate attest answer secret.bin --challenge {arguments.challenge}")
    return ExitCode.DONE if found.is_accepted else ExitCode.FINDINGS


def answer(arguments: argparse.Namespace) -> int:
    """Judge what a guest's TPM took out of a challenge; exit 1 when it is not that."""
    if not arguments.challenge:
        raise InputError("attest answer needs --challenge", expected="the file that attest challenge wrote")
    name = _only(arguments.evidence, "one answer")
    found = challenges.verify_answer(name, arguments.challenge)
    _show(arguments, name, found)
    if found.is_accepted:
        output.note("attest verify may --trust this attestation key: its quotes are of the TPM of that certificate")
    return ExitCode.DONE if found.is_accepted else ExitCode.FINDINGS


def _only(names: list[str], expected: str) -> str:
    if len(names) != 1:
        raise InputError("files", got=f"{len(names)} files", expected=expected)
    return names[0]


def _show(arguments: argparse.Namespace, name: str, found: Verified) -> None:
    if arguments.json:
        output.print_json(attests.document_of(name, found))
    else:
        print(output.plain(attests.render_text(name, found), keep_lines=True))
