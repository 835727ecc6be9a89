"""JSON Schema of the specification, generated from the types so that it cannot drift from them.

TOML editors read it; ``tests/golden/spec-schema.json`` makes a change visible in review. It describes keys, types and
bounds; the rules between fields (``spec/rules.py``) are beyond what editors check and stay with Casemate.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from casemate.spec.model import Spec

SCHEMA_VERSION = 1
SCHEMA_ID = f"urn:casemate:spec:{SCHEMA_VERSION}"

_PUBLISH_STRING = {
    "type": "string",
    "pattern": r"^((\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?[0-9]{1,5}:[0-9]{1,5}(/(tcp|udp))?$",
    "description": "[ADDR:]HOST:GUEST[/tcp|udp], for example 2222:22.",
}


def spec_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as plain data, ready for ``json.dumps``."""
    (_,), components = msgspec.json.schema_components([Spec], ref_template="#/$defs/{name}")
    definitions = {name: _without_null(part) for name, part in sorted(components.items())}
    top = definitions.pop("Spec")
    published = definitions["Network"]["properties"]["publish"]
    published["items"] = {"anyOf": [_PUBLISH_STRING, published["items"]]}
    disk = definitions["Disk"]
    disk["anyOf"] = [{"required": disk.pop("required")}, {"required": ["image"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **top,
        "title": f"Casemate specification, version {SCHEMA_VERSION}",
        "$defs": definitions,
    }


def _without_null(node: Any) -> Any:
    """TOML has no null: an optional key is one that may be left out. Also drops reStructuredText marks."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _without_null(value) for key, value in node.items() if not (key == "default" and value is None)}
    choices = plain.get("anyOf")
    if choices is not None:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        if len(kept) == 1:
            del plain["anyOf"]
            plain = {**kept[0], **plain}
    default = plain.get("default")
    if isinstance(default, dict):
        plain["default"] = {key: value for key, value in default.items() if value is not None}
    if isinstance(plain.get("description"), str):
        plain["description"] = re.sub(r"``", "", plain["description"])
    return plain
