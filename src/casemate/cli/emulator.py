"""emulator recipe."""

from __future__ import annotations

import argparse

import msgspec

from casemate import assess
from casemate.cli import output
from casemate.errors import ExitCode


def emulator(arguments: argparse.Namespace) -> int:
    """The script on stdout; what it changes on stderr, so that it can be sent to a file."""
    recipe = assess.emulator_recipe(tcg=arguments.tcg)
    if arguments.json:
        output.print_json(msgspec.to_builtins(recipe))
        return ExitCode.DONE
    print(recipe.script, end="")
    for one in (recipe.before, recipe.after):
        output.note(
            f"{one.name}: {one.devices} devices, {one.size_bytes / 1e6:.1f} MB, {one.libraries} libraries, "
            f"{one.vulnerabilities} known vulnerabilities in what is built in"
        )
    return ExitCode.DONE
