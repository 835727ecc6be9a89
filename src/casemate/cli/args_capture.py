"""Arguments of capture. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate capture --list                what would be taken from this host, and what cannot be read
  casemate capture host7.tar             shows it, asks, writes; host7.tar.gz is packed
  casemate capture --yes host7.tar       without asking
  casemate capture --script > take.sh    for hosts without Python: sh take.sh host7.tar
  casemate audit host7.tar               judge it, on any machine, as of the time it was made

Taken are files of /proc, /sys and /etc that the audit reads, names and modes, versions of packages, and what is
running as an emulator; values of passwords, tokens and keys are replaced, other users' data is not opened. The file is
readable by its owner only. Without root less can be read; the capture says what and why.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    capture = add_command(
        commands,
        "capture",
        "capture:capture",
        "collect what an audit of this host needs, to judge it elsewhere",
        _EPILOG,
    )
    capture.add_argument(
        "output", nargs="?", metavar="OUT.tar", help="the archive to write; packed when it ends in .gz"
    )
    how = capture.add_mutually_exclusive_group()
    how.add_argument("--list", action="store_true", help="only show what would be written")
    how.add_argument("--script", action="store_true", help="print a shell script that does the same without Python")
    how.add_argument("-y", "--yes", action="store_true", help="write without asking")
    add_json(capture)
