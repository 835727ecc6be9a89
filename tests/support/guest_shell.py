"""A login on a guest's console through ``casemate console``, as a person has it: typed lines in, bytes out."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from types import TracebackType

from tests.support.cli_runner import Cli

KEEP_BYTES = 1 << 20
LOGIN_S = 240.0
COMMAND_S = 60.0


class GuestShell:
    """The console of the VM ``name``. A context manager: leaving it ends the session, the VM goes on."""

    def __init__(self, cli: Cli, name: str) -> None:
        self._process: subprocess.Popen[bytes] = cli.open("console", name, stdin=subprocess.PIPE)
        self._seen = bytearray()
        self._count = 0

    def __enter__(self) -> GuestShell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def type(self, text: str) -> None:
        """Send ``text`` as it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def expect(self, pattern: bytes, deadline_s: float) -> re.Match[bytes]:
        """Wait until ``pattern`` is on the console; what lies before its end is forgotten."""
        assert self._process.stdout is not None
        end = time.monotonic() + deadline_s
        while (match := re.search(pattern, bytes(self._seen))) is None:  # a match reads its buffer later
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} within {deadline_s:.0f} s; the console ends:\n{self._tail()}"
            if select.select([self._process.stdout], [], [], min(left, 1.0))[0]:
                data = os.read(self._process.stdout.fileno(), 65536)
                assert data, f"the console ended while waiting for {pattern!r}:\n{self._tail()}"
                self._seen += data
                del self._seen[:-KEEP_BYTES]
        del self._seen[: match.end()]
        return match

    def login(self) -> None:
        """Wait for the login prompt and become root; a plain shell without editing, so that output is only output.

        The prompt may have been printed before this session: an empty line brings it again.
        """
        end = time.monotonic() + LOGIN_S
        while True:
            self.type("\n")
            try:
                self.expect(rb"login: $", 2)
                break
            except AssertionError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
        self.type("root\n")
        self.expect(rb"[#$] ", COMMAND_S)
        self.type("exec env TERM=dumb sh\n")
        self.run("stty -echo; dmesg -n 1")  # the kernel's messages would stand between ours

    def last(self, command: str, *, deadline_s: float = COMMAND_S) -> str:
        """The last line that a command which succeeds prints: what the boot still says stands before it."""
        lines = self.run(command, deadline_s=deadline_s).splitlines()
        return lines[-1].strip() if lines else ""

    def run(self, command: str, *, status: int = 0, deadline_s: float = COMMAND_S) -> str:
        """Run one line and give its output; the exit status must be ``status``."""
        self._count += 1
        # The marker is computed by the guest's shell, so the echo of this very line does not hold it.
        self.type(f"{command}; echo @@$((1000+{self._count}))@@$?@@\n")
        found = self.expect(rb"(?s)(.*)@@%d@@([0-9]+)@@\r?\n" % (1000 + self._count), deadline_s)
        output = found[1].decode(errors="replace").replace("\r", "")
        assert int(found[2]) == status, f"{command}: status {int(found[2])}\n{output}"
        return output.removeprefix("# ").strip()

    def _tail(self) -> str:
        return bytes(self._seen[-3000:]).decode(errors="replace")
