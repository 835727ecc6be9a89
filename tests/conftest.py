"""What all tests share: where programs are, and that time is never an assertion, not hypothesis' own either."""

from __future__ import annotations

import os

from hypothesis import settings

# mkfs and its like are in directories that Debian gives to root's PATH alone.
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", "/usr/bin:/bin"), "/usr/local/sbin", "/usr/sbin", "/sbin"))

# In CI the same examples every time: a submission is judged by what it changes. Elsewhere new ones are looked for.
settings.register_profile("casemate", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("casemate")
