"""How much memory a fuzzed reader may use in a test."""

from __future__ import annotations

import resource


def rss_limit_mb(own_mb: int) -> int:
    """For libFuzzer: it counts the peak of its process, and that begins at the peak of ours, whose child it is."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + own_mb
