"""libvirt's configuration grammar, polkit's rules, groups, sockets: parsers and hostile input."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_audit_kernel import put

from casemate.audit.judging import Setting
from casemate.audit.trees import report_tree
from casemate.controls.audit_model import TargetKind
from casemate.controls.model import Finding, Verdict
from casemate.controls.profiles import DEFAULT, named
from casemate.errors import InputError
from casemate.facts.fact import Fact, Known, Stage, Unknown
from casemate.facts.libvirt_access import pkla_grants, rule_grants
from casemate.facts.libvirt_conf import MAX_ITEMS, Value, parse_conf
from casemate.facts.libvirt_config import collect_libvirt
from casemate.facts.root import PartRoot, Root

NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
VALUES = st.integers(-999, 999) | st.from_regex(r"[^\"\r\n]{0,20}", fullmatch=True)


def value(fact: Fact) -> object:
    assert isinstance(fact, Known), fact
    return fact.value


class TestConf:
    @pytest.mark.parametrize(
        ("text", "settings"),
        [
            ("", {}),
            ("# only a comment", {}),
            ("a = 1\nb=-2 # why\n", {"a": 1, "b": -2}),
            ("a = 1\na = 2\n", {"a": 1}),
            ("a='x' ; b=\"y # z\"\r\n", {"a": "x", "b": "y # z"}),
            ('a = """x\n"y" z"""\n', {"a": 'x\n"y" z'}),
            ('a = ""\n', {"a": ""}),
            ("a = [ 'x', \"y\",\n  3,\n]\nb=1", {"a": ("x", "y", "3"), "b": 1}),
            ("a = []\n", {"a": ()}),
        ],
    )
    def test_good(self, text: str, settings: dict[str, Value]) -> None:
        assert parse_conf(text) == settings

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("a\n", "line 1: expected NAME = VALUE"),
            ("\n1a = 2\n", "line 2: expected NAME = VALUE"),
            ("a = yes\n", "line 1: expected a number, a quoted text or a list"),
            ("a = 'x\n'\n", "line 1: expected a number"),
            ("a = 1 2\n", "line 1: expected the end of the line"),
            ("a = [ 'x' 'y' ]\n", "line 1: expected , or ] in a list"),
            ("a = [ 'x',\n", "line 2: expected a number"),
            ("a = [" + "1," * (MAX_ITEMS + 1) + "]\n", "more than 10000 items"),
            ("a = [[[[1]]]]\n", "expected a number"),
        ],
    )
    def test_faults_name_the_line(self, text: str, fault: str) -> None:
        with pytest.raises(ValueError, match=fault.replace("[", r"\[").replace("]", r"\]")):
            parse_conf(text)

    @given(st.dictionaries(NAMES, VALUES, max_size=8))
    def test_round_trip(self, settings: dict[str, str | int]) -> None:
        lines = (f'{k} = "{v}"\n' if isinstance(v, str) else f"{k} = {v}\n" for k, v in settings.items())
        assert parse_conf("".join(lines)) == settings

    @given(st.text(alphabet="ab=\"'[],#;\n -1", max_size=80))
    def test_no_text_crashes_it(self, text: str) -> None:
        try:
            parsed = parse_conf(text)
        except ValueError:
            return
        assert all(name[0].isalpha() for name in parsed)


class TestPolkit:
    def rule(self, condition: str, answer: str = "polkit.Result.YES") -> str:
        return f"polkit.addRule(function(action, subject) {{ if ({condition}) {{ return {answer}; }} }});\n"

    def test_rules(self) -> None:
        manage = 'action.id == "org.libvirt.unix.manage"'
        assert rule_grants(self.rule(f'{manage} && subject.isInGroup("libvirt")')) == ["group:libvirt"]
        assert rule_grants(self.rule(f'{manage} && subject.user == "ada"')) == ["user:ada"]
        assert rule_grants(self.rule(manage)) == ["anyone"]
        assert rule_grants(self.rule('action.id.indexOf("org.libvirt") == 0')) == ["anyone"]
        assert rule_grants(self.rule(manage, '"yes"')) == ["anyone"]
        assert rule_grants(self.rule(manage, "polkit.Result.AUTH_ADMIN")) == []
        assert rule_grants(self.rule('action.id == "org.libvirt.unix.monitor"')) == []
        assert rule_grants("".join(f"// {line}\n" for line in self.rule(manage).splitlines())) == []

    def test_local_authority(self) -> None:
        section = "[vms]\nIdentity={}\nAction={}\nResultAny={}\n"
        assert pkla_grants(section.format("unix-group:staff;unix-user:eve", "org.libvirt.unix.manage", "yes")) == [
            "group:staff",
            "user:eve",
        ]
        assert pkla_grants(section.format("unix-user:*", "org.libvirt.*", "yes")) == ["anyone"]
        assert pkla_grants(section.format("unix-user:eve", "org.libvirt.unix.manage", "auth_admin")) == []
        assert pkla_grants(section.format("unix-user:eve", "org.other", "yes")) == []


def test_without_libvirt_nothing_but_groups_is_said(tmp_path: Path) -> None:
    assert isinstance(collect_libvirt(Root(tmp_path))["libvirt.installed"], Unknown)
    put(tmp_path, "/etc/hostname", "x\n")
    facts = collect_libvirt(Root(tmp_path))
    assert value(facts["libvirt.installed"]) is False
    assert "libvirt.rw-sockets" not in facts


def test_a_bare_installation_has_libvirts_defaults(tmp_path: Path) -> None:
    put(tmp_path, "/usr/sbin/virtqemud", "")
    put(tmp_path, "/etc/passwd", "root:x:0:0::/root:/bin/sh\nqemu:x:107:107::/:/sbin/nologin\n")
    put(tmp_path, "/etc/group", "root:x:0:\n")
    facts = collect_libvirt(Root(tmp_path))
    assert value(facts["libvirt.daemons"]) == ("virtqemud",)
    assert facts["libvirt.qemu.seccomp-sandbox"].stage is Stage.DECLARED  # type: ignore[union-attr]
    assert value(facts["libvirt.qemu.user"]) == "qemu"
    assert isinstance(facts["libvirt.qemu.group"], Unknown)
    # Nothing listens yet and no unit is there: the daemon's own default, and no polkit to guard it.
    assert value(facts["libvirt.rw-sockets"]) == ("/run/libvirt/virtqemud-sock 0777 none",)


def test_the_unit_and_its_drop_ins_say_the_mode(tmp_path: Path) -> None:
    put(tmp_path, "/usr/sbin/libvirtd", "")
    put(tmp_path, "/usr/lib/systemd/system/libvirtd.socket", "[Socket]\nSocketMode=0666\n")
    put(tmp_path, "/etc/systemd/system/libvirtd.socket.d/mode.conf", "[Socket]\nSocketMode=0660\n")
    assert value(collect_libvirt(Root(tmp_path))["libvirt.rw-sockets"]) == ("/run/libvirt/libvirt-sock 0660 none",)


def test_a_password_is_never_a_fact(tmp_path: Path) -> None:
    put(tmp_path, "/etc/libvirt/libvirtd.conf", "")
    put(tmp_path, "/etc/libvirt/qemu.conf", 'vnc_password = "hunter2"\n')
    facts = collect_libvirt(Root(tmp_path))
    assert "hunter2" not in str(facts)
    assert value(facts["libvirt.qemu.vnc-password"]) == "(set)"


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"a = [", b"=" * 100_000])
def test_a_damaged_file_makes_its_settings_unknown(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "/etc/libvirt/libvirtd.conf", content)
    put(tmp_path, "/etc/libvirt/qemu.conf", content)
    put(tmp_path, "/etc/group", content)
    facts = collect_libvirt(Root(tmp_path))
    for name in ("libvirt.qemu.user", "libvirt.access-drivers", "libvirt.rw-sockets", "libvirt.group.kvm"):
        assert isinstance(facts[name], Unknown), name


# ---- a copy of /etc/libvirt alone --------------------------------------------------------------------------------


def findings_of(base: Path) -> dict[str, Finding]:
    (report,) = report_tree(base, Setting(named(DEFAULT), datetime.date(2026, 1, 1)))
    assert report.target.kind is TargetKind.HOST
    assert "nothing else of its host was judged" in report.notes[0]
    return {finding.control_id: finding for finding in report.findings}


def test_a_copy_of_libvirts_configuration_is_judged_by_what_it_says(tmp_path: Path) -> None:
    put(tmp_path, "qemu.conf", 'security_default_confined = 1\nvnc_listen = "0.0.0.0"\n')
    put(tmp_path, "libvirtd.conf", 'auth_tcp = "none"\n')
    found = findings_of(tmp_path)
    assert found["vmm.console"].verdict is Verdict.FAIL
    assert found["vmm.tcp-auth"].verdict is Verdict.FAIL
    assert found["vmm.default-confined"].verdict is Verdict.PASS
    assert all(name.startswith("vmm.") for name in found)
    # Sockets, groups and polkit are elsewhere on the host; owner and mode of a copy are the copy's.
    for name in ("vmm.sock", "vmm.tcp", "vmm.groups", "vmm.polkit", "vmm.conf-writable", "vmm.hooks"):
        assert found[name].verdict is Verdict.UNKNOWN, name


def test_without_a_daemons_file_its_settings_are_unknown(tmp_path: Path) -> None:
    put(tmp_path, "qemu.conf", "")
    found = findings_of(tmp_path)
    assert found["vmm.tcp-auth"].verdict is Verdict.UNKNOWN
    assert found["vmm.confined"].verdict is not Verdict.FAIL


def test_a_link_in_a_copy_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "qemu.conf").symlink_to("/etc/libvirt/qemu.conf")
    with pytest.raises(InputError, match="nothing to audit"):
        findings_of(tmp_path)
    part = PartRoot(tmp_path, "/etc/libvirt")
    for path in ("/etc/passwd", "/etc/libvirt-x/qemu.conf", "/"):
        with pytest.raises(OSError, match="only /etc/libvirt is at hand"):
            part.read_bytes(path)
