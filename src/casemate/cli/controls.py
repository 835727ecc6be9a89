"""controls."""

from __future__ import annotations

import argparse
import os
import sys

from casemate import reports
from casemate.cli import output
from casemate.errors import ExitCode, InputError


def controls(arguments: argparse.Namespace) -> int:
    """The catalogue, or one of its entries."""
    if arguments.framework:
        return _framework(arguments)
    document = reports.catalogue_document(arguments.id, arguments.layer, arguments.profile)
    if arguments.json:
        output.print_json(document)
    elif arguments.id:
        width = os.get_terminal_size(1).columns or 80 if sys.stdout.isatty() else None
        print(reports.explain_control(arguments.id, arguments.profile, width=width), end="")
    else:
        rows = reports.catalogue_rows(document)
        output.print_table("", ("LAYER", "CONTROL", "SEVERITY", "WHAT HOLDS"), rows)
        print(f"\n{len(rows)} controls. casemate controls ID shows one in full.")
    return ExitCode.DONE


def _framework(arguments: argparse.Namespace) -> int:
    if arguments.id or arguments.layer:
        raise InputError("--framework lists measures: it takes no ID and no --layer")
    if arguments.json:
        output.print_json(reports.framework_document(arguments.framework))
    else:
        width = os.get_terminal_size(1).columns or 80 if sys.stdout.isatty() else None
        print(reports.framework_text(arguments.framework, width=width), end="")
    return ExitCode.DONE
