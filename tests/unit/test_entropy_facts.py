"""What the host's files say about its random numbers, and what older kernels do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import host_tree, tree_entropy
from tests.support.host_tree import Content

from casemate.facts.entropy import collect_entropy
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root


def facts(base: Path, **changes: Content) -> Facts:
    tree: dict[str, Content] = {**host_tree.BASE, **tree_entropy.PASSING}
    tree |= {name.replace("__", "/"): content for name, content in changes.items()}
    tree = {name: content for name, content in tree.items() if content is not None}
    host_tree.write_tree(base, tree)
    return collect_entropy(host_tree.tree_root(base, tree))


def test_live_host_is_asked() -> None:
    found = collect_entropy(Root())
    assert found["ent.host-ready"] == Known(True, "getrandom(GRND_NONBLOCK)")
    assert all(isinstance(fact, Known | Unknown) for fact in found.values())


@pytest.mark.parametrize(
    ("poolsize", "available", "expected"),
    [("256", "256", True), ("256", "17", False), ("4096", "3800", None), ("4096", "256", None), (None, "256", None)],
)
def test_the_number_means_something_only_in_newer_kernels(
    tmp_path: Path, poolsize: str | None, available: str, expected: bool | None
) -> None:
    random = "__proc__sys__kernel__random__"
    found = facts(tmp_path, **{f"{random}poolsize": poolsize, f"{random}entropy_avail": available})["ent.host-ready"]
    assert (found.value if isinstance(found, Known) else None) is expected


def test_sources_of_cpu_and_device(tmp_path: Path) -> None:
    found = facts(tmp_path, __proc__cpuinfo="flags\t\t: fpu rdrand rdseed\n")["ent.host-sources"]
    assert isinstance(found, Known)
    assert found.value == ("rdseed", "rdrand", "hwrng tpm-rng-0")


def test_nothing_readable_is_unknown_and_never_a_pass(tmp_path: Path) -> None:
    found = collect_entropy(Root(tmp_path))
    assert isinstance(found["ent.host-ready"], Unknown)
    assert isinstance(found["ent.host-sources"], Unknown)
    assert isinstance(found["ent.host-daemons"], Unknown)
