"""What a machine's description says of its TPM, and of what is kept of it on the host."""

from __future__ import annotations

from casemate.facts.machine import Machine
from casemate.facts.machine_sayer import Sayer


def tpm_facts(sayer: Sayer, machine: Machine) -> None:
    """Whether there is one, whose it is, and what a document says of an emulated one's state."""
    has_tpm = any(device.type.startswith(("tpm-", "spapr-tpm")) for device in machine.devices)
    sayer.say("vm.tpm", has_tpm, "devices")
    backend = next((item for item in machine.backends if item.kind == "tpmdev"), None)
    kind = (backend.type if backend is not None and backend.type else "unknown") if has_tpm else "none"
    sayer.say("tpm.backend", kind, "TPM back-end")
    if backend is None or kind != "emulator":
        return
    if backend.properties.get("state") == "libvirt":
        # libvirt hands swtpm the secret by descriptor, and runs every swtpm as one user (swtpm_user in qemu.conf).
        sayer.say("tpm.state-encrypted", bool(backend.properties.get("secret")), "TPM back-end, encryption")
        sayer.say("tpm.key-in-arguments", False, "TPM back-end: libvirt hands keys over by descriptor")
        sayer.say("tpm.own-uid", False, "TPM back-end: libvirt has one swtpm_user for all domains")
        return
    for name in ("tpm.state-encrypted", "tpm.key-in-arguments", "tpm.own-uid"):
        sayer.miss(name, "swtpm was started apart, and what it was told does not stand here")
