"""The context file that ``casemate risk init`` writes: every default with a comment, ready to be changed."""

from __future__ import annotations

from casemate.scenarios.context import DEFAULT_GRAVITY, DEFAULT_TRUST, FORMAT
from casemate.scenarios.data import graph
from casemate.scenarios.model import POSITIONS, Node

_GOODS = {
    Node.VM_DATA: "data and services of a VM",
    Node.OTHER_VM_DATA: "data of the other VMs on the host",
    Node.HOST: "the host, and with it every VM on it",
    Node.SECRETS: "images, keys and secrets",
    Node.AVAILABILITY: "that the VMs run",
    Node.EVIDENCE: "logs and records that show what happened",
}


def default_text() -> str:
    """The file, as TOML; `parse_context` reads it back to the defaults."""
    goods = "\n".join(f"{node.value} = {gravity}    # {_GOODS[node]}" for node, gravity in DEFAULT_GRAVITY.items())
    trust = "\n".join(f'{node.value} = "{why}"' for node, why in DEFAULT_TRUST.items())
    positions = ", ".join(node.value for node in POSITIONS)
    scenarios = "\n".join(f"#   {variant.id}: {variant.title}" for variant in graph().variants)
    return f"""# What only the owner can say; for casemate risk --context FILE. Change what is not so.
format = {FORMAT}
name = ""

# How bad it is to lose it: 1 negligible, 2 limited, 3 important, 4 critical (EBIOS RM: gravity G1 to G4).
[goods]
{goods}

# The same for some VMs, by name (shell patterns):
# [goods-of."shop-*"]
# vm-data = 4

# Who does not attack, and why you believe so. Scenarios that start only there are set aside, and the report says so.
# Positions: {positions}
[trust]
{trust}

# What a fix costs you, in points, in place of the catalogue's figure (casemate risk shows both names and points):
# [costs]
# "cpu.smt" = 8

# Risks that you bear, until a day:
# [[accept]]
# scenario = "side-channel"
# reason = "all VMs belong to one owner"
# until = 2027-06-30
# Scenarios:
{scenarios}
"""
