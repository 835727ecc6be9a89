"""image build --debian: the face of `casemate.scans.build_debian`."""

from __future__ import annotations

import argparse

from casemate import scans
from casemate.cli import output
from casemate.cli.image_scan import print_outcome, progress_bar
from casemate.errors import ExitCode, InputError


def debian(arguments: argparse.Namespace) -> int:
    """Build, scan, audit; exit 1 when the result does not pass both."""
    if arguments.image is not None:
        raise InputError("--debian starts from packages and takes no image", got=arguments.image)
    with progress_bar() as progress:
        outcome, audited = scans.build_debian(
            arguments.output,
            suite=arguments.debian,
            size_mib=arguments.size_mib,
            include=arguments.include,
            report=output.note,
            progress=progress,
        )
    bad = [finding for finding in audited.findings if finding.verdict.value in {"fail", "unknown"}]
    if arguments.json:
        output.print_json(
            {
                "schema": "casemate.build/1",
                "disk": arguments.output,
                "suite": arguments.debian,
                "scan_findings": len(outcome.open_findings),
                "audit": {finding.control_id: finding.verdict.value for finding in audited.findings},
                "passed": not outcome.failed and not bad,
            }
        )
    else:
        print_outcome(outcome)
        for finding in bad:
            print(output.plain(f"{finding.verdict.value.upper():<9} {finding.control_id}: {finding.why}"))
        print(f"{len(audited.findings) - len(bad)} of {len(audited.findings)} controls of the guest hold")
        print(f"run it     casemate run --firmware uefi-secure {output.plain(arguments.output)}")
    return ExitCode.FINDINGS if outcome.failed or bad else ExitCode.DONE
