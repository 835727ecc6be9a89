"""Arguments of harden. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate harden vm.xml --diff                   what would change, and why
  virsh dumpxml web | casemate harden - -o web.xml
  casemate harden vm.xml --in-place --keep dev.no-display --keep net.isolated
  casemate harden -o web.toml -- qemu-system-x86_64 -m 2G -hda web.qcow2 -nic user
  casemate harden /etc/xen/web.cfg -o web.toml    then: casemate plan web.toml

A libvirt domain becomes the hardened domain; a QEMU command line or a Xen domain becomes a specification of ours. It
goes to standard output, what was changed and what is left to standard error. Exit code 1 when something is left that
only the owner can decide, such as a device of the host that is given to the guest.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    harden = add_command(
        commands,
        "harden",
        "harden:harden",
        "rewrite a VM's definition so that it satisfies the controls, and say what each change costs",
        epilog=_EPILOG,
    )
    harden.add_argument(
        "document",
        nargs="+",
        metavar="DOCUMENT",
        help="a libvirt domain, a Xen xl.cfg, a file with a QEMU command line (- reads standard input), or a whole "
        "command line after --",
    )
    harden.add_argument(
        "--keep", action="append", default=[], metavar="ID", help="leave what this control asks for; repeat it"
    )
    harden.add_argument(
        "--libvirt",
        metavar="VERSION",
        default="8.0",
        help="oldest libvirt that has to understand the result (default 8.0); 9.1 allows passt, 10.7 no PS/2",
    )
    harden.add_argument(
        "--io-limit",
        type=_mib_s,
        metavar="MIB_S",
        help="limit disk traffic that has no limit yet, in MiB per second",
    )
    where = harden.add_mutually_exclusive_group()
    where.add_argument("--diff", action="store_true", help="print a unified diff in place of the document")
    where.add_argument(
        "--in-place",
        action="store_true",
        help="replace the file; the old one stays as FILE.orig, later ones as FILE.bak",
    )
    where.add_argument("-o", "--output", metavar="FILE", help="write the document there")
    add_json(where)  # type: ignore[arg-type]


def _mib_s(text: str) -> int:
    from argparse import ArgumentTypeError

    if not (text.isascii() and text.isdigit() and 1 <= int(text[:8]) <= 1 << 20):
        raise ArgumentTypeError(f"{text[:20]} is no number of MiB per second from 1 to {1 << 20}")
    return int(text)
