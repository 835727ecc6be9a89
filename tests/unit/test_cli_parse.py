"""Arguments, help, completion, and what start-up may cost. Every test runs the real program."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cli_runner import COMMAND, Cli

from casemate.cli.parser import build_parser
from casemate.errors import ExitCode

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/cli-help.txt"
COMMANDS = (
    *("doctor", "plan", "run", "create", "start", "restart", "stop", "kill", "rm", "pause", "unpause", "wait", "ps"),
    *("inspect", "logs", "console", "events", "stats", "prove", "key", "verify-record", "unit", "spec", "completion"),
    *(
        "version",
        "audit",
        "controls",
        "capture",
        "risk",
        "harden",
        "surface",
        "detect",
        "emulator",
        "measure",
        "attest",
        "serve-keys",
        "image",
        "save",
    ),
)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "100", "LC_ALL": "C.UTF-8"},
    )


def all_help() -> str:
    """The help of the program and of each command, as the golden file holds it."""
    parts = []
    for words in ((), *((name,) for name in COMMANDS), *(("image", name) for name in image_commands())):
        done = program(*words, "--help")
        assert (done.returncode, done.stderr) == (0, ""), words
        parts.append(f"$ {' '.join(('casemate', *words))} --help\n{done.stdout}")
    return "\n".join(parts)


def image_commands() -> list[str]:
    """The commands of the group, as its help lists them."""
    return re.findall(r"^    ([a-z-]+)(?: |$)", program("image", "--help").stdout, re.MULTILINE)


def test_help_is_the_golden_one() -> None:
    """After a wanted change: ``python -m tests.unit.test_cli_parse`` writes the golden file."""
    assert as_words(all_help()) == as_words(GOLDEN.read_text())


def as_words(text: str) -> list[str]:
    """Python 3.13 writes ``-p, --publish X`` for ``-p X, --publish X`` and breaks lines elsewhere."""
    return re.sub(r"(-\w) (\S+), (--[\w-]+) \2", r"\1, \3 \2", " ".join(text.split())).split()


def test_every_command_is_in_the_help_and_documented() -> None:
    text = program("--help").stdout
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", text, re.MULTILINE)
    assert tuple(listed) == COMMANDS
    manual = (ROOT / "docs/cli.md").read_text()
    for name in COMMANDS:
        assert re.search(rf"^##+ .*\b{name}\b", manual, re.MULTILINE), f"docs/cli.md has a heading for {name}"


def test_every_flag_is_documented() -> None:
    """The manual names each long flag that the parser takes."""
    manual = (ROOT / "docs/cli.md").read_text()
    flags = set(re.findall(r"--[a-z][a-z0-9-]+", GOLDEN.read_text())) - {"--help"}
    assert {flag for flag in flags if not re.search(rf"`[^`\n]*{flag}\b", manual)} == set()


def test_help_names_every_exit_code() -> None:
    text = program("--help").stdout.partition("exit codes:")[2]
    assert {int(number) for number in re.findall(r"\b(\d) [a-z]", text)} == {int(code) for code in ExitCode}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ps", "--frob"], "unrecognized arguments: --frob\n  next: casemate ps --help"),
        (["image", "ls", "--frob"], "unrecognized arguments: --frob\n  next: casemate image ls --help"),
        (["prove", "--witout", "seccomp", "x"], "did you mean --without?\n  next: casemate prove --help"),
        (["--frob", "ps"], "unrecognized arguments: --frob\n  next: casemate --help"),
        (["stpo"], "there is no 'stpo'; did you mean stop?"),
        (["run", "--vcpus", "two", "builtin"], "argument --vcpus: invalid int value: 'two'"),
        (["run", "--timeout-s", "-1", "builtin"], "is not a number of seconds above 0"),
        (["stop", "--time", "-1", "x"], "-1 is below 0"),
        (["inspect"], "the following arguments are required: VM"),
        (["start", "--attach", "--foreground", "x"], "not allowed with argument"),
        (["prove", "x", "--without", "walls"], "argument --without: there is no 'walls'"),
        (["spec"], "the following arguments are required: --schema"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_use_says_what_and_where_the_help_is(words: list[str], message: str) -> None:
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    first, last = done.stderr.rstrip("\n").split("\n", 1)
    assert first.startswith("casemate: error: ")
    assert last.startswith("  next: casemate ")
    assert last.endswith(" --help")


@pytest.mark.parametrize("words", [["stop"], ["rm"], ["kill"], ["pause"], ["wait"], ["restart"]])
def test_commands_on_vms_want_a_vm(cli: Cli, words: list[str]) -> None:
    assert "needs a VM" in cli.fails(2, *words)
    assert "exclude each other" in cli.fails(2, *words, "--all", "x")
    assert cli.ok(*words, "--all") == ""


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["image", "repo", "sync", "DIR", "--root", "F", "one", "two"], "names", ["one", "two"]),
        (["image", "repo", "sync", "--root", "F", "DIR", "one"], "names", ["one"]),
        (["image", "repo", "sync", "DIR", "one", "--root", "F", "two"], "names", ["one", "two"]),
        (["stop", "a", "--time", "5", "b"], "vms", ["a", "b"]),
        (["verify-record", "--key", "K", "a", "--json", "b"], "files", ["a", "b"]),
    ],
)
def test_names_may_stand_behind_options(words: list[str], name: str, value: list[str]) -> None:
    assert getattr(build_parser().parse_args(words), name) == value


@pytest.mark.parametrize("words", [["inspect", "a", "--json", "b", "--frob"], ["plan", "a", "--json", "b"]])
def test_what_is_no_list_takes_no_more(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(words)


def test_abbreviated_flags_are_not_guessed() -> None:
    assert program("run", "--det", "builtin").returncode == 2


def modules_after(*words: str) -> set[str]:
    code = "import sys; from casemate.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    return set(done.stderr.split())


def test_help_imports_no_more_than_argparse() -> None:
    loaded = modules_after("--help")
    assert "casemate.cli.parser" in loaded
    heavy = {"msgspec", "rich", "shtab", "json", "typing", "dataclasses", "casemate.app", "casemate.errors"}
    assert loaded & heavy == set()


def test_ps_imports_nothing_of_a_launch(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(cli.home / "run"))
    loaded = modules_after("ps", "-a")
    assert "casemate.engine.state" in loaded
    unwanted = [
        name
        for name in loaded
        if name.split(".")[0] in {"rich", "shtab", "cryptography", "pyseccomp"}
        or name.startswith(("casemate.plan", "casemate.jail", "casemate.controls", "casemate.bpf", "casemate.image"))
    ]
    assert unwanted == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_script_is_made_and_names_every_command(shell: str, tmp_path: Path) -> None:
    done = program("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert name in done.stdout
    if shutil.which(shell) and shell != "tcsh":
        script = tmp_path / "script"
        script.write_text(done.stdout)
        assert subprocess.run([shell, "-n", script], check=False, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, and beside it a program that lists two VMs, a file and a directory."""
    place = tmp_path_factory.mktemp("completion")
    (place / "casemate.bash").write_text(program("completion", "bash").stdout)
    (place / "lister").write_text("#!/bin/sh\necho 'ID NAME STATE'; echo '1234 web running'; echo '5678 db exited'\n")
    (place / "lister").chmod(0o755)
    (place / "with space.toml").touch()
    (place / "images").mkdir()
    return place / "casemate.bash"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["unp"], {"unpause"}),
        (["run", "--publ"], {"--publish"}),
        (["run", "--accel", ""], {"auto", "kvm", "tcg"}),
        (["run", "-d", "--egress", "l"], {"list"}),
        (["plan", "--net", ""], {"none", "user"}),
        (["run", "--firmware", "uefi-"], {"uefi-secure"}),
        (["run", "--machine", "m"], {"microvm"}),
        (["prove", "--without", "se"], {"seccomp"}),
        (["stop", ""], {"web", "db"}),
        (["stop", "web", "d"], {"db"}),
        (["inspect", "w"], {"web"}),
        (["prove", "w"], {"web", "with space.toml"}),
        (["run", "b"], {"builtin"}),
        (["run", "with"], {"with space.toml"}),
        (["create", "--kernel", "with"], {"with space.toml"}),
        (["harden", "with"], {"with space.toml"}),
        (["audit", "--root", "im"], {"images"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(bash_script: Path, words: list[str], expected: set[str]) -> None:
    line = [str(bash_script.parent / "lister"), *words]
    given = " ".join(shlex.quote(word) for word in line)
    ask = (
        f"source {bash_script}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; "
        f"_shtab_casemate casemate {shlex.quote(words[-1])} {shlex.quote(line[-2])}; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=False, cwd=bash_script.parent
    )
    assert set(done.stdout.splitlines()) == expected, done.stderr


def test_bash_falls_back_to_names_of_files(bash_script: Path) -> None:
    """``-o bashdefault`` alone takes them away, wherever a command's completion knows nothing."""
    ask = f"source {bash_script}; complete -p casemate"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "complete -o bashdefault -o default -F _shtab_casemate casemate\n"


def test_version() -> None:
    pattern = r"casemate \d+\.\d+\.\d+\S*\n"
    assert re.fullmatch(pattern, program("version").stdout)
    assert program("--version").stdout == program("version").stdout


def test_a_closed_pipe_ends_quietly() -> None:
    """``casemate spec --schema | head -0``: more output than a pipe takes, and nobody reads it."""
    done = subprocess.Popen(
        [*COMMAND, "spec", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert done.stdout is not None
    done.stdout.close()
    _, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, b"")


def test_a_closed_pipe_ends_help_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*COMMAND, "--help"], stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False, env=os.environ
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(cli: Cli, closed: str) -> None:
    words = cli.words("ps", "-a")
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *words], timeout=60, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("word", COMMANDS)
def test_a_command_needs_only_its_group(word: str) -> None:
    """A command that stands in no group would go unnoticed: all of the command line is built for a word unknown."""
    found = _commands(build_parser(word))
    assert word in found
    assert found.items() <= _commands(build_parser()).items()
    assert len(found) <= 7


def test_an_unknown_command_is_looked_for_among_all() -> None:
    assert set(_commands(build_parser("rnu"))) == set(COMMANDS)


def _commands(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Help of every command, by name."""
    assert parser._subparsers is not None
    (action,) = parser._subparsers._group_actions
    assert isinstance(action, argparse._SubParsersAction)
    return {name: command.format_help() for name, command in action.choices.items()}


def test_parser_can_be_built_twice() -> None:
    """shtab and the program each build one; state in module globals would show."""
    assert build_parser().format_help() == build_parser().format_help()


if __name__ == "__main__":
    GOLDEN.write_text(all_help())
