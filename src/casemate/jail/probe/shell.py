"""One attempt in one child: fork, load the filter, try, and tell how it ended.

The prover itself has every layer of the wall but the filter, which would not let it fork. Start-up calls are user
notifications; the child closes the listener at once, so that they fail as they do in a VM after ``cont``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Final, Never

from casemate.jail.probe.model import Attempt, Record
from casemate.jail.probe.raw import AMOUNT, FINISHED, NR, NUMBER, RESULT, STAGE, STEP, Board, Prepared, Stubs, fork
from casemate.jail.probe.routines import ROUTINES
from casemate.sys import process
from casemate.sys.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER, seccomp_set_mode_filter

_REAP_S: Final = 5.0
PROBE_FAILED: Final = 86
"""Exit status of a child in which the probe itself failed."""


class Shell:
    """Runs attempts.

    Args:
        program: the filter, None when that layer is removed.
        own_descriptors: what the prover holds for itself; every child closes it first.
        scratch: a descriptor of a file to write to, or -1; only attempts that name it keep it.
        outside_pid: a pid number that must not be a child's own by chance.
    """

    def __init__(
        self, program: bytes | None, own_descriptors: tuple[int, ...], scratch: int, outside_pid: int, machine: str
    ) -> None:
        self._program = program
        self._own = own_descriptors
        self._scratch = scratch
        self._outside_pid = outside_pid
        self._machine = machine
        self._board = Board()
        self._stubs = Stubs()

    @property
    def has_machine_code(self) -> bool:
        """Whether attempts that need machine code of ours can be made."""
        return self._stubs.thread is not None

    def run(self, attempt: Attempt) -> Record:
        """Try it. Nothing of it is left running afterwards.

        Raises:
            OSError: the prover cannot fork.
        """
        prepared = Prepared(attempt.steps, self._machine)
        undo = Prepared(attempt.undo, self._machine)
        while True:
            self._board.clear()
            pid = fork()
            if pid == 0:
                self._child(attempt, prepared, undo)
            if pid < 0:
                raise OSError(11, "the prover cannot fork", attempt.id)
            if pid != self._outside_pid:
                break
            self._end(pid, 0.0)  # its number is the one that must not exist in here: take the next
        late, status, killed, core = self._end(pid, attempt.deadline_s)
        board = self._board
        return Record(
            id=attempt.id,
            stage=board[STAGE],
            step=board[STEP],
            nr=board[NR],
            args=board.args,
            result=board[RESULT],
            number=board[NUMBER],
            amount=board[AMOUNT],
            signal=killed,
            status=status,
            core=core,
            late=late,
        )

    def _end(self, pid: int, deadline_s: float) -> tuple[bool, int, int, bool]:
        """Wait for a child; (late, exit status, signal, core dumped). Its process group dies with it."""
        pidfd = os.pidfd_open(pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            late = not poller.poll(deadline_s * 1000)
            if late:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poller.poll(_REAP_S * 1000)
            # Its number is ours until it is reaped, and so is its group's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(pidfd)
        self._reap_orphans()
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        return late, code, killed, os.WCOREDUMP(status)

    def _reap_orphans(self) -> None:
        end = time.monotonic() + _REAP_S
        while time.monotonic() < end:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.0005)

    def _child(self, attempt: Attempt, prepared: Prepared, undo: Prepared) -> Never:
        try:
            os.setpgid(0, 0)
            process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
            for descriptor in self._own:
                os.close(descriptor)
            if self._scratch >= 0 and not _uses(attempt, self._scratch):
                os.close(self._scratch)
            if attempt.code == "crash":
                process.prctl(process.PR_SET_DUMPABLE, 1)  # as an emulator is after exec
            if self._program is not None:
                os.close(seccomp_set_mode_filter(self._program, SECCOMP_FILTER_FLAG_NEW_LISTENER))
        except BaseException:
            os._exit(PROBE_FAILED)
        reached = False
        try:
            if attempt.code:
                reached = ROUTINES[attempt.code](self._board, self._stubs, attempt.amount, self._machine)
            else:
                reached = prepared.run(self._board, self._stubs)
            if reached:
                self._board[NUMBER] = 0
            elif not self._board[NUMBER]:
                os._exit(PROBE_FAILED)  # refused, and nobody knows how
            self._board[STAGE] = FINISHED
            if reached and undo.steps:
                undo.run(Board(), self._stubs)
        except BaseException:
            os._exit(PROBE_FAILED)
        os._exit(0)


def _uses(attempt: Attempt, descriptor: int) -> bool:
    return any(step.args[:1] == (descriptor,) for step in attempt.steps)
