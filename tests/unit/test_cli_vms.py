"""Definitions, names, listings and plans through the real program; no guest is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli

from casemate.spec.schema import spec_schema

ROOT = Path(__file__).parents[2]
JSON_MANUAL = (ROOT / "docs/json.md").read_text()

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None or (os.geteuid() == 0 and shutil.which("unshare") is None),
    reason="plans need QEMU, and root needs unshare for directories of its own",
)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    yield made
    made.clean()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A specification whose kernel is no kernel: enough for everything before the start."""
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4092))
    path = tmp_path / "vm.toml"
    path.write_text('[machine]\naccel = "tcg"\n[boot]\nkernel = "vmlinuz"\n')
    return path


def documented(schema: str) -> set[str]:
    """Words in code marks in a schema's section of docs/json.md."""
    section = re.search(rf"^## [^\n]*{re.escape(schema)}[^\n]*$(.*?)(?=^## |\Z)", JSON_MANUAL, re.MULTILINE | re.DOTALL)
    assert section, schema
    return set(re.findall(r"`([a-z_]+)`", section[1]))


def snapshot(*directories: Path) -> list[str]:
    return sorted(str(path) for directory in directories for path in directory.rglob("*"))


# ---- definitions ------------------------------------------------------------------------------------


def test_create_prints_the_id_alone(cli: Cli, spec: Path) -> None:
    printed = cli.ok("create", "--name", "one", spec)
    assert re.fullmatch(r"[0-9a-f]{16}\n", printed)
    assert cli.json("create", "--json", "--name", "two", spec).keys() == {"schema", "id", "name"}


def test_a_taken_name_is_refused_and_nothing_is_defined(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "web", spec).strip()
    message = cli.fails(2, "create", "--name", "web", spec)
    assert "the name web is taken" in message
    assert vm_id[:12] in message
    assert "next: casemate rm web" in message
    assert len(cli.json("ps", "-a", "--json")["vms"]) == 1


def test_a_vm_is_found_by_name_id_and_unique_prefix(cli: Cli, spec: Path) -> None:
    ids = [cli.ok("create", "--name", f"vm{number}", spec).strip() for number in range(20)]
    assert cli.json("inspect", "vm3", "--json")["id"] == ids[3]
    assert cli.json("inspect", ids[3], "--json")["name"] == "vm3"
    assert cli.json("inspect", ids[3][:15], "--json")["name"] == "vm3"
    # Twenty ids begin with sixteen digits: two begin alike.
    first = next(digit for digit in "0123456789abcdef" if sum(vm_id[0] == digit for vm_id in ids) > 1)
    message = cli.fails(2, "inspect", first)
    assert f"{first} names several VMs" in message
    assert "a longer prefix" in message


@pytest.mark.parametrize(
    "words",
    [
        *(["inspect"], ["start"], ["stop"], ["kill"], ["rm"], ["pause"], ["unpause"], ["wait"], ["logs"], ["console"]),
        *(["events"], ["stats"], ["unit"], ["restart"], ["rm", "-f"]),
    ],
)
def test_an_unknown_vm_is_named(cli: Cli, words: list[str]) -> None:
    message = cli.fails(2, *words, "nobody")
    assert "no such VM: nobody" in message
    assert "next: casemate ps -a" in message


@pytest.mark.parametrize("words", [["kill"], ["pause"], ["unpause"], ["console"], ["stats"]])
def test_what_needs_a_running_vm_says_what_it_is_instead(cli: Cli, spec: Path, words: list[str]) -> None:
    cli.ok("create", "--name", "idle", spec)
    message = cli.fails(2, *words, "idle")
    assert "idle is not running" in message
    assert "state created" in message
    assert "next: casemate start idle" in message


def test_stop_leaves_a_vm_that_does_not_run_alone(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", spec)
    assert cli.ok("stop", "idle") == "idle\n"
    assert cli.json("inspect", "idle", "--json")["state"] == "created"


def test_wait_on_a_vm_that_never_ran_is_an_error(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", spec)
    assert "has not run yet" in cli.fails(2, "wait", "idle")


def test_several_vms_go_on_after_an_error(cli: Cli, spec: Path) -> None:
    for name in ("a", "b"):
        cli.ok("create", "--name", name, spec)
    done = cli("rm", "a", "nobody", "b")
    assert (done.returncode, done.stdout) == (2, "a\nb\n")
    assert "no such VM: nobody" in done.stderr
    assert cli.json("ps", "-a", "--json")["vms"] == []


def test_rm_leaves_nothing(cli: Cli, spec: Path) -> None:
    cli.ok("ps")
    before = snapshot(cli.runtime / "vms", cli.data / "vms")
    cli.ok("create", "--name", "gone", spec)
    assert snapshot(cli.data / "vms") != before
    cli.ok("rm", "gone")
    assert snapshot(cli.runtime / "vms", cli.data / "vms") == before == []


def test_a_damaged_vm_is_listed_said_and_removed(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "torn", spec).strip()
    (cli.data / "vms" / vm_id / "definition.json").write_text("{")
    assert "damaged (definition.json: " in cli.ok("ps", "-a")
    refused = cli("start", vm_id[:8])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"casemate rm {vm_id} removes that VM" in refused.stderr
    cli.ok("rm", vm_id[:8])
    assert cli.ok("ps", "-aq") == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"findings": [1]}', '{"findings": [{}]}', '{"timings_ms": 5}'])
def test_a_damaged_read_back_is_an_error_with_its_path(cli: Cli, spec: Path, text: str) -> None:
    vm_id = cli.ok("create", "--name", "torn", spec).strip()
    (cli.data / "vms" / vm_id / "wall.json").write_text(text)
    refused = cli("inspect", "torn")
    assert refused.returncode == 5
    assert "wall.json is damaged" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_fifo_in_the_place_of_a_log_hangs_nobody(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "piped", spec).strip()
    os.mkfifo(cli.data / "vms" / vm_id / "console.log")
    assert cli.ok("logs", "piped") == ""


@pytest.mark.parametrize(("target", "hinted"), [("web", True), ("Web!", False), ("disk.qcow2", False), ("a/b", False)])
def test_a_name_that_could_be_a_vms_gets_the_hint(cli: Cli, target: str, hinted: bool) -> None:
    refused = cli("run", target)
    assert refused.returncode == 2
    assert (f"casemate start {target}" in refused.stderr) is hinted


def test_a_device_is_refused_without_being_opened(cli: Cli) -> None:
    refused = cli("plan", "/dev/full")
    assert refused.returncode == 2
    assert "something that is not a regular file" in refused.stderr


# ---- listings -----------------------------------------------------------------------------------------


def test_ps_shows_what_runs_and_with_all_the_rest(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "idle", spec).strip()
    header = "ID  NAME  STATE  ACCEL  UID  CREATED  PORTS\n"
    assert cli.ok("ps") == header
    lines = cli.ok("ps", "-a").splitlines()
    assert lines[0].split() == header.split()
    assert lines[1].split()[:3] == [vm_id[:12], "idle", "created"]
    assert cli.ok("ps", "-aq") == f"{vm_id[:12]}\n"
    assert cli.ok("ps", "-q") == ""


def test_ps_json_is_documented(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", "-p", "127.0.0.1:2222:22", "-p", "127.0.0.2:53:53/udp", spec)
    document = cli.json("ps", "-a", "--json")
    assert document["schema"] == "casemate.ps/1"
    (row,) = document["vms"]
    assert row["ports"] == ["127.0.0.1:2222->22/tcp", "127.0.0.2:53->53/udp"]
    assert (row["pid"], row["uid"], row["exit_code"], row["state"]) == (None, None, None, "created")
    assert set(row) <= documented("casemate.ps/1")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["name=alp"], ["alpha"]),
        (["name=a"], ["alpha", "beta"]),
        (["name=alpha", "name=beta"], ["alpha", "beta"]),
        (["name=a", "state=running"], []),
        (["state=created"], ["alpha", "beta"]),
        (["accel=kvm"], []),
    ],
)
def test_ps_filters(cli: Cli, spec: Path, filters: list[str], names: list[str]) -> None:
    for name in ("alpha", "beta"):
        cli.ok("create", "--name", name, spec)
    words = [word for item in filters for word in ("--filter", item)]
    rows = cli.json("ps", "-a", "--json", *words)["vms"]
    assert [row["name"] for row in rows] == names


def test_ps_filter_by_id_and_unknown_key(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "alpha", spec).strip()
    assert cli.ok("ps", "-aq", "--filter", f"id={vm_id[:6]}").strip() == vm_id[:12]
    assert "KEY one of name, id, state, accel" in cli.fails(2, "ps", "--filter", "size=3")


def test_inspect_json_has_what_scripts_rely_on_and_is_documented(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", "--memory-mib", "96", spec)
    document = cli.json("inspect", "idle", "--json")
    assert document["schema"] == "casemate.inspect/1"
    assert {"id", "name", "state", "pid", "uid", "started_at", "accel", "wall"} <= set(document)
    assert (document["state"], document["pid"], document["wall"], document["exit"]) == ("created", None, [], None)
    assert document["spec"]["machine"]["memory_mib"] == 96
    words = documented("casemate.inspect/1") | documented("casemate.ps/1") | {"schema"}
    assert set(document) <= words


def test_inspect_for_people(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", spec)
    printed = cli.ok("inspect", "idle")
    assert re.search(r"^name: +idle$", printed, re.MULTILINE)
    assert re.search(r"^machine: +microvm, 1 vCPU, 256 MiB$", printed, re.MULTILINE)


def test_logs_and_events_of_a_vm_that_never_ran_are_empty(cli: Cli, spec: Path) -> None:
    cli.ok("create", "--name", "idle", spec)
    for words in (["logs"], ["logs", "-f"], ["logs", "--emulator", "--tail", "5"], ["events"], ["events", "-f"]):
        assert cli.ok(*words, "idle") == ""
    assert cli.ok("events") == ""


# ---- plans --------------------------------------------------------------------------------------------


def test_plan_json_has_what_scripts_rely_on_and_is_documented(cli: Cli, spec: Path) -> None:
    document = cli.json("plan", "--json", spec)
    assert document["schema"] == "casemate.plan/1"
    fixed = "argv environment descriptors mounts identity namespaces limits syscalls landlock cgroup helpers controls"
    assert set(fixed.split()) <= set(document)
    assert set(document) <= documented("casemate.plan/1") | {"schema"}
    assert document["argv"][0].endswith("qemu-system-x86_64")
    assert "-nodefaults" in document["argv"]
    for rule in document["syscalls"]:
        assert {"name", "phase", "reason", "args"} <= set(rule)
        assert rule["reason"]
    assert document["identity"]["uid"] != 0
    assert set(document["namespaces"]) == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert all(
        entry["type"] in {"bind", "copy", "device", "link", "directory"} for entry in document["mounts"]["entries"]
    )
    assert document["controls"]
    assert document["refused_by"] == []


def test_plan_starts_nothing_and_leaves_nothing(cli: Cli, spec: Path) -> None:
    cli.ok("plan", spec)
    before = snapshot(cli.runtime, cli.data)
    cli.ok("plan", "--json", "--name", "never", spec)
    assert snapshot(cli.runtime, cli.data) == before
    assert cli.json("ps", "-a", "--json")["vms"] == []


def test_plan_for_people_names_every_part(cli: Cli, spec: Path) -> None:
    printed = cli.ok("plan", spec)
    for title in (
        "Machine",
        "Command",
        "Descriptors",
        "Root:",
        "Identity",
        "Namespaces",
        "Limits",
        "Landlock",
        "System calls",
    ):
        assert re.search(rf"^{title}", printed, re.MULTILINE), title
    assert re.search(r"^  -nodefaults$", printed, re.MULTILINE)


def test_flags_lie_over_the_specification(cli: Cli, spec: Path) -> None:
    flags = ["--memory-mib", "1G", "--vcpus", "3", "--cmdline", "a,b=c %d", "--name", "other"]
    document = cli.json("plan", "--json", *flags, spec)
    assert document["spec"]["machine"]["memory_mib"] == 1024
    assert document["spec"]["machine"]["vcpus"] == 3
    assert document["name"] == "other"
    text = document["argv"][document["argv"].index("-append") + 1]
    assert "a,b=c %d" in text


def test_flags_alone_can_say_everything(cli: Cli, spec: Path) -> None:
    document = cli.json("plan", "--json", "--accel", "tcg", "--kernel", spec.parent / "vmlinuz")
    assert document["spec"]["boot"]["kernel"] == str(spec.parent / "vmlinuz")


def test_relative_paths_start_where_the_user_is(cli: Cli, spec: Path) -> None:
    document = cli("plan", "--json", "--kernel", "vmlinuz", "--accel", "tcg", cwd=spec.parent)
    assert document.returncode == 0, document.stderr


def qcow2(path: Path, *more: str) -> Path:
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), "16M"], check=True, timeout=60)
    return path


def test_an_image_is_told_by_content_whatever_its_name(cli: Cli, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "looks-like.toml")
    document: dict[str, Any] = cli.json("plan", "--json", "--firmware", "bios", image)
    assert document["machine"] == "q35"
    (disk,) = document["spec"]["disk"]
    assert disk == disk | {"path": str(image), "format": "qcow2", "mode": "overlay"}
    persistent = cli.json("plan", "--json", "--firmware", "bios", "--disk", f"{image}:persistent", image)
    assert [disk["mode"] for disk in persistent["spec"]["disk"]] == ["persistent"]


def test_a_raw_disk_with_a_boot_sector_is_an_image(cli: Cli, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    document = cli.json("plan", "--json", "--firmware", "bios", image)
    assert document["spec"]["disk"][0]["format"] == "raw"


def test_spec_schema_is_the_published_one(cli: Cli) -> None:
    assert cli.json("spec", "--schema") == json.loads(json.dumps(spec_schema()))


def test_unit_is_for_this_vm(cli: Cli, spec: Path) -> None:
    vm_id = cli.ok("create", "--name", "web", spec).strip()
    unit = cli.ok("unit", "web")
    assert f"start --foreground {vm_id}" in unit
    assert re.search(rf"^ExecStop=\S+ stop --time 10 {vm_id}$", unit, re.MULTILINE)
    assert "Type=notify" in unit
    if shutil.which("systemd-analyze"):
        path = spec.parent / "casemate-web.service"
        path.write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # Without systemd as pid 1 it can still say which keys and values it does not know.
        assert path.name not in done.stderr, done.stderr
