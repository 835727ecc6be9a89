"""Write what ``casemate --help`` prints into README.md; tests/unit/test_drift.py compares the two."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Return the exit code."""
    program = Path(sys.executable).with_name("casemate")
    environment = {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, env=environment)
    readme = ROOT / "README.md"
    block = f"```text\n$ casemate --help\n{done.stdout.rstrip()}\n```"
    text, count = re.subn(
        r"^```text\n\$ casemate --help\n.*?^```$",
        lambda _match: block,
        readme.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    if count != 1:
        print("readme_help: README.md has no ```text block that starts with '$ casemate --help'", file=sys.stderr)
        return 1
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
