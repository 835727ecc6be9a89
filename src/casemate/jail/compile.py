"""A profile becomes a seccomp filter: libseccomp writes it, we prove it, a cache keeps it.

libseccomp gives a rule without arguments precedence over narrower rules of another action, so a call with several
answers (allowed for some arguments, notified or refused for others) cannot stand in one of its filters. Such a profile
is written as several filters, one per place in the order of `choices`; the default of each but the last is a jump to
the next. The same is done with alternatives of one call when libseccomp 2.5 mixes them up, which it does when they
overlap in different arguments: its tree does not come back from a branch that it has entered.

Nothing that comes out of here is trusted for where it comes from. `verify_program` proves, for every architecture,
number and argument, that the filter answers what the profile says; a filter from the cache that fails is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from casemate.bpf import instruction as bpf
from casemate.bpf.analyse import Verdict, judge_returns
from casemate.bpf.evaluate import RET_KILL_PROCESS, RET_TRACE
from casemate.bpf.instruction import Instruction, Program, decode, disassemble, encode
from casemate.bpf.paths import FULL, Question, Region, paths
from casemate.bpf.syscalls import audit_arch, numbers
from casemate.errors import HostError
from casemate.jail.choices import DEFAULT, Call, Choice, build_calls, canonical, holds
from casemate.jail.rules import Arg, Op, Profile

CACHE_VERSION: Final = b"casemate-filter-1\n"
"""Changes when the same rules should become another filter; not with the version of libseccomp."""

_CALL_ON: Final = RET_TRACE | 0xCA5E
"""Default action of a filter that goes on with the next one; no rule can ask for it."""
_NR_OFFSET: Final = 0
_ARCH_OFFSET: Final = 4
_SPLITS_MAX: Final = 50_000
_OPTIMIZE_BINARY_TREE: Final = 2


def compile_profile(profile: Profile, arch: str) -> bytes:
    """Compile ``profile`` for ``arch`` (x86_64, aarch64) and prove the result.

    Default, other architectures and x32: the process is killed. See `choices` for the order of rules.

    Raises:
        ValueError: faulty rules, all of them named.
        HostError: libseccomp or its binding is missing, or does not know a call of the profile.
        RuntimeError: libseccomp's filter is not what the profile says (our bug or its).
    """
    calls = build_calls(profile, arch)
    faults = []
    for apart in (False, True):
        stages = _stages(calls, apart=apart)
        program = _link([_export(stage, arch, last=stage is stages[-1]) for stage in stages])
        try:
            verify_calls(program, calls, arch)
        except ValueError as fault:
            faults.append(str(fault))
        else:
            return encode(program)
    raise RuntimeError(f"profile {profile.name} on {arch}: libseccomp's filter is not the profile: {'; '.join(faults)}")


def expected_verdicts(profile: Profile, arch: str) -> dict[str, Verdict]:
    """What `bpf.analyse.survey` of the filter must say: every call of ``arch``, those without rules included."""
    verdicts = dict.fromkeys(numbers(arch), judge_returns(frozenset({DEFAULT})))
    for call in build_calls(profile, arch):
        returned = {choice.returned for choice in call.choices}
        if not call.choices[-1].unconditional:
            returned.add(DEFAULT)
        verdicts[call.name] = judge_returns(frozenset(returned))
    return verdicts


def verify_program(program: bytes, profile: Profile, arch: str) -> None:
    """Prove that ``program`` answers every call as ``profile`` says, whatever its origin. Pure.

    Raises:
        ValueError: what the kernel would refuse, the first call that is answered otherwise, or "not proved" when the
            program computes in a way that cannot be followed.
    """
    verify_calls(decode(program), build_calls(profile, arch), arch)


def verify_calls(program: Program, calls: tuple[Call, ...], arch: str) -> None:
    """`verify_program` on decoded instructions and prepared calls.

    1. Follow every path of the program with the set of calls that takes it.
    2. Ask the profile what that set should get; where it depends, split the set on the deciding question.
    3. Every part must get the answer of the path.
    """
    judge = _Judge(calls, arch)
    for region, returned in paths(program):
        for part, wanted in judge.wanted(region):
            if wanted != returned:
                raise ValueError(
                    f"filter answers {returned:#010x}, the profile says {wanted:#010x}, for calls with {part} "
                    f"({judge.name(part)})"
                )


class _Judge:
    """The profile's answer for sets of calls."""

    def __init__(self, calls: tuple[Call, ...], arch: str) -> None:
        self.own_arch = Question(_ARCH_OFFSET, FULL, audit_arch(arch))
        self.calls = {call.nr: call for call in calls}
        self.tests = {call.nr: Question(_NR_OFFSET, FULL, call.nr) for call in calls}
        self.splits = 0

    def name(self, region: Region) -> str:
        """The call that a region is about, for messages."""
        word = region.word(_NR_OFFSET)
        call = self.calls.get(word.low)
        return call.name if call and word.low == word.high else "no call of the profile"

    def wanted(self, region: Region) -> Iterator[tuple[Region, int]]:
        """Split ``region`` until each part has one answer."""
        todo = [region]
        while todo:
            part = todo.pop()
            answer = self._answer(part)
            if isinstance(answer, int):
                yield part, answer
                continue
            self.splits += 1
            if self.splits > _SPLITS_MAX:
                raise ValueError(f"not proved: more than {_SPLITS_MAX} cases")
            todo += [half for half in (part.assume(answer, True), part.assume(answer, False)) if half is not None]

    def _answer(self, region: Region) -> int | Question:
        own = region.decide(self.own_arch)
        if own is None:
            return self.own_arch
        if not own:
            return RET_KILL_PROCESS
        word = region.word(_NR_OFFSET)
        if word.low == word.high:
            call = self.calls.get(word.low)
            return DEFAULT if call is None else _answer_call(call, region)
        undecided = (test for nr, test in self.tests.items() if word.low <= nr <= word.high)
        return next((test for test in undecided if region.decide(test) is not False), DEFAULT)


def _answer_call(call: Call, region: Region) -> int | Question:
    for choice in call.choices:
        answer = _any_holds(choice, region)
        if answer is True:
            return choice.returned
        if answer is not False:
            return answer
    return DEFAULT


def _any_holds(choice: Choice, region: Region) -> bool | Question:
    """Whether one alternative holds for the whole region, none does for any part, or the question to ask."""
    question: Question | None = None
    for alternative in choice.alternatives:
        answer = _all_hold(alternative, region)
        if answer is True:
            return True
        if answer is not False and question is None:
            question = answer
    return False if question is None else question


def _all_hold(alternative: tuple[Arg, ...], region: Region) -> bool | Question:
    question: Question | None = None
    for arg in alternative:
        answer = holds(arg, region)
        if answer is False:
            return False
        if answer is not True and question is None:
            question = answer
    return True if question is None else question


_Stage = list[tuple[Call, Choice]]


def _stages(calls: tuple[Call, ...], *, apart: bool) -> list[_Stage]:
    """Stage i holds choice i of every call; with ``apart``, alternatives that could overlap get stages of their own."""
    lists = {call: _take_apart(call.choices) if apart else list(call.choices) for call in calls}
    depth = max(map(len, lists.values()))
    return [[(call, choices[at]) for call, choices in lists.items() if at < len(choices)] for at in range(depth)]


def _take_apart(choices: tuple[Choice, ...]) -> list[Choice]:
    """The same choices with alternatives kept together only where all are values of the same bits of one argument."""
    parts: dict[tuple[int, object], list[tuple[Arg, ...]]] = {}
    for choice in choices:
        for alternative in choice.alternatives:
            values = len(alternative) == 1 and alternative[0].op in {Op.EQ, Op.MASKED_EQ}
            key = (alternative[0].index, alternative[0].mask) if values else alternative
            parts.setdefault((choice.returned, key), []).append(alternative)
    return [Choice(returned, tuple(alternatives)) for (returned, _), alternatives in parts.items()]


def _export(stage: _Stage, arch: str, *, last: bool) -> Program:
    """One filter by libseccomp."""
    seccomp = _libseccomp()
    token = {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64}[arch]
    native = seccomp.system_arch()
    build = seccomp.SyscallFilter(DEFAULT if last else _CALL_ON)
    build.set_attr(seccomp.Attr.ACT_BADARCH, RET_KILL_PROCESS)
    # libseccomp before 2.5 has no such attribute and writes a linear filter: slower in the kernel, the same answers.
    with contextlib.suppress(OSError):
        build.set_attr(seccomp.Attr.CTL_OPTIMIZE, _OPTIMIZE_BINARY_TREE)
    if token != native:
        build.add_arch(token)
        build.remove_arch(native)
    for call, choice in stage:
        # libseccomp takes numbers of the machine it runs on and translates them by name.
        number = call.nr if token == native else seccomp.resolve_syscall(seccomp.Arch.NATIVE, call.name)
        for alternative in choice.alternatives:
            try:
                build.add_rule(choice.returned, number, *(_compare(seccomp, arg) for arg in alternative))
            except OSError as fault:
                raise HostError(
                    f"libseccomp cannot express the rule for {call.name} on {arch}",
                    got=str(fault),
                    next_step="install a newer libseccomp (package libseccomp2)",
                ) from fault
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        build.export_bpf(file)
        file.seek(0)
        return decode(file.read(bpf.MAX_INSTRUCTIONS * bpf.INSTRUCTION_BYTES + 1))


def _compare(seccomp: Any, arg: Arg) -> Any:
    """libseccomp's form of a comparison; a masked one takes the mask first."""
    operator = getattr(seccomp, arg.op.name)
    if operator == seccomp.MASKED_EQ:
        return seccomp.Arg(arg.index, operator, arg.mask, arg.value)
    return seccomp.Arg(arg.index, operator, arg.value)


def _libseccomp() -> Any:
    """The binding, imported on first use: it costs 14 ms, which the launch path saves through the cache."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as fault:
        raise HostError(
            "libseccomp is needed to compile a filter",
            got=str(fault),
            next_step="sudo apt-get install libseccomp2",
        ) from fault
    return pyseccomp


def _link(stages: list[Program]) -> Program:
    """One program that goes through ``stages`` in turn."""
    linked: list[Instruction] = []
    for stage in stages:
        end = len(linked) + len(stage)
        for instruction in stage:
            if instruction.code == bpf.RET_K and instruction.k == _CALL_ON:
                linked.append(Instruction(bpf.JA, 0, 0, end - len(linked) - 1))
            else:
                linked.append(instruction)
    program = tuple(linked)
    bpf.check(program)
    return program


def cached_program(profile: Profile, arch: str, cache_dir: Path) -> bytes:
    """The filter of ``profile``, from the cache where it holds a proved one, compiled and kept otherwise.

    The file is ``<SHA-256 of the canonical rules>.bpf`` in ``cache_dir`` (made 0700 if absent), mode 0600, replaced by
    rename. A file that is not ours, is damaged, or does not answer exactly as the profile says is not used. A cache
    that cannot be written is no error: the filter was proved either way. Within one process the result is remembered.

    Raises:
        ValueError, HostError, RuntimeError: as `compile_profile`.
    """
    return _remembered(profile, arch, cache_dir)


@lru_cache(maxsize=32)
def _remembered(profile: Profile, arch: str, cache_dir: Path) -> bytes:
    calls = build_calls(profile, arch)
    key = hashlib.sha256(CACHE_VERSION + canonical(calls, arch)).hexdigest()
    path = cache_dir / f"{key}.bpf"
    try:
        program = _read_own(path)
        verify_calls(decode(program), calls, arch)
    except (OSError, ValueError):
        program = compile_profile(profile, arch)
        with contextlib.suppress(OSError):
            _write_own(path, program)
    return program


def _read_own(path: Path) -> bytes:
    """The file's bytes; ValueError when it is not a plain file of ours that only we can write, or is too long."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ValueError(f"{path}: not a file that only we can write")
        limit = bpf.MAX_INSTRUCTIONS * bpf.INSTRUCTION_BYTES
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: longer than a filter")
    return data


def _write_own(path: Path, program: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(program)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def explain(program: bytes) -> str:
    """The filter as text, one instruction per line."""
    return disassemble(decode(program))
