"""Arguments of ``emulator``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands


def add(commands: Commands) -> None:
    """``emulator recipe``."""
    from casemate.cli.parser import add_command, add_json

    parser = add_command(commands, "emulator", "emulator:emulator", "build recipe for a QEMU with only our devices")
    parser.add_argument("what", choices=("recipe",), help="recipe: a shell script on standard output")
    parser.add_argument("--distribution", choices=("debian12",), default="debian12", help="default: debian12")
    parser.add_argument(
        "--tcg", action="store_true", help="keep TCG, for hosts without KVM; it is no security boundary"
    )
    add_json(parser)
