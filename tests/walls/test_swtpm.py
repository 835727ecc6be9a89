"""A VM's TPM for real: made, used, opened again, killed, robbed and lied to."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support import tpm_case
from tests.support.tpm_case import VM_ID, ChildKilledError, Running, ScenarioError, in_child, paths_in, plan_with
from tests.support.walls import BUSYBOX, Pipe, finish, identity, program, staging, wall

from casemate.engine import owned, swtpm, tpm_commands, tpm_furnish, tpm_state
from casemate.engine.identity import claim
from casemate.errors import HostError
from casemate.evidence.tpm import parse_public_key
from casemate.jail.policy import IdentityMode, LandlockPath, RootEntry, Scratch, StateDirectory, Wall
from casemate.jail.spawn import spawn
from casemate.plan.swtpm import STATE, swtpm_wall

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.path.exists(tpm_case.SWTPM), reason="package swtpm is not installed"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    paths_in(tmp_path)
    yield tmp_path
    owned.remove(str(tmp_path / "data" / "vms" / VM_ID / "tpm"))


def home_of(folder: Path) -> Path:
    return folder / "data" / "vms" / VM_ID / "tpm"


def swtpms_of(folder: Path) -> list[int]:
    """Pids of swtpm processes that have this test's state mounted."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name = Path(f"/proc/{entry}/comm").read_text().strip()
                mounts = Path(f"/proc/{entry}/mountinfo").read_text() if name == "swtpm" else ""
            except OSError:
                continue
            if f"/vms/{VM_ID}/tpm/" in mounts and folder.name in mounts:
                found.append(int(entry))
    return found


def life(folder: Path, act: Callable[[Running], object], number: int = 0, **options: object) -> object:
    """One start of the TPM, in a process of its own."""

    def scenario() -> object:
        running = Running(plan_with(number, **options), paths_in(folder))  # type: ignore[arg-type]
        try:
            running.boot()
            return act(running)
        finally:
            running.end()

    return in_child(scenario)


def first(running: Running) -> dict[str, object]:
    before = running.read_pcr(16).hex()
    running.extend(16)
    running.define_nv(b"it stays")
    return {
        "before": before,
        "after": running.read_pcr(16).hex(),
        "ek": running.public(tpm_commands.EK_HANDLE).hex(),
        "ak": running.public(tpm_commands.AK_HANDLE).hex(),
        "observed": running.observed(),
        "uid": os.stat(f"/proc/{running.tpm.spawned.pid}").st_uid,
    }


def test_a_tpm_is_made_used_and_opened_again_under_another_uid(folder: Path) -> None:
    one = life(folder, first)
    assert isinstance(one, dict)
    assert one["before"] == "00" * 32
    assert one["after"] != one["before"]
    rooted = os.geteuid() == 0
    assert one["observed"] == {
        "tpm.backend": "swtpm",
        "tpm.state-encrypted": True,
        "tpm.key-in-arguments": False,
        "tpm.own-uid": rooted,
        "tpm.wall-faults": [],
    }
    record = json.loads((folder / "data" / "vms" / VM_ID / "tpm.json").read_text())
    assert (record["ek_public"], record["ak_public"]) == (one["ek"], one["ak"])
    assert len(parse_public_key(bytes.fromhex(record["ak_public"]))) > 256
    home = home_of(folder)
    assert sorted(os.listdir(home)) == ["key", "state"]
    status = (home / "state").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, tpm_case.identity().uid)
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600

    # What is written is not what the TPM holds: neither the guest's text, nor a key, in the clear.
    state = (home / "state" / "tpm2-00.permall").read_bytes()
    key = (home / "key").read_bytes()
    assert b"it stays" not in state
    assert bytes.fromhex(record["ak_public"])[24:64] not in state
    assert key not in state

    def second(running: Running) -> list[str]:
        return [
            running.read_pcr(16).hex(),
            running.read_nv(8).decode(),
            running.public(tpm_commands.AK_HANDLE).hex(),
            str(os.stat(f"/proc/{running.tpm.spawned.pid}").st_uid),
        ]

    assert life(folder, second, 1) == ["00" * 32, "it stays", one["ak"], str(tpm_case.identity(1).uid)]
    assert not swtpms_of(folder)


def test_a_launch_killed_at_any_moment_leaves_a_whole_tpm_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor-to-be dies after the n-th command of the making; and between the making and the rename."""
    real_furnish, real_settle = tpm_furnish.furnish, tpm_state.Home.settle

    def dying(after: int) -> Callable[..., tuple[bytes, bytes]]:
        def furnish(tell: tpm_furnish.Tell, reset: Callable[[], int]) -> tuple[bytes, bytes]:
            count = iter(range(after + 1))

            def counted(command: bytes, what: str) -> bytes:
                if next(count) == after:
                    tpm_case.die()
                return tell(command, what)

            return real_furnish(counted, reset)

        return furnish

    def dying_settle(self: tpm_state.Home, keys: tpm_state.Keys) -> None:
        tpm_case.die()

    for after in (0, 3, 7, 12):
        monkeypatch.setattr(swtpm, "furnish", dying(after))
        with pytest.raises(ChildKilledError) as caught:
            life(folder, lambda _: None)
        assert caught.value.args == (-9,)
        assert not (home_of(folder) / "state").exists()
    monkeypatch.setattr(swtpm, "furnish", real_furnish)
    monkeypatch.setattr(tpm_state.Home, "settle", dying_settle)
    with pytest.raises(ChildKilledError):
        life(folder, lambda _: None)
    monkeypatch.setattr(tpm_state.Home, "settle", real_settle)
    end = time.monotonic() + 5
    while swtpms_of(folder) and time.monotonic() < end:
        time.sleep(0.01)  # the parent-death signal is on its way
    assert not swtpms_of(folder)
    whole = life(folder, first)
    assert isinstance(whole, dict)
    assert sorted(os.listdir(home_of(folder))) == ["key", "state"]
    assert json.loads((home_of(folder).parent / "tpm.json").read_text())["ak_public"] == whole["ak"]


def secret_document(path: Path) -> dict[str, object]:
    return {"tpm": {"enabled": True, "key": "s"}, "secrets": {"s": {"file": str(path), "use": "tpm"}}}


def test_a_key_from_a_secret(folder: Path) -> None:
    planted = "PLANTED-c2VjcmV0IG9mIHRoZSB0cG0-PLANTED"
    secret = folder / "secret"
    secret.write_text(planted)
    secret.chmod(0o600)
    document = secret_document(secret)

    def look(running: Running) -> list[str]:
        pid = running.tpm.spawned.pid
        seen = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
        return [str(planted.encode() in text) for text in seen]

    assert life(folder, look, document=document) == ["False", "False"]
    assert sorted(os.listdir(home_of(folder))) == ["state"]  # no key is kept
    for path in folder.rglob("*"):
        if path.is_file() and path != secret:
            assert planted.encode() not in path.read_bytes(), path
    secret.write_text(planted.replace("c2", "c3"))
    with pytest.raises(ScenarioError, match="state of the VM's TPM cannot be opened"):
        life(folder, look, document=document)
    secret.write_text("too short")
    with pytest.raises(ScenarioError, match="20 or more"):
        life(folder, look, document=document)
    secret.write_text(planted)
    assert life(folder, look, document=document) == ["False", "False"]


def test_state_that_was_changed_or_robbed_of_its_key_is_refused(folder: Path) -> None:
    life(folder, first)
    state, key = home_of(folder) / "state" / "tpm2-00.permall", home_of(folder) / "key"
    good, good_key = state.read_bytes(), key.read_bytes()
    for at in (40, len(good) // 2, len(good) - 1):
        state.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ScenarioError) as caught:
            life(folder, lambda _: None)
        assert caught.value.args[0] == "InputError"
    state.write_bytes(good)
    key.write_bytes(os.urandom(32))
    with pytest.raises(ScenarioError, match="cannot be opened"):
        life(folder, lambda _: None)
    key.unlink()
    with pytest.raises(ScenarioError, match="key of the VM's TPM is gone"):
        life(folder, lambda _: None)
    assert state.read_bytes() == good
    key.write_bytes(good_key)
    life(folder, lambda running: running.read_nv(8).decode())


def test_an_emulator_that_was_taken_over_does_not_take_the_tpms_secrets_along(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may ask swtpm for the whole state, decrypted. Without a key of its own for that the answer is the state."""

    def steal(running: Running) -> list[bool]:
        running.define_nv(b"it stays")
        blob = running.stolen()
        return [b"it stays" in blob, running.public(tpm_commands.AK_HANDLE)[-64:] in blob, len(blob) > 1000]

    assert life(folder, steal) == [False, False, True]
    owned.remove(str(home_of(folder)))

    def careless(*arguments: object) -> Wall:
        planned = swtpm_wall(*arguments)  # type: ignore[arg-type]
        at = planned.argv.index("--migration-key")
        return msgspec.structs.replace(planned, argv=(*planned.argv[:at], *planned.argv[at + 2 :]))

    monkeypatch.setattr(swtpm, "swtpm_wall", careless)
    assert life(folder, steal) == [True, True, True]


def plant_link(state: Path) -> None:
    (state / "tpm2-00.permall").unlink()
    (state / "tpm2-00.permall").symlink_to("/etc/passwd")


def plant_hard_link(state: Path) -> None:
    os.link(state.parent / "key", state / "TMP2-00.permall")


def plant_directory(state: Path) -> None:
    (state / "TMP2-00.permall").mkdir()


def plant_program(state: Path) -> None:
    (state / "swtpm").write_bytes(b"\x7fELF")


def plant_giant(state: Path) -> None:
    with open(state / "TMP2-00.permall", "wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_directory, plant_program, plant_giant])
def test_what_swtpm_never_makes_is_refused_before_anything_starts(folder: Path, plant: Callable[[Path], None]) -> None:
    """A swtpm that was taken over writes what it likes: the next launch must not follow it."""
    life(folder, first)
    owner = os.stat("/etc/passwd").st_uid
    plant(home_of(folder) / "state")
    with pytest.raises(ScenarioError, match="holds what does not belong there") as caught:
        life(folder, lambda _: None, 1)
    assert "casemate rm" in caught.value.args[2]
    assert os.stat("/etc/passwd").st_uid == owner
    assert os.stat(home_of(folder) / "key").st_uid == os.geteuid()


def test_state_of_a_vm_that_removes_itself_is_nowhere(folder: Path) -> None:
    one = life(folder, first, keeps_state=False)
    two = life(folder, first, keeps_state=False)
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert one["ak"] != two["ak"]
    assert not home_of(folder).exists()
    faults = one["observed"]["tpm.wall-faults"]
    assert faults == []


def test_rm_leaves_neither_key_nor_state(folder: Path) -> None:
    life(folder, first)
    tpm_state.discard(paths_in(folder), VM_ID)
    assert not home_of(folder).exists()


def test_a_swtpm_that_cannot_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.jail.profiles import swtpm_profile
    from casemate.jail.rules import Profile

    whole = swtpm_profile()
    monkeypatch.setattr(
        swtpm,
        "swtpm_profile",
        lambda: Profile("less", tuple(rule for rule in whole.rules if rule.syscall != "pipe2"), whole.parts),
    )
    with pytest.raises(ScenarioError, match="SIGSYS") as caught:
        life(folder, lambda _: None)
    assert caught.value.args[0] == "HostError"
    assert not swtpms_of(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root changes owners itself; an ordinary user needs a user namespace")
def test_an_ordinary_user_gives_a_directory_to_a_subordinate_id_and_removes_it(tmp_path: Path) -> None:
    who, lock = claim(paths_in(tmp_path), range(0))
    os.close(lock)
    if who.mode is not IdentityMode.SUBID:
        pytest.skip("this user has no subordinate ids, or newuidmap is missing")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".lock").touch()
    owned.take_over(str(home), who, tpm_state.NAMES, 1 << 20)
    assert home.stat().st_uid == who.uid
    with pytest.raises(PermissionError):
        os.listdir(home)
    with pytest.raises(HostError, match="holds what does not belong there"):
        owned.take_over(str(home), who, frozenset({"other"}), 1 << 20)
    other = msgspec.structs.replace(who, uid=who.uid - 1, gid=who.gid - 1)
    owned.take_over(str(home), other, tpm_state.NAMES, 1 << 20)  # as at the next start
    assert home.stat().st_uid == other.uid
    owned.remove(str(home))
    assert not home.exists()


CALLS = """mkdir mknod symlink link unlink rename ftruncate chmod fork vfork clone wait4 pipe pipe2 dup2 fcntl umask
    rt_sigprocmask sigaltstack getcwd utimensat stat lstat access
    sendfile mknodat fchmodat symlinkat mkdirat""".split()  # noqa: SIM905 - a list of words


def attack(folder: Path, where: RootEntry, line: str) -> str:
    """What busybox's shell says with a writable place as swtpm has it."""
    folder.mkdir()
    pipe = Pipe()
    paths = (LandlockPath("/", ("read", "execute")), LandlockPath(STATE, ("read", "write", "replace")))
    planned = msgspec.structs.replace(wall("sh", "-c", line, root=(where,)), landlock=paths)
    finish(spawn(planned, program(tuple(CALLS)), pipe.sources, staging(folder)))
    return pipe.text()


@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="package busybox-static is not installed")
@pytest.mark.parametrize("kind", ["directory", "tmpfs"])
def test_the_writable_place_takes_files_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """As one that took swtpm over would try: programs, devices, links out, directories, other places, too much."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, identity().uid, identity().gid)
    where = StateDirectory(str(state), STATE) if kind == "directory" else Scratch(STATE, 1 << 20, 16)
    tries = {
        "write": (f"echo x >{STATE}/f", "DONE"),
        "replace": (f"echo x >{STATE}/f; mv {STATE}/f {STATE}/g && rm {STATE}/g", "DONE"),
        "outside": ("echo x >/x", "Read-only file system"),
        "program": (f"echo '#!/bin/busybox true' >{STATE}/b; chmod 755 {STATE}/b; {STATE}/b", "Permission denied"),
        "directory": (f"mkdir {STATE}/d", "Permission denied"),
        "device": (f"mknod {STATE}/n c 1 3", "Operation not permitted|Permission denied"),
        "fifo": (f"mknod {STATE}/p p", "Permission denied"),
        "link": (f"ln -s /bin {STATE}/l", "Permission denied"),
        "size": (f"dd if=/bin/busybox of={STATE}/big bs=65536 count=32", "File too large"),
    }
    for name, (line, wanted) in tries.items():
        said = attack(tmp_path / name, where, f"{line} && echo DONE")
        assert re.search(wanted, said), (name, said)
        assert ("DONE" in said) is (wanted == "DONE"), (name, said)
    if kind == "directory":
        assert sorted(os.listdir(state)) == ["b", "big"]
        assert (state / "big").stat().st_size <= 1 << 20
