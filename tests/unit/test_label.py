"""Labels as text: pairs never repeat within a range of uids, profiles quote what hosts call their files."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hosts import HOST, ROOT_IDENTITY, plan_of

import casemate.plan.label as labels
from casemate.controls.catalogue.confinement import MAC_LABEL
from casemate.controls.expectations import Matches
from casemate.errors import CasemateError
from casemate.facts.fact import Known, Unknown
from casemate.jail.policy import BindFile, CopyFile, Device, Identity, IdentityMode
from casemate.jail.root import context_of_root
from casemate.jail.steps import describe
from casemate.plan.model import Mac
from casemate.spec.model import Spec

SELINUX = Mac("selinux", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023")
APPARMOR = Mac("apparmor", "unconfined")
USER = Identity(165_000, 165_000, IdentityMode.SUBID)
DATA = Path(labels.__file__).parent.parent / "data"
CONFINED = Matches(MAC_LABEL, "a confined label")


def test_every_pair_is_used_once() -> None:
    pairs = {labels.category_pair(number) for number in range(labels.PAIRS)}
    assert len(pairs) == labels.PAIRS == 523_776
    assert all(0 <= low < high < labels.CATEGORIES for low, high in pairs)


@given(st.integers(0, 2**32 - 2), st.integers(1, labels.PAIRS - 1))
def test_two_uids_of_one_range_never_share_a_pair(uid: int, distance: int) -> None:
    assert labels.category_pair(uid) != labels.category_pair(uid + distance)


@pytest.mark.parametrize(
    ("mac", "who", "accel", "label"),
    [
        (SELINUX, ROOT_IDENTITY, "kvm", "selinux:unconfined_u:unconfined_r:casemate_t:s0:c554,c727"),
        (SELINUX, USER, "tcg", "selinux:unconfined_u:unconfined_r:casemate_tcg_t:s0:c549,c574"),
        (APPARMOR, ROOT_IDENTITY, "kvm", "apparmor:casemate-0123456789abcdef"),
        (APPARMOR, USER, "tcg", "apparmor:casemate-emulator"),
        (None, USER, "tcg", None),
        (Mac("selinux", SELINUX.context, "the policy has no casemate_t"), USER, "tcg", None),
    ],
)
def test_label_of_a_process(mac: Mac | None, who: Identity, accel: str, label: str | None) -> None:
    host = msgspec.structs.replace(HOST, mac=mac)
    found = labels.process_label(host, who, "0123456789abcdef", accel)
    assert found == label
    if found is not None:
        assert CONFINED.holds(labels.observed_form(found))


def test_files_carry_the_level_of_their_vm() -> None:
    process = "selinux:staff_u:staff_r:casemate_t:s0:c3,c900"
    assert labels.file_context(process, "casemate_image_t", categories=True) == (
        "staff_u:object_r:casemate_image_t:s0:c3,c900"
    )
    assert labels.file_context(process, "casemate_content_t", categories=False) == (
        "staff_u:object_r:casemate_content_t:s0"
    )


def test_a_plan_declares_and_describes_its_label() -> None:
    plan = plan_of(Spec(), msgspec.structs.replace(HOST, mac=SELINUX))
    declared = plan.declared["proc.mac-label"]
    assert isinstance(declared, Known)
    assert declared.value == "unconfined_u:unconfined_r:casemate_tcg_t:s0:c554,c727"
    assert isinstance(plan.declared["proc.mcs-unique"], Known)
    lines = describe(plan.wall)
    label = next(index for index, line in enumerate(lines) if line.startswith("label "))
    order = [
        next(index for index, line in enumerate(lines) if line.startswith(words))
        for words in ("open /proc/thread-self/attr/current", "new root", "capabilities")
    ]
    after = next(index for index, line in enumerate(lines) if line.startswith("killed when"))
    assert order == sorted(order)
    assert order[-1] < label < after < lines.index("no_new_privs")
    assert context_of_root(plan.wall) == "unconfined_u:object_r:casemate_root_t:s0"


def test_a_host_that_cannot_label_declares_why() -> None:
    plan = plan_of(Spec(), msgspec.structs.replace(HOST, mac=Mac("selinux", "x:y:z:s0", "permissive")))
    assert plan.wall.exec_label is None
    assert plan.declared["proc.mac-label"] == Unknown("permissive")
    assert plan.declared["proc.mcs-unique"] == Unknown("permissive")


def test_a_host_without_an_lsm_has_no_label() -> None:
    plan = plan_of(Spec(), HOST)
    assert plan.wall.exec_label is None
    assert "proc.mac-label" not in plan.declared
    assert context_of_root(plan.wall) is None


def test_profile_lists_exactly_the_root_and_the_files() -> None:
    root = (
        BindFile("/var/cache/x", "/usr/bin/qemu"),
        BindFile("/lib/libc.so.6", "/lib/libc.so.6"),
        CopyFile("kernel", "/boot/kernel", 1),
        Device("null"),
        Device("urandom"),
    )
    text = labels.apparmor_profile("casemate-1", "/usr/bin/qemu", root, ["/srv/base.qcow2"], ["/srv/a disk.raw"])
    rules = {line.strip() for line in text.splitlines()}
    assert {'"/usr/bin/qemu" mrix,', '"/lib/libc.so.6" mr,', '"/boot/kernel" r,', '"/dev/urandom" r,'} <= rules
    assert {'"/srv/base.qcow2" r,', '"/srv/a disk.raw" rwk,', '"/dev/null" rw,'} <= rules
    assert {'"/" r,', '"/usr/" r,', '"/usr/bin/" r,', '"/dev/" r,'} <= rules
    assert len([rule for rule in rules if "x," in rule]) == 1
    assert not [rule for rule in rules if rule.startswith(("capability", "mount", "/**"))]


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1))
def test_a_file_name_cannot_add_a_rule(name: str) -> None:
    """Each rule stays one line and one quoted string, whatever a file is called."""
    text = labels.apparmor_profile("casemate-1", "/q", (), [], [f"/{name}"])
    line = next(line for line in text.split("\n") if line.endswith(" rwk,"))
    assert line.startswith('  "/')
    body = line[3 : -len('" rwk,')]
    assert body.replace("\\\\", "").replace('\\"', "").count('"') == 0
    plain = "".join(body[i] for i in range(len(body)) if not (body[i] == "\\" and (i == 0 or not _escaped(body, i))))
    assert plain == f"/{name}"


def _escaped(text: str, index: int) -> bool:
    """Whether the character at ``index`` stands after an odd number of backslashes."""
    count = 0
    while index - count > 0 and text[index - count - 1] == "\\":
        count += 1
    return count % 2 == 1


@pytest.mark.parametrize("name", ["/a\nb", "relative", "/a\0", "/a\x7f"])
def test_a_name_that_no_profile_can_hold_is_refused(name: str) -> None:
    with pytest.raises(CasemateError, match="no AppArmor profile"):
        labels.apparmor_profile("casemate-1", "/q", (), [], [name])


def test_the_shipped_profile_is_the_one_of_the_code() -> None:
    assert (DATA / f"{labels.STATIC_PROFILE}.apparmor").read_text() == labels.static_profile()


def test_the_policy_module_has_every_type_of_the_code_and_is_closed_by_categories() -> None:
    text = (DATA / "casemate.cil").read_text()
    kinds = (*labels.DOMAIN.values(), labels.IMAGE_TYPE, labels.CONTENT_TYPE, labels.PROGRAM_TYPE, "casemate_root_t")
    for kind in kinds:
        assert f"(type {kind})" in text
    assert "(typeattributeset mcs_constrained_type (casemate_t casemate_tcg_t))" in text
    assert "typepermissive" not in text
    assert "(allow casemate_tcg_t self (process (execmem)))" in text
    assert text.count("execmem") == 1


def test_the_policy_lets_an_emulator_use_every_kind_of_base() -> None:
    """QEMU locks each image that it opens, also one that it only reads (fcntl, file.locking)."""
    policy = (DATA / "casemate.cil").read_text(encoding="ascii")
    for kind in labels.SHARED_TYPES:
        (rights,) = re.findall(rf"\(allow casemate_domain {kind} \(file \(([a-z ]+)\)\)\)", policy)
        assert {"read", "getattr", "lock", "ioctl"} <= set(rights.split()), kind
