"""Arguments of image build. Only argparse."""

from __future__ import annotations

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate image build --debian bookworm -o debian.img
  casemate image build --verity root.ext4 -o signed-root
  casemate run signed-root/vm.toml

--debian makes a hardened disk from signed packages (mmdebstrap): root locked, keys only, cloud-init that believes
NoCloud alone, security updates by themselves, no machine-id, host keys or seeds; it boots under Secure Boot, and is
scanned and audited before the command ends (exit code 1 when it does not pass).

--verity writes disk.raw (the file system and its hash tree), kernel, initrd and vm.toml. The root hash stands on the
kernel command line: whoever trusts vm.toml trusts every block, and a changed one is a read error in the guest.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    build = add_command(
        commands,
        "build",
        "image_build:build",
        "make a hardened Debian disk, or a root that its guest checks block by block",
        epilog=_EPILOG,
    )
    build.add_argument(
        "image", nargs="?", metavar="IMAGE|FILE", help=f"for --verity: {IMAGE_HELP}: a bare ext4, squashfs or erofs"
    )
    which = build.add_mutually_exclusive_group(required=True)
    which.add_argument("--verity", action="store_true", help="a root that its guest checks block by block (dm-verity)")
    which.add_argument("--debian", metavar="SUITE", help="a hardened Debian disk: bookworm or trixie")
    build.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="the result: a new directory, for --debian a new file"
    )
    build.add_argument("--size-mib", type=int, default=2048, metavar="MIB", help="--debian: of the disk (default 2048)")
    build.add_argument(
        "--include", action="append", default=[], metavar="PACKAGE", help="--debian: one more package; repeat it"
    )
    build.add_argument("--overlay", action="store_true", help="let the guest write; what it writes is forgotten")
    build.add_argument("--memory-mib", type=int, default=256, metavar="MIB", help="memory of the VM (default 256)")
    add_json(build)
