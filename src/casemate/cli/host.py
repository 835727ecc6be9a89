"""doctor."""

from __future__ import annotations

import argparse

from casemate import app
from casemate.cli import output
from casemate.errors import ExitCode


def doctor(arguments: argparse.Namespace) -> int:
    """Host capabilities in groups; exit 3 when something required is missing."""
    with output.working("looking at this host") as report:
        report("")
        document = app.doctor()
    code = ExitCode.DONE if document["ok"] else ExitCode.HOST
    if arguments.json:
        output.print_json(document)
        return code
    for group in document["groups"]:
        rows = [
            [check["status"], check["title"] + (" (required)" if check["required"] else ""), check["found"]]
            for check in group["checks"]
        ]
        output.print_table(group["name"], ("STATUS", "PART", "FOUND"), rows)
        print()
    todo = [check for group in document["groups"] for check in group["checks"] if check["status"] != "ok"]
    for check in todo:
        print(f"{check['status']}: {output.plain(check['title'])}: {output.plain(check['why'] or check['found'])}")
        if check["next_step"]:
            print(f"  next: {output.plain(check['next_step'])}")
    print("\nThis host can run VMs." if document["ok"] else "\nThis host cannot run VMs yet; see above.")
    return code
