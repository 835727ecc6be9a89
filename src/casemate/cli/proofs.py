"""prove, verify-record."""

from __future__ import annotations

import argparse

from casemate import app
from casemate.cli import output
from casemate.errors import ExitCode


def verify_record(arguments: argparse.Namespace) -> int:
    """Verify records; exit 1 when one does not hold."""
    document = app.verify_records(arguments.files, key=arguments.key)
    if arguments.json:
        output.print_json(document)
    else:
        rows = [
            [
                "pass" if item["ok"] else "fail",
                str(item.get("sequence", "")),
                item.get("name", ""),
                item.get("released_at", ""),
                item["why"] or item["file"],
            ]
            for item in document["records"]
        ]
        output.print_table("", ("VERDICT", "RECORD", "NAME", "RELEASED", "FILE"), rows)
    return ExitCode.DONE if document["ok"] else ExitCode.FINDINGS


def prove(arguments: argparse.Namespace) -> int:
    """Attack the wall; exit 1 when the probe reached something undeclared."""
    with output.working(f"attacking the wall of {arguments.target}") as report:
        report("")
        document = app.prove(arguments.target, without=arguments.without, quick=arguments.quick)
    if arguments.json:
        output.print_json(document)
    else:
        output.print_json(document)
    return ExitCode.DONE if document.get("ok") else ExitCode.FINDINGS
