"""The proof of a real wall: nothing unexpected; each layer stops something by itself; nothing is left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.proofs import Bench, bench, unexpected

from casemate.bpf.syscalls import numbers
from casemate.engine import files, prove
from casemate.engine.prove_report import ProofReport, document, experiment, rows
from casemate.errors import VmError
from casemate.jail.compile import compile_profile
from casemate.jail.policy import Layer
from casemate.jail.probe.attempts import HARMLESS, HOSTILE
from casemate.jail.probe.judge import Outcome, Result
from casemate.jail.probe.model import KERNEL, Group
from casemate.jail.rules import Profile, Rule
from casemate.spec.model import DiskMode

pytestmark = pytest.mark.wall


@pytest.fixture(scope="module")
def here() -> Iterator[Bench]:
    with bench() as found:
        yield found


@pytest.fixture(scope="module")
def whole(here: Bench) -> ProofReport:
    """The proof of the real wall, everything tried."""
    return here.prove()


@pytest.fixture(scope="module")
def unfiltered(here: Bench) -> ProofReport:
    """The experiment that shows the layers behind the filter."""
    return here.prove(without=Layer.SECCOMP)


def by_id(report: ProofReport) -> dict[str, Result]:
    return {item.id: item for item in report.results}


def has_cgroup(report: ProofReport) -> bool:
    return by_id(report)["resources.memory"].outcome is not Outcome.NOT_TRIED


class TestTheWall:
    def test_nothing_is_reached_that_the_plan_does_not_declare(self, whole: ProofReport) -> None:
        assert whole.unexpected == ()
        assert whole.ok
        assert whole.without is None
        assert experiment(whole) == ""

    def test_harmless_control_works_and_hostile_one_dies_of_exactly_sigsys(self, whole: ProofReport) -> None:
        found = by_id(whole)
        assert found[HARMLESS].outcome is Outcome.REACHED
        assert found[HARMLESS].evidence == "write returned 0"
        assert found[HOSTILE].outcome is Outcome.STOPPED
        assert found[HOSTILE].evidence.startswith("SIGSYS at ")

    def test_every_call_of_the_table_was_made(self, whole: ProofReport) -> None:
        tried = {item.id for item in whole.results if item.outcome is not Outcome.NOT_TRIED}
        assert {f"calls.{name}" for name in numbers(os.uname().machine)} <= tried

    def test_each_attempt_was_stopped_by_what_its_data_names(self, whole: ProofReport) -> None:
        wrong = [
            (item.id, item.stopper)
            for item in whole.results
            if item.group is not Group.CALLS and item.outcome is Outcome.STOPPED and item.stopper not in item.expected
        ]
        assert wrong == []

    def test_limits_hold_under_the_filter(self, whole: ProofReport) -> None:
        found = by_id(whole)
        assert found["resources.thread-bomb"].stopper in {Layer.RLIMITS, Layer.CGROUP}
        assert found["resources.descriptors"].stopper == Layer.RLIMITS
        assert found["resources.file-size"].stopper == Layer.RLIMITS
        assert found["resources.log-flood"].stopper == "supervisor"
        if has_cgroup(whole):
            assert found["resources.memory"].stopper == Layer.CGROUP

    def test_the_users_image_is_as_it_was(self, here: Bench) -> None:
        before = hashlib.sha256(Path(here.image).read_bytes()).digest(), os.stat(here.image).st_mtime_ns
        report = here.prove(here.spec(DiskMode.PERSISTENT), quick=True)
        assert unexpected(report) == set()
        assert (hashlib.sha256(Path(here.image).read_bytes()).digest(), os.stat(here.image).st_mtime_ns) == before
        assert any("read-only" in note for note in report.notes)

    def test_an_image_in_use_by_a_vm_is_proved_beside_it(self, here: Bench) -> None:
        with open(here.image, "rb+") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            assert here.prove(here.spec(DiskMode.PERSISTENT), quick=True).ok

    def test_nothing_is_left(self, here: Bench, whole: ProofReport, unfiltered: ProofReport) -> None:
        assert whole.results
        assert unfiltered.results
        assert here.leftovers() == []
        held = [
            name
            for name in os.listdir(f"{here.paths.runtime}/ids")
            if files.is_locked(f"{here.paths.runtime}/ids/{name}")
        ]
        assert held == []

    def test_document_and_rows_agree(self, whole: ProofReport) -> None:
        shown = document(whole)
        assert shown["ok"] is True
        assert shown["schema"] == "casemate.prove/1"
        assert sum(row[1] for row in rows(whole)) == whole.counts["tried"] == shown["counts"]["tried"]

    def test_progress_is_told(self, here: Bench) -> None:
        told: list[tuple[int, int, str]] = []
        report = here.prove(quick=True, progress=lambda done, total, group: told.append((done, total, group)))
        assert len(told) > 3
        assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
        assert told[-1][1] == len(report.results)


class TestEachLayerAlone:
    def test_behind_the_filter_the_other_layers_stop(self, whole: ProofReport, unfiltered: ProofReport) -> None:
        stoppers = {item.stopper for item in (*whole.results, *unfiltered.results)}
        wanted = {layer.value for layer in Layer}
        if not has_cgroup(whole):
            wanted.discard(Layer.CGROUP.value)
        assert wanted <= stoppers

    def test_what_the_filter_alone_stops_is_what_the_data_says(self, unfiltered: ProofReport) -> None:
        reached = {item.id for item in unfiltered.results if item.outcome is Outcome.REACHED and not item.declared}
        assert reached == unexpected(unfiltered)
        assert reached
        wrong = [
            item.id for item in unfiltered.results if item.id in reached and item.expected != (Layer.SECCOMP.value,)
        ]
        assert wrong == []

    def test_what_is_stopped_without_a_filter_is_stopped_by_a_named_layer(self, unfiltered: ProofReport) -> None:
        wrong = [
            (item.id, item.stopper, item.evidence)
            for item in unfiltered.results
            if item.outcome is Outcome.STOPPED and item.stopper not in (*item.expected, KERNEL)
        ]
        assert wrong == []

    def test_without_the_filter_no_call_is_made_blindly(self, unfiltered: ProofReport) -> None:
        calls = [item for item in unfiltered.results if item.group is Group.CALLS]
        assert calls
        assert {item.outcome for item in calls} == {Outcome.NOT_TRIED}
        assert "EXPERIMENT" in experiment(unfiltered)

    @pytest.mark.parametrize(
        "layer", [Layer.NAMESPACES, Layer.ROOT, Layer.IDENTITY, Layer.CAPABILITIES, Layer.LANDLOCK]
    )
    def test_the_others_hold_without(self, here: Bench, layer: Layer) -> None:
        report = here.prove(without=layer, quick=True)
        assert report.without == layer.value
        # The kernel asks for no permission to read an affinity mask, and malloc counts processors for its whole life.
        alone = {"processes.where"} if layer is Layer.NAMESPACES else set()
        assert unexpected(report) <= alone
        assert layer.value not in report.stoppers
        assert experiment(report).startswith(f"EXPERIMENT: layer {layer.value} ")

    def test_without_the_cgroup_memory_has_no_limit(self, here: Bench, whole: ProofReport) -> None:
        if not has_cgroup(whole):
            pytest.skip("no cgroup to be had here: " + by_id(whole)["resources.memory"].evidence)
        assert unexpected(here.prove(without=Layer.CGROUP)) == {"resources.memory"}

    def test_without_rlimits_files_and_descriptors_have_none(self, here: Bench) -> None:
        found = unexpected(here.prove(without=Layer.RLIMITS, quick=True))
        assert "resources.file-size" in found
        assert found <= {"resources.file-size", "resources.descriptors", "resources.thread-bomb"}


class TestInterrupted:
    def test_a_killed_proof_leaves_what_the_next_one_removes(self, here: Bench) -> None:
        code = (
            "import sys; from tests.support.proofs import Bench\n"
            "b = Bench(sys.argv[1]); b.prove(progress=lambda *_: print('going', flush=True))"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, here.base], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"going\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        here.note_cgroups()
        assert here.leftovers() != []
        end = time.monotonic() + 10
        while here.leftovers() and time.monotonic() < end:
            prove.sweep_stale(here.paths)
        assert here.leftovers() == []

    def test_a_running_proof_is_not_swept(self, here: Bench) -> None:
        home = f"{here.paths.runtime}/proofs/proofheld"
        os.mkdir(home, 0o700)
        lock = files.take_lock(f"{home}/lock", wait=False)
        assert lock is not None
        try:
            prove.sweep_stale(here.paths)
            assert os.path.isdir(home)
        finally:
            os.close(lock)
        prove.sweep_stale(here.paths)
        assert not os.path.exists(home)

    def test_a_filter_that_stops_the_probe_itself_proves_nothing(
        self, here: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blind = compile_profile(Profile("blind", (Rule("read", "a test"),), ("test",)), os.uname().machine)
        monkeypatch.setattr(prove, "cached_program", lambda *_: blind)
        with pytest.raises(VmError, match="nothing is proved"):
            here.prove(quick=True)
        assert here.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_proves_his_wall() -> None:
    user = 54_321
    with bench() as found:
        for directory, names, entries in os.walk(found.base):
            for path in (directory, *(f"{directory}/{name}" for name in (*names, *entries))):
                os.chown(path, user, user)
        code = (
            "import sys; from tests.support.proofs import Bench\n"
            "r = Bench(sys.argv[1]).prove(quick=True)\n"
            "print(r.ok, r.counts['tried'] > 250, [u.id for u in r.unexpected])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, found.base],
            user=user,
            group=user,
            extra_groups=[],
            env={"HOME": found.base, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip() == "True True []", done.stderr
        assert os.listdir(f"{found.paths.runtime}/proofs") == []
