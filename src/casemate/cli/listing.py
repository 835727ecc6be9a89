"""ps, inspect, logs, events, stats."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from casemate import app
from casemate.cli import output
from casemate.cli.life import ALIVE
from casemate.errors import ExitCode, InputError

PS_SCHEMA = "casemate.ps/1"
STATS_SCHEMA = "casemate.stats/1"
FILTERS = ("name", "id", "state", "accel")
SHORT_ID = 12
EVIDENCE_MAX = 100
VERDICTS = ("fail", "unknown", "waived", "manual", "pass", "not-applicable")
LOUD = VERDICTS[:2]
SEVERITIES = ("critical", "high", "medium", "low", "info")


def ps(arguments: argparse.Namespace) -> int:
    """List VMs."""
    wanted = _filters(arguments.filter)
    everything = arguments.all or "state" in wanted
    rows = [row for row in app.list_vms() if everything or row["state"] in ALIVE]
    rows = [row for row in rows if all(any(_has(row, key, value) for value in wanted[key]) for key in wanted)]
    if arguments.json:
        output.print_json({"schema": PS_SCHEMA, "vms": rows})
    elif arguments.quiet:
        for row in rows:
            print(row["id"][:SHORT_ID])
    else:
        now_s = time.time()
        output.print_aligned(
            ("ID", "NAME", "STATE", "ACCEL", "UID", "CREATED", "PORTS"), [_ps_row(row, now_s) for row in rows]
        )
    return ExitCode.DONE


def _ps_row(row: dict[str, Any], now_s: float) -> list[str]:
    state = f"{row['state']} ({row['reason']})" if row["reason"] else row["state"]
    created = output.ago(_epoch_s(row["created_at"]), now_s)
    uid = "" if row["uid"] is None else str(row["uid"])
    return [row["id"][:SHORT_ID], row["name"], state, row["accel"] or "", uid, created, ", ".join(row["ports"])]


def _epoch_s(text: str) -> float:
    from casemate.units import parse_utc

    return parse_utc(text)


def _filters(words: list[str]) -> dict[str, list[str]]:
    """Alternatives by key, of ``KEY=VALUE`` words."""
    wanted: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in FILTERS:
            raise InputError(f"--filter {word}", expected=f"KEY=VALUE with KEY one of {', '.join(FILTERS)}")
        wanted.setdefault(key, []).append(value)
    return wanted


def _has(row: dict[str, Any], key: str, value: str) -> bool:
    if key == "id":
        return str(row["id"]).startswith(value)
    if key == "name":
        return value in str(row["name"])  # a part of the name, as podman has it
    return bool(row[key] == value)


def inspect(arguments: argparse.Namespace) -> int:
    """Everything about one VM."""
    document = app.inspect(arguments.vm)
    if arguments.attestation_key:
        sys.stdout.write(_attestation_key(document))
        return ExitCode.DONE
    if arguments.json:
        output.print_json(document)
        return ExitCode.DONE
    for label, text in _summary(document):
        if text:
            print(f"{label + ':':<10} {output.plain(text)}")
    if document["wall"]:
        _print_wall(document["wall"])
    return ExitCode.DONE


def _attestation_key(document: dict[str, Any]) -> str:
    """For `attest verify --trust` and the key broker's attestation-keys."""
    if document["tpm"] is None:
        raise InputError(f"{document['name']} has no TPM", next_step="[tpm] enabled = true in its specification")
    if not document["tpm"]["attestation_key"]:
        raise InputError(
            f"the TPM of {document['name']} has not been made yet", next_step=f"casemate start {document['name']}"
        )
    return str(document["tpm"]["attestation_key"])


def _print_wall(wall: list[dict[str, Any]]) -> None:
    """What does not hold first, and below the table what to do about it."""
    wall = sorted(wall, key=lambda entry: (_rank(VERDICTS, entry["verdict"]), _rank(SEVERITIES, entry["severity"])))
    passed = sum(1 for entry in wall if entry["verdict"] == "pass")
    print()
    output.print_table(
        f"Wall, read back from the live process: {passed} of {len(wall)} controls pass",
        ("VERDICT", "SEVERITY", "CONTROL", "EVIDENCE"),
        [[entry["verdict"], entry["severity"], entry["control"], _short(entry)] for entry in wall],
    )
    todo = [entry for entry in wall if entry["verdict"] in LOUD and entry["remedy"]]
    if todo:
        print("\nWhat would mend it")
    for entry in todo:
        print(f"  {entry['control']}: {output.plain(entry['remedy'])}")


def _rank(order: tuple[str, ...], word: str) -> int:
    return order.index(word) if word in order else len(order)


def _short(entry: dict[str, Any]) -> str:
    """What was read, or for what does not hold, why; cut for people, ``--json`` has all of it."""
    text = str(entry["evidence"] if entry["verdict"] == "pass" or not entry["why"] else entry["why"])
    fact, _, wanted = str(entry["expected"] or "").partition(": ")
    if entry["verdict"] == "fail" and text.startswith(f"{fact}: "):
        text += f"; expected {wanted.removeprefix('= ')}"
    return text if len(text) <= EVIDENCE_MAX else text[: EVIDENCE_MAX - 1] + "…"


def _summary(document: dict[str, Any]) -> list[tuple[str, str]]:
    ended = document["exit"] or {}
    spec = document["spec"]
    machine = spec["machine"]
    why = ": ".join(filter(None, [ended.get("reason", ""), ended.get("detail", "")]))
    pid = document["pid"]
    return [
        ("name", document["name"]),
        ("id", document["id"]),
        ("state", document["state"]),
        ("ended", f"{why} (exit code {ended['code']}, {ended['finished_at']})" if ended else ""),
        ("started", document["started_at"] or ""),
        ("emulator", f"pid {pid}, uid {document['uid']}" if pid else ""),
        ("machine", f"{machine['type']}, {machine['vcpus']} vCPU, {machine['memory_mib']} MiB"),
        ("boot", _boot(document["boot"])),
        ("accel", f"{document['accel'] or ''} ({document['accel_why']})" if document["accel"] else ""),
        ("helpers", ", ".join(f"{item['name']} pid {item['pid']}" for item in document["helpers"])),
        ("tpm", _tpm(document["tpm"])),
        ("ports", ", ".join(document["ports"])),
        ("health", "; ".join(document["health"])),
        ("timings", ", ".join(f"{name} {value:.0f} ms" for name, value in document["timings"].items())),
    ]


def _tpm(tpm: dict[str, Any] | None) -> str:
    if tpm is None:
        return ""
    if not tpm["made_at"]:
        return "made at the first start"
    return f"made {tpm['made_at']}, attestation key at {tpm['attestation_key_handle']} (public part: --json)"


def _boot(boot: dict[str, Any]) -> str:
    words = [boot["firmware"]]
    if boot["keys"]:
        words.append("keys of the distribution" if boot["keys"] == "distribution" else "keys of its own")
    seen = boot["observed"]
    if seen["secure_boot"]:
        words.append(
            f"observed: Secure Boot {seen['secure_boot']}, system management mode {'on' if seen['smm'] else 'off'}"
        )
    return ", ".join(words)


def logs(arguments: argparse.Namespace) -> int:
    """The console's log or the emulator's."""
    output.write_bytes(
        app.logs(arguments.vm, emulator=arguments.emulator, tail_lines=arguments.tail, follow=arguments.follow)
    )
    return ExitCode.DONE


def events(arguments: argparse.Namespace) -> int:
    """What happened, of one VM or of all."""
    from casemate.cli.eventlog import merged

    for event in merged(arguments.vm, follow=arguments.follow):
        if arguments.json:
            import json

            print(json.dumps(event), flush=True)
        else:
            more = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"time", "event", "vm"})
            print(output.plain(f"{event['time']}  {event['vm']}  {event['event']}  {more}".rstrip()), flush=True)
    return ExitCode.DONE


def stats(arguments: argparse.Namespace) -> int:
    """One sample of what VMs use."""
    names = arguments.vms or [row["id"] for row in app.list_vms() if row["state"] in {"running", "paused", "stopping"}]
    samples = [app.stats(name) for name in names]
    if arguments.json:
        output.print_json({"schema": STATS_SCHEMA, "vms": samples})
    else:
        header = ("ID", "NAME", "CPU %", "CPU TIME", "MEMORY", "PIDS", "DISK READ / WRITTEN")
        output.print_aligned(header, [_stats_row(sample) for sample in samples])
    return ExitCode.DONE


def _stats_row(sample: dict[str, Any]) -> list[str]:
    from casemate.units import format_bytes, format_duration_s

    memory = "--" if sample["memory_bytes"] is None else format_bytes(sample["memory_bytes"])
    if sample["memory_limit_bytes"] is not None:
        memory += f" / {format_bytes(sample['memory_limit_bytes'])}"
    disks = sample["disks"] or []
    read, written = (sum(disk[key] for disk in disks) for key in ("read_bytes", "written_bytes"))
    return [
        sample["id"][:SHORT_ID],
        sample["name"],
        "--" if sample["cpu_percent"] is None else f"{sample['cpu_percent']:.1f}",
        "--" if sample["cpu_s"] is None else format_duration_s(sample["cpu_s"]),
        memory,
        "--" if sample["pids"] is None else str(sample["pids"]),
        f"{format_bytes(read)} / {format_bytes(written)}" if sample["disks"] is not None else "--",
    ]
