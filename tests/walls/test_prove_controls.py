"""A probe that cannot fail is worthless: each wall here is loosened on purpose, and exactly that is reported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from tests.support.proofs import Bench, bench, loosen, unexpected

from casemate.engine import prove, start
from casemate.engine.opening import Opened
from casemate.jail import spawn as spawn_module
from casemate.jail.compile import compile_profile
from casemate.jail.policy import BindFile, Descriptor, Identity, IdentityMode, LandlockPath, Layer, Rlimit, Wall
from casemate.jail.profiles import qemu_profile
from casemate.jail.rules import Phase, Profile, Rule
from casemate.plan import build
from casemate.sys import caps, mount, process

pytestmark = pytest.mark.wall
change = msgspec.structs.replace
MACHINE = os.uname().machine
CAP_SYS_CHROOT = 18


@pytest.fixture(scope="module")
def here() -> Iterator[Bench]:
    with bench() as found:
        yield found
        assert found.leftovers() == []


def test_a_host_file_in_the_root(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loosen(monkeypatch, lambda wall: change(wall, root=(*wall.root, BindFile("/etc/passwd", "/etc/passwd"))))
    report = here.prove(quick=True)
    assert unexpected(report) == {"sight.root-extra"}
    assert "/etc/passwd" in report.unexpected[0].why


def test_a_host_file_in_the_root_can_be_read_when_nothing_else_stops_it(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loosen(monkeypatch, lambda wall: change(wall, root=(*wall.root, BindFile("/etc/passwd", "/etc/passwd"))))
    plain = unexpected(here.prove(without=Layer.SECCOMP, quick=True))
    assert {"files.read-passwd", "files.openat2", "files.open-by-old-call", "files.read-dot-dot"} <= plain


def test_another_file_than_the_planned_one(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(wall: Wall) -> Wall:
        first = next(entry for entry in wall.root if isinstance(entry, BindFile))
        rest = tuple(entry for entry in wall.root if entry is not first)
        return change(wall, root=(BindFile("/etc/passwd", first.target), *rest))

    loosen(monkeypatch, swap)
    assert unexpected(here.prove(quick=True)) == {"sight.root-other-file"}


def test_a_root_that_can_be_written(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "mount_setattr", lambda *_, **__: None)
    assert unexpected(here.prove(quick=True)) == {"sight.root-writable", "sight.root-suid"}


def test_a_capability_that_stayed_in_the_bounding_set(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = caps.drop_bounding_set
    monkeypatch.setattr(caps, "drop_bounding_set", lambda: real(frozenset({CAP_SYS_CHROOT})))
    assert unexpected(here.prove(quick=True)) == {"sight.capabilities-bounding"}


def test_a_capability_that_is_in_force(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = caps.capset
    monkeypatch.setattr(caps, "capset", lambda: real(1 << CAP_SYS_CHROOT, 1 << CAP_SYS_CHROOT))
    held = {"sight.capabilities-effective", "sight.capabilities-permitted"}
    assert unexpected(here.prove(quick=True)) == held
    # Behind the filter it is worth something in its own user namespace.
    plain = unexpected(here.prove(without=Layer.SECCOMP, quick=True))
    assert held | {"kernel.chroot"} <= plain


def test_a_filter_that_allows_more_than_the_profile(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(profile: Profile, arch: str, _: object) -> bytes:
        return compile_profile(change(profile, rules=(*profile.rules, Rule("ptrace", "a test"))), arch)

    monkeypatch.setattr(prove, "cached_program", loose)
    report = here.prove(quick=True)
    assert unexpected(report) == {"calls.ptrace"}
    assert "the profile kills this call" in report.unexpected[0].why
    # The call was let through, and the next layer stopped it.
    assert next(item for item in report.results if item.id == "processes.ptrace").stopper == Layer.NAMESPACES


def test_a_profile_that_allows_what_no_emulator_needs(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:

    def loose(accel: str, devices: frozenset[str]) -> Profile:
        profile = qemu_profile(accel, devices)
        return change(profile, rules=(*profile.rules, Rule("ptrace", "a test")))

    monkeypatch.setattr(build, "qemu_profile", loose)
    report = here.prove(quick=True)
    assert unexpected(report) == {"calls.ptrace"}
    assert "no emulator needs" in report.unexpected[0].why


def test_a_rule_with_wider_arguments(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(profile: Profile, arch: str, _: object) -> bytes:
        rules = tuple(rule for rule in profile.rules if rule.syscall != "mprotect")
        return compile_profile(change(profile, rules=(*rules, Rule("mprotect", "a test"))), arch)

    monkeypatch.setattr(prove, "cached_program", loose)
    found = unexpected(here.prove())
    assert "kernel.exec-protect" in found
    assert all(name == "kernel.exec-protect" or name.startswith("calls.mprotect") for name in found)


def test_a_start_up_call_that_stays(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(profile: Profile, arch: str, _: object) -> bytes:
        rules = tuple(change(rule, phase=Phase.ALWAYS) if rule.syscall == "sysinfo" else rule for rule in profile.rules)
        return compile_profile(change(profile, rules=rules), arch)

    monkeypatch.setattr(prove, "cached_program", loose)
    report = here.prove(quick=True)
    assert unexpected(report) == {"calls.sysinfo"}
    assert "the profile answers notify" in report.unexpected[0].why


def test_a_filter_that_kills_what_the_profile_allows(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def tight(profile: Profile, arch: str, _: object) -> bytes:
        rules = tuple(rule for rule in profile.rules if rule.syscall != "ppoll")
        return compile_profile(change(profile, rules=rules), arch)

    monkeypatch.setattr(prove, "cached_program", tight)
    assert unexpected(here.prove(quick=True)) == {"calls.ppoll"}


def test_a_limit_that_is_higher(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_nofile(wall: Wall) -> Wall:
        limits = tuple(Rlimit("nofile", 2048) if item.name == "nofile" else item for item in wall.rlimits)
        return change(wall, rlimits=limits)

    loosen(monkeypatch, raise_nofile)
    assert unexpected(here.prove(quick=True)) == {"sight.limit-nofile", "resources.descriptors"}


def test_a_descriptor_too_many(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loosen(monkeypatch, lambda wall: change(wall, descriptors=(*wall.descriptors, Descriptor(40, "entropy", "ro"))))
    assert unexpected(here.prove(quick=True)) == {"sight.descriptors-extra"}


def test_a_shared_network_namespace(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = spawn_module._NAMESPACES & ~process.CLONE_NEWNET
    monkeypatch.setattr(spawn_module, "_NAMESPACES", flags)
    found = unexpected(here.prove(quick=True))
    assert "sight.namespace-net" in found
    assert found <= {"sight.namespace-net", "sight.interfaces"}


def test_a_shared_network_namespace_without_landlock_s_help(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faults at once: with the filter gone as well, the listeners of the host see someone arrive."""
    flags = spawn_module._NAMESPACES & ~process.CLONE_NEWNET
    monkeypatch.setattr(spawn_module, "_NAMESPACES", flags)
    loosen(monkeypatch, lambda wall: change(wall, landlock_abi=0))
    found = unexpected(here.prove(without=Layer.SECCOMP, quick=True))
    assert {"sockets.tcp-loopback", "sockets.udp-loopback", "sockets.abstract", "sight.namespace-net"} <= found


def test_a_landlock_rule_too_many(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = unexpected(here.prove(without=Layer.SECCOMP, quick=True))
    extra = LandlockPath("/dev/urandom", ("read", "write"))
    loosen(monkeypatch, lambda wall: change(wall, landlock=(*wall.landlock, extra)))
    after = unexpected(here.prove(without=Layer.SECCOMP, quick=True))
    assert after - before == {"files.write-urandom"}


def test_a_wall_that_lacks_a_layer_already_is_refused(here: Bench) -> None:
    """Never more than one layer: a plan with one removed cannot be proved at all."""
    opened = Opened()
    try:
        prove._open_read_only(here.spec(), opened)
        plan = start.make_plan(here.spec(), here.paths, "prooftest", "test", _someone(), opened.sizes)
        bare = change(plan, wall=change(plan.wall, without=(Layer.ROOT,)))
        with pytest.raises(RuntimeError, match="lacks a layer"):
            prove.prove(bare, b"", opened, f"{here.base}/root", here.paths, without=Layer.SECCOMP)
    finally:
        opened.close()


def _someone() -> Identity:
    return Identity(1_900_050_000, 1_900_050_000, IdentityMode.ROOT)
