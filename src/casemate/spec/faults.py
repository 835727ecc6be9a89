"""The faults a specification can have: their stable ids, and the collector that reports all of them together.

Scripts may rely on the ids; the words beside them may change. ``docs/spec.md`` lists the same ids and a test compares.
"""

from __future__ import annotations

from casemate.errors import Fault, SpecError

MAX_FAULTS = 100

FAULT_IDS: dict[str, str] = {
    "toml.encoding": "the document is not valid UTF-8",
    "toml.size": "the document is larger than 1 MiB",
    "toml.syntax": "the document is not TOML",
    "toml.nesting": "keys or values are nested deeper than any specification needs",
    "key.unknown": "a key that no specification has",
    "key.missing": "a key that this table needs",
    "type.wrong": "a value of another type than the key takes",
    "value.range": "a number outside its bounds",
    "value.choice": "a word that is not among the choices",
    "value.length": "a text or list that is too short or too long",
    "value.pattern": "a text that does not have the form the key takes",
    "text.control": "a control, line-break or direction character, which could forge output or options",
    "text.ascii": "a character outside printable ASCII where the kernel wants ASCII",
    "path.empty": "an empty path",
    "path.too-long": "a path longer than the kernel accepts",
    "path.home": "a path that starts with ~, which is not expanded",
    "path.url": "a URL or a QEMU pseudo-protocol where a local file is meant",
    "path.parent": "a .. after a directory name, which text and kernel may resolve differently",
    "path.directory": "a path that ends in a slash",
    "address.invalid": "not an IP address, or one that cannot be bound",
    "cidr.invalid": "not a CIDR block",
    "cidr.forbidden": "a block that touches loopback, link-local, multicast or reserved addresses",
    "cidr.duplicate": "a block listed twice",
    "publish.syntax": "not of the form [ADDR:]HOST:GUEST[/tcp|udp]",
    "publish.duplicate": "a host port published twice",
    "publish.needs-user": "published ports without a user network",
    "egress.needs-user": "an egress policy without a user network",
    "egress.allow-empty": 'egress = "list" without a list',
    "egress.allow-unused": 'a list without egress = "list"',
    "ipv6.needs-user": "IPv6 without a user network",
    "ipv6.off": "an IPv6 address or block, and a network without IPv6",
    "boot.missing": "neither a kernel nor a firmware",
    "boot.both": "a kernel and a firmware",
    "boot.needs-kernel": "an initrd or command line without a kernel",
    "boot.needs-disk": "a firmware without a disk to boot from",
    "boot.needs-secure": "keys for Secure Boot, and a firmware without it",
    "machine.needs-q35": "something that the microvm machine does not have",
    "machine.microvm-disks": "more disks than a microvm has transports for",
    "disk.duplicate": "the same image twice",
    "disk.option": "an option of --disk that does not exist, or two that exclude each other",
    "disk.format": "a disk whose format is not said",
    "disk.image": "an image that the store does not have, or a disk with an image and a path",
    "disk.immutable": "a disk that the guest would write into although its content is fixed",
    "waiver.duplicate": "two waivers for one control",
    "waiver.expired": "a waiver whose last day is over",
    "passthrough.duplicate": "a PCI function given twice",
    "passthrough.expired": "a passthrough whose last day is over",
    "disk.encryption": "an encrypted disk that is an overlay, or qcow2 in a VM that can be saved",
    "disk.key": "an encrypted disk without a key, a key without one, or a secret that is the key of no disk",
    "secret.source": "a secret with no source, or with several",
    "secret.identity": "an age file without an identity, or an identity without an age file",
    "secret.command": "a command that is empty or not given by its full path",
    "secret.name-length": "a credential's name that is too long for a microvm",
    "secret.twice": "two sources for the one user-data or Ignition config of a VM",
    "tpm.key": 'a TPM\'s key that is no secret with `use = "tpm"`, or such a secret that is the key of no TPM',
    "tpm.unused-key": "a key for a TPM that the VM does not have",
    "confidential.tpm": "a TPM that the host emulates, in a confidential guest",
    "tpm.saveable": "a VM that has a TPM and may be saved",
    "provision.both": "cloud-init and Ignition in one VM",
    "confidential.machine": "a confidential guest on another machine than its kind needs, or that machine without one",
    "confidential.accel": "a confidential guest under TCG",
    "confidential.irqchip": "a confidential guest without the local APIC in the kernel",
    "confidential.saveable": "a confidential guest that may be saved",
    "confidential.passthrough": "a confidential guest with a device of the host",
    "confidential.firmware": "a confidential guest with a firmware that is not measured",
    "confidential.kernel": "a confidential guest that boots what nothing measures",
    "confidential.secret": "a secret for a confidential guest that the host would read",
    "confidential.provision": "instructions for a confidential guest that nothing measures",
    "confidential.key": "a key that this kind of confidential guest does not have",
    "confidential.id-block": "an ID block without its signature, of another size, or for another policy",
    "flag.conflict": "two command line flags that exclude each other",
    "faults.more": "more faults than are worth listing",
}


class Faults:
    """Collects faults; remembers which paths are broken so that no rule complains about a consequence."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._more = 0

    def add(self, path: str, fault_id: str, message: str) -> None:
        """Note one fault. Ids outside ``FAULT_IDS`` are our bug (``RuntimeError``)."""
        if fault_id not in FAULT_IDS:
            raise RuntimeError(f"unknown fault id {fault_id}")
        if len(self._faults) < MAX_FAULTS:
            self._faults.append(Fault(path, fault_id, message))
        else:
            self._more += 1

    def broken(self, path: str) -> bool:
        """Whether ``path``, a table around it or something inside it has a fault already."""
        return any(_touches(fault.path, path) for fault in self._faults)

    def __len__(self) -> int:
        return len(self._faults) + self._more

    def as_tuple(self) -> tuple[Fault, ...]:
        """All faults in the order found; beyond ``MAX_FAULTS`` only their number."""
        if not self._more:
            return tuple(self._faults)
        return (*self._faults, Fault("", "faults.more", f"{self._more} more faults of this kind are not listed"))

    def raise_if_any(self, source: str) -> None:
        """Raise ``SpecError`` for ``source`` when there is at least one fault."""
        if self._faults:
            raise SpecError(source, self.as_tuple())


def _touches(one: str, other: str) -> bool:
    if one == other or not one:
        return True
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and long[len(short)] in ".["
