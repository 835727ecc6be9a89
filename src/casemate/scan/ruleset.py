"""The rules of one scan: ours, and those of a file that the user gives."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from casemate.errors import InputError
from casemate.scan import rules_files_data, rules_keys_data, rules_tokens_data
from casemate.scan.model import PathRule, Rule
from casemate.scan.paths import PATH_RULES


class RuleSet(msgspec.Struct, frozen=True):
    """``not_taken``: rules of the user's file that could not be used, each with the reason; never silent."""

    rules: tuple[Rule, ...]
    paths: tuple[PathRule, ...]
    not_taken: tuple[str, ...] = ()

    def rule(self, rule_id: str) -> Rule | PathRule:
        """The rule of this name."""
        return self.by_id()[rule_id]

    def by_id(self) -> dict[str, Rule | PathRule]:
        """Every rule by its name."""
        every: tuple[Rule | PathRule, ...] = (*self.rules, *self.paths)
        return {rule.id: rule for rule in every}


def builtin() -> RuleSet:
    """Our own rules."""
    rules = (*rules_keys_data.RULES, *rules_tokens_data.RULES, *rules_files_data.RULES)
    return RuleSet(rules, PATH_RULES)


def with_rules(base: RuleSet, more: Sequence[Rule], not_taken: Sequence[str] = ()) -> RuleSet:
    """``base`` and rules of the user; a rule of the same name replaces ours.

    Raises:
        InputError: a name twice among the user's.
    """
    ids = [rule.id for rule in more]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise InputError(f"rules with one id: {', '.join(twice[:8])}", next_step="give each rule an id of its own")
    kept = tuple(rule for rule in base.rules if rule.id not in set(ids))
    return RuleSet((*kept, *more), base.paths, (*base.not_taken, *not_taken))
