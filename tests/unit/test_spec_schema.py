"""The published JSON Schema, and the manual beside it."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from casemate.spec.faults import FAULT_IDS
from casemate.spec.parse import load_toml, parse_spec
from casemate.spec.schema import SCHEMA_ID, spec_schema

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/spec-schema.json"
MANUAL = (ROOT / "docs/spec.md").read_text()
TODAY = datetime.date(2026, 10, 1)
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", MANUAL, re.MULTILINE | re.DOTALL)


def objects(node: Any) -> list[dict[str, Any]]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [*([node] if isinstance(node, dict) else []), *(found for part in inner for found in objects(part))]


def test_schema_is_the_golden_one() -> None:
    """After a wanted change, write ``json.dumps(spec_schema(), indent=2)`` and a line break into the golden file."""
    assert json.dumps(spec_schema(), indent=2) + "\n" == GOLDEN.read_text()


def test_schema_is_closed_and_complete() -> None:
    schema = spec_schema()
    assert schema["$id"] == SCHEMA_ID
    for part in objects(schema):
        if part.get("type") == "object":
            # Closed, or a table of names whose values are closed.
            assert part["additionalProperties"] is False or ("$ref" in part["additionalProperties"])
            assert part["additionalProperties"] is False or part["propertyNames"]["pattern"].startswith("^")
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in schema["$defs"]
    assert "null" not in json.dumps(schema)
    assert "://" not in json.dumps({key: value for key, value in schema.items() if key != "$schema"})


def test_every_key_is_described() -> None:
    schema = spec_schema()
    for name, part in schema["$defs"].items():
        assert part["description"], name
        for key, value in part.get("properties", {}).items():
            assert value.get("description") or value.get("$ref"), f"{name}.{key}"


def test_manual_names_every_key_and_fault() -> None:
    schema = spec_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    words = set(re.findall(r"[a-z0-9_.-]+", MANUAL))
    assert keys <= words
    listed = set(re.findall(r"^\| `([a-z0-9.-]+)` \|", MANUAL, re.MULTILINE))
    assert set(FAULT_IDS) <= listed


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_manual_are_sound(text: str) -> None:
    parse_spec(text, "docs/spec.md", Path("/specs"), today=TODAY)


def test_manual_has_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert any("firmware" in load_toml(text, "docs/spec.md").get("boot", {}) for text in EXAMPLES)
