"""detect: is this system virtualised, by what, and is that what its owner expects?"""

from __future__ import annotations

import argparse
from typing import Any

from casemate import assess
from casemate.cli import output
from casemate.errors import ExitCode

_VERDICTS = {
    "virtualised": "virtualised",
    "suspected": "perhaps virtualised: no single sign is conclusive",
    "no-trace": "no trace of a hypervisor",
    "unknown": "unknown: too little could be read",
}


def detect(arguments: argparse.Namespace) -> int:
    """Exit 1 when the expectation does not hold."""
    document = assess.detect(arguments.root, expect=arguments.expect)
    if arguments.json:
        output.print_json(document)
    else:
        _print(document)
    return ExitCode.FINDINGS if document["expected"] and not document["expected"]["holds"] else ExitCode.DONE


def _print(document: dict[str, Any]) -> None:
    print(f"{_VERDICTS[document['verdict']]}")
    for depth, layer in enumerate(document["layers"]):
        print(f"  {'  ' * depth}{'└ ' if depth else ''}{output.plain(layer)}")
    print()
    rows = [
        [item["strength"], item["about"], item["says"] or "-", item["value"], item["source"]]
        for item in document["indicators"]
    ]
    output.print_table("What it rests on", ("STRENGTH", "ABOUT", "SAYS", "OBSERVED", "SOURCE"), rows)
    for title, key in (
        ("What does not fit together", "contradictions"),
        ("Also", "notes"),
        ("What could not be looked at", "unread"),
        ("What this cannot say", "limits"),
    ):
        if document[key]:
            print(f"\n{title}")
            for line in document[key]:
                _paragraph(line)
    if document["expected"]:
        holds = document["expected"]["holds"]
        print(f"\nExpected {document['expected']['name']}: {'as expected' if holds else 'NOT what was found'}")


def _paragraph(text: str) -> None:
    import textwrap

    print(textwrap.fill(output.plain(text), width=100, initial_indent="  ", subsequent_indent="  "))
