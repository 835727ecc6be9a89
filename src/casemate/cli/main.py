"""Entry point: parse, import the one command that was asked for, run it, turn errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from casemate.cli.parser import build_parser
from casemate.errors import CasemateError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code; the table is in `casemate.errors`.
    """
    arguments = build_parser().parse_args(argv)
    try:
        module, _, function = arguments.handler.partition(":")
        command = getattr(importlib.import_module(f"casemate.cli.{module}"), function)
        code = int(command(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        from casemate.cli.output import silence_stdout

        silence_stdout()
        return ExitCode.DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except CasemateError as error:
        from casemate.cli.output import print_error

        print_error(error)
        return error.exit_code
    except OSError as error:
        return _host_error(error)
    return code


def _host_error(error: OSError) -> int:
    """What no layer below expected of the operating system: a full disk, no more processes."""
    from casemate.cli.output import print_error
    from casemate.errors import HostError

    place = f"{error.filename}: " if error.filename else ""
    print_error(HostError(f"{place}{error.strerror or error}", next_step="casemate doctor"))
    return ExitCode.HOST


if __name__ == "__main__":
    sys.exit(main())
