"""Arguments of the command that looks for a hypervisor: detect."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_DETECT_EPILOG = """\
examples:
  casemate detect
  casemate detect --expect none      exit code 1 when there is any sign of a hypervisor
  casemate detect --expect kvm       exit code 1 when this is not a KVM guest

Names are those of systemd-detect-virt (kvm, qemu, xen, vmware, microsoft, oracle …), or a platform's (firecracker,
amazon, google …). No answer from inside excludes a hypervisor that hides.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    detect = add_command(
        commands,
        "detect",
        "detect:detect",
        "say whether this system is virtualised, by what, and what that rests on",
        epilog=_DETECT_EPILOG,
    )
    detect.add_argument("--expect", metavar="NAME", help="none, or the hypervisor or platform that it should be")
    detect.add_argument(
        "--root", metavar="DIR", help="look at a captured file tree instead of this system (no CPUID then)"
    )
    add_json(detect)
