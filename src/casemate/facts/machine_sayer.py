"""Collects the facts of one described machine."""

from __future__ import annotations

from casemate.facts.fact import Facts, Known, Stage, Unknown, Value


class Sayer:
    """Collects facts of one stage from one source."""

    def __init__(self, source: str, stage: Stage) -> None:
        self.source = source
        self.stage = stage
        self.facts: Facts = {}

    def say(self, name: str, value: Value, place: str) -> None:
        self.facts[name] = Known(value, f"{self.source}: {place}", self.stage)

    def miss(self, name: str, why: str) -> None:
        self.facts[name] = Unknown(f"{self.source}: {why}")
