"""What a launch makes of origins: rules of the policy, facts, and content checked through the descriptor."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from casemate.controls.catalogue.image_origin import CONTROLS
from casemate.controls.judge import judge, refusals
from casemate.controls.policy import HostPolicy, ImageRules, parse_policy
from casemate.engine.content import ContentChecks, Promise, extra_time_s, how_checked, promises_of
from casemate.engine.origins import image_origin, origin_facts
from casemate.errors import RefusedError, SpecError, VmError
from casemate.facts.fact import Facts, Known, Stage
from casemate.image.origin import Require, Signer, SourceRule, is_key, judge_origin, rule_for
from casemate.image.origin_check import Verified
from casemate.image.origin_digest import PIECE_BYTES, digests_of, tree_digest
from casemate.image.store_model import StoredImage
from casemate.spec.model import Disk, DiskFormat, Spec

A, B = "openpgp:" + "a" * 40, "ssh:SHA256:" + "b" * 43
DIGEST = "d" * 64


def stored(**origin: str) -> StoredImage:
    return StoredImage(
        digest=DIGEST,
        names=("debian",),
        format="raw",
        virtual_size_bytes=512,
        size_bytes=512,
        disk_bytes=512,
        added_at=0.0,
        origin=origin,
    )


def disk(image: str | None = "debian", sha256: str | None = DIGEST, path: str = "/srv/debian.img") -> Disk:
    return Disk(path=path, format=DiskFormat.RAW, image=image, sha256=sha256)


def rules(*found: SourceRule) -> ImageRules:
    return ImageRules(source=found)


@pytest.mark.parametrize(
    ("keys", "require", "signed", "good"),
    [
        ((A,), "any", (A,), True),
        ((A, B), "any", (B,), True),
        ((A, B), "all", (B,), False),
        ((A, B), "all", (A, B), True),
        ((A,), "any", (B,), False),
        ((A,), "any", (), False),
    ],
)
def test_a_rule_wants_any_or_all_of_its_keys(
    keys: tuple[str, ...], require: str, signed: tuple[str, ...], good: bool
) -> None:
    rule = SourceRule(match="*", require=Require(require), keys=keys)
    assert (judge_origin((rule,), ("x",), signed) == "") == good


def test_without_a_rule_one_verified_signature_is_enough_and_none_is_not() -> None:
    assert judge_origin((), ("x",), (A,)) == ""
    assert judge_origin((), ("x",), ()) == "no signature"


def test_the_first_rule_that_matches_counts() -> None:
    first, second = SourceRule(match="https://a/*", keys=(A,)), SourceRule(match="*", keys=(B,))
    assert rule_for((first, second), "https://a/b/c") == first
    assert rule_for((first, second), "", "name") == second
    assert rule_for((first,), "", "HTTPS://A/b") is None
    assert rule_for((second,), "") is None


@pytest.mark.parametrize(
    ("key", "good"),
    [
        (A, True),
        (B, True),
        ("openpgp:" + "A" * 40, False),
        ("openpgp:" + "a" * 16, False),
        ("ssh:MD5:aa", False),
        ("minisign:RW" + "A" * 54, True),
        ("sigstore:ana@example.org https://accounts.example.org", True),
        ("sigstore:ana@example.org", False),
        ("tuf:" + "0" * 64, True),
        (A + "\n", False),
    ],
)
def test_keys_have_one_form(key: str, good: bool) -> None:
    assert is_key(key) == good


def test_the_policy_file_holds_rules() -> None:
    text = f'version = 1\n[[image.source]]\nmatch = "https://a/*"\nrequire = "all"\nkeys = ["{A}", "{B}"]\n'
    (rule,) = parse_policy(text, "p").image.source
    assert rule == SourceRule(match="https://a/*", require=Require.ALL, keys=(A, B))
    for fault in (
        text.replace(A, "0xDEADBEEF"),
        text.replace('"all"', '"some"'),
        text.replace("match", "matches"),
        f"version = 1\n[image]\nsources = []\n{''}",
        'version = 1\n[[image.source]]\nmatch = "x"\nkeys = []\n',
    ):
        with pytest.raises(SpecError, match=r"image\.source"):
            parse_policy(fault, "p")


def facts(spec: Spec, images: dict[str, StoredImage], policy: ImageRules) -> Facts:
    found = origin_facts(spec, images, promises_of(spec, images), policy)
    return {**found, "img.formats": Known(("disk0=raw",), "t", Stage.DECLARED)}


def verdicts(found: Facts) -> dict[str, str]:
    live: Facts = {name: Known(fact.value, "t") for name, fact in found.items() if isinstance(fact, Known)}
    return {item.control_id: item.verdict.value for item in judge(CONTROLS, live, stage=Stage.OBSERVED)}


@pytest.mark.parametrize(
    ("one", "image", "policy", "expected"),
    [
        (disk(), stored(), rules(), ("fail", "pass", "fail")),
        (disk(), stored(verified_by=A), rules(), ("pass", "pass", "fail")),
        (disk(), stored(verified_by=B), rules(SourceRule(match="debian", keys=(A,))), ("fail", "pass", "fail")),
        (
            disk(),
            stored(verified_by=f"{B}\n{A}"),
            rules(SourceRule(match="debian", keys=(A,))),
            ("pass", "pass", "fail"),
        ),
        (disk(image=None, sha256=None), None, rules(), ("not-applicable", "fail", "not-applicable")),
        (disk(image=None), None, rules(), ("not-applicable", "pass", "fail")),
        (disk(image=None), None, rules(SourceRule(match="/srv/*", keys=(A,))), ("fail", "pass", "fail")),
    ],
)
def test_what_the_controls_make_of_it(
    one: Disk, image: StoredImage | None, policy: ImageRules, expected: tuple[str, str, str]
) -> None:
    found = facts(Spec(disks=(one,)), {} if image is None else {"disk0": image}, policy)
    assert tuple(verdicts(found)[name] for name in ("img.origin", "img.local-origin", "img.enforced")) == expected


def test_an_unverified_image_of_the_store_is_refused_by_default() -> None:
    found = facts(Spec(disks=(disk(),)), {"disk0": stored()}, HostPolicy().image)
    (refused,) = refusals(judge(CONTROLS, found, stage=Stage.DECLARED))
    assert refused.control_id == "img.origin"
    assert "image sign" in refused.remedy


def test_a_sealed_image_is_enforced() -> None:
    import msgspec

    image = msgspec.structs.replace(stored(verified_by=A, tree="t"), verity_digest="sha256:" + "e" * 64)
    spec = Spec(disks=(disk(),))
    assert promises_of(spec, {"disk0": image})[0].how == "fs-verity"
    assert verdicts(facts(spec, {"disk0": image}, rules()))["img.enforced"] == "pass"
    assert promises_of(spec, {"disk0": stored(tree="t")})[0].how == "tree"
    assert promises_of(spec, {"disk0": stored()})[0].how == "sha256"
    assert image_origin(image, rules()) == ("", (A,))


def promise(path: Path, how: str, expected: str) -> Promise:
    return Promise("disk0", path.name, str(path), hashlib.sha256(path.read_bytes()).hexdigest(), how, expected)


@pytest.mark.parametrize("how", ["sha256", "tree"])
@pytest.mark.parametrize("size", [1, PIECE_BYTES, 3 * PIECE_BYTES + 5])
def test_content_is_checked_through_the_descriptor(tmp_path: Path, how: str, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(size))
    descriptor = os.open(path, os.O_RDWR)
    good = tree_digest(descriptor) if how == "tree" else hashlib.sha256(path.read_bytes()).hexdigest()
    checks = ContentChecks((promise(path, how, good),), {"disk0": descriptor})
    with pytest.raises(RuntimeError):
        checks.result()
    path.rename(tmp_path / "moved")  # the descriptor counts, not the name
    path.write_bytes(b"another")
    checks.begin()
    assert len(checks.result()["disk0"]) == 64
    for at in {0, size // 2, size - 1}:
        original = os.pread(descriptor, 1, at)
        os.pwrite(descriptor, bytes([original[0] ^ 1]), at)
        bad = ContentChecks((promise(path, how, good),), {"disk0": descriptor})
        bad.begin()
        with pytest.raises(RefusedError, match=r"img\.hash"):
            bad.result()
        os.pwrite(descriptor, original, at)
    os.close(descriptor)
    assert threading.active_count() < 20


def test_a_file_that_is_not_sealed_or_not_readable_is_no_match(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 512)
    descriptor = os.open(path, os.O_RDONLY)
    checks = ContentChecks((promise(path, "fs-verity", "sha256:" + "e" * 64),), {"disk0": descriptor})
    checks.begin()
    with pytest.raises(RefusedError, match="not sealed"):
        checks.result()
    unreadable = os.open(path, os.O_WRONLY)
    checks = ContentChecks((promise(path, "sha256", DIGEST),), {"disk0": unreadable})
    checks.begin()
    with pytest.raises(VmError, match="cannot be verified"):
        checks.result()
    assert extra_time_s((promise(path, "fs-verity", ""),), {"disk0": descriptor}) == 0
    assert extra_time_s((promise(path, "tree", ""),), {"disk0": descriptor}) > 0
    os.close(descriptor)
    os.close(unreadable)


def test_the_tree_digest_is_what_its_docstring_says(tmp_path: Path) -> None:
    content = os.urandom(2 * PIECE_BYTES + 77)
    path = tmp_path / "f"
    path.write_bytes(content)
    pieces = [content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES)]
    leaves = b"".join(hashlib.sha256(b"\0" + piece).digest() for piece in pieces)
    header = b"casemate tree v1\n" + len(content).to_bytes(8, "big") + PIECE_BYTES.to_bytes(8, "big")
    descriptor = os.open(path, os.O_RDONLY)
    found = {tree_digest(descriptor, threads=count) for count in (1, 2, 5)}
    assert found == {hashlib.sha256(header + leaves).hexdigest()}
    several = digests_of(descriptor, ["sha256", "sha512", "blake2b"])
    assert several == {name: hashlib.new(name, content).digest() for name in several}
    os.close(descriptor)


def test_signatures_of_several_files_add_up() -> None:
    import datetime

    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    first = Verified(sha256=DIGEST, size_bytes=1, signers=(Signer(key=A, identity="ana"),), covered="file")
    second = Verified(sha256=DIGEST, size_bytes=1, signers=(Signer(key=B),), covered="S: disk")
    one = first.as_origin(now)
    assert one["verified_by"] == A
    both = second.as_origin(now, one)
    assert (both["verified_by"].split("\n"), both["identity"].split("\n")) == ([A, B], ["ana", ""])
    assert first.as_origin(now, both)["verified_by"] == f"{A}\n{B}"
    every = SourceRule(match="*", require=Require.ALL, keys=(A, B))
    assert image_origin(stored(**one), rules(every))[0].startswith("not signed by ssh:")
    assert image_origin(stored(**both), rules(every)) == ("", (A, B))


def test_the_record_says_what_is_checked_at_launch_only(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    late, sealed = promise(tmp_path / "disk", "tree", ""), promise(tmp_path / "disk", "fs-verity", "")
    assert "launch only" not in how_checked(())
    assert "disk0 checked at launch only" in how_checked((late,))
    assert "at every read" in how_checked((sealed,))
    assert "launch only" not in how_checked((sealed,))
