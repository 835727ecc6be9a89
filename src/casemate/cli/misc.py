"""key, unit, spec, completion, version."""

from __future__ import annotations

import argparse

from casemate.cli import output
from casemate.errors import ExitCode, HostError
from casemate.installed import installed_version

VERSION_SCHEMA = "casemate.version/1"


def version(arguments: argparse.Namespace) -> int:
    """Print the version."""
    if arguments.json:
        import platform

        document = {"schema": VERSION_SCHEMA, "casemate": installed_version(), "python": platform.python_version()}
        output.print_json(document)
    else:
        print(f"casemate {installed_version()}")
    return ExitCode.DONE


def key(arguments: argparse.Namespace) -> int:
    """Print the public key."""
    if arguments.jwk:
        from casemate import attests

        output.print_json(attests.host_jwk())
        return ExitCode.DONE
    from casemate import app

    print(app.show_key())
    return ExitCode.DONE


def unit(arguments: argparse.Namespace) -> int:
    """Print a systemd unit."""
    from casemate import app

    print(app.unit(arguments.vm), end="")
    return ExitCode.DONE


def spec(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of specifications."""
    from casemate import app

    output.print_json(app.spec_schema())
    return ExitCode.DONE


def completion(arguments: argparse.Namespace) -> int:
    """Print a completion script."""
    from casemate.cli.args_image import fill_all
    from casemate.cli.completing import completion_script
    from casemate.cli.parser import build_parser

    try:
        script = completion_script(fill_all(build_parser()), arguments.shell)
    except ImportError:
        raise HostError("completion needs the package shtab", next_step="pip install shtab") from None
    print(script)
    return ExitCode.DONE
