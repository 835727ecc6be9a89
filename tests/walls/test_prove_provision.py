"""The proof of a wall whose VM is provisioned, has secrets and may be saved: nothing more is reached than by others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.proofs import Bench, bench, unexpected

from casemate.spec.model import CloudInit, DiskMode, Provision, Secret, Spec

pytestmark = pytest.mark.wall


@pytest.fixture(scope="module")
def here() -> Iterator[Bench]:
    with bench() as found:
        yield found


def provisioned(here: Bench) -> Spec:
    spec = here.spec(DiskMode.READ_ONLY)
    return msgspec.structs.replace(
        spec,
        machine=msgspec.structs.replace(spec.machine, saveable=True),
        provision=Provision(cloud_init=CloudInit(hostname="proved")),
        # A proof asks no source: these do not exist.
        secrets={"db": Secret(file="/nonexistent/db"), "two": Secret(command=("/nonexistent/program",))},
    )


def test_nothing_is_reached_that_the_plan_does_not_declare(here: Bench) -> None:
    report = here.prove(provisioned(here), quick=True)
    assert unexpected(report) == set()


def test_nothing_is_left(here: Bench) -> None:
    assert not list(Path(here.paths.runtime).rglob("*provision*"))
