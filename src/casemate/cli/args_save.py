"""Arguments of save; `run --from` is in the parser of run."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate run -d --name web --saveable vm.toml
  casemate save web web.state                          the VM ends; its file has mode 0600
  casemate run -d --from web.state                     it goes on, here or as often as you like
  casemate save web web.state --age-recipient age1…    sealed: the memory of a guest holds its secrets
  casemate run --from web.state --age-identity key.txt

A state belongs to this QEMU version, accelerator, kernel, initrd and disks, byte for byte; anything else is refused.
Each VM that goes on from it is told so before its first instruction, and starts its random numbers anew.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    save = add_command(
        commands, "save", "saves:save", "write a running VM's memory and devices to a file, and end it", epilog=_EPILOG
    )
    save.add_argument("vm", metavar="VM", help="name, id, or unique beginning of the id")
    save.add_argument("file", metavar="FILE", help="the new file; one that exists is never overwritten")
    save.add_argument("--leave-running", action="store_true", help="let the VM go on; not with persistent disks")
    save.add_argument(
        "--age-recipient",
        action="append",
        default=[],
        metavar="KEY",
        help="seal it for this age recipient (age1… or an ssh public key); repeat it",
    )
    add_key(save)
    add_json(save)


def add_key(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Flags for a key that both directions take."""
    parser.add_argument("--key-file", metavar="FILE", help="a key of 32 bytes or more, mode 0600")
    parser.add_argument("--key-fd", type=int, metavar="N", help="the key comes from this open descriptor")
