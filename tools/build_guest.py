"""Build the built-in guest into the caller's cache, unless it is there; used by ./demo and ./check before anything is
timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.engine.paths import default_paths
from casemate.errors import CasemateError
from casemate.image.builtin import build_builtin


def main() -> int:
    """Return the exit code."""
    try:
        build_builtin(Path(default_paths().cache), lambda line: print(f"casemate: {line}", file=sys.stderr, flush=True))
    except CasemateError as error:
        print(f"casemate: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
