"""The cached verdict: what makes it void, what is never kept, what a hostile cache file does.

The probe is replaced by a counter; /dev/null stands for a device that opens.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.facts import kvm
from casemate.facts.kvm import cached_probe
from casemate.facts.kvm_report import KvmReport, Verdict


class Probe:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.verdict = Verdict.USABLE

    def __call__(self, device: str = "/dev/kvm", deadline_s: float = 5.0, machine: str | None = None) -> KvmReport:
        self.calls += 1
        return KvmReport(
            device=device, machine="x86_64", kernel_release="6", verdict=self.verdict, why=f"call {self.calls}"
        )


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    found = Probe()
    monkeypatch.setattr(kvm, "probe_kvm", found)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "root/proc/sys/kernel/random/boot_id").write_text("b1\n")
    (tmp_path / "root/sys/module/kvm_intel").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "kvm.json"


def ask(cache: Path, root: Path, device: str = "/dev/null") -> KvmReport:
    return cached_probe(cache, device=device, root=root)


@pytest.mark.parametrize("verdict", [Verdict.USABLE, Verdict.EMULATED])
def test_second_question_costs_no_probe(probe: Probe, cache: Path, root: Path, verdict: Verdict) -> None:
    probe.verdict = verdict
    first = ask(cache, root)
    assert ask(cache, root) == first
    assert probe.calls == 1
    assert cache.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in cache.parent.iterdir() if path.is_file()] == ["kvm.json"]


@pytest.mark.parametrize("verdict", [Verdict.DENIED, Verdict.ABSENT, Verdict.BROKEN, Verdict.UNKNOWN])
def test_what_may_be_repaired_is_not_kept(probe: Probe, cache: Path, root: Path, verdict: Verdict) -> None:
    probe.verdict = verdict
    ask(cache, root)
    ask(cache, root)
    assert probe.calls == 2
    assert not cache.exists()


def test_new_boot_asks_again(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    (root / "proc/sys/kernel/random/boot_id").write_text("b2\n")
    ask(cache, root)
    assert probe.calls == 2


def test_module_loaded_again_asks_again(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    (root / "sys/module/kvm_amd").mkdir()
    ask(cache, root)
    assert probe.calls == 2


def test_other_kernel_asks_again(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    entry = msgspec.json.decode(cache.read_bytes())
    entry["key"]["kernel_release"] = "0.0.1"
    cache.write_bytes(msgspec.json.encode(entry))
    ask(cache, root)
    assert probe.calls == 2


def test_other_device_asks_again(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root, "/dev/null")
    ask(cache, root, "/dev/zero")
    assert probe.calls == 2


def test_device_that_does_not_open_is_never_answered_from_the_cache(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    entry = msgspec.json.decode(cache.read_bytes())
    entry["key"]["device"] = "/nonexistent"
    cache.write_bytes(msgspec.json.encode(entry))
    ask(cache, root, "/nonexistent")
    assert probe.calls == 2


def test_without_boot_id_nothing_is_cached(probe: Probe, cache: Path, root: Path) -> None:
    (root / "proc/sys/kernel/random/boot_id").unlink()
    ask(cache, root)
    ask(cache, root)
    assert probe.calls == 2
    assert not cache.exists()


def test_file_that_others_can_write_does_not_count(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    cache.chmod(0o666)
    ask(cache, root)
    assert probe.calls == 2
    assert cache.stat().st_mode & 0o777 == 0o600  # replaced


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_file_of_another_user_does_not_count(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    os.chown(cache, 12345, 12345)
    ask(cache, root)
    assert probe.calls == 2


def test_symlink_does_not_count_and_is_not_followed(probe: Probe, cache: Path, root: Path, tmp_path: Path) -> None:
    ask(cache, root)
    real = tmp_path / "elsewhere.json"
    cache.rename(real)
    cache.symlink_to(real)
    before = real.read_bytes()
    ask(cache, root)
    assert probe.calls == 2
    assert not cache.is_symlink()
    assert real.read_bytes() == before


@pytest.mark.parametrize("kind", ["directory", "fifo", "huge"])
def test_strange_cache_files_neither_hang_nor_crash(probe: Probe, cache: Path, root: Path, kind: str) -> None:
    if kind == "directory":
        cache.mkdir()
    elif kind == "fifo":
        os.mkfifo(cache, 0o600)
    else:
        cache.touch(0o600)
        os.truncate(cache, kvm.CACHE_BYTES_MAX + 1)
    assert ask(cache, root).verdict is Verdict.USABLE
    assert probe.calls == 1


def test_unwritable_cache_directory_costs_only_time(probe: Probe, root: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "kvm.json"
    assert ask(missing, root).verdict is Verdict.USABLE
    assert ask(missing, root).verdict is Verdict.USABLE
    assert probe.calls == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(alphabet='[]{}",:0', max_size=300).map(str.encode)))
def test_garbage_is_probed_again_and_replaced(probe: Probe, cache: Path, root: Path, garbage: bytes) -> None:
    cache.unlink(missing_ok=True)
    cache.touch(0o600)
    cache.write_bytes(garbage)
    before = probe.calls
    ask(cache, root)
    ask(cache, root)
    assert probe.calls == before + 1


def test_deeply_nested_garbage(probe: Probe, cache: Path, root: Path) -> None:
    cache.touch(0o600)
    cache.write_bytes(b'{"key":' + b"[" * 200_000)
    ask(cache, root)
    assert probe.calls == 1


def test_truncated_entry_is_probed_again(probe: Probe, cache: Path, root: Path) -> None:
    ask(cache, root)
    whole = cache.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        cache.write_bytes(whole[:cut])
        before = probe.calls
        ask(cache, root)
        assert probe.calls == before + 1
