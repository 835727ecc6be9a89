"""Secrets planted for a guest, the script with which it says their digests, and a search for them all over the host.

The guest prints digests only: what it printed itself would stand in the console's log.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

# A guest script of its own on the seed: the command line of a kernel is short, and visible to every user of the guest.
SCRIPT = """\
#!/bin/sh
for name in db-password blob; do
    sha256sum </run/credentials/@system/$name | sed "s/^\\([0-9a-f]*\\).*/@@ $name \\1 @@/"
done
ls /run/credentials/@system | sort | tr '\\n' ' ' | sed 's/.*/@@ names & @@/'
tr ' ' '\\n' </proc/cmdline | grep -c '^ci.ds=NoCloud$' | sed 's/.*/@@ pinned & @@/'
echo "@@ ready @@"
sleep 600
"""
RUN = (
    "systemd.run_success_action=none systemd.run_failure_action=none "
    "systemd.run=\"/bin/sh -c 'mount -r /dev/disk/by-label/CIDATA /mnt && exec sh /mnt/user-data >/dev/console'\""
)


class Planted:
    """Values that no file, argument or environment of the host may hold while the VM runs."""

    def __init__(self, directory: Path) -> None:
        self.password = secrets.token_hex(24).encode()
        self.blob = bytes(range(256)) + secrets.token_bytes(64)
        self.own = {directory / "db", directory / "blob.bin"}
        (directory / "db").write_bytes(self.password)
        (directory / "blob.bin").write_bytes(self.blob)
        for path in self.own:
            path.chmod(0o600)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """In every form that a channel carries; the blob by a part that is its own."""
        raw = (self.password, self.blob[-64:])
        return (
            *raw,
            base64.b64encode(self.password),
            base64.b64encode(self.blob)[-48:-4],
            self.password.hex().encode(),
        )


def holders(needles: tuple[bytes, ...], directories: tuple[Path, ...], own: set[Path]) -> list[str]:
    """Where any needle stands: arguments and environments of all processes, files they map, and whole directories."""
    found = []
    mapped: set[Path] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        for name in ("cmdline", "environ", "comm"):
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue
            found += [f"{process / name}" for needle in needles if needle in data]
        try:
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue
        mapped |= {Path(line.split(None, 5)[5]) for line in lines if len(line.split(None, 5)) == 6}
    ours = [path for path in mapped if any(path.is_relative_to(directory) for directory in directories)]
    files = [path for directory in directories for path in directory.rglob("*")]
    for path in {*ours, *files} - own:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [str(path) for needle in needles if needle in data]
    return found
