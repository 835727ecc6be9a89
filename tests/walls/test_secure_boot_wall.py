"""A launch whose emulator does not guard Secure Boot's variables is refused, whatever its plan says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.machines import Machines, machines
from tests.support.signed_boot import uki_disk
from tests.support.tiny_guests import flash_writer

from casemate.controls.policy import HostPolicy
from casemate.engine.start import start
from casemate.errors import RefusedError
from casemate.plan import argv, build
from casemate.spec.model import Boot, Disk, DiskFormat, Firmware, Machine, MachineType, Spec

pytestmark = pytest.mark.wall

GUARD = "driver=cfi.pflash01,property=secure,value=on"


@pytest.fixture
def made() -> Iterator[Machines]:
    with machines() as found:
        yield found


def spec_of(directory: Path, firmware: Firmware) -> Spec:
    disk = uki_disk(directory / "disk.img", flash_writer(directory / "a.efi"))
    return Spec(
        machine=Machine(type=MachineType.Q35, memory_mib=256),
        boot=Boot(firmware=firmware),
        disks=(Disk(path=str(disk), format=DiskFormat.RAW),),
    )


def without_guard(words: list[str]) -> list[str]:
    place = words.index(GUARD)
    return [*words[: place - 1], *words[place + 1 :]]


def without_smm(words: list[str]) -> list[str]:
    return [word.replace(",smm=on", ",smm=off") for word in words]


@pytest.mark.parametrize(
    ("loosen", "why"),
    [(without_guard, "system.flash1 takes writes from any code"), (without_smm, "system management mode is off")],
)
def test_unguarded_variables_are_refused(
    made: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loosen: Any, why: str
) -> None:
    real = argv.build_argv
    monkeypatch.setattr(build, "build_argv", lambda *args, **more: tuple(loosen(list(real(*args, **more)))))
    definition = made.define(spec_of(tmp_path, Firmware.UEFI_SECURE))
    with pytest.raises(RefusedError) as refused:
        start(made.paths, definition, HostPolicy())
    assert refused.value.control == "dev.boot-variables"
    assert why in refused.value.got


def test_system_management_mode_that_nobody_planned_is_refused(
    made: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = argv.build_argv
    monkeypatch.setattr(
        build,
        "build_argv",
        lambda *args, **more: tuple(word.replace(",smm=off", ",smm=on") for word in real(*args, **more)),
    )
    definition = made.define(spec_of(tmp_path, Firmware.UEFI))
    with pytest.raises(RefusedError) as refused:
        start(made.paths, definition, HostPolicy())
    assert refused.value.control == "proc.drift"
    assert "dev.smm" in refused.value.got
