"""The audit shows what the store has without a verified origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.audit.store import collect_store
from casemate.controls.catalogue.image_origin_audit import CONTROLS
from casemate.controls.judge import judge
from casemate.engine import imagestore
from casemate.facts.fact import Stage, Unknown
from casemate.facts.root import Root
from casemate.image import store_import
from casemate.image.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    place = Store(str(tmp_path / "images"))
    monkeypatch.setattr(imagestore, "default_store", lambda paths=None: place)
    return place


def verdict() -> str:
    (found,) = judge(CONTROLS, collect_store(Root()), stage=Stage.OBSERVED)
    return str(found.verdict.value)


def add(store: Store, where: Path, name: str, **origin: str) -> None:
    path = where / name
    path.write_bytes(name.encode().ljust(512, b"\0"))
    with path.open("rb") as file:
        store_import.add(store, file.fileno(), name=name, image_format="raw", origin={"source": str(path), **origin})


def test_empty_verified_and_unverified(store: Store, tmp_path: Path) -> None:
    assert verdict() == "not-applicable"
    add(store, tmp_path, "good", verified_by="openpgp:" + "a" * 40)
    assert verdict() == "pass"
    add(store, tmp_path, "bad")
    assert verdict() == "fail"
    facts = collect_store(Root())
    assert getattr(facts["img.store-unverified"], "value", None) == ("bad: no signature",)


def test_another_host_or_a_broken_policy_is_unknown(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(collect_store(Root(tmp_path))["img.store-images"], Unknown)
    from casemate.engine import policy_file
    from casemate.errors import InputError

    def broken(_: object) -> None:
        raise InputError("policy: broken")

    monkeypatch.setattr(policy_file, "read_policy", broken)
    assert verdict() == "unknown"
