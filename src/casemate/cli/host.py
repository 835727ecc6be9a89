"""doctor: what this host can do, in groups of checks; with --kvm, what its KVM answered to the probe."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from casemate import app
from casemate.cli import output
from casemate.errors import ExitCode

_MODES = ("on", "split", "off")
_TEXT_COLUMNS = 120


def doctor(arguments: argparse.Namespace) -> int:
    """Host capabilities in groups; exit 3 when something required is missing."""
    with output.working("looking at this host") as report:
        report("")
        document = app.doctor()
    code = ExitCode.DONE if document["ok"] else ExitCode.HOST
    if arguments.json:
        output.print_json(document)
    elif arguments.kvm:
        print_kvm(document["kvm"], document["emulation"])
    else:
        _print_checks(document)
    return code


def _print_checks(document: dict[str, Any]) -> None:
    for group in document["groups"]:
        rows = [
            [check["status"], check["title"] + (" (required)" if check["required"] else ""), check["found"]]
            for check in group["checks"]
        ]
        output.print_table(group["name"], ("STATUS", "PART", "FOUND"), rows)
        print()
    todo = [check for group in document["groups"] for check in group["checks"] if check["status"] != "ok"]
    for check in todo:
        print(f"{check['status']}: {output.plain(check['title'])}: {output.plain(check['why'] or check['found'])}")
        if check["next_step"]:
            print(f"  next: {output.plain(check['next_step'])}")
    print("\nThis host can run VMs." if document["ok"] else "\nThis host cannot run VMs yet; see above.")


def print_kvm(report: dict[str, Any], emulation: dict[str, Any]) -> None:
    """The probe's answers. A host without KVM has the first lines alone."""
    print(f"{report['verdict']}: {output.plain(report['why'])}")
    if report["next_step"]:
        print(f"  next: {output.plain(report['next_step'])}")
    if report["api_version"] is not None:
        offered = [f"{item['name']}={item['value']}" for item in report["extensions"] if item["value"]]
        limits = [f"{name.replace('_', ' ')} {value}" for name, value in report["limits"].items() if value is not None]
        print(f"\nAPI version {report['api_version']}; {', '.join(limits)}")
        text = f"{len(offered)} of {len(report['extensions'])} extensions: {output.plain(' '.join(offered))}"
        print(textwrap.fill(text, _TEXT_COLUMNS, subsequent_indent="  ") + "\n")
        _print_emulation(report["irqchips"], emulation)
        _print_guests(report["guests"])
        _print_hypercalls(report["hypercalls"])
    for fault in report["failures"]:
        print(f"failed: {output.plain(fault['step'])}: {output.plain(fault['error'])} {output.plain(fault['message'])}")


def _print_emulation(irqchips: list[dict[str, Any]], emulation: dict[str, Any]) -> None:
    rows = [
        [part["name"], *(part["handlers"][mode] for mode in _MODES), part["why"]] for part in emulation["components"]
    ]
    for driver in emulation["vhost"]:
        module = {True: "its module is loaded", False: "its module is not loaded", None: "modules cannot be seen"}
        node = "is there" if driver["node_present"] else "is not there"
        why = f"{driver['node']} {node}; {module[driver['module_loaded']]}; no VM of ours uses it"
        rows.append([driver["name"], *["kernel"] * len(_MODES), why])
    header = ("PART", *(f"IRQCHIP {mode.upper()}" for mode in _MODES), "WHY")
    output.print_table("Who emulates what: this host's kernel, or the emulator in its wall", header, rows)
    if not emulation["vhost"]:
        print("no vhost driver: nothing of virtio is emulated by this host's kernel")
    for chip in irqchips:
        if not chip["available"]:
            print(f"irqchip {chip['mode']}: not available: {output.plain(chip['error'])}")
        elif chip["msrs_refused"]:
            print(f"irqchip {chip['mode']}: KVM does not take back MSR {', '.join(chip['msrs_refused'])}")
    print()


def _print_guests(guests: list[dict[str, Any]]) -> None:
    rows = []
    for run in guests:
        exits = ", ".join(f"{name} {count:,}" for name, count in run["exits"].items())
        rates = [f"{run[name]:,}" if run[name] is not None else "-" for name in ("instructions_per_s", "exits_per_s")]
        rows.append([run["name"], run["cpu_mode"], *rates, run["error"] or exits])
    output.print_table("Small guests", ("GUEST", "MODE", "INSTRUCTIONS/S", "EXITS/S", "EXITS BY REASON"), rows)
    print()


def _print_hypercalls(calls: list[dict[str, Any]]) -> None:
    rows = []
    for call in calls:
        place = {True: "kernel", False: "user space", None: "-"}[call["in_kernel"]]
        answer = call["fault"] or f"returned {call['return_value']}" + (", patched" if call["patched"] else "")
        cost = "-" if call["cost_ns"] is None else f"{call['cost_ns']:,}"
        rows.append([f"{call['instruction']} {call['name']}", call["cpu_mode"], place, cost, answer])
    output.print_table("Hypercalls", ("CALL", "MODE", "HANDLED BY", "NS", "ANSWER"), rows)
