"""Arguments of the commands that look at machines: surface and detect."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_SURFACE_EPILOG = """\
examples:
  casemate surface web                             a VM of ours, its live device tree
  casemate surface vm.xml --paths                  a libvirt domain, with the way of each packet and block
  casemate surface --svg paths.svg -- qemu-system-x86_64 -m 1G -nic user,model=e1000
  casemate surface --measure                       count the work per packet and per block on this host

Rows are sorted by risk: what the history of vulnerabilities says about the part, the host kernel's share first.
After "hardened" stands how much of that history would still reach what casemate harden makes of the machine.
"""

_DETECT_EPILOG = """\
examples:
  casemate detect
  casemate detect --expect none      exit code 1 when there is any sign of a hypervisor
  casemate detect --expect kvm       exit code 1 when this is not a KVM guest

Names are those of systemd-detect-virt (kvm, qemu, xen, vmware, microsoft, oracle …), or a platform's (firecracker,
amazon, google …). No answer from inside excludes a hypervisor that hides.
"""


def add(commands: Commands) -> None:
    """Add both commands."""
    surface = add_command(
        commands,
        "surface",
        "surface:surface",
        "show the device model of a machine: who handles each part, its history, what could go",
        epilog=_SURFACE_EPILOG,
    )
    surface.add_argument(
        "target",
        nargs="*",
        metavar="TARGET",
        help="a VM of ours, builtin, a specification, a libvirt domain, a file with a QEMU command line (- reads "
        "standard input), or a whole command line after --",
    )
    surface.add_argument("--pid", type=int, metavar="PID", help="a running QEMU by its process id")
    surface.add_argument("--paths", action="store_true", help="draw the way of packets and blocks in the terminal")
    surface.add_argument("--svg", metavar="FILE", help="write those pictures to FILE, as one SVG")
    surface.add_argument(
        "--measure",
        action="store_true",
        help="boot a guest in our wall with e1000, virtio-net, IDE and virtio-blk, and count the work of each packet "
        "and block; without TARGET only that",
    )
    surface.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        metavar="NAME",
        help="for --measure: kvm, tcg, or auto (default): KVM where it executes guests, with exits by reason",
    )
    add_json(surface)
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
