"""Arguments of image ls-files, cat and copy-out, and of the part of inspect that looks inside. Only argparse."""

from __future__ import annotations

import argparse

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_LS_EXAMPLES = """\
examples:
  casemate image ls-files debian.qcow2 /etc
  casemate image ls-files -r --volume vda2 disk.img /var/log
"""
_COPY_EXAMPLES = """\
examples:
  casemate image copy-out debian.qcow2 /etc /root/.ssh ./out
  casemate image copy-out --max-size 2G appliance.qcow2 / ./out
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    files = add_command(
        commands,
        "ls-files",
        "image_contents:list_files",
        "list files of an image, read by a throwaway VM",
        epilog=_LS_EXAMPLES,
    )
    files.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    files.add_argument(
        "path", nargs="?", default="/", metavar="PATH", help="a directory or file of the image; / without it"
    )
    files.add_argument("-r", "--recursive", action="store_true", help="also everything below it")
    files.add_argument("-l", "--long", action="store_true", help="mode, owner, size and time, as ls -l")
    files.add_argument("-0", "--null", action="store_true", help="names as they are, each ended by a NUL, for xargs -0")
    add_reading(files)
    add_json(files)
    cat = add_command(commands, "cat", "image_contents:cat", "write a file of an image to stdout")
    cat.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    cat.add_argument("path", metavar="PATH", help="a regular file of the image; links are followed inside it")
    add_reading(cat)
    copy = add_command(
        commands,
        "copy-out",
        "image_contents:copy_out",
        "copy files and trees of an image into a new directory",
        epilog=_COPY_EXAMPLES,
    )
    copy.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    copy.add_argument("paths", nargs="+", metavar="PATH", help="what to copy out of the image")
    copy.add_argument("directory", metavar="DIR", help="where to: a new or empty directory")
    copy.add_argument("--max-size", metavar="SIZE", help="stop beyond this many bytes; 64G without it")
    copy.add_argument("--max-files", type=int, metavar="N", help="stop beyond this many files; 4000000 without it")
    copy.add_argument(
        "--dangerous-outward-links",
        action="store_true",
        help="also make links that lead out of DIR, into your own files",
    )
    copy.add_argument(
        "--dangerous-device-nodes", action="store_true", help="also make device nodes and FIFOs; needs root"
    )
    add_reading(copy)
    add_json(copy)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """What every command that looks inside an image takes."""
    parser.add_argument(
        "--volume", metavar="NAME", help="which volume; the one with the system without it (image inspect lists them)"
    )
    add_opening(parser)


def add_opening(parser: argparse.ArgumentParser) -> None:
    """How the image is opened."""
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        dest="disks",
        metavar="IMAGE",
        help="a further disk of the same machine (RAID, LVM); repeatable",
    )
    parser.add_argument(
        "--key-file",
        action="append",
        default=[],
        metavar="FILE",
        help="passphrase or key of an encrypted volume, the whole file; repeatable",
    )
    parser.add_argument(
        "--key-fd",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help="the same from an open descriptor; repeatable",
    )
    parser.add_argument(
        "--reader",
        choices=("cell", "dissect"),
        default="cell",
        metavar="READER",
        help="cell (a VM; the default), or dissect: that library in a wall, when it is installed",
    )
    if not any("--format" in action.option_strings for action in parser._actions):
        parser.add_argument(
            "--format",
            choices=("raw", "qcow2"),
            metavar="FORMAT",
            help="of a file: raw or qcow2, in place of what its content tells",
        )
