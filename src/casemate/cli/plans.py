"""plan."""

from __future__ import annotations

import argparse
from typing import Any

from casemate import app
from casemate.cli import output
from casemate.cli.runs import load
from casemate.errors import ExitCode


def plan(arguments: argparse.Namespace) -> int:
    """The whole plan; exit 3 when this host lacks something for it, 4 when a launch control would refuse it."""
    document = app.plan(load(arguments), policy_file=arguments.policy)
    for text in document["warnings"]:
        output.warn(text)
    if arguments.json:
        output.print_json(document)
    else:
        _print(document)
    if document["missing"]:
        output.note(f"this host cannot start it: {len(document['missing'])} things are missing")
        return ExitCode.HOST
    if document["refused_by"]:
        refused = ", ".join(document["refused_by"])
        output.note(f"a launch would be refused by {refused}")
        return ExitCode.REFUSED
    return ExitCode.DONE


def _print(plan: dict[str, Any]) -> None:
    who, mounts = plan["identity"], plan["mounts"]
    _section("Machine", [f"{plan['machine']}, {plan['accel']}: {plan['accel_why']}"])
    firmware = [f"{item['role']}: {item['path']}, SHA-256 {item['sha256']}" for item in plan["files"] if item["sha256"]]
    if firmware:
        _section("Firmware", firmware)
    _section("Command", _argv_lines(plan["argv"]))
    _section("Environment", [f"{name}={value}" for name, value in plan["environment"].items()] or ["(empty)"])
    output.print_table(
        "Descriptors",
        ("NUMBER", "ROLE", "ACCESS"),
        [[str(item["number"]), item["role"], item["access"]] for item in plan["descriptors"]],
    )
    print()
    output.print_table(
        f"Root: a tmpfs of {mounts['root']['size_bytes'] >> 20} MiB, read-only, holding only",
        ("KIND", "TARGET", "FROM"),
        [_mount_row(entry) for entry in mounts["entries"]],
    )
    print()
    _section("Identity", [f"uid {who['uid']}, gid {who['gid']} ({who['mode']}), groups {who['groups'] or 'none'}"])
    _section("Namespaces", [" ".join(plan["namespaces"])])
    limits = [f"{name} {value}" for name, value in plan["limits"]["rlimits"].items()]
    _section("Limits", [", ".join(limits), ", ".join(plan["limits"]["cgroup"]) or plan["cgroup"]["why_none"]])
    paths = [f"{item['path']}: {' '.join(item['rights'])}" for item in plan["landlock"]["paths"]]
    _section(f"Landlock, ABI {plan['landlock']['abi']}", paths)
    _syscalls(plan)
    if plan["helpers"]:
        _section("Helpers", [line for helper in plan["helpers"] for line in _helper_lines(helper)])
    rows = [[_verdict(item), item["gate"], item["control"], item["title"]] for item in plan["controls"]]
    output.print_table("Controls, as declared", ("VERDICT", "GATE", "CONTROL", "TITLE"), rows)
    if plan["missing"]:
        print()
        _section("Missing on this host", plan["missing"])


def _helper_lines(helper: dict[str, Any]) -> list[str]:
    """Its command, what it inherits, and its wall."""
    held = ", ".join(f"{item['number']} {item['role']}" for item in helper["descriptors"])
    lines = [" ".join(helper["argv"]), *([f"  descriptors: {held}"] if held else [])]
    return [*lines, *(f"  {line}" for line in helper["wall"])]


def _syscalls(plan: dict[str, Any]) -> None:
    names = {rule["name"] for rule in plan["syscalls"] if rule["errno"] is None and rule["phase"] == "always"}
    output.print_table(
        f"System calls, profile {plan['profile']}: {len(names)} allowed while the guest runs, all others kill",
        ("CALL", "PHASE", "ONLY IF", "REASON"),
        [
            [
                rule["name"],
                rule["phase"] if rule["errno"] is None else f"errno {rule['errno']}",
                " and ".join(_condition(arg) for arg in rule["args"]),
                rule["reason"],
            ]
            for rule in plan["syscalls"]
        ],
    )
    print()


def _condition(arg: dict[str, Any]) -> str:
    if "mask" in arg:
        return f"arg{arg['index']} & {arg['mask']:#x} == {arg['value']:#x}"
    return f"arg{arg['index']} {arg['op']} {arg['value']:#x}"


def _verdict(item: dict[str, Any]) -> str:
    return "pending" if item["pending"] else str(item["verdict"])


def _mount_row(entry: dict[str, Any]) -> list[str]:
    source = entry.get("source") or entry.get("points_to") or entry.get("role") or ""
    return [entry["type"], entry.get("target") or f"/dev/{entry.get('name', '')}", source]


def _argv_lines(argv: list[str]) -> list[str]:
    """One option with its argument per line."""
    lines = [argv[0]]
    for word in argv[1:]:
        if word.startswith("-") or not lines[-1].startswith("-") or " " in lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _section(title: str, lines: list[str]) -> None:
    print(title)
    for line in lines:
        if line:
            print(f"  {output.plain(line)}")
    print()
