"""The formats by name, and by the ending of a file's name."""

from __future__ import annotations

from typing import Final

from casemate.controls.audit_model import Report
from casemate.errors import InputError
from casemate.report.text import clean
from casemate.report.view import NO_CHANGES, Changes

NAMES: Final = ("text", "json", "jsonl", "sarif", "junit", "markdown", "html", "prometheus")
ENDINGS: Final = {
    ".sarif.json": "sarif",
    ".sarif": "sarif",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".xml": "junit",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
    ".prom": "prometheus",
    ".txt": "text",
}


def format_of(file_name: str) -> str:
    """The format that the ending of a file's name asks for; empty when it asks for none."""
    lower = file_name.lower()
    return next((name for ending, name in ENDINGS.items() if lower.endswith(ending)), "")


def render(report: Report, name: str, changes: Changes = NO_CHANGES) -> str:
    """A report in a format, as text for a file (the terminal's own look is `terminal.to_text` with a width).

    Raises:
        InputError: there is no such format.
    """
    report = clean(report)
    match name:
        case "text":
            from casemate.report.terminal import to_text

            return to_text(report, changes)
        case "json":
            from casemate.report.document import to_json

            return to_json(report, changes)
        case "jsonl":
            from casemate.report.document import json_lines

            return json_lines(report, changes)
        case "sarif":
            from casemate.report.sarif import to_sarif

            return to_sarif(report, changes)
        case "junit":
            from casemate.report.junit import to_junit

            return to_junit(report, changes)
        case "markdown":
            from casemate.report.markdown import to_markdown

            return to_markdown(report, changes)
        case "html":
            from casemate.report.html import to_html

            return to_html(report, changes)
        case "prometheus":
            from casemate.report.prometheus import to_prometheus

            return to_prometheus(report)
    raise InputError("there is no such format", got=repr(name), expected=f"one of {', '.join(NAMES)}")
