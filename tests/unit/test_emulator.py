"""Emulator binaries: hardening of compiled, hand-made and hostile files, and one mutation for each fact."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.elf_builder import Elf, put

from casemate.controls.catalogue.emulator_audit import CONTROLS
from casemate.controls.judge import judge
from casemate.controls.model import Verdict
from casemate.facts.elf import ElfFormatError
from casemate.facts.elf_hardening import Hardening, read_hardening
from casemate.facts.emulator import collect_emulator
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value
from casemate.facts.root import Root

GOOD: dict[str, Value] = {
    "bin.pie": True,
    "bin.relro": "full",
    "bin.stack": "no-execute",
    "bin.writable-code": 0,
    "bin.canary": True,
    "bin.fortify": 25,
    "bin.cfi": ("clang-cfi",),
    "bin.writable": (),
    "bin.privileges": (),
    "bin.rpath": (),
    "bin.libraries-risky": (),
    "bin.modules": (),
    "bin.device-count": 120,
    "bin.high-risk-types": ("virtio-net-device",),
    "bin.accelerators": ("kvm",),
    "bin.cves-open": (),
    "bin.cves-unclear": (),
    "bin.version-number": 70_200,
    "bin.vmm": "qemu",
    "bin.package": "qemu-system-x86",
    "bin.digest": "as packaged",
    "bin.bridge-open": (),
}
MUTATIONS: dict[tuple[str, str], Value] = {
    ("bin.pie", "bin.pie"): False,
    ("bin.relro", "bin.relro"): "partial",
    ("bin.nx", "bin.stack"): "unstated",
    ("bin.nx", "bin.writable-code"): 1,
    ("bin.canary", "bin.canary"): False,
    ("bin.fortify", "bin.fortify"): 24,
    ("bin.cfi", "bin.cfi"): (),
    ("bin.owner", "bin.writable"): ("/opt (1000:1000 0755)",),
    ("bin.setuid", "bin.privileges"): ("setuid",),
    ("bin.rpath", "bin.rpath"): ("/opt/lib",),
    ("bin.libraries", "bin.libraries-risky"): ("libslirp.so.0",),
    ("bin.modules", "bin.modules"): ("ui-gtk.so",),
    ("bin.device-types", "bin.device-count"): 121,
    ("bin.device-types", "bin.high-risk-types"): ("isa-fdc",),
    ("bin.no-tcg", "bin.accelerators"): ("kvm", "tcg"),
    ("bin.cve", "bin.cves-open"): ("CVE-2015-3456",),
    ("bin.cve", "bin.cves-unclear"): ("CVE-2024-6519",),
    ("bin.version", "bin.version-number"): 70_199,
    ("bin.provenance", "bin.package"): "none",
    ("bin.provenance", "bin.digest"): "changed",
    ("bin.bridge-helper", "bin.bridge-open"): ("all",),
}


def failing(changes: dict[str, Value]) -> set[str]:
    facts: Facts = {name: Known(value, "test") for name, value in {**GOOD, **changes}.items()}
    findings = judge(CONTROLS, facts, stage=Stage.OBSERVED)
    assert {f.verdict for f in findings} <= {Verdict.PASS, Verdict.FAIL}
    return {f.control_id for f in findings if f.verdict is Verdict.FAIL}


def test_the_good_emulator_passes_and_every_fact_has_a_mutation() -> None:
    assert failing({}) == set()
    assert set(MUTATIONS) == {(c.id, check.fact) for c in CONTROLS for check in c.checks}


@pytest.mark.parametrize(("control_id", "fact"), MUTATIONS, ids=str)
def test_one_change_flips_exactly_that_control(control_id: str, fact: str) -> None:
    assert failing({fact: MUTATIONS[control_id, fact]}) == {control_id}


def inspect(path: Path) -> Hardening:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_hardening(descriptor)
    finally:
        os.close(descriptor)


SOURCE = r"""
#include <stdio.h>
#include <string.h>
int main(int c, char **v) { char b[64]; strcpy(b, v[0]); printf("%s", b); return c; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hardening]:
    """One binary with everything on, and one for each property switched off."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    where = tmp_path_factory.mktemp("elf")
    (where / "a.c").write_text(SOURCE)
    good = {
        "pie": "-fPIE -pie",
        "relro": "-Wl,-z,relro,-z,now",
        "stack": "-z noexecstack",
        "canary": "-fstack-protector-all",
        "fortify": "-O2 -D_FORTIFY_SOURCE=2",
        "cet": "-fcf-protection=full",
        "strip": "",
    }
    variants = {
        "good": good,
        "no-pie": {**good, "pie": "-no-pie"},
        "lazy": {**good, "relro": "-Wl,-z,relro,-z,lazy"},
        "no-relro": {**good, "relro": "-Wl,-z,norelro"},
        "stack": {**good, "stack": "-z execstack"},
        "no-canary": {**good, "canary": "-fno-stack-protector"},
        "no-fortify": {**good, "fortify": "-O2 -U_FORTIFY_SOURCE"},
        "rpath": {**good, "strip": "-Wl,-rpath,/opt/lib:/tmp"},
        "stripped": {**good, "strip": "-s"},
        "static": {**good, "pie": "-static"},
    }
    found: dict[str, Hardening] = {}
    for name, flags in variants.items():
        words = " ".join(flags.values()).split()
        subprocess.run(["gcc", "a.c", "-o", name, *words], cwd=where, check=True, capture_output=True)
        found[name] = inspect(where / name)
    return found


def test_compiled_programs_are_told_apart(compiled: dict[str, Hardening]) -> None:
    good = compiled["good"]
    assert (good.pie, good.relro, good.stack, good.writable_code, good.canary) == (True, "full", "no-execute", 0, True)
    assert {"strcpy", "printf"} <= set(good.fortified)
    assert good.fortify_percent == 100
    assert (good.search, good.stripped, good.static, good.clang_cfi) == ((), False, False, False)
    assert compiled["no-pie"].pie is False
    assert compiled["lazy"].relro == "partial"
    assert compiled["no-relro"].relro == "none"
    assert compiled["stack"].stack == "executable"
    assert compiled["no-canary"].canary is False
    assert compiled["no-fortify"].fortified == ()
    assert compiled["no-fortify"].fortify_percent == 0
    assert compiled["rpath"].search == ("/opt/lib", "/tmp")
    assert compiled["stripped"].stripped is True
    assert compiled["stripped"].clang_cfi is None
    assert (compiled["static"].static, compiled["static"].canary, compiled["static"].pie) == (True, None, False)


@given(cut=st.integers(0, 4095), junk=st.binary(max_size=64))
@settings(max_examples=60, deadline=None)
def test_a_truncated_or_overwritten_file_is_refused_or_read(cut: int, junk: bytes) -> None:
    whole = Elf(needed=("libc.so.6",), interpreter="/lib/ld.so").build()
    for content in (whole[:cut], whole[:cut] + junk + whole[cut + len(junk) :]):
        descriptor = os.memfd_create("elf")
        try:
            os.write(descriptor, content)
            try:
                assert isinstance(read_hardening(descriptor), Hardening)
            except ElfFormatError:
                continue
        finally:
            os.close(descriptor)


def test_an_emulator_of_a_captured_tree_is_never_run_and_never_passes_unread(tmp_path: Path) -> None:
    put(tmp_path, "/usr/bin/qemu-system-x86_64", b"not an ELF file")
    facts = collect_emulator(Root(tmp_path), "/usr/bin/qemu-system-x86_64")
    for name in ("bin.pie", "bin.version", "bin.device-types", "bin.cves-open"):
        assert isinstance(facts[name], Unknown), name
    verdicts = {f.verdict for f in judge(CONTROLS, facts, stage=Stage.OBSERVED)}
    assert Verdict.UNKNOWN in verdicts
    missing = collect_emulator(Root(tmp_path), "/usr/bin/none")
    assert {f.verdict for f in judge(CONTROLS, missing, stage=Stage.OBSERVED)} == {Verdict.UNKNOWN}
