"""Arguments of image repo: init, add, publish, renew, rotate, sync. Only argparse."""

from __future__ import annotations

import argparse

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
publish images, and take them in, so that a web server or mirror has to be trusted with nothing (TUF):
  casemate image repo init /srv/images --keys /media/stick/keys
  casemate image repo add /srv/images debian --keys /media/stick/keys
  casemate image repo publish /srv/images --keys /media/stick/keys
  casemate image repo sync https://images.example.org --root 1.root.json debian
"""
REPO_HELP = "directory of the repository"
KEYS_HELP = "directory of the keys"


def add(commands: Commands) -> None:
    """Add the group."""
    group = add_command(
        commands, "repo", "image_repo:no_command", "keep and use signed repositories of images", epilog=_EPILOG
    )
    parts = group.add_subparsers(title="commands", metavar="COMMAND", dest="repo_command", required=True)
    init = add_command(parts, "init", "image_repo:init", "make a repository and its keys")
    _place(init)
    for role, default in (("root", "2/3"), ("targets", "1/1")):
        init.add_argument(
            f"--{role}-keys",
            type=_threshold,
            default=_threshold(default),
            metavar="T/N",
            help=f"make N keys for {role}, of which T must sign (default {default})",
        )
    _secret(init)
    take = add_command(parts, "add", "image_repo:add", "put an image into a repository, if its scan allows that")
    _place(take, image=True)
    take.add_argument("--name", metavar="NAME", help="what it is called there")
    take.add_argument("--allow-file", metavar="FILE", help="findings of the scan that are accepted, and why")
    take.add_argument(
        "--without-scan", metavar="REASON", help="publish what was not looked at: strangers may find secrets in it"
    )
    _secret(take)
    publish = add_command(parts, "publish", "image_repo:publish", "sign the state of a repository, for some days")
    _place(publish)
    _secret(publish)
    renew = add_command(parts, "renew", "image_repo:renew", "sign a new root, before the old one expires")
    _place(renew)
    _secret(renew)
    rotate = add_command(parts, "rotate", "image_repo:rotate", "give a role new keys; the old ones count no longer")
    _place(rotate)
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp"), help="whose keys")
    _secret(rotate)
    sync = add_command(parts, "sync", "image_repo:sync", "take images from a repository into the store")
    sync.add_argument("source", metavar="URL|DIR", help="where the repository is")
    sync.add_argument("names", nargs="*", metavar="NAME", help="images to take; without any, only look")
    sync.add_argument("-a", "--all", action="store_true", help="take every image")
    sync.add_argument(
        "--root", metavar="FILE", help="its 1.root.json from somewhere that you trust; needed the first time"
    )
    add_json(sync)


def _place(parser: argparse.ArgumentParser, *, image: bool = False) -> None:
    parser.add_argument("repo", metavar="REPO", help=REPO_HELP)
    if image:
        parser.add_argument("image", metavar="IMAGE", help="an image of the store: name or digest")
    parser.add_argument("--keys", required=True, metavar="DIR", help=KEYS_HELP)


def _secret(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-fd", type=int, metavar="N", help="read the keys' passphrase from descriptor N; asked otherwise"
    )
    add_json(parser)


def _threshold(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not first.isdigit() or not second.isdigit() or not 1 <= int(first) <= int(second) <= 16:
        raise argparse.ArgumentTypeError(f"{text} is no threshold such as 2/3")
    return int(first), int(second)
