"""A guest and its TPM: what it extends, keeps and signs; what survives a restart, a kill and `rm`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.guest_shell import GuestShell

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(not os.path.exists("/usr/bin/swtpm"), reason="package swtpm is not installed"),
]

PASSWORD = struct.pack(">IIHBH", 9, 0x4000_0009, 0, 0, 0)
NV_INDEX, AK, SHA256 = 0x0150_0001, 0x8101_0002, 0x000B
TALK = (
    "exec 3<>/dev/tpm0; "
    't() { printf "$1" >&3; dd bs=4096 count=1 <&3 2>/dev/null | hexdump -v -e \'/1 "%02x"\'; echo; }'
)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def command(code: int, handles: bytes, parameters: bytes = b"") -> bytes:
    """A TPM command with an empty password for its one handle that wants authorisation."""
    body = handles + PASSWORD + parameters
    return struct.pack(">HII", 0x8002, 10 + len(body), code) + body


EXTEND = command(0x182, struct.pack(">I", 16), struct.pack(">IH", 1, SHA256) + b"x" * 32)
_NV_PUBLIC = struct.pack(">IHIHH", NV_INDEX, SHA256, 0x0006_0006, 0, 8)
DEFINE = command(0x12A, struct.pack(">I", 0x4000_0001), struct.pack(">HH", 0, len(_NV_PUBLIC)) + _NV_PUBLIC)
WRITE = command(0x137, struct.pack(">II", 0x4000_0001, NV_INDEX), struct.pack(">H", 8) + b"it stays\0\0")
READ = command(0x14E, struct.pack(">II", 0x4000_0001, NV_INDEX), struct.pack(">HH", 8, 0))


def quote(nonce: bytes) -> bytes:
    """TPM2_Quote by the attestation key over PCR 16."""
    pcrs = struct.pack(">IHB", 1, SHA256, 3) + bytes((0, 0, 1))
    return command(0x158, struct.pack(">I", AK), struct.pack(">H", len(nonce)) + nonce + b"\0\x10" + pcrs)


def in_guest(shell: GuestShell, data: bytes) -> bytes:
    """One command through the guest's /dev/tpm0; what follows the header of the response."""
    escaped = "".join(f"\\x{octet:02x}" for octet in data)
    answer = bytes.fromhex(shell.last(f"t '{escaped}'"))
    assert answer[6:10] == bytes(4), answer.hex()
    return answer[10:]


def ready(cli: Cli, name: str) -> GuestShell:
    """The built-in guest's shell, without echo."""
    shell = GuestShell(cli, name)
    end = time.monotonic() + 90
    while True:  # the prompt may have been printed before this session
        shell.type("\n")
        try:
            shell.expect(rb"/# ", 2)
            break
        except AssertionError:
            if time.monotonic() > end:
                raise
    shell.type("exec env TERM=dumb sh\n")
    shell.run("stty -echo; dmesg -n 1; PS1=")
    shell.run(TALK)
    return shell


def pcr(shell: GuestShell, number: int) -> str:
    return shell.last(f"cat /sys/class/tpm/tpm0/pcr-sha256/{number}").lower()


def specification(cli: Cli, folder: Path, kind: str, more: str = "") -> Path:
    boot = cli.json("plan", "builtin", "--json")["spec"]["boot"]
    spec = folder / f"{kind}.toml"
    spec.write_text(
        f'name = "tpm"\n[machine]\ntype = "{kind}"\n[boot]\nkernel = "{boot["kernel"]}"\ninitrd = "{boot["initrd"]}"\n'
        f'cmdline = "console=ttyS0 panic=-1 reboot=t"\n[tpm]\nenabled = true\n{more}'
    )
    return spec


def helper(cli: Cli, name: str) -> int:
    """The pid of swtpm."""
    found = [item["pid"] for item in cli.json("inspect", name, "--json")["helpers"] if item["name"] == "swtpm"]
    assert len(found) == 1
    return int(found[0])


def gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def places_of(planted: bytes, cli: Cli, *roots: Path) -> list[str]:
    """Where a value can be read: arguments and environments of all processes, files of the VM."""
    found = []
    for entry in os.listdir("/proc"):
        for name in ("cmdline", "environ") if entry.isdigit() else ():
            try:
                text = Path(f"/proc/{entry}/{name}").read_bytes()
            except OSError:
                continue
            if planted in text:
                found.append(f"/proc/{entry}/{name}")
    for root in roots:
        found += [str(path) for path in root.rglob("*") if path.is_file() and planted in path.read_bytes()]
    return found


def test_a_guest_uses_its_tpm_and_the_host_believes_its_quote(cli: Cli, tmp_path: Path) -> None:
    key = tmp_path / "secret" / "tpm.key"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    key.chmod(0o600)
    spec = specification(cli, tmp_path, "q35", f'key = "state"\n[secrets.state]\nfile = "{key}"\nuse = "tpm"\n')
    cli.ok("run", "-d", spec)
    document = cli.json("inspect", "tpm", "--json")
    verdicts = {entry["control"]: entry["verdict"] for entry in document["wall"]}
    assert {verdicts[name] for name in ("tpm.confined", "tpm.state-encrypted", "proc.drift")} == {"pass"}
    nonce = secrets.token_bytes(16)
    with ready(cli, "tpm") as shell:
        assert shell.last("ls -d /sys/class/tpm/tpm0/pcr-*") == "/sys/class/tpm/tpm0/pcr-sha256"
        assert pcr(shell, 16) == "00" * 32
        in_guest(shell, EXTEND)
        value = hashlib.sha256(bytes(32) + b"x" * 32).hexdigest()
        assert pcr(shell, 16) == value
        in_guest(shell, DEFINE)
        in_guest(shell, WRITE)
        body = in_guest(shell, quote(nonce))
    assert places_of(key.read_bytes(), cli, cli.data, cli.runtime) == []

    # The host verifies what the guest's TPM signed, with the key that inspect shows.
    size = int.from_bytes(body[4:6], "big")
    (tmp_path / "quote.bin").write_bytes(body[6 : 6 + size])
    parameters = int.from_bytes(body[:4], "big")
    (tmp_path / "signature.bin").write_bytes(body[6 + size : 4 + parameters])
    (tmp_path / "ak.pem").write_text(cli.ok("inspect", "tpm", "--attestation-key"))
    assert (tmp_path / "ak.pem").read_text() == document["tpm"]["attestation_key"]
    verify: list[str | Path] = ["attest", "verify", tmp_path / "quote.bin", "--signature", tmp_path / "signature.bin"]
    verify += ["--trust", tmp_path / "ak.pem", "--json"]
    policy = tmp_path / "policy.toml"
    policy.write_text(f'format = 1\n[tpm]\npcrs.sha256 = {{ 16 = "{value}" }}\n')
    pcrs = tmp_path / "pcrs.bin"
    pcrs.write_bytes(bytes.fromhex(value))
    verify += ["--pcrs", pcrs, "--policy", policy]
    done = cli(*verify, "--nonce", nonce.hex())
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in sorted((cli.data / "records").glob("0*.json"))]
    recorded = re.search(r"tpm-attestation-key[^{}]*?([0-9a-f]{64})", json.dumps(records))
    assert recorded is not None
    assert recorded[1] in done.stdout  # the signed record of the launch names the key that signed the quote
    assert cli(*verify, "--nonce", "00" * 16).returncode == 1

    # A restart is a reset: PCRs begin anew, what is in NV stays, and so do the keys.
    cli.ok("restart", "tpm")
    with ready(cli, "tpm") as shell:
        assert pcr(shell, 16) == "00" * 32
        assert in_guest(shell, READ)[6:14] == b"it stays"
    assert cli.json("inspect", "tpm", "--json")["tpm"] == document["tpm"]

    assert "helper-died" not in "".join(path.read_text() for path in cli.data.rglob("events.jsonl"))

    # Its death is said, and leaves the state whole.
    pid = helper(cli, "tpm")
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    end = time.monotonic() + 10
    while not (health := cli.json("inspect", "tpm", "--json")["health"]) and time.monotonic() < end:
        time.sleep(0.05)
    assert any("swtpm died" in text and "no TPM" in text for text in health)
    cli.ok("kill", "tpm")
    cli.ok("start", "tpm")
    pid = helper(cli, "tpm")
    os.kill(cli.json("inspect", "tpm", "--json")["supervisor"]["pid"], signal.SIGKILL)
    assert gone(pid)
    assert "supervisor died" in cli.ok("ps", "-a")
    assert cli.json("inspect", "tpm", "--json")["tpm"] == document["tpm"]

    # With another key it does not start, and says so; with its own it still does.
    good = key.read_bytes()
    key.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    assert "state of the VM's TPM cannot be opened" in cli.fails(2, "start", "tpm")
    key.write_bytes(good)
    cli.ok("start", "tpm")
    cli.ok("rm", "--force", "tpm")
    assert not list(cli.data.rglob("*permall*"))
    assert not list(cli.data.rglob("tpm*"))


def test_a_microvm_that_removes_itself_has_a_tpm_that_is_nowhere(cli: Cli, tmp_path: Path) -> None:
    spec = specification(cli, tmp_path, "microvm")
    cli.ok("run", "--rm", "-d", spec)
    shown = cli.json("inspect", "tpm", "--json")
    assert re.fullmatch(r"-----BEGIN PUBLIC KEY-----\n[^-]+-----END PUBLIC KEY-----\n", shown["tpm"]["attestation_key"])
    assert not list(cli.data.rglob("*permall*"))
    with ready(cli, "tpm") as shell:
        assert pcr(shell, 16) == "00" * 32
        in_guest(shell, EXTEND)
        assert pcr(shell, 16) != "00" * 32
    assert "saveable" in cli.fails(2, "run", "--saveable", spec)
    cli.ok("kill", "tpm")
    end = time.monotonic() + 10
    while json.loads(cli.ok("ps", "-a", "--json"))["vms"] and time.monotonic() < end:
        time.sleep(0.05)
    assert not [path for path in cli.data.rglob("*") if "tpm" in path.name or "permall" in path.name]
