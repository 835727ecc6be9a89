"""Runs the real command line in directories of its own, so that no test sees, or leaves, a VM of the user's.

An ordinary user gets them through the XDG variables. Root's directories are fixed: there the command runs in a mount
namespace where they are bound to the test's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "casemate.cli.main")
_BIND = """
mkdir -p /run/casemate /var/lib/casemate &&
mount --bind "$1" /run/casemate && mount --bind "$2" /var/lib/casemate && shift 2 && exec "$@"
"""


class Cli:
    """``cli("ps", "-a")`` runs one command to its end; ``cli.open(...)`` starts one."""

    def __init__(self, directory: Path) -> None:
        self.home = directory
        self.runtime, self.data = directory / "run", directory / "data"
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
            "HOME": os.environ.get("HOME", "/"),
        }
        if os.geteuid() == 0:
            for path in (self.runtime, self.data):
                path.mkdir(mode=0o700)
            self._prefix = ["unshare", "--mount", "sh", "-c", _BIND, "sh", str(self.runtime), str(self.data)]
        else:
            self._prefix = []
            self.runtime, self.data = self.runtime / "casemate", self.data / "casemate"
            self._environment |= {"XDG_RUNTIME_DIR": str(directory / "run"), "XDG_DATA_HOME": str(directory / "data")}
            for name in ("run", "data"):
                (directory / name).mkdir(mode=0o700)

    def words(self, *arguments: str | Path) -> list[str]:
        """The whole command."""
        return [*self._prefix, *COMMAND, *map(str, arguments)]

    def __call__(
        self, *arguments: str | Path, stdin: str = "", timeout_s: float = 90, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self._environment,
            cwd=cwd,
        )

    def open(self, *arguments: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command; the caller waits for it. stdin is empty unless given."""
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(self.words(*arguments), env={**self._environment, **more.pop("env", {})}, **more)

    def ok(self, *arguments: str | Path, **more: Any) -> str:
        """stdout of a command that must succeed."""
        done = self(*arguments, **more)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        """The JSON document of a command that must succeed."""
        return json.loads(self.ok(*arguments))

    def fails(self, code: int, *arguments: str | Path, **more: Any) -> str:
        """stderr of a command that must end with ``code``, with a message and without a traceback."""
        done = self(*arguments, **more)
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert "casemate: error: " in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def clean(self) -> None:
        """Remove every VM."""
        self("rm", "--all", "--force")
