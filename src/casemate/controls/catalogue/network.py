"""Layer network: none unless asked for; then passt, with the host and its neighbours out of reach."""

from __future__ import annotations

from casemate.controls.catalogue.common import HAS_NETWORK, HOST, OTHERS, S2, S6, S7, VM, cve, lecture
from casemate.controls.expectations import Empty, Equals, Matches, OneOf
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity, Source

PASST = Source("passt", "manual page: --no-map-gw")

CONTROLS = (
    Control(
        id="dev.no-slirp",
        title="No slirp, no TAP, no bridge",
        question="Is the network either absent or a confined passt outside the emulator?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("net.backend", OneOf(("none", "passt"))),),
        cuts=(S2, S6),
        scenarios=(HOST, OTHERS),
        cost=Cost(
            performance="slower than a TAP with vhost-net",
            features="no bridge: guests reach each other by published ports",
        ),
        remedies=Remedies(
            libvirt="<interface type='user'><backend type='passt'/></interface>", spec='[network] mode = "user"'
        ),
        sources=(cve("CVE-2019-6778", "CVE-2020-1983", "CVE-2020-7039"),),
    ),
    Control(
        id="net.host-loopback",
        title="The guest cannot reach the host's loopback",
        question="Are services that listen on the host's 127.0.0.1 out of the guest's reach?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("net.host-loopback", Equals(False)),),
        cuts=(S7,),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="services of the host have to listen on a real address"),
        remedies=Remedies(
            host="passt --no-map-gw", libvirt="use a passt that is started with --no-map-gw", spec="none needed"
        ),
        sources=(PASST, lecture("Virtualisation == sécurité ? Plus de réseaux à gérer")),
    ),
    Control(
        id="net.egress",
        title="What the guest may reach has a limit",
        question="Is the guest's outgoing traffic confined to nothing, to public addresses, or to a list?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            Check("net.egress", Matches(r"none|internet|list([ :].*)?", "none, internet (public addresses) or list")),
        ),
        applies_when=(HAS_NETWORK,),
        cuts=(S6, S7),
        scenarios=(OTHERS, HOST),
        cost=Cost(features="private networks and the cloud's metadata address have to be listed"),
        remedies=Remedies(
            host="a firewall between the guests and the management network", spec="[network] egress and allow"
        ),
        sources=(lecture("Virtualisation == sécurité ? Plus d'interfaces d'administration"),),
    ),
    Control(
        id="net.publish-wide",
        title="Published ports are for this host only",
        question="Is every published port bound to a loopback address?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("net.publish-wide", Empty()),),
        cuts=(S7,),
        scenarios=(VM,),
        cost=Cost(features="other machines reach the guest only through the host"),
        remedies=Remedies(
            host='refuse it for all: [network] wide_publish = "refuse" in the policy file',
            spec="leave address out of [[network.publish]], or say 127.0.0.1",
        ),
        sources=(lecture("Virtualisation == sécurité ? Plus de réseaux à gérer"),),
    ),
)
