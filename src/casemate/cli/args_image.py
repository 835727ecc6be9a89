"""Arguments of the group ``casemate image``. Its commands stand in modules of their own, read only when needed.

A module of `IMAGE_PARTS` has ``add(image_commands)`` and uses `parser.add_command` as other commands do. A launch pays
for none of them: the group is filled when its own arguments are parsed, or when the whole tree is asked for
(``completion``).
"""

from __future__ import annotations

import argparse
import importlib

from casemate.cli.parser import add_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.cli.parser import Commands, Parser

IMAGE_PARTS: tuple[str, ...] = (
    "args_image_store",
    "args_image_verify",
    "args_image_repo",
    "args_image_build",
    "args_image_scan",
    "args_image_contents",
    "args_image_crypt",
)
"""Modules with commands of the group, in the order of its help."""

IMAGE_HELP = "an image of the store (name, digest, image:NAME), or a raw or qcow2 file"

_EPILOG = """\
examples:
  casemate image add debian-12-generic-amd64.qcow2 --name debian
  casemate image ls
  casemate run debian
"""


def add(commands: Commands) -> None:
    """Add the group."""
    group = add_command(
        commands,
        "image",
        "image_store:no_command",
        "keep, check and look into images, without mounting them",
        epilog=_EPILOG,
    )
    _fill_when_used(group)


def _fill_when_used(group: Parser) -> None:
    parse = group.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        fill(group)
        return parse(args, namespace)

    group.parse_known_args = parse_known_args  # type: ignore[method-assign]


def fill(group: Parser) -> None:
    """Give the group its commands, once."""
    if group._subparsers is not None:
        return
    commands = group.add_subparsers(title="commands", metavar="COMMAND", dest="image_command", required=True)
    for module in IMAGE_PARTS:
        importlib.import_module(f"casemate.cli.{module}").add(commands)


def fill_all(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The whole command line with its group filled, for those who walk the tree."""
    assert parser._subparsers is not None
    for action in parser._subparsers._group_actions:
        if isinstance(action, argparse._SubParsersAction):
            fill(action.choices["image"])
    return parser
