"""cloud-init's NoCloud seed: user-data and network-config checked, the rest written by us.

What is checked: that cloud-init will recognise each document at all, its top-level keys and the kind of their values.
A misspelt key is silently ignored by cloud-init, and the guest comes up without the user, the key or the lock that was
meant. What is not: what is inside a module's own table, which differs from release to release.

``datasource_list`` is pinned twice: on the kernel's command line where we give it, and by a vendor script that writes
it to /etc/cloud/cloud.cfg.d, so that a later boot never asks a metadata service on the network.
"""

from __future__ import annotations

import difflib
import json

from casemate.errors import InputError
from casemate.provision.cloudinit_data import CLOUD_CONFIG_KEYS, NETWORK_KEYS
from casemate.provision.iso9660 import write_iso
from casemate.provision.yamldoc import Entry, Shape, read_shape

LABEL = "CIDATA"
DOCUMENT_MAX_BYTES = 512 * 1024
_KINDS = {"s": "a plain value", "l": "a list", "m": "a table", "0": "nothing"}

VENDOR_DATA = b"""\
#!/bin/sh
# From the host: no later boot asks a metadata service.
umask 022
printf 'datasource_list: [ NoCloud, None ]\\n' >/etc/cloud/cloud.cfg.d/99_casemate_datasource.cfg
"""


def check_user_data(data: bytes | bytearray, what: str, *, secret: bool = False) -> None:
    """Refuse user-data that cloud-init would not understand as it was meant.

    Args:
        what: how messages name the document.
        secret: nothing of the document may be quoted, not even a key.

    Raises:
        InputError: with all faults.
    """
    text = _text(data, what)
    first = text.split("\n", 1)[0].rstrip()
    if first.startswith("#!"):
        return
    if first != "#cloud-config":
        known = (
            "#include",
            "#cloud-boothook",
            "#cloud-config-archive",
            "#part-handler",
            "## template",
            "Content-Type:",
        )
        kind = next((word for word in known if first.lower().startswith(word.lower())), "another first line")
        raise InputError(
            f"{what} is no user-data that Casemate passes on",
            got=kind,
            expected="#cloud-config alone on the first line, or a script that starts with #!",
            next_step="what it would fetch or unpack in the guest belongs into the image, or into runcmd",
        )
    shape = read_shape(text, what)
    if shape.kind not in {"m", "", "0"}:
        raise InputError(what, got=_KINDS.get(shape.kind, "something else"), expected="a table of keys")
    _judge(shape.entries, CLOUD_CONFIG_KEYS, what, secret)


def check_network_config(data: bytes | bytearray, what: str) -> None:
    """Refuse a network-config that is neither version 1 nor 2, or has keys that neither knows.

    Raises:
        InputError: with all faults.
    """
    shape = read_shape(_text(data, what), what)
    entries = shape.entries
    if [entry.key for entry in entries] == ["network"]:
        entries = shape.inner.get("network", ())
    if [(entry.key, entry.value) for entry in entries] == [("config", "disabled")]:
        return  # cloud-init leaves the network to the image
    version = _version(entries)
    if shape.kind != "m" or version not in NETWORK_KEYS:
        raise InputError(what, got="no version that cloud-init knows", expected="a table with version: 1 or version: 2")
    _judge(entries, NETWORK_KEYS[version], what, False)


def meta_data(instance_id: str, hostname: str | None) -> bytes:
    """meta-data as JSON, which is YAML."""
    document = {"instance-id": instance_id}
    if hostname is not None:
        document["local-hostname"] = hostname
    return json.dumps(document, indent=1).encode() + b"\n"


def build_seed(
    instance_id: str, hostname: str | None, user_data: bytes | bytearray | None, network_config: bytes | None
) -> bytearray:
    """The seed's disk; a new bytearray, which the caller may wipe."""
    files: list[tuple[str, bytes | bytearray]] = [
        ("meta-data", meta_data(instance_id, hostname)),
        ("user-data", user_data if user_data is not None else b"#cloud-config\n"),
        ("vendor-data", VENDOR_DATA),
    ]
    if network_config is not None:
        files.append(("network-config", network_config))
    return write_iso(files, LABEL)


def _text(data: bytes | bytearray, what: str) -> str:
    if not 0 < len(data) <= DOCUMENT_MAX_BYTES:
        raise InputError(what, got=f"{len(data)} bytes", expected=f"1 to {DOCUMENT_MAX_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise InputError(f"{what} is not UTF-8", got=f"{fault.reason} at byte {fault.start}") from None


def _version(entries: tuple[Entry, ...]) -> int:
    found = [entry.value for entry in entries if entry.key == "version"]
    return int(found[0]) if len(found) == 1 and found[0] in {"1", "2"} else 0


def _judge(entries: tuple[Entry, ...], known: dict[str, str], what: str, secret: bool) -> None:
    faults, seen = [], set[str]()
    for entry in entries:
        name = f"line {entry.line}" if secret else f"line {entry.line}: {entry.key[:60]!r}"
        kinds = known.get(entry.key)
        if entry.key in seen:
            faults.append(f"{name} is there twice; cloud-init takes the last one")
        elif kinds is None:
            close = difflib.get_close_matches(entry.key, known, 1)
            faults.append(
                f"{name} is no key that cloud-init knows" + (f"; {close[0]}?" if close and not secret else "")
            )
        elif entry.kind not in kinds and entry.kind not in "a":
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            faults.append(f"{name} has {_KINDS.get(entry.kind, 'something else')}; expected {wanted}")
        seen.add(entry.key)
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults[:20])
        raise InputError(f"{what}: {len(faults)} fault{'s' if len(faults) > 1 else ''}{lines}")


__all__ = ["Shape", "build_seed", "check_network_config", "check_user_data", "meta_data"]
