"""Settings that all tests share: how long something takes is never an assertion, not hypothesis' own either."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("casemate", deadline=None)
settings.load_profile("casemate")
