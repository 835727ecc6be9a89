"""The shell script that makes the same capture on a host without Python: POSIX sh, and the small tools of any system
(cat, head, sed, awk, tr, ls, stat, readlink, tar), from the same table and the same filters."""

from __future__ import annotations

from casemate.audit.capture_filters import FILTERS, PRIVATE_KEY
from casemate.audit.capture_model import MANIFEST, VERSION
from casemate.audit.capture_paths import (
    CGROUP_FILES,
    CGROUP_TOP,
    DENIED,
    EMULATOR_NAMES,
    MERGED,
    TABLE,
    TOTAL_BYTES,
    VM_PROCESS,
    Kind,
    Take,
)
from casemate.audit.capture_script_data import HEAD, TAIL, TOOLS
from casemate.facts import rpm_answer
from casemate.facts.updates import STATUS


def script(tool: str) -> str:
    """The whole script.

    Args:
        tool: who wrote it, for its head and for the manifest (``casemate 0.2.0``).
    """
    words = {
        "CGROUP_FILES": " ".join(CGROUP_FILES),
        "CGROUP_TOP": CGROUP_TOP,
        "EMULATOR_NAMES": " | ".join(EMULATOR_NAMES),
        "PRIVATE_KEY": PRIVATE_KEY,
        "TOTAL_KIB": str(TOTAL_BYTES >> 10),
        "MANIFEST": MANIFEST,
        "VERSION": str(VERSION),
        "DPKG_STATUS": STATUS,
        "RPM_PROGRAM": rpm_answer.PROGRAM,
        "RPM_QUERY": rpm_answer.QUERY,
        "RPM_KEPT": rpm_answer.KEPT,
        "RPM_MARK": rpm_answer.MARK,
        "RPM_NAME": rpm_answer.NAME,
        "RPM_DEADLINE": str(rpm_answer.DEADLINE_S),
        "TOOL": "".join(c for c in tool if c.isalnum() or c in " .+-"),
    }
    head, tools, tail = (_filled(part, words) for part in (HEAD, TOOLS, TAIL))
    parts = [head, _denied(), _filters(), tools, _vm_process(), _merged(), _looked_for_processes()]
    parts += [f"\n# What is taken: kind, most bytes, filter, pattern.\n{''.join(_row(take) for take in TABLE)}", tail]
    return "".join(parts)


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _denied() -> str:
    return (
        f"denied() {{ # PATH: never opened\n    case $1 in {' | '.join(DENIED)}) return 0 ;; esac\n    return 1\n}}\n"
    )


def _filters() -> str:
    lines = []
    for name, entry in FILTERS.items():
        body = entry.shell
        if "unpack_as" in body:
            body = f'if unpackable "$1"; then {body}; else cat; fi'
        lines.append(f"through_{_word(name)}() {{ # leaves out: {entry.loses or 'nothing'}\n{body}\n}}\n")
    return "".join(lines)


def _word(name: str) -> str:
    return name.replace("-", "_")


def _row(take: Take) -> str:
    pattern = take.pattern.replace("RELEASE", '"$release"')
    quoted = f"'{take.pattern}'" if pattern == take.pattern else f"{pattern}"
    return f"t {take.kind} {take.limit_bytes} {_word(take.through)} {quoted}\n"


def _vm_process() -> str:
    lines = ["vm_process() { # PID\n"]
    for take in VM_PROCESS:
        pattern = take.pattern.replace("PID", "$1")
        lines.append(f"    kind={take.kind} limit={take.limit_bytes} filter={_word(take.through)} pattern={pattern}\n")
        lines.append("    each_match\n")
    return "".join([*lines, "}\n"])


def _merged() -> str:
    return f"for path in {' '.join(MERGED)}; do take_l $path; done\n"


def _looked_for_processes() -> str:
    lines = [f"{take.kind} {take.pattern.replace('PID', '*')}" for take in VM_PROCESS]
    lines += [f"{Kind.NAMES} /proc/*/fd", *(f"{Kind.CONTENT} {CGROUP_TOP}**/{name}" for name in CGROUP_FILES)]
    body = "\n".join(lines)
    return f"cat >>\"$work/looked\" <<'EOF'\n{body}\nEOF\n"
