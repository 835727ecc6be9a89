"""Arguments of image add, ls, tag, rm, prune and inspect. Only argparse."""

from __future__ import annotations

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.args_image_contents import add_opening
from casemate.cli.args_image_verify import add_evidence
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")
SOURCE_HELP = (
    "a file (raw, qcow2, vmdk, vhd, vhdx, vdi, OVA; packed with gz, xz, bz2, zst or not), an https URL of one, an"
    " image of a registry (oci://HOST/NAME:TAG), an OCI layout directory, or - for standard input"
)
STORED_HELP = "name, digest, or at least eight digits of it"


def add(commands: Commands) -> None:
    """Add the commands."""
    take = add_command(commands, "add", "image_store:add", "take an image into the store; prints its digest")
    take.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    take.add_argument("--name", metavar="NAME", help="what to call it; made from the source's name without it")
    take.add_argument(
        "--format", choices=FORMATS, metavar="FORMAT", help=f"{', '.join(FORMATS)}, in place of what the content tells"
    )
    take.add_argument(
        "--convert-to",
        choices=("raw", "qcow2"),
        metavar="FORMAT",
        help="raw or qcow2; without it raw and qcow2 stay as they are and the rest becomes qcow2",
    )
    take.add_argument("--sha256", metavar="HEX", help="the SHA-256 that SOURCE must have, as its publisher gives it")
    take.add_argument(
        "--ca-file", metavar="FILE", help="certificates that servers are verified with, in place of the system's"
    )
    take.add_argument(
        "--authfile", metavar="FILE", help="logins of registries, as podman login and docker login write them"
    )
    take.add_argument("--username", metavar="NAME", help="of the registry, with --password-file")
    take.add_argument(
        "--password-file", metavar="FILE", help="the registry's password, in a file of mode 0600; - for standard input"
    )
    take.add_argument("--quota", metavar="SIZE", help="how large the store may become, in place of store.toml: 50G")
    add_evidence(take)
    add_json(take)
    listing = add_command(commands, "ls", "image_store:list_images", "list the images of the store")
    listing.add_argument("-q", "--quiet", action="store_true", help="digests only")
    add_json(listing)
    tag = add_command(commands, "tag", "image_store:tag", "give an image one more name")
    tag.add_argument("image", metavar="IMAGE", help=STORED_HELP)
    tag.add_argument("name", metavar="NAME", help="the new name; the image that has it loses it")
    remove = add_command(commands, "rm", "image_store:remove", "take names away, and images with their last one")
    remove.add_argument("images", nargs="+", metavar="IMAGE", help=STORED_HELP)
    remove.add_argument("-f", "--force", action="store_true", help="also an image with several names, or a damaged one")
    prune = add_command(
        commands, "prune", "image_store:prune", "remove images without a name that no VM uses; prints them"
    )
    prune.add_argument("-a", "--all", action="store_true", help="also images with a name")
    prune.add_argument("--dry-run", action="store_true", help="print what would go, and remove nothing")
    add_json(prune)
    inspect = add_command(
        commands, "inspect", "image_store:inspect", "show what is known of an image, and the volumes in it"
    )
    inspect.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    inspect.add_argument("--header", action="store_true", help="only what its header and the store say")
    inspect.add_argument(
        "--format",
        choices=("raw", "qcow2"),
        metavar="FORMAT",
        help="of a file: raw or qcow2, in place of what its content tells",
    )
    add_opening(inspect)
    add_json(inspect)
