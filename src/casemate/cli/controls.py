"""controls."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from casemate.cli import output
from casemate.controls.catalogue.all import all_controls
from casemate.controls.layers import Layer, layer_of
from casemate.controls.model import Control
from casemate.controls.profiles import DEFAULT, named, severity_under
from casemate.errors import ExitCode, InputError

CONTROLS_SCHEMA = "casemate.controls/1"


def find(control_id: str) -> Control:
    """The control of this id.

    Raises:
        InputError: there is none.
    """
    known = {control.id: control for control in all_controls()}
    if control_id in known:
        return known[control_id]
    import difflib

    close = difflib.get_close_matches(control_id, known, 1)
    raise InputError(
        f"there is no control {control_id!r}",
        expected=f"did you mean {close[0]}?" if close else "",
        next_step="casemate controls",
    )


def controls(arguments: argparse.Namespace) -> int:
    """The catalogue, or one of its entries."""
    profile = named(arguments.profile or DEFAULT)
    chosen = [find(arguments.id)] if arguments.id else list(all_controls())
    if arguments.layer:
        chosen = [control for control in chosen if layer_of(control.id).value == arguments.layer]
    order = {layer: number for number, layer in enumerate(Layer)}
    chosen.sort(key=lambda control: (order[layer_of(control.id)], control.id))
    severities = {control.id: severity_under(profile, control.id, control.severity) for control in chosen}
    if arguments.json:
        rows = [_document(control, severities[control.id]) for control in chosen]
        output.print_json({"schema": CONTROLS_SCHEMA, "profile": profile.name, "controls": rows})
    elif arguments.id:
        import os

        from casemate.report.explain import with_remedies

        width = os.get_terminal_size(1).columns or 80 if sys.stdout.isatty() else None
        print(with_remedies(chosen[0], width, profile if arguments.profile else None), end="")
    else:
        table = [
            [layer_of(control.id).value, control.id, severities[control.id] or "not asked", control.title]
            for control in chosen
        ]
        output.print_table("", ("LAYER", "CONTROL", "SEVERITY", "WHAT HOLDS"), table)
        print(f"\n{len(chosen)} controls. casemate controls ID shows one in full.")
    return ExitCode.DONE


def _document(control: Control, severity: str | None) -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(control)
    return {**document, "layer": layer_of(control.id).value, "severity": severity or "not-asked"}
