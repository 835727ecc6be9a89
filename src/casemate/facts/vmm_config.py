"""Configuration files of VMMs other than QEMU, told apart by their content."""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import InputError
from casemate.facts.machine import Machine
from casemate.facts.vmm_cloud_hypervisor import KEYS as CLOUD_HYPERVISOR_KEYS
from casemate.facts.vmm_cloud_hypervisor import read_cloud_hypervisor
from casemate.facts.vmm_document import parse_json
from casemate.facts.vmm_firecracker import KEYS as FIRECRACKER_KEYS
from casemate.facts.vmm_firecracker import read_firecracker
from casemate.facts.vmm_kata import read_kata

TABLE: Final = re.compile(rb"^[ \t]*\[[ \t]*hypervisor[ \t]*\.", re.MULTILINE)


def read_vmm_config(data: bytes, source: str) -> Machine:
    """The machine of Firecracker's or Cloud Hypervisor's JSON, or of Kata's TOML.

    Raises:
        InputError: none of the three, or not understood.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"{"):
        return read_kata(data, source)
    tree = parse_json(data, source)
    keys = set(tree)
    if isinstance(tree.get("config"), dict):
        keys |= set(tree["config"])
    if keys & FIRECRACKER_KEYS:
        return read_firecracker(data, source)
    if "payload" in keys or len(keys & CLOUD_HYPERVISOR_KEYS) >= 2:
        return read_cloud_hypervisor(data, source)
    raise InputError(
        f"{source}: JSON of no VMM that is known here",
        got=", ".join(sorted(map(str, keys)))[:200] or "no names",
        expected="Firecracker's (boot-source, drives, machine-config) or Cloud Hypervisor's (payload, cpus, disks)",
    )
