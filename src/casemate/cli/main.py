"""Entry point: parse, import the one command that was asked for, run it, turn errors into messages and exit codes.

Start-up is part of the time a launch takes: what only errors need is imported when there is one.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

from casemate.cli.parser import build_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: this process's own, and then it ends here.

    Returns:
        the exit code; the table is in `casemate.errors`.
    """
    if argv is not None:
        return _run(argv)
    _open_standard_descriptors()
    gc.disable()  # imports make no garbage; commands that stay turn it on again
    code = _run(None)
    from contextlib import suppress

    with suppress(OSError):  # nobody listens
        sys.stderr.flush()
    # Taking the interpreter down costs as much as half of our imports, and nothing here needs it: no threads, no
    # atexit handlers, output is flushed.
    os._exit(code)


def _open_standard_descriptors() -> None:
    """A caller may have closed 0, 1 or 2: a file of ours that got such a number would be taken for a terminal."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for the process's life
    # A locale without our characters, a path that is no UTF-8: shown as "?" rather than not at all.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


def _run(argv: Sequence[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else argv
        arguments = build_parser(words[0] if words else None).parse_args(words)
        module, _, function = arguments.handler.partition(":")
        command = getattr(importlib.import_module(f"casemate.cli.{module}"), function)
        code = int(command(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        from casemate.cli.output import silence_stdout

        silence_stdout()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # argparse: help, version, or wrong use
        return _flushed(end.code if isinstance(end.code, int) else 0)
    except Exception as error:
        return _failed(error)
    return code


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        from casemate.cli.output import silence_stdout

        silence_stdout()
    except OSError as error:
        return _failed(error)
    return code


def _failed(error: Exception) -> int:
    """The message of an expected error; the traceback of one that is our bug."""
    from casemate.cli.output import print_error
    from casemate.errors import CasemateError, ExitCode, HostError

    if isinstance(error, CasemateError):
        print_error(error)
        return error.exit_code
    if isinstance(error, OSError):  # what no layer below expected of the system: a full disk, no more processes
        got = (error.strerror or str(error)).lower()
        print_error(HostError(_place(error), got=got, next_step=_remedy(error)))
        return ExitCode.HOST
    import traceback
    from contextlib import suppress

    with suppress(OSError):  # nobody listens
        traceback.print_exception(error)
        sys.stderr.write("casemate: error: this is a bug of Casemate; please report it with the lines above\n")
        sys.stderr.flush()
    return ExitCode.FAILED


def _place(error: OSError) -> str:
    """Where it happened. Python names no file when a write fails, and most often that is redirected output."""
    import errno

    if error.filename:
        return f"{error.filename} cannot be used"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
        return "standard output, or a file, cannot be written"
    return "the system refused a call"


def _remedy(error: OSError) -> str:
    """What to do about a system that refuses."""
    import errno
    from pathlib import Path

    directory = str(Path(os.fsdecode(error.filename)).parent) if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"make room: df -h {directory}" if directory else "see where the output leads; df -h"
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM} and directory:
        return f"make {directory} writable for uid {os.geteuid()}; casemate doctor lists our directories"
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}:
        return "this host is at a limit: see ulimit -a, and stop what is not needed"
    return "casemate doctor"


if __name__ == "__main__":
    main()
