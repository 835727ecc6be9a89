"""Layer network: bridged guests, as libvirt makes them; a launch of ours has no bridge."""

from __future__ import annotations

from casemate.controls.catalogue.common import OTHERS, S6, libvirt
from casemate.controls.expectations import AtLeast, Empty
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

BRIDGED = Condition("net.bridged", AtLeast(1), "the VM is on no bridge")

CONTROLS: tuple[Control, ...] = (
    Control(
        id="net.antispoof",
        title="The guest cannot forge its MAC and IP address",
        question="Has every bridged interface a filter such as clean-traffic?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("net.unfiltered", Empty()),),
        applies_when=(BRIDGED,),
        cuts=(S6,),
        scenarios=(OTHERS,),
        remedies=Remedies(
            libvirt="<interface><filterref filter='clean-traffic'/></interface>",
            spec="none needed: passt knows one address",
        ),
        sources=(
            libvirt("formatnwfilter: clean-traffic"),
            Source("ComplianceAsCode", "kubevirt-bridge-mac-spoof-filtering"),
        ),
    ),
    Control(
        id="net.isolated",
        title="Guests of one bridge cannot reach each other",
        question="Is every bridged interface an isolated port or in a VLAN of its own?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("net.not-isolated", Empty()),),
        applies_when=(BRIDGED,),
        cuts=(S6,),
        scenarios=(OTHERS,),
        cost=Cost(features="traffic between guests of one host goes through a router"),
        remedies=Remedies(libvirt="<interface><port isolated='yes'/></interface>, or <vlan><tag id=…/></vlan>"),
        sources=(
            libvirt("formatdomain: isolating guests network traffic from each other"),
            Source("ComplianceAsCode", "kubevirt localnet-vlan-required"),
        ),
    ),
)
