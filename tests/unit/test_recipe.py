"""The build recipe: complete, valid shell, no device outside our list."""

from __future__ import annotations

import subprocess

import pytest

from casemate.cli.main import main
from casemate.controls.recipe import DEVICES, build_recipe


@pytest.mark.parametrize("tcg", [False, True])
def test_the_script_is_shell_and_leaves_no_gap(tcg: bool) -> None:
    script = build_recipe(tcg=tcg).script
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert "@" not in script
    assert ("--enable-tcg" in script) is tcg
    assert all(line in script for line in DEVICES)
    for word in ("--without-default-devices", "--without-default-features", "--enable-cfi", "--enable-seccomp"):
        assert word in script


def test_after_is_less_than_before() -> None:
    recipe = build_recipe()
    assert recipe.after.devices < recipe.before.devices
    assert recipe.after.vulnerabilities < recipe.before.vulnerabilities
    assert recipe.after.size_bytes < build_recipe(tcg=True).after.size_bytes < recipe.before.size_bytes


def test_the_command_prints_the_script_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emulator", "recipe"]) == 0
    captured = capsys.readouterr()
    assert captured.out == build_recipe().script
    assert "28 devices" in captured.err
