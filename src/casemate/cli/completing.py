"""Completion scripts: which words stand for VMs, files, directories, or one of a few words.

The arguments themselves say it: a ``FILE`` is a file wherever it occurs. Words that a specification takes are not
``choices`` of the parser, because the specification judges them, with all its other faults; here they are.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from casemate import app

_WORDS = {
    ("WHICH", "accel"): "AccelChoice",
    ("WHICH", "egress"): "Egress",
    ("WHICH", "firmware"): "Firmware",
    ("MODE", "net"): "NetworkMode",
    ("TYPE", "machine"): "MachineType",
}
"""An argument as it is shown and kept -> the type that the schema of specifications has for it."""
_FILES = re.compile(r"FILE|PATH|SPEC|IMAGE|DOCUMENT|EVIDENCE|TARGET|SOURCE|LOG|\.json|\.tar|\.xml")
_VMS = {"bash": "_casemate_vms", "zsh": "_casemate_vms"}
_VMS_AND_FILES = {"bash": "_casemate_vms_or_files", "zsh": "_casemate_vms_or_files", "tcsh": "f"}
_TARGETS = {"bash": "_casemate_builtin_or_files", "zsh": "_casemate_builtin_or_files", "tcsh": "f"}

# A table that is not drawn on a terminal has one line per VM: id, name, and so on.
_BASH = """
_casemate_names() {
  "${COMP_WORDS[0]:-casemate}" ps --all 2>/dev/null | {
    local id name rest
    read -r rest
    while read -r id name rest; do echo "$name"; done
  }
}
_casemate_vms() { compgen -W "$(_casemate_names)" -- "$1"; }
_casemate_vms_or_files() { _casemate_vms "$1"; compgen -f -- "$1"; }
_casemate_builtin_or_files() { compgen -W builtin -- "$1"; compgen -f -- "$1"; }
"""
_ZSH = """
_casemate_vms() {
  local -a names
  names=(${(f)"$(casemate ps --all 2>/dev/null | while read -r id name rest; do echo $name; done)"})
  compadd -- ${names:#NAME}
}
_casemate_vms_or_files() { _casemate_vms; _files }
_casemate_builtin_or_files() { compadd -- builtin; _files }
"""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``; changes ``parser``, which is good for nothing else afterwards."""
    import shtab

    _prepare(parser, app.spec_schema()["$defs"])
    script: str = shtab.complete(parser, shell=shell, preamble={"bash": _BASH, "zsh": _ZSH}.get(shell, ""))
    # Without this, names of files are completed nowhere that a pattern above has missed.
    return script.replace("complete -o bashdefault -F", "complete -o bashdefault -o default -F")


def _prepare(parser: argparse.ArgumentParser, types: dict[str, Any]) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _prepare(sub, types)
        elif action.nargs != 0 and not action.choices:
            _mark(action, types)


def _mark(action: argparse.Action, types: dict[str, Any]) -> None:
    import shtab

    shown = str(action.metavar or "")
    words = _WORDS.get((shown, action.dest))
    if words is not None:
        action.choices = types[words]["enum"]
        return
    kind: object = None
    if shown == "VM":
        kind = _VMS
    elif "VM" in shown.split("|"):
        kind = _VMS_AND_FILES
    elif "builtin" in shown.split("|"):
        kind = _TARGETS
    elif shown in {"DIR", "REPO"}:
        kind = shtab.DIRECTORY
    elif _FILES.search(shown):
        kind = shtab.FILE
    if kind is not None:
        action.complete = kind  # type: ignore[attr-defined]  # shtab looks for it
