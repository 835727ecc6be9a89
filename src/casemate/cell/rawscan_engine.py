"""The scanner's engine for a set of rules, with the compiled form from the cache where there is one."""

from __future__ import annotations

import msgspec

from casemate.scan.cache import load, save
from casemate.scan.engine import Engine
from casemate.scan.prefilter import Hyperscan, Plain, fingerprint, refused_by_hyperscan
from casemate.scan.redact import Redactor
from casemate.scan.ruleset import RuleSet


def build_engine(rules: RuleSet, redactor: Redactor, cache: str, *, plain: bool) -> tuple[RuleSet, Engine]:
    """The rules that the engine takes, and the engine, with the compiled form from the cache where there is one."""
    if plain:
        return rules, Engine(rules.rules, Plain(rules.rules), redactor)
    name = fingerprint(rules.rules)
    kept = load(cache, name)
    try:
        prefilter = Hyperscan(rules.rules, kept)
    except ValueError:
        bad = refused_by_hyperscan(rules.rules)
        left = tuple(f"{rule}: {why}" for rule, why in bad.items())
        usable = tuple(rule for rule in rules.rules if rule.id not in bad)
        rules = msgspec.structs.replace(rules, rules=usable, not_taken=(*rules.not_taken, *left))
        return rules, Engine(usable, Hyperscan(usable), redactor)
    if prefilter.was_compiled:
        save(cache, name, prefilter.dump())
    return rules, Engine(rules.rules, prefilter, redactor)
