"""Write the comparison of VMMs in docs/providers.md: careful fixtures of each, judged by the catalogue.

.venv/bin/python tools/vmm_table.py          writes it
.venv/bin/python tools/vmm_table.py --check  exits 1 when the document says something else
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.audit.documents import kind_of, read_machine
from casemate.controls.audit_model import TargetKind
from casemate.controls.catalogue.all import controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.facts.fact import Facts, Known, Stage
from casemate.facts.machine_facts import machine_facts

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "providers.md"
BEGIN, END = "<!-- vmm table: tools/vmm_table.py -->", "<!-- end of the vmm table -->"
FIXTURES = {
    "crosvm": ("crosvm.cmd",),
    "Firecracker": ("firecracker.cmd", "firecracker.json"),
    "Cloud Hypervisor": ("cloud-hypervisor.cmd", "cloud-hypervisor.json"),
    "Kata (QEMU)": ("kata.toml",),
}
WORDS = {Verdict.PASS: "holds", Verdict.FAIL: "**fails**", Verdict.UNKNOWN: "?", Verdict.NOT_APPLICABLE: "-"}


def facts_of(names: tuple[str, ...]) -> Facts:
    """What the files of one VM say together; of two that know a fact the first one counts."""
    found: Facts = {}
    for name in names:
        data = (ROOT / "tests" / "data" / "vmm" / name).read_bytes()
        machine = read_machine(TargetKind(kind_of(data[:1024])), data, name)
        for fact, value in machine_facts(machine, Stage.OBSERVED).items():
            if not isinstance(found.get(fact), Known):
                found[fact] = value
    return found


def table() -> str:
    """Rows of controls on which the VMMs differ, or of which one fails."""
    columns = {
        name: {
            f.control_id: f.verdict for f in judge(controls_about(Subject.VM), facts_of(files), stage=Stage.OBSERVED)
        }
        for name, files in FIXTURES.items()
    }
    lines = ["| control | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    alike = 0
    for control in controls_about(Subject.VM):
        verdicts = [column[control.id] for column in columns.values()]
        if set(verdicts) <= {Verdict.UNKNOWN, Verdict.NOT_APPLICABLE, Verdict.MANUAL}:
            continue
        if set(verdicts) == {Verdict.PASS}:
            alike += 1
            continue
        lines.append(f"| `{control.id}` {control.title} | " + " | ".join(WORDS.get(v, str(v)) for v in verdicts) + " |")
    lines += ["", f"{alike} further controls hold for all of them; what only a live process can show is left out."]
    return "\n".join(lines)


def main() -> int:
    """Write or compare."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(wanted != text)
    DOCUMENT.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
