"""Arguments of image scan, audit and sbom. Only argparse."""

from __future__ import annotations

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands, Parser

_EPILOG = """\
examples:
  casemate image scan debian                        the image, its deleted files, its snapshots
  casemate image scan disk.qcow2 --json --allow-file waivers.toml
  casemate image scan disk.img --format raw --rules gitleaks.toml --sarif > scan.sarif

Every block is searched in a jail without a file system parser, so that what was deleted is found, too. Secrets are
never printed: first and last four characters, and a digest under a key of this scan. Exit code 1 when something is
found that no waiver names, or when a part could not be scanned; 0 when the image may be public.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    scan = add_command(
        commands,
        "scan",
        "image_scan:scan",
        "find what a stranger would learn from an image: keys, passwords, tokens, traces",
        epilog=_EPILOG,
    )
    scan.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    add_scan_options(scan)
    how = scan.add_mutually_exclusive_group()
    add_json(how)  # type: ignore[arg-type]
    how.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code scanning")
    scan.add_argument("--list-rules", action="store_true", help="print the rules in force, and scan nothing")
    audit = add_command(
        commands,
        "audit",
        "image_scan:audit",
        "judge the guest of an image by its files: updates, accounts, sshd, kernel settings",
        epilog=_AUDIT_EPILOG,
    )
    audit.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    _add_format(audit)
    audit.add_argument(
        "--security-lists",
        metavar="DIR",
        help="lists of the distribution's security suite (DIR/var/lib/apt/lists); / takes this host's",
    )
    audit.add_argument("--waivers", metavar="FILE", help="what is accepted, as for casemate audit")
    audit.add_argument("--all", action="store_true", help="list also what passed, and why what is unknown is")
    add_json(audit)
    publish = add_command(
        commands, "publish", "image_scan:publish", "scan an image and put it into a directory, if nothing was found"
    )
    publish.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    publish.add_argument("directory", metavar="DIR", help="where it goes, with its line in DIR/SHA256SUMS")
    publish.add_argument("--name", metavar="NAME", help="name of the file there; the image's own without it")
    _add_format(publish, keys=False)
    publish.add_argument("--rules", metavar="FILE", help="more rules, as for image scan")
    publish.add_argument("--allow-file", metavar="FILE", help="waivers: findings that are accepted, by name")
    add_json(publish)
    sbom = add_command(commands, "sbom", "image_scan:sbom", "list the packages of an image as a bill of materials")
    sbom.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    _add_format(sbom)
    sbom.add_argument(
        "--as", dest="kind", choices=("cyclonedx", "spdx"), default="cyclonedx", metavar="KIND",
        help="cyclonedx (1.5, default) or spdx (2.3), both JSON",
    )  # fmt: skip


_AUDIT_EPILOG = """\
examples:
  casemate image audit debian --security-lists /
  casemate image audit disk.img --format raw --all

The files are read by a throwaway VM and nothing is mounted. Exit code 1 when a control fails or is unknown.
"""


def _add_format(parser: Parser, *, keys: bool = True) -> None:
    if keys:
        parser.add_argument(
            "--key-file",
            action="append",
            default=[],
            metavar="FILE",
            help="passphrase or key of an encrypted volume, the whole file; repeatable",
        )
    parser.add_argument(
        "--format", choices=("raw", "qcow2"), metavar="FORMAT", help="of a file: raw or qcow2, in place of its content"
    )


def add_scan_options(parser: Parser) -> None:
    """Options of everything that scans."""
    _add_format(parser)
    parser.add_argument(
        "--rules",
        metavar="FILE",
        help="more rules: a file of ours (docs/scan.md) or of gitleaks; - reads standard input",
    )
    parser.add_argument(
        "--allow-file", metavar="FILE", help="waivers: findings that are accepted, by name (docs/scan.md)"
    )
    parser.add_argument(
        "--digest-key-file",
        metavar="FILE",
        help="key for the digests of findings (16 bytes or more), so that two scans can be compared; random without it",
    )
    parser.add_argument("--no-files", action="store_true", help="blocks only: do not read files by name")
    parser.add_argument(
        "--engine", choices=("hyperscan", "plain"), default="hyperscan", metavar="WHICH",
        help="hyperscan (default), or plain: Python alone, a hundred times slower",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes that scan (default: one a CPU)")
