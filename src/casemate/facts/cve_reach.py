"""Which vulnerabilities of QEMU's own code reach one machine, which may, and what that leaves open. Pure.

`cve_table.marks_of` gives what is known to be there: a lower bound. A row that none of it reaches is out of reach only
where everything that it asks for (devices, network back ends, formats of images, displays, the accelerator) is known as
a whole; else it is *undecided*, and counts as unknown, never as out of reach.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from casemate.facts.cve_table import Cve, CveTable, marks_of
from casemate.facts.fact import Facts, Known, Stage, Unknown

_NAMED_MAX = 6
"""Numbers that a reason lists before it says how many more there are."""


def is_about_qemu(cve: Cve) -> bool:
    """Whether it lies in QEMU's own code. Its libraries (libslirp) have versions of their own: os.updates."""
    return cve.side == "emulator" and cve.product == "qemu"


def undecided_of(facts: Facts, table: CveTable) -> tuple[str, ...] | None:
    """Numbers of which nobody can tell whether they reach this machine; None for another VMM: it has no rows."""
    vmm = facts.get("vm.vmm")
    if isinstance(vmm, Known) and vmm.value != "qemu":
        return None
    families = frozenset(name for name in ("type", *_FAMILIES) if not _is_whole(name, facts))
    maybe = _asking_for(table, families)
    if not maybe:
        return ()
    reached = {cve.id for cve in table.reaching(marks_of(facts))}
    return tuple(number for number in maybe if number not in reached)


@functools.lru_cache(maxsize=64)
def _asking_for(table: CveTable, families: frozenset[str]) -> tuple[str, ...]:
    """The rows about QEMU that ask for something of these families, or of one that nobody here knows."""
    rows = (cve for cve in table.cves if is_about_qemu(cve))
    return tuple(cve.id for cve in rows if any(_is_open(family_of(name), families) for name in cve.types))


def _is_open(family: str, families: frozenset[str]) -> bool:
    return family in families or family not in ("type", *_FAMILIES)


def family_of(pattern: str) -> str:
    """What a pattern of the table is about: ``type`` (QOM types), or the word before the colon of a mark."""
    word, colon, _ = pattern.partition(":")
    return word if colon else "type"


def _is_whole(family: str, facts: Facts) -> bool:
    """Whether everything that this machine has of a family is known."""
    form = facts.get("vm.form")
    if isinstance(form, Known) and form.value == "kata" and family != "accel":
        return False  # the runtime adds a pod's disks, folders and networks to what its file says
    if family == "type":
        return isinstance(facts.get("dev.types"), Known)
    return all(_is_said(facts, name) for name in _FAMILIES[family])


_FAMILIES: dict[str, tuple[str, ...]] = {
    "accel": ("dev.accel",),
    "netdev": ("net.backends",),
    "display": ("dev.displays",),
    "format": ("img.formats", "img.remote", "img.backing"),
}


def _is_said(facts: Facts, name: str) -> bool:
    fact = facts.get(name)
    if not isinstance(fact, Known):
        return False
    texts = fact.value if isinstance(fact.value, tuple) else ()
    # A file below an image has a format of its own, which only its header or its name says.
    if name == "img.backing":
        return not texts
    return name != "img.formats" or not any(text.rpartition("=")[2] in ("", "guessed") for text in texts)


def outcome(
    history: Collection[str], undecided: Iterable[str], unfixed: Collection[str], unrecorded: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(open, unclear) of one machine on one emulator.

    Args:
        history: numbers that reach the machine. undecided: those that may.
        unfixed: numbers that the emulator has open. unrecorded: those whose fix nobody recorded.
    """
    reached, maybe = set(history), set(undecided)
    left = tuple(number for number in unfixed if number in reached)
    unclear = tuple(number for number in unfixed if number in maybe and number not in reached)
    return left, (*unclear, *(number for number in unrecorded if number in reached or number in maybe))


def machine_cve_facts(found: tuple[tuple[str, ...], tuple[str, ...]] | str, source: str) -> Facts:
    """``dev.cves-open`` and ``dev.cves-unclear`` of a live machine; a text says why nothing could be worked out."""
    if isinstance(found, str):
        return {"dev.cves-open": Unknown(found), "dev.cves-unclear": Unknown(found)}
    left, unclear = found
    why = f"{shortened(unclear)}: whether the machine has what they need, or a release the fix, nobody can tell"
    return {
        "dev.cves-open": Known(left, source, Stage.OBSERVED),
        "dev.cves-unclear": Unknown(why) if unclear else Known((), source, Stage.OBSERVED),
    }


def shortened(numbers: tuple[str, ...]) -> str:
    """Some of them, and how many more."""
    more = len(numbers) - _NAMED_MAX
    return ", ".join(numbers[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
