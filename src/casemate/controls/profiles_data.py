"""The four profiles, as data; `profiles.py` applies them."""

from __future__ import annotations

from typing import Final

from casemate.controls.model import Severity
from casemate.controls.profiles_model import Adjustment, Profile

_CRITICAL, _HIGH, _MEDIUM, _LOW = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW
_OFF: Final = None

_ONE_PERSON = "all VMs and the host's other programs belong to one person"
_ONE_OWNER = "all VMs belong to one owner, who gains nothing by spying on himself"
_OWNER_HOLDS = "whoever owns the guests also holds the machine, so there is nobody to hide their memory from"
_STOLEN = "a machine that is carried around gets lost or stolen"
_HOST_HOSTILE = "the host is the adversary, and this is in its reach"

LAPTOP: Final = Profile(
    name="laptop",
    about="one person's own VMs on a machine with a desktop, carried around",
    threat="a guest that breaks out; the stolen machine",
    adjustments=(
        Adjustment("cpu.smt", _LOW, _ONE_PERSON),
        Adjustment("hk.core-sched", _LOW, _ONE_PERSON),
        Adjustment("vmm.sched-core", _LOW, _ONE_PERSON),
        Adjustment("cpu.core-sched", _LOW, _ONE_PERSON),
        Adjustment("cpu.ksm", _LOW, "merged pages leak between VMs, and all of them belong to one person"),
        Adjustment("cpu.swap", _HIGH, _STOLEN),
        Adjustment("img.encrypted", _HIGH, _STOLEN),
        Adjustment("img.ram-files", _HIGH, _STOLEN),
        Adjustment("hk.secure-boot", _HIGH, "whoever has the machine for a minute can change what it boots"),
        Adjustment("hk.modules", _MEDIUM, "drivers of hardware that is plugged in have to load at any time"),
        Adjustment("hk.userns", _LOW, "the sandboxes of browsers and of desktop programs need user namespaces"),
        Adjustment("kvm.dev-perm", _MEDIUM, "the desktop's login manager gives /dev/kvm to who sits in front of it"),
        Adjustment("os.minimal", _OFF, "a desktop is what this machine is for"),
        Adjustment("os.audit", _OFF, "nobody reads audit logs on a machine of one person"),
        Adjustment("vmm.acl", _OFF, "there is one user, who is also the administrator"),
        Adjustment("vmm.migration", _LOW, "VMs do not move between hosts"),
        Adjustment("net.isolated", _OFF, _ONE_PERSON),
        Adjustment("net.antispoof", _LOW, _ONE_PERSON),
        Adjustment("cc.*", _OFF, _OWNER_HOLDS),
    ),
)

SINGLE_TENANT: Final = Profile(
    name="single-tenant",
    about="a server whose VMs all belong to one owner, with services that strangers talk to",
    threat="a guest taken over from the network that breaks out to the host or to its neighbours",
    adjustments=(
        Adjustment("cpu.smt", _MEDIUM, _ONE_OWNER),
        Adjustment("hk.core-sched", _LOW, _ONE_OWNER),
        Adjustment("vmm.sched-core", _LOW, _ONE_OWNER),
        Adjustment("cpu.core-sched", _LOW, _ONE_OWNER),
        Adjustment("cpu.ksm", _MEDIUM, "merged pages leak between VMs; one that was taken over can still use that"),
        Adjustment("proc.uid-unique", _HIGH, "the neighbours' data are the same owner's"),
        Adjustment("proc.mcs-unique", _HIGH, "the neighbours' data are the same owner's"),
        Adjustment("vmm.acl", _LOW, "the owner's administrators may see all of the owner's VMs"),
        Adjustment("net.isolated", _LOW, "the VMs of one owner often have to talk to each other"),
        Adjustment("net.antispoof", _LOW, "a spoofed address misleads machines of the same owner only"),
        Adjustment("cc.*", _OFF, _OWNER_HOLDS),
    ),
)

MULTI_TENANT: Final = Profile(
    name="multi-tenant",
    about="VMs of people who do not trust each other, side by side on one host",
    threat="any VM attacks its neighbours and the host, with or without a bug in the emulator",
)

CONFIDENTIAL: Final = Profile(
    name="confidential",
    about="guests that do not even trust the host: SEV-SNP, TDX",
    threat="the host, its administrators and what they log or keep; neighbours as under multi-tenant",
    adjustments=(
        Adjustment("cc.*", _CRITICAL, "without it the guest's memory is the host's to read"),
        Adjustment("dev.kvm", _CRITICAL, "an emulated CPU encrypts nothing"),
        Adjustment("dev.no-secret-args", _CRITICAL, _HOST_HOSTILE),
        Adjustment("guest.agent", _HIGH, "the agent is the host's hand inside the guest"),
        Adjustment("guest.lockdown", _HIGH, "what the guest boots is what attestation vouches for"),
        Adjustment("img.encrypted", _HIGH, _HOST_HOSTILE),
        Adjustment("img.ram-files", _HIGH, _HOST_HOSTILE),
        Adjustment("img.hash", _CRITICAL, "the host could change the system before it starts"),
        Adjustment("vmm.migration", _CRITICAL, "moving a guest hands its state to another machine"),
        Adjustment("vmm.console", _CRITICAL, _HOST_HOSTILE),
        Adjustment("hk.secure-boot", _HIGH, "the platform's measurements are only worth what it booted"),
        Adjustment("cpu.vulns", _CRITICAL, "side channels reach into memory that is encrypted"),
        Adjustment("cpu.smt", _CRITICAL, "sibling threads share what encryption does not cover"),
        Adjustment("cpu.guest-flags", _HIGH, "a guest that does not know its CPU's flaws cannot guard against them"),
        Adjustment("cpu.swap", _LOW, "pages of a confidential guest leave memory encrypted, if at all"),
        Adjustment(
            "ent.virtio-rng", _LOW, "a guest that does not trust its host draws its randomness from the CPU instead"
        ),
    ),
)

PROFILES: Final = (LAPTOP, SINGLE_TENANT, MULTI_TENANT, CONFIDENTIAL)
