"""Go on from a saved state: what must match, and the stream on its way into the starting emulator.

Order: `open_state` (everything read and checked once) · `check_files` (through the launch's own descriptors) ·
`check_plan` · the overlays as files of the new VM · in the launch `check_version`, `begin`, `complete` · `stop`
whatever happens.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.engine.opening import Opened, digest_file
from casemate.engine.savedoverlay import place_overlays
from casemate.engine.sealing import Sealing, unwrap
from casemate.engine.statefile import Manifest, StateReader
from casemate.errors import InputError, RefusedError, VmError
from casemate.image.opening import open_regular_file
from casemate.spec.model import Spec
from casemate.spec.parse import build_spec

if TYPE_CHECKING:
    from casemate.engine.startup import Startup
    from casemate.plan.model import LaunchPlan

SLOWEST_BYTES_S = 20 << 20
EXTRA_MAX_S = 80.0
_ASK_AGAIN_S = 0.005
_OWN_WORDS = frozenset({"-name", "-incoming", "-append"})
"""Arguments that may differ: the VM's own id, where the state comes from, and a command line that was read long ago."""


class Restore:
    """One state file on its way into one VM."""

    def __init__(self, descriptor: int, reader: StateReader, manifest: Manifest, spec: Spec) -> None:
        self.manifest, self.spec = manifest, spec
        self._reader = reader
        self._descriptor = descriptor
        self._fault = ""
        self._in = self._out = -1
        self._thread: threading.Thread | None = None

    @property
    def extra_s(self) -> float:
        """How much longer than any other start this one may take."""
        return min(EXTRA_MAX_S, self.manifest.stream_bytes / SLOWEST_BYTES_S)

    def hand_over(self, opened: Opened) -> None:
        """The launch owns the file and both ends of the pipe: roles ``state``, ``state-in``, ``state-file``."""
        self._in, self._out = os.pipe2(os.O_CLOEXEC)
        opened.by_role |= {"state": self._in, "state-in": self._out, "state-file": self._descriptor}

    def check(self, opened: Opened, plan: LaunchPlan, directory: str) -> None:
        """Files and plan match, and the launch owns what it needs of this; errors of both checks and of the overlays.

        Args:
            directory: where the VM's overlays lie, without a name.
        """
        self.check_files(opened)
        self.check_plan(plan)
        place_overlays(self._reader, self.manifest.overlays, plan.files, opened, directory)
        self.hand_over(opened)

    def check_files(self, opened: Opened) -> None:
        """Disks, kernel and initrd are those of the saved VM, byte for byte.

        Raises:
            RefusedError: naming the first that is not (control img.hash).
        """
        for role, expected in sorted(self.manifest.files.items()):
            descriptor = opened.by_role.get(role)
            found = digest_file(descriptor) if descriptor is not None else "nothing"
            if found != expected:
                raise RefusedError(
                    "img.hash",
                    f"{role} is not what the VM was saved with",
                    got=f"sha256 {found}",
                    expected=f"sha256 {expected}",
                    next_step="a guest that goes on over another disk destroys it: put the saved one back",
                )

    def check_plan(self, plan: LaunchPlan) -> None:
        """The emulator would build the same machine.

        Raises:
            InputError: it would not.
        """
        if plan.accel != self.manifest.accel:
            raise _mismatch("accelerator", plan.accel, self.manifest.accel)
        found = hardware_digest(plan.wall.argv)
        if found != self.manifest.hardware_sha256:
            raise _mismatch("machine", f"arguments with digest {found[:16]}", self.manifest.hardware_sha256[:16])

    def check_version(self, version: str) -> None:
        """QEMU reads the state of its own version only: others may read it, and may misread it."""
        if version != self.manifest.qemu_version:
            raise _mismatch("QEMU", version, self.manifest.qemu_version)

    def begin(self) -> None:
        """Start to write into the pipe, whose other end only the emulator has from now on."""
        _let_go(self._in)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def complete(self, startup: Startup) -> None:
        """Wait until the emulator has taken all of it.

        Raises:
            VmError: it could not, or the file changed meanwhile.
        """
        end = time.monotonic() + EXTRA_MAX_S
        while True:
            found: Any = startup.command("query-migrate")
            found = found if isinstance(found, dict) else {}
            status = found.get("status")
            if status == "completed":
                return
            if self._fault or status in {"failed", "cancelled"} or time.monotonic() > end:
                why = self._fault or str(found.get("error-desc", status))[:200]
                raise VmError("the emulator did not take the saved state", got=why)
            time.sleep(_ASK_AGAIN_S)

    def stop(self) -> None:
        """The thread must not outlive the launch; closing the emulator's end lets it go."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for piece in self._reader.pieces():
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._out, view) :]
        except (InputError, OSError) as fault:
            self._fault = str(fault)
        finally:
            _let_go(self._out)


def _let_go(descriptor: int) -> None:
    """Put /dev/null behind a descriptor: its number stays ours (`Opened.close` closes it), only the pipe goes."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def open_state(path: str, sealing: Sealing) -> Restore:
    """Open and check a state file.

    Args:
        path: absolute.

    Raises:
        InputError: it cannot be opened, was changed, or its specification is none of this version's.
    """
    descriptor = open_regular_file(path, what="saved state")
    try:
        reader = StateReader(descriptor, path)
        reader.unlock(unwrap(reader, sealing, path))
        manifest = reader.scan()
        if hashlib.sha256(manifest.spec.encode()).hexdigest() != manifest.spec_sha256:
            raise InputError(f"saved state {path!r}", got="a specification that is not the one its manifest names")
        # By the same walk and rules as any specification: whoever wrote the file may have written this.
        today = datetime.datetime.now(tz=datetime.UTC).date()
        spec = build_spec(msgspec.json.decode(manifest.spec, type=dict[str, Any]), path, Path("/"), today=today)
        if not spec.machine.saveable:
            raise InputError(f"saved state {path!r}", got="a specification of a VM that could not have been saved")
        if spec.secrets and reader.header.sealing == "none":  # save seals such a state; a source can be a program
            raise InputError(f"saved state {path!r}", got="secrets' sources in a file that is not sealed")
    except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
        os.close(descriptor)
        raise InputError(f"saved state {path!r}", got=f"its specification: {str(fault)[:200]}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return Restore(descriptor, reader, manifest, spec)


def hardware_digest(argv: Sequence[str]) -> str:
    """SHA-256 of the arguments that make the machine."""
    kept, skip = [], False
    for word in argv[1:]:
        if not skip and word not in _OWN_WORDS:
            kept.append(word)
        skip = word in _OWN_WORDS and not skip
    return hashlib.sha256("\0".join(kept).encode()).hexdigest()


def _mismatch(what: str, got: str, expected: str) -> InputError:
    return InputError(
        f"the saved state belongs to another {what}",
        got=got,
        expected=expected,
        next_step="go on where it was saved, or start the VM anew",
    )
