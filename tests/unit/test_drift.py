"""What is written twice stays the same: README and the program, SECURITY.md and the tests, the lock and pyproject,
and nothing of a developer's machine.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from casemate.errors import ExitCode

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")

# In pieces, so that this file does not find itself.
FORBIDDEN = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.-])/" + r"work/",
        r"(?<![\w.-])/" + r"root/\.",
        r"pypi" + r"\.org|pythonhosted" + r"\.org",
        r"\b(?:deb|security|ftp|snapshot)\.debian" + r"\.org",
        r"\bregistry\.npmjs" + r"\.org",
        r"/opt/" + r"(?:wheels|pypi)",
        r"--(?:extra-)?index-" + r"url[ =]|--find-" + r"links[ =]",
    )
)


HOME_OF_ROOT = FORBIDDEN[1]
NAMES_GUEST_FILES = frozenset(
    {
        "src/casemate/cell/debian_build.py",
        "src/casemate/cli/args_image_contents.py",
        "src/casemate/scan/paths.py",
        "tests/boot/test_scan_debian.py",
        "tests/golden/cli-help.txt",
        "tests/unit/test_scan_files.py",
    }
)
"""Here a path below root's home is one inside an image, not one of this machine."""


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files that git tracks; every file outside hidden directories where there is no git."""
    # The checkout may belong to another user than the one who runs the tests.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        names = [name for name in os.fsdecode(listing).split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [
            str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not str(path.relative_to(ROOT)).startswith(".")
        ]
    return tuple(path for name in names if (path := ROOT / name).is_file())


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Names of the test functions of one file."""
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def dead_references(text: str) -> list[str]:
    """Return each ``tests/…py`` or ``tests/…py::test_name`` in ``text`` that names nothing."""
    dead: list[str] = []
    for match in REFERENCE.finditer(text):
        path = ROOT / match[1]
        if not path.is_file() or (match[2] and match[2] not in names_of_tests(path)):
            dead.append(match[0])
    return dead


def test_no_tracked_file_names_a_registry_or_a_machine_path() -> None:
    files = tracked_files()
    assert len(files) > 50
    found = []
    for path in files:
        inside = str(path.relative_to(ROOT)) in NAMES_GUEST_FILES
        patterns = [pattern for pattern in FORBIDDEN if not (inside and pattern is HOME_OF_ROOT)]
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), start=1):
            if any(pattern.search(line) for pattern in patterns):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /" + "work/main",
        "https://pypi" + ".org/simple",
        "http://deb.debian" + ".org/debian",
        "--index-" + "url=x",
        "/opt/" + "wheels",
    ],
)
def test_the_forbidden_patterns_find_what_they_are_for(line: str) -> None:
    assert any(pattern.search(line) for pattern in FORBIDDEN)


def test_each_promise_in_security_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    section = re.search(r"^## Promises$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "SECURITY.md has a section '## Promises'"
    rows = [line for line in section[1].splitlines() if line.startswith("|")][2:]
    rows += [line for line in section[1].splitlines() if line.startswith("- ")]
    assert rows, "the section lists promises, as table rows or '- ' items"
    without = [row for row in rows if not any(match[2] for match in REFERENCE.finditer(row))]
    assert without == [], "each promise names its test as tests/…py::test_name"
    assert dead_references(text) == []


def test_documents_name_only_tests_that_exist() -> None:
    for path in tracked_files():
        if path.suffix == ".md" and path.name != "CHANGELOG.md":
            assert dead_references(path.read_text()) == [], path


def test_a_dead_reference_is_seen() -> None:
    here = Path(__file__).relative_to(ROOT)
    assert dead_references(f"{here}::test_a_dead_reference_is_seen and {here}") == []
    assert dead_references(f"{here}::test_nothing, tests/unit/nowhere.py") == [
        f"{here}::test_nothing",
        "tests/unit/nowhere.py",
    ]


def _help_text() -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("casemate")), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "100", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


def test_readme_shows_the_help_that_the_program_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^```text\n\$ casemate --help\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has a ```text block that starts with '$ casemate --help'"
    assert block[1].rstrip() == _help_text(), "run tools/readme_help.py with the python of the environment"


def test_readme_lists_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = {int(match[1]) for match in re.finditer(r"^\| (\d) \|", readme, re.MULTILINE)}
    assert rows == {int(code) for code in ExitCode}


def test_readme_starts_with_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    for name in ("demo", "check"):
        assert f"./{name}" in first_screen
        assert os.access(ROOT / name, os.X_OK)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_everything_with_hashes_and_names_no_place() -> None:
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    assert "://" not in lock
    entries = re.split(r"\n(?=\S)", lock.strip())
    pinned = {}
    for entry in entries:
        match = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry)
        assert match, entry[:80]
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)
        assert hashes, match[1]
        pinned[_canonical(match[1])] = match[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    for requirement in wanted:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert match
        assert _canonical(match[0]) in pinned, f"{requirement} is not in requirements/lock.txt: run tools/lock.sh"


def test_every_package_of_the_setup_says_why() -> None:
    setup = (ROOT / "tools" / "setup.sh").read_text()
    for name in ("DEMO_PACKAGES", "CHECK_PACKAGES"):
        block = re.search(rf"^{name}='\n(.*?)^'$", setup, re.MULTILINE | re.DOTALL)
        assert block, name
        lines = block[1].splitlines()
        assert lines
        for line in lines:
            assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]+\|\S.{9,}", line), line


def test_ci_runs_check_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1
    assert lines[0].startswith("exec ")
    assert lines[0].endswith('/../check"')


def test_shell_scripts_parse() -> None:
    scripts = [path for path in tracked_files() if re.match(rb"#!.*\b(ba|da)?sh\b", path.read_bytes()[:64])]
    scripts.append(ROOT / "tools/setup.sh")
    assert len(scripts) >= 5
    for path in scripts:
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their last name alone."""
    names = [path.name for path in tracked_files() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_tests_that_boot_are_where_check_looks_for_them() -> None:
    """./check goes by directory: a test with this marker elsewhere would boot among workers, or not run at all."""
    marker = "pytest.mark." + "boot"
    with_it = {path for path in (ROOT / "tests").rglob("test_*.py") if marker in path.read_text()}
    assert with_it == set((ROOT / "tests/boot").glob("test_*.py"))
    assert "--ignore tests/walls --ignore tests/boot" in (ROOT / "check").read_text()
