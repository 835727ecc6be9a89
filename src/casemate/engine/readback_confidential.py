"""What the emulator says of its confidential guest while that is paused, before the launch is measured to its end.

Asked are the object that the machine is linked with, and its properties: what QEMU will tell the security processor at
``cont``. Not run on hardware: the questions were tried with QEMU 11.1 and objects that no machine was linked with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from casemate.facts.fact import Facts, Known, Stage, Value
from casemate.plan.confidential import OBJECT, OBJECT_TYPES
from casemate.plan.model import LaunchPlan
from casemate.spec.confidential import Kind

_PATH: Final = f"/objects/{OBJECT}"
_SNP_DEBUG, _SNP_MIGRATION, _TDX_DEBUG = 19, 18, 0


def observe_confidential(plan: LaunchPlan, ask: Callable[..., Any]) -> Facts:
    """The facts that the plan of a confidential guest declares; none for another one."""
    wanted = plan.spec.confidential
    if wanted is None:
        return {}
    facts: Facts = {}

    def know(name: str, value: Value, question: str) -> None:
        facts[name] = Known(value, f"QMP {question}", Stage.OBSERVED)

    def get(name: str) -> Any:
        return ask("qom-get", path=_PATH, property=name)

    linked = ask("qom-get", path="/machine", property="confidential-guest-support") == _PATH
    kind = get("type")
    is_it = linked and kind == OBJECT_TYPES[wanted.kind]
    know(
        "cc.type", str(kind).removesuffix("-guest") if is_it else "none", "qom-get /machine confidential-guest-support"
    )
    if wanted.kind is Kind.SE:
        return facts
    bits = get("policy" if wanted.kind is Kind.SEV_SNP else "attributes")
    if not isinstance(bits, int):
        bits = -1  # every bit: what is not understood lets the host do everything
    question = f"qom-get {_PATH}"
    if wanted.kind is Kind.TDX:
        know("cc.debug", bool(bits >> _TDX_DEBUG & 1), question)
    else:
        know("cc.debug", bool(bits >> _SNP_DEBUG & 1), question)
        know("cc.migration-agent", bool(bits >> _SNP_MIGRATION & 1), question)
        know("cc.kernel", "measured" if get("kernel-hashes") is True else "unmeasured", question)
    nodes = ask("query-named-block-nodes", flat=True)
    has_flash = not isinstance(nodes, list) or any("firmware" in str(node.get("node-name")) for node in nodes)
    know("cc.firmware-variables", has_flash, "query-named-block-nodes: firmware")
    return facts
