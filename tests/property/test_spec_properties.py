"""Properties of the parser of specifications: round trips, totality, and agreement with the published schema."""

from __future__ import annotations

import datetime
import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import SpecError
from casemate.spec.faults import FAULT_IDS
from casemate.spec.model import Spec
from casemate.spec.network import format_publish, split_publish
from casemate.spec.override import override
from casemate.spec.parse import build_spec, check_spec, parse_spec
from casemate.spec.schema import spec_schema

TODAY = datetime.date(2026, 10, 1)
BASE = Path("/specs/here")
SCHEMA = spec_schema()

words = st.text(alphabet=string.ascii_letters + string.digits + ",=%: ._-ü", min_size=1, max_size=20).filter(
    lambda text: text.strip(" .") != ""
)
paths = st.builds(lambda parts: "/" + "/".join(parts), st.lists(words, min_size=1, max_size=4))
reasons = st.text(alphabet=string.printable[:95], min_size=8, max_size=60)
days = st.dates(min_value=TODAY, max_value=datetime.date(2100, 1, 1)).map(str)
ports = st.integers(1, 65535)
addresses = (
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(lambda address: not address.is_multicast).map(str)
)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Sound documents as plain data, of every shape."""
    image = draw(st.booleans())
    machine = draw(
        optional(
            memory_mib=st.integers(32, 1_048_576),
            vcpus=st.integers(1, 255),
            accel=st.sampled_from(["auto", "kvm", "tcg"]),
            irqchip=st.sampled_from(["split", "off"]),
        )
    )
    q35 = image or draw(st.booleans())
    if q35:
        machine["type"] = "q35"
    disk = st.fixed_dictionaries(
        {"path": paths, "format": st.sampled_from(["raw", "qcow2"])},
        optional={"mode": st.sampled_from(["read-only", "overlay", "persistent"])},
    )
    disks = draw(st.lists(disk, min_size=int(image), max_size=8 if q35 else 4, unique_by=lambda entry: entry["path"]))
    if image:
        boot: dict[str, Any] = {"firmware": draw(st.sampled_from(["uefi", "bios"]))}
    else:
        boot = {"kernel": draw(paths), **draw(optional(initrd=paths, cmdline=reasons))}
    document = {"machine": machine, "boot": boot, "disk": disks, "network": draw(networks())}
    document |= draw(
        optional(
            name=st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True),
            console=optional(device=st.sampled_from(["serial", "virtio"]), log_max_kib=st.integers(16, 1_048_576)),
            limits=optional(cpu_percent=st.integers(1, 25_500), pids=st.integers(16, 4096)),
            waiver=st.lists(
                st.fixed_dictionaries(
                    {
                        "control": st.from_regex(r"[a-z]{1,8}\.[a-z0-9-]{1,20}", fullmatch=True),
                        "reason": reasons,
                        "expires": days,
                    }
                ),
                max_size=3,
                unique_by=lambda waiver: waiver["control"],
            ),
        )
    )
    return document


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {}
    table = st.builds(
        lambda host, guest, protocol: {"host_port": host, "guest_port": guest, "protocol": protocol},
        ports,
        ports,
        st.sampled_from(["tcp", "udp"]),
    )
    published = draw(st.lists(table, max_size=4, unique_by=lambda port: (port["host_port"], port["protocol"])))
    return {"mode": "user", "egress": draw(st.sampled_from(["none", "internet"])), "publish": published}


def toml_of(value: Any) -> str:
    """TOML for our documents; JSON strings are TOML basic strings."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return json.dumps(value)


def document_toml(document: dict[str, Any]) -> str:
    return "".join(f"{key} = {toml_of(value)}\n" for key, value in document.items())


def schema_accepts(node: dict[str, Any], value: Any) -> bool:
    """A validator for the part of JSON Schema that ours uses."""
    if "$ref" in node:
        return schema_accepts(SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")], value)
    if "anyOf" in node and "type" not in node:
        return any(schema_accepts(choice, value) for choice in node["anyOf"])
    if "enum" in node:
        return value in node["enum"]
    kind = node["type"]
    if kind == "object":
        known = node["properties"]
        return (
            isinstance(value, dict)
            and any(set(one.get("required", ())) <= set(value) for one in node.get("anyOf", [node]))
            and set(value) <= set(known)
            and all(schema_accepts(known[key], item) for key, item in value.items())
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and len(value) <= node.get("maxItems", 1 << 30)
            and all(schema_accepts(node["items"], item) for item in value)
        )
    if kind == "integer":
        return type(value) is int and node["minimum"] <= value <= node["maximum"]
    return (
        isinstance(value, str)
        and node.get("minLength", 0) <= len(value) <= node.get("maxLength", 1 << 30)
        and re.search(node.get("pattern", ""), value) is not None
    )


@given(documents())
@settings(deadline=None)
def test_sound_documents_parse_and_fit_the_schema(document: dict[str, Any]) -> None:
    spec = parse_spec(document_toml(document), "x", BASE, today=TODAY)
    assert check_spec(spec, today=TODAY) == ()
    assert schema_accepts(SCHEMA, document)
    assert [disk.path for disk in spec.disks] == [disk["path"] for disk in document["disk"]]


@given(documents())
@settings(deadline=None)
def test_round_trips(document: dict[str, Any]) -> None:
    """Through JSON as it is stored, through plain data, and with no flags: the same specification."""
    spec = parse_spec(document_toml(document), "x", BASE, today=TODAY)
    stored = msgspec.json.encode(spec)
    assert msgspec.json.decode(stored, type=Spec) == spec
    assert build_spec(msgspec.json.decode(stored), "x", Path("/elsewhere"), today=TODAY) == spec
    assert override(spec, base_dir=Path("/elsewhere"), today=TODAY) == spec


@given(documents(), st.data())
@settings(deadline=None)
def test_one_wrong_value_is_one_fault_there(document: dict[str, Any], data: st.DataObject) -> None:
    """Whatever stands in a sound document, replacing one known value by nonsense is reported at that place."""
    table = data.draw(st.sampled_from(["machine", "console", "limits"]))
    key = {"machine": "memory_mib", "console": "log_max_kib", "limits": "pids"}[table]
    nonsense = data.draw(st.one_of(st.booleans(), st.text(max_size=5), st.floats(), st.integers(max_value=15)))
    document[table] = {**document.get(table, {}), key: nonsense}
    with pytest.raises(SpecError) as caught:
        build_spec(document, "x", BASE, today=TODAY)
    (fault,) = caught.value.faults
    assert fault.path == f"{table}.{key}"
    assert fault.fault_id in {"type.wrong", "value.range"}
    assert not schema_accepts(SCHEMA, document)


KEYS = st.sampled_from(
    [*SCHEMA["properties"], *(key for part in SCHEMA["$defs"].values() for key in part.get("properties", {}))]
)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def judge(make: Callable[[], Spec]) -> None:
    """Either a sound specification, or faults with known ids whose text a terminal may show."""
    error = None
    try:
        spec = make()
    except SpecError as caught:
        error = caught
    if error is None:
        assert check_spec(spec, today=TODAY) == ()
    else:
        assert {fault.fault_id for fault in error.faults} <= set(FAULT_IDS)
        assert all(char >= " " or char == "\n" for char in str(error))


@given(st.dictionaries(KEYS, plain_data, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_data_gives_a_spec_or_known_faults(document: dict[str, Any]) -> None:
    judge(lambda: build_spec(document, "x", BASE, today=TODAY))


@given(st.text() | st.binary())
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_spec_or_known_faults(text: str | bytes) -> None:
    judge(lambda: parse_spec(text, "x", BASE, today=TODAY))


@given(st.text(alphabet="ab./~:,= \n\0\x7f\u202e", max_size=30))
@settings(max_examples=300, deadline=None)
def test_accepted_paths_are_absolute_and_normal(raw: str) -> None:
    try:
        spec = build_spec({"boot": {"kernel": raw}}, "x", BASE, today=TODAY)
    except SpecError:
        return
    path = spec.boot.kernel
    assert path is not None
    assert path.startswith("/")
    assert not path.endswith("/")
    assert not {"", ".", ".."} & set(path.split("/")[1:])
    assert path.isprintable()


@given(addresses, ports, ports, st.sampled_from(["tcp", "udp"]))
@settings(deadline=None)
def test_published_ports_round_trip(address: str, host_port: int, guest_port: int, protocol: str) -> None:
    text = format_publish(address, host_port, guest_port, protocol)
    assert split_publish(text) == {
        "address": address, "host_port": host_port, "guest_port": guest_port, "protocol": protocol,
    }  # fmt: skip


@given(st.text(alphabet="0123456789:[]./tcpud", max_size=24))
@settings(max_examples=300, deadline=None)
def test_published_port_strings_agree_with_the_schema(text: str) -> None:
    document = {"boot": {"kernel": "/k"}, "network": {"mode": "user", "publish": [text]}}
    try:
        build_spec(document, "x", BASE, today=TODAY)
    except SpecError:
        return
    assert schema_accepts(SCHEMA, document)
