"""Arguments of image build --verity. Only argparse."""

from __future__ import annotations

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate image build --verity root.ext4 -o signed-root
  casemate run signed-root/vm.toml

Writes disk.raw (the file system and its hash tree), kernel, initrd and vm.toml. The root hash stands on the kernel
command line: whoever trusts vm.toml trusts every block, and a changed one is a read error in the guest.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    build = add_command(
        commands, "build", "image_build:build", "make a root that its guest checks block by block", epilog=_EPILOG
    )
    build.add_argument("image", metavar="IMAGE|FILE", help=f"{IMAGE_HELP}: a bare ext4, squashfs or erofs")
    build.add_argument("--verity", action="store_true", required=True, help="with dm-verity")
    build.add_argument("-o", "--output", required=True, metavar="DIR", help="a new directory for the result")
    build.add_argument("--overlay", action="store_true", help="let the guest write; what it writes is forgotten")
    build.add_argument("--memory-mib", type=int, default=256, metavar="MIB", help="memory of the VM (default 256)")
    add_json(build)
