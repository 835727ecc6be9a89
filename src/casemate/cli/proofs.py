"""prove, verify-record."""

from __future__ import annotations

import argparse
import sys
from typing import Any

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
                f"{item['file']}: {item['why']}" if item["why"] else item["file"],
            ]
            for item in document["records"]
        ]
        output.print_table("", ("VERDICT", "RECORD", "NAME", "RELEASED", "FILE"), rows)
    return ExitCode.DONE if document["ok"] else ExitCode.FINDINGS


def prove(arguments: argparse.Namespace) -> int:
    """Attack the wall; exit 1 when the probe reached something undeclared."""
    with output.working(f"attacking the wall of {arguments.target}") as report:
        report("")
        # Without a terminal a line per step would be hundreds of lines.
        document = app.prove(
            arguments.target,
            without=arguments.without,
            quick=arguments.quick,
            policy_file=arguments.policy,
            report=report if sys.stderr.isatty() else lambda _: None,
        )
    if arguments.json:
        output.print_json(document)
    else:
        _print_proof(document)
    return ExitCode.DONE if document["ok"] else ExitCode.FINDINGS


def _print_proof(document: dict[str, Any]) -> None:
    if document["experiment"]:
        print(document["experiment"], end="\n\n")
    rows = [
        [item["group"], str(item["tried"]), str(item["reached"]), item["stopped_by"]] for item in document["groups"]
    ]
    output.print_table(
        f"The probe in the wall of {document['vm']}: {document['accel']}, {document['machine']}, profile"
        f" {document['profile']}",
        ("TRIED", "ATTEMPTS", "REACHED", "STOPPED BY"),
        rows,
    )
    reached = [item for item in document["results"] if item["outcome"] == "reached"]
    if reached:
        print()
        output.print_table(
            "Reached",
            ("WHAT", "AS DECLARED", "EVIDENCE"),
            [[item["what"], "no" if item["unexpected"] else "yes", item["evidence"]] for item in reached],
        )
    if document["unexpected"]:
        print()
        output.print_table(
            "Not as declared", ("WHAT", "WHY"), [[item["what"], item["why"]] for item in document["unexpected"]]
        )
    counts = document["counts"]
    print(
        f"\n{counts['tried']} attempts: {counts['stopped']} stopped, {counts['reached']} reached,"
        f" {len(document['unexpected'])} not as declared; {counts['not_tried']} could not be tried"
    )
    print(f"security modules of this host: {', '.join(document['lsm']) or 'none'}")
    for text in (document["profile_traced"], *document["notes"]):
        if text:
            print(f"note: {output.plain(text)}")
    print(f"verdict: {'pass' if document['ok'] else 'fail'}")
