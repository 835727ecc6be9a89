"""Write docs/seccomp.md from the rule sets: per profile each call with phase, condition, reason and origin."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from casemate.jail.profiles import (
    ACCELERATORS,
    DEVICES,
    passt_profile,
    qemu_img_profile,
    qemu_profile,
    reader_profile,
    supervisor_profile,
    swtpm_profile,
)
from casemate.jail.rules import Arg, Op, Origin, Phase, Profile, Rule
from casemate.jail.rulesets import (
    passt,
    qemu_base,
    qemu_confidential,
    qemu_devices,
    qemu_img,
    reader,
    supervisor,
    swtpm,
)

CORE = frozenset({"blk", "rng", "console"})
HEAD = """# System calls of each process

Written by `tools/seccomp_doc.py` from `src/casemate/jail/rulesets/`; a test fails when this file and the rules differ.

A process is killed by a call that no row below answers. *always*: allowed for its whole life. *start-up*: a user
notification that the supervisor answers until the live wall has been read back; from before the guest's first
instruction on the call fails with ENOSYS. *ENOSYS, EPERM, …*: never allowed, but the program tries it and goes on.
An argument is compared under the mask after `&`: 32 bits where the kernel reads an int.

*traced*: a workload in `tests/data/traces` makes the call in that phase; a test fails when none does. *source*: read in
the program's source (another kernel, another libc, hardware that was not there), not seen.

What seccomp cannot say: `tgkill` and `getpid` cannot be limited to QEMU's own threads (its pid namespace holds no other
process); the flags of `clone3` lie in memory (ENOSYS, and libc falls back to `clone`); paths (the jail's root and
Landlock limit them).
"""


def condition(arg: Arg) -> str:
    """One comparison in words."""
    if arg.op is not Op.MASKED_EQ:
        return f"arg{arg.index} {arg.op.value} {arg.value:#x}"
    if arg.mask == 0xFFFF_FFFF:
        return f"arg{arg.index} = {arg.value:#x}"
    return f"arg{arg.index} & {arg.mask:#x} = {arg.value:#x}"


def row(rule: Rule) -> str:
    """One row of a table."""
    answer = (
        errno.errorcode[rule.errno] if rule.errno is not None else {Phase.ALWAYS: "always"}.get(rule.phase, "start-up")
    )
    conditions = ", ".join(condition(arg) for arg in rule.args) or "any"
    origin = "traced" if rule.origin is Origin.TRACED else "source"
    return f"| `{rule.syscall}` | {answer} | {conditions} | {rule.reason} | {origin} |"


def table(rules: tuple[Rule, ...]) -> list[str]:
    """A table of rules, sorted by call."""
    head = ["| call | answer | arguments | who and why | known from |", "|---|---|---|---|---|"]
    return [*head, *(row(rule) for rule in sorted(rules, key=lambda r: (r.syscall, r.phase, r.reason)))]


def counts(profile: Profile) -> str:
    """Numbers of distinct calls."""
    allowed = {rule.syscall for rule in profile.rules if rule.errno is None}
    later = {rule.syscall for rule in profile.rules if rule.errno is None and rule.phase is Phase.ALWAYS}
    return f"| `{profile.name}` | {len(allowed)} | {len(later)} |"


def render() -> str:
    """The whole document."""
    profiles = [qemu_profile(accel, devices) for accel in ACCELERATORS for devices in (CORE, CORE | {"net"})]
    profiles += [passt_profile(), supervisor_profile(), qemu_img_profile(), reader_profile(), swtpm_profile()]
    lines = [HEAD, "## How many", "", "| profile | calls allowed | of them after start-up |", "|---|---|---|"]
    lines += [counts(profile) for profile in profiles]
    lines += [
        "",
        "Peers for scale: Firecracker 50 for its main thread, crosvm 67 in common, QEMU's own denylist leaves",
    ]
    lines += ["about 340. With a broker in front of it passt has fewer (`src/casemate/jail/egress.py`).", ""]
    parts = [("Every emulator", qemu_base.RULES)]
    parts += [(f"Accelerator {accel}", rules) for accel, rules in ACCELERATORS.items()]
    parts += [(f"Device part {name}", qemu_devices.PARTS[name]) for name in DEVICES]
    parts += [(f"Confidential guest, {name}", rules) for name, rules in qemu_confidential.PARTS.items()]
    parts += [("passt", passt.RULES), ("supervisor", supervisor.RULES), ("qemu-img", qemu_img.RULES)]
    parts += [("reader", reader.RULES), ("swtpm", swtpm.RULES)]
    for title, rules in parts:
        lines += [f"## {title}", "", *(table(rules) if rules else ["Nothing beyond the rest."]), ""]
    lines += ["## Calls that QEMU tries again after start-up, and survives", ""]
    lines += [f"- `{name}`: {why}" for name, why in qemu_base.SURVIVED_AFTER_STARTUP.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/seccomp.md").write_text(render())
