"""Controls that are planned and not judged yet, by what they are about: said here so that none is dropped silently."""

from __future__ import annotations

from typing import Final

LATER: Final[dict[str, tuple[str, ...]]] = {}
