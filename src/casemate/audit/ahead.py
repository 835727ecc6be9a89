"""Files judged ahead by several processes, handed out in the order asked for.

Only so many are under way at any time, so memory does not grow with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from casemate.audit.judging import Setting
from casemate.controls.audit_model import TargetReport
from casemate.errors import CasemateError, HostError, InputError
from casemate.sys.parallel import ordered_map

CHUNK: Final = 4
"""Files for one worker at a time: enough that handing over costs little, few enough that results flow."""
_GC_YOUNG: Final = 100_000


class Judged(msgspec.Struct, frozen=True):
    """One file: its reports, or why there are none."""

    reports: tuple[TargetReport, ...] = ()
    what: str = ""
    got: str = ""
    expected: str = ""
    next_step: str = ""


_DECODER: Final = msgspec.msgpack.Decoder(tuple[Judged, ...])
_setting: Setting | None = None


class Ahead:
    """Hands out the reports of ``names``, which must be asked for in this order."""

    def __init__(self, names: Sequence[str], setting: Setting, jobs: int) -> None:
        self._jobs = max(1, min(jobs, -(-len(names) // CHUNK)))
        chunks = (tuple(names[start : start + CHUNK]) for start in range(0, len(names), CHUNK))
        self._judged = ordered_map(_judge, chunks, self._jobs, begin=partial(_begin, setting))
        self._ready: deque[Judged] = deque()
        self._died: HostError | None = None

    @property
    def is_worth_it(self) -> bool:
        """Whether more than one process would have something to do."""
        return self._jobs > 1

    def reports(self) -> Iterator[TargetReport]:
        """Those of the next file.

        Raises:
            InputError: it could not be audited. HostError: a worker died.
        """
        if not self._ready:
            self._more()
        found = self._ready.popleft()
        if found.what:
            raise InputError(found.what, got=found.got, expected=found.expected, next_step=found.next_step)
        yield from found.reports

    def close(self) -> None:
        """End the workers; what they have not begun is dropped."""
        self._judged.close()

    def _more(self) -> None:
        if self._died is not None:
            raise self._died
        try:
            self._ready.extend(_DECODER.decode(next(self._judged)))
        except HostError as error:
            self._died = error
            raise


def _begin(setting: Setting) -> None:
    """In a worker: what all files are judged by; garbage is looked for less often."""
    import gc

    global _setting
    _setting = setting
    gc.set_threshold(_GC_YOUNG, 20, 20)


def _judge(names: tuple[str, ...]) -> bytes:
    """In a worker: some files, as msgpack."""
    if _setting is None:
        raise RuntimeError("a worker without a setting")
    return msgspec.msgpack.encode(tuple(judge_one(name, _setting) for name in names))


def judge_one(name: str, setting: Setting) -> Judged:
    """One file, whatever it is."""
    from casemate.audit.targets import Named

    try:
        return Judged(tuple(Named(name).reports(setting)))
    except CasemateError as error:
        return Judged((), error.what, error.got, error.expected, error.next_step)
