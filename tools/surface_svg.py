"""Draw docs/surface.svg: the data path of every device that is known, under KVM, with figures counted on this host.

.venv/bin/python tools/surface_svg.py            boots the measuring guest (half a minute)
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate import assess
from casemate.surface.paths_data import DEVICES

PICTURE = Path(__file__).parents[1] / "docs" / "surface.svg"


def main() -> int:
    """Measure, draw, write."""
    document = assess.surface(measure=True, report=lambda step: print(step, file=sys.stderr))
    document |= {"accel": "kvm", "paths": list(DEVICES)}
    assess.write_pictures(str(PICTURE), document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
