"""The public API: small, documented, cheap to import, and the same documents as the command line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from casemate import app
from casemate.engine import state
from casemate.engine.paths import Paths, prepare
from casemate.engine.state import Definition
from casemate.engine.unit import systemd_unit
from casemate.errors import CasemateError, InputError
from casemate.spec.model import Disk, DiskFormat, DiskMode, Spec
from casemate.spec.override import override

PUBLIC_MAX = 25
SOURCE = Path(app.__file__)


def test_at_most_25_public_names_and_all_are_listed() -> None:
    assert len(app.__all__) == len(set(app.__all__)) <= PUBLIC_MAX
    tree = ast.parse(SOURCE.read_text())
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted(defined) == sorted(app.__all__)


@pytest.mark.parametrize("name", app.__all__)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    thing = getattr(app, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        parameters = inspect.signature(thing).parameters.values()
        assert all(parameter.annotation is not parameter.empty for parameter in parameters)
        assert inspect.signature(thing).return_annotation is not inspect.Signature.empty


def test_import_of_the_api_brings_no_layer_with_it() -> None:
    code = "import sys, casemate.app; print(*(m for m in sys.modules if m.startswith('casemate') or m == 'msgspec'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {"casemate", "casemate.app"}


def test_a_launch_imports_nothing_for_what_a_plain_vm_has_not() -> None:
    code = "import sys, casemate.engine.attendance; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    needless = re.compile(
        r"casemate\.(?!spec|jail).*(confidential|swtpm|tpm_|uefi_|network|passt$)|base64|cryptography"
        r"|casemate\.image\.(headers|qcow2|luks|overlay|cpio)|lzma|casemate\.facts\.subid"
        r"|casemate\.jail\.rulesets\.(passt|swtpm|reader|supervisor|qemu_img)"
    )
    found = {name for name in done.stdout.split() if needless.match(name)}
    # Planning asks these whether there is anything to do; the controls of networks and TPMs are judged of every VM.
    assert found == {"casemate.controls.catalogue.network", "casemate.plan.confidential", "casemate.plan.passt"}


def test_overrides_are_the_flags_that_a_specification_takes() -> None:
    """A flag that `override` learns must not be forgotten here, nor one passed that it does not know."""
    taken = set(inspect.signature(override).parameters) - {"spec", "base_dir", "today", "format_of", "image_of"}
    assert {field.name for field in dataclasses.fields(app.Overrides)} == taken


def test_faces_use_nothing_but_the_api() -> None:
    """The command line has no logic: of Casemate it imports the API, errors, units and the version (and types)."""
    allowed = re.compile(
        r"casemate\.(app|assess|reports|images|contents|scans|risks|risk_reports|attests|challenges|measures|releases"
        r"|provisions|errors|units|installed|cli(\.\w+)*)"
    )
    for path in (SOURCE.parent / "cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
            if "TYPE_CHECKING" in ast.unparse(block.test):
                block.body = []
        for node in ast.walk(tree):
            for module in _modules(node):
                if module.partition(".")[0] == "casemate":
                    assert allowed.fullmatch(module), f"{path.name}: {module}"


def _modules(node: ast.AST) -> list[str]:
    """What a node imports; ``from casemate import name`` is the module of that name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "imports are absolute here"
    return [f"casemate.{alias.name}" for alias in node.names] if node.module == "casemate" else [node.module or ""]


@pytest.fixture
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """The API in directories of the test's own, for root too."""
    paths = Paths(f"{tmp_path}/run", f"{tmp_path}/data", f"{tmp_path}/cache")
    monkeypatch.setattr("casemate.engine.paths.default_paths", lambda: paths)
    return paths


def test_unknown_vms_are_input_errors(own_directories: Paths) -> None:
    assert app.list_vms() == []
    for call in (app.inspect, app.stop, app.kill, app.remove, app.pause, app.unpause, app.unit, app.stats, app.attach):
        with pytest.raises(InputError, match="no such VM: nobody"):
            call("nobody")
    for iterate in (app.logs, app.events):
        with pytest.raises(InputError):
            iterate("nobody")


def test_directories_are_private(own_directories: Paths) -> None:
    app.list_vms()
    for path in (own_directories.runtime, own_directories.data, own_directories.cache):
        assert os.stat(path).st_mode & 0o777 == 0o700


def test_a_library_caller_gets_errors_not_exits(own_directories: Paths, tmp_path: Path) -> None:
    with pytest.raises(CasemateError) as caught:
        app.load_target(str(tmp_path / "missing"))
    assert caught.value.next_step
    with pytest.raises(InputError, match="nothing to run"):
        app.load_target(None)


def test_records_need_a_record(own_directories: Paths) -> None:
    assert app.show_key().startswith("ssh-ed25519 ")
    with pytest.raises(InputError, match="no launch records yet"):
        app.verify_records()
    with pytest.raises(InputError, match="cannot read"):
        app.verify_records(["/nonexistent"])
    with pytest.raises(InputError, match="public key"):
        app.verify_records(["/nonexistent"], key="not a key")


def test_a_vm_stands_for_its_records(own_directories: Paths) -> None:
    prepare(own_directories)
    definition = state.create(own_directories, Spec(name="web"))
    directory = Path(own_directories.data) / "records"
    directory.mkdir()
    for sequence, vm_id in ((1, definition.id), (2, "0" * 16), (3, definition.id)):
        (directory / f"{sequence:08d}-{vm_id}.json").write_text("{}")
    mine = [str(directory / f"{number:08d}-{definition.id}.json") for number in (1, 3)]
    for name in ("web", definition.id, definition.id[:6]):
        document = app.verify_records([name])
        assert [item["file"] for item in document["records"]] == mine
        assert not document["ok"], "these are none"
    assert [item["file"] for item in app.verify_records(["0" * 16])["records"]] == [
        str(directory / f"00000002-{'0' * 16}.json")
    ]
    for name in ("nobody", "00"):
        with pytest.raises(InputError, match=f"no launch record of {name}") as caught:
            app.verify_records([name])
        assert "verify-record lists" in caught.value.next_step


# ---- the unit of a VM ---------------------------------------------------------------------------


def unit_for(path: str, *, rootless: bool = False, policy_file: str | None = None) -> str:
    spec = Spec(disks=(Disk(path=path, format=DiskFormat.RAW, mode=DiskMode.PERSISTENT),))
    definition = Definition("0123456789abcdef", "web", spec, "2026-01-01T00:00:00Z")
    return systemd_unit(
        definition, Paths("/run/casemate", "/data dir", "/cache"), rootless=rootless, policy_file=policy_file
    )


def test_unit_escapes_what_systemd_would_expand() -> None:
    unit = unit_for('/srv/100% "big" $HOME/a\\b.img', policy_file="/etc/my policy $X%Y.toml")
    assert '"-/srv/100%% \\"big\\" $HOME/a\\\\b.img"' in unit  # no variables in a list of paths
    assert '--policy "/etc/my policy $$X%%Y.toml"' in unit
    assert '"-/data dir"' in unit


def test_unit_of_an_ordinary_user_keeps_newuidmap_working() -> None:
    unit = unit_for("/srv/a.img", rootless=True)
    assert "NoNewPrivileges" not in unit
    assert "CapabilityBoundingSet" not in unit
    assert "WantedBy=default.target" in unit
    assert "WantedBy=multi-user.target" in unit_for("/srv/a.img")


# systemd.exec(5): each of them is, or brings along, a system call filter of systemd's.
FILTERS = (
    *("LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock", "ProtectHostname"),
    *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RestrictAddressFamilies"),
    *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter"),
    "SystemCallLog",
)


@pytest.mark.parametrize("rootless", [False, True])
def test_unit_loads_no_filter_that_would_blind_the_read_back(rootless: bool) -> None:
    found = {line.partition("=")[0] for line in unit_for("/srv/a.img", rootless=rootless).splitlines()}
    assert found.isdisjoint(FILTERS)
    assert "Delegate=cpu io memory pids" in unit_for("/srv/a.img", rootless=rootless)


def test_unit_of_root_works_after_a_reboot_and_under_apparmor() -> None:
    unit = unit_for("/srv/a.img")
    assert "RuntimeDirectory=casemate\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\n" in unit
    assert "\nEnvironment=TMPDIR=/run/casemate\n" in unit.replace('"', "")  # ProtectSystem=strict closes /tmp
    assert "CAP_MAC_ADMIN" in unit
    assert not {"CAP_SYS_MODULE", "CAP_SYSLOG", "CAP_SYS_BOOT", "CAP_BPF"} & set(re.findall("CAP_[A-Z_]+", unit))
    assert "RuntimeDirectory" not in unit_for("/srv/a.img", rootless=True)


def test_unit_has_no_line_of_the_callers_making() -> None:
    assert all(
        re.fullmatch(r"|\[\w+\]|#.*|[A-Z][A-Za-z]+=.+", line) for line in unit_for("/srv/a=b\tc.img").splitlines()
    )
