"""Arguments of audit and controls. Only argparse: read whenever the program starts."""

from __future__ import annotations

import argparse

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.cli.parser import Commands, Parser

FORMATS = ("text", "json", "jsonl", "sarif", "junit", "markdown", "html", "prometheus")
SEVERITIES = ("critical", "high", "medium", "low", "info")
PROFILES = ("laptop", "single-tenant", "multi-tenant", "confidential")
FRAMEWORKS = ("gcp7", "nitro", "anssi", "stig")
LAYERS = (
    *("hardware", "iommu", "kvm", "kernel", "host", "vmm", "emulator", "devices", "confinement", "network"),
    *("image", "entropy", "guest", "confidential"),
)

_AUDIT_EPILOG = """\
examples:
  casemate audit                                 this host, its emulators, every VM that runs
  casemate audit --explain proc.caps             one control: what was found, what was expected, the remedy, its cost
  casemate audit vm.xml -o report.html           a libvirt domain, as a page to hand over
  casemate audit host7.tar                       what casemate capture took on another host, as of then
  casemate audit --format jsonl captures/*.tar   thousands of them, a line each as soon as it is judged
  casemate audit -- qemu-system-x86_64 -m 1G -drive file=disk.img
  casemate audit --json -o old.json              and later what changed since:
  casemate audit --baseline old.json --fail-on high

verdicts:
  pass, fail, not-applicable; unknown (could not be read: never a pass); pending (a document declares it, nothing live
  was read); manual (for a person); waived (a waiver of --waivers covers it; the verdict below it stays in the report)

Without --fail-on the exit code is 0 whatever was found: an audit that worked is no failure. With it the exit code is 1
when a control of that severity or a worse one failed; with --baseline, when one has failed since. It is 2 when a target
that was named could not be audited. Not being root makes more controls unknown, and --unknown-fails counts those too.
"""

_CONTROLS_EPILOG = """\
examples:
  casemate controls                      every control, by layer
  casemate controls proc.caps            one in full: what it asks, expects, cuts and costs, and how to satisfy it
  casemate controls --layer devices --profile laptop
"""


def add(commands: Commands) -> None:
    """Add both commands."""
    audit = add_command(
        commands,
        "audit",
        "audit:audit",
        "check this host, its VMs, or documents that describe VMs, against the catalogue of controls",
        epilog=_AUDIT_EPILOG,
    )
    _keep_what_follows_dashes(audit)
    _add_targets(audit)
    _add_weights(audit)
    _output(audit)
    controls = add_command(
        commands, "controls", "controls:controls", "print the catalogue of controls", epilog=_CONTROLS_EPILOG
    )
    controls.add_argument("id", nargs="?", metavar="ID", help="one control, in full")
    controls.add_argument("--layer", choices=LAYERS, metavar="LAYER", help=f"only this layer: {', '.join(LAYERS)}")
    controls.add_argument(
        "--profile", choices=PROFILES, metavar="NAME", help=f"severities under a profile: {', '.join(PROFILES)}"
    )
    controls.add_argument(
        "--framework",
        choices=FRAMEWORKS,
        metavar="NAME",
        help=f"published measures and the controls that check them: {', '.join(FRAMEWORKS)}",
    )
    add_json(controls)


def _add_targets(audit: argparse.ArgumentParser) -> None:
    audit.set_defaults(command_line=[])
    audit.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="a VM of ours, a libvirt domain XML or configuration directory, an emulator binary, an image, a"
        " capture of another host, a file of Firecracker, cloud-hypervisor or Kata; without any: this host and all that"
        " runs on it. After --: the command line of QEMU, firecracker, cloud-hypervisor or crosvm",
    )
    where = audit.add_argument_group("where to look")
    where.add_argument(
        "--pid", type=int, action="append", default=[], metavar="PID", help="a running emulator; repeat it"
    )
    where.add_argument("--libvirt", metavar="URI", help="every domain of a libvirt: qemu:///system")
    where.add_argument("--root", metavar="DIR", help="a file tree in place of this host's")
    where.add_argument(
        "--khc",
        metavar="FILE",
        help="what kernel-hardening-checker -m json said of the host; - reads a pipe",
    )
    where.add_argument(
        "--guest", action="store_true", help="of images: also the guest inside, read by a throwaway VM (image audit)"
    )
    where.add_argument(
        "-j",
        "--jobs",
        type=_jobs,
        metavar="N",
        help="how many processes judge captures and files at once (default: one per core)",
    )


def _add_weights(audit: argparse.ArgumentParser) -> None:
    how = audit.add_argument_group("how to weigh it")
    how.add_argument(
        "--profile",
        choices=PROFILES,
        metavar="NAME",
        help=f"{', '.join(PROFILES)}: changes severities, and which controls are asked (default multi-tenant)",
    )
    how.add_argument("--waivers", metavar="FILE", help="TOML: what is accepted, where, why and until when")
    how.add_argument("--baseline", metavar="OLD.json", help="show only what changed since that report (--json)")
    how.add_argument(
        "--fail-on",
        choices=SEVERITIES,
        metavar="SEVERITY",
        help=f"exit with 1 when a control this bad or worse failed: {', '.join(SEVERITIES)}",
    )
    how.add_argument("--unknown-fails", action="store_true", help="for --fail-on, what is unknown counts as failed")


def _jobs(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1024")
    return value


def _output(audit: argparse.ArgumentParser) -> None:
    group = audit.add_argument_group("what to print")
    group.add_argument("--explain", metavar="ID", help="everything about one control, with evidence and remedy")
    group.add_argument(
        "--framework",
        choices=FRAMEWORKS,
        metavar="NAME",
        help=f"published measures in place of findings: {', '.join(FRAMEWORKS)} (text or --json)",
    )
    group.add_argument("--all", action="store_true", help="list also what passed, and why what is unknown is")
    group.add_argument(
        "--format",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; without it a file's name tells (.html, .sarif, .xml, .md, .prom, ...)",
    )
    group.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write there, all at once; repeat it for several formats of one audit",
    )
    group.add_argument("--schema", action="store_true", help="print the JSON Schema of --json instead")
    add_json(group)  # type: ignore[arg-type]


def _keep_what_follows_dashes(parser: Parser) -> None:
    """argparse drops ``--`` and takes what follows for more targets; keep the two apart."""
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = list(args or ())
        cut = words.index("--") if "--" in words else len(words)
        found, extra = parse(words[:cut], namespace)
        found.command_line = words[cut + 1 :]
        if cut < len(words) and not found.command_line:
            parser.error("there is no command after --")
        return found, extra

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
