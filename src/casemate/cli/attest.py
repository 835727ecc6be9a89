"""attest: the face of `casemate.attests`."""

from __future__ import annotations

import argparse

from casemate import attests
from casemate.cli import output
from casemate.errors import CasemateError, ExitCode


def attest(arguments: argparse.Namespace) -> int:
    """Verify each file; exit 1 when one is refused, 2 when one cannot be read."""
    policy = attests.load_policy(arguments.policy)
    inputs = attests.gather(
        certificates=arguments.certs,
        collateral=arguments.collateral,
        event_log=arguments.event_log,
        nonce=arguments.nonce,
        at=arguments.at,
        anchors=arguments.trust,
    )
    code: int = ExitCode.DONE
    documents = []
    for name in arguments.evidence:
        try:
            found = attests.verify_evidence(name, inputs, policy)
        except CasemateError as error:
            output.print_error(error)
            code = ExitCode.USAGE
            continue
        if arguments.json:
            documents.append(attests.document_of(name, found))
        else:
            print(output.plain(attests.render_text(name, found), keep_lines=True))
        if not found.is_accepted and code == ExitCode.DONE:
            code = ExitCode.FINDINGS
    if arguments.json:
        output.print_json(documents if len(arguments.evidence) > 1 else documents[0] if documents else [])
    return code
