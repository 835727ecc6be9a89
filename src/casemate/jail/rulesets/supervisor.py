"""The supervisor."""

from __future__ import annotations

from casemate.jail.rules import Rule

RULES: tuple[Rule, ...] = (Rule("read", "placeholder"),)
