"""A program that answers like QEMU without a machine: QMP on its standard streams, ``-L help``, ``-version``.

It is written into a file by ``write``; each run appends a line to ``runs`` beside it, so that a test can count them.
``mode``: ok, no-tcg (exits as QEMU does when its TCG module is missing), hang, flood, garbage, error, mute.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python} -IS
import json, os, sys, time
here, mode = {here!r}, {mode!r}
with open(here + "/runs", "a") as stream:
    print(" ".join(sys.argv[1:]), sorted(os.environ), file=stream)
if "-L" in sys.argv:
    print("/usr/bin/../share/qemu\\n" + here + "/data")
    sys.exit(0)
if "-compat" in sys.argv:
    sys.exit({compat})
if mode == "no-tcg" and "none,accel=tcg" in sys.argv:
    print("fatal: could not load module for type 'tcg-accel-ops'", file=sys.stderr)
    sys.exit(1)
if mode == "hang":
    time.sleep(60)
if mode == "flood":
    while True:
        sys.stdout.write("x" * 65536)
if mode == "garbage":
    print("Segmentation fault")
    sys.exit(0)
answers = {{
    "qmp_capabilities": {{}},
    "query-machines": [{{"name": "pc-q35-9.9", "alias": "q35"}}, {{"name": "microvm"}}],
    "query-qmp-schema": [{{"variants": [{{"case": "stream"}}]}}],
    "query-command-line-options": [{{"option": "sandbox"}}],
    "qom-list-properties": [{{"name": "type"}}, {{"name": "device"}}],
    "quit": {{}},
}}
types = {{"accel": ["tcg-accel", "kvm-accel", "xen-accel"], "device": ["virtio-blk-pci"]}}
version = {{"qemu": {{"major": 9, "minor": 9, "micro": 1}}, "package": "Fake 1"}}
print(json.dumps({{"QMP": {{"version": version, "capabilities": []}}}}))
for line in sys.stdin:
    question = json.loads(line)
    name = question["execute"]
    if mode == "mute" and name != "quit":
        continue
    if mode == "error" and name == "query-machines":
        print(json.dumps({{"error": {{"class": "GenericError", "desc": "no"}}}}))
        continue
    if name == "qom-list-types":
        answer = [{{"name": kind}} for kind in types[question["arguments"]["implements"]]]
    else:
        answer = answers[name]
    print(json.dumps({{"return": answer}}))
    if name == "quit":
        break
"""


def write(folder: Path, mode: str = "ok", *, insecure_types: bool = False) -> Path:
    """Write the program as ``folder/qemu-system-x86_64``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "qemu-system-x86_64"
    compat = 0 if insecure_types else 1
    path.write_text(_PROGRAM.format(python=sys.executable, here=str(folder), mode=mode, compat=compat))
    path.chmod(0o755)
    return path


def runs(folder: Path) -> list[str]:
    """One line per run: arguments and names of environment variables."""
    log = folder / "runs"
    return log.read_text().splitlines() if log.exists() else []
