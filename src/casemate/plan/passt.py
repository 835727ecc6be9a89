"""passt for one VM: its arguments, its wall, and the egress policy that the broker enforces.

The guest sees a network of its own, the same for every VM because no other guest is on it::

    guest 10.211.0.2/24 ── gateway, DHCP server and (where the policy gives DNS) resolver 10.211.0.1

and, with ``network.ipv6``, the prefix fdca:5e00:0:1::/64 with the gateway fe80::1. The guest's address there is the one
that it makes of its hardware address (RFC 4291, appendix A): DHCPv6 and router advertisement give the same one, and so
passt, which sends to the last address that it saw, sees one.

passt runs in an empty network namespace, so ``-i lo`` is all it needs for a template and a host without any route is
as good as any other; for IPv6 that loopback device has a link-local address, on which versions of 2023 insist. Its
sockets come from the broker (`engine/egress.py`). Options are those that every version from 2023-03-09 on knows.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.policy import BindFile, CopyFile, Descriptor, Directory, Identity, Link, RootEntry, Wall
from casemate.jail.ranges import NOFILE, TAP_FD
from casemate.plan.limits import process_rlimits
from casemate.plan.model import EgressPlan, HelperPlan
from casemate.spec.model import Egress, NetworkMode, Spec
from casemate.spec.network import bracketed

GUEST: Final = "10.211.0.2"
GATEWAY: Final = "10.211.0.1"
PREFIX: Final = 24
GUEST6: Final = "fdca:5e00:0:1:5054:ff:fe12:3456"
GATEWAY6: Final = "fe80::1"
DNS6: Final = "fdca:5e00:0:1::1"
GATEWAY_MAC: Final = "02:ca:5e:00:00:01"
RESOLV_CONF: Final = "/etc/resolv.conf"
PROFILE: Final = "passt+broker"
_MIB: Final = 1024 * 1024

SELF_CONFINEMENT: Final = (
    "passt itself: new user, mount, ipc and uts namespaces, an empty read-only root, no capabilities, not dumpable,"
    " a seccomp allowlist of its own"
)


def plan_passt(spec: Spec, passt: str) -> HelperPlan:
    """The helper that gives a VM its network."""
    network = spec.network
    if network.mode is NetworkMode.NONE:
        raise RuntimeError("plan_passt for a VM without a network")
    egress = EgressPlan(
        mode=network.egress.value,
        allow=network.allow if network.egress is Egress.LIST else (),
        # What a list does not name is not reached: the engine gives DNS under it only if the resolver is listed.
        dns=network.egress is not Egress.NONE,
        published=tuple((port.protocol, port.address, port.host_port) for port in network.publish),
        gateway=GATEWAY,
        gateway6=GATEWAY6 if network.ipv6 else "",
    )
    argv = [passt, "--foreground", "--one-off", "--fd", str(TAP_FD), *([] if network.ipv6 else ["-4"]), "-i", "lo"]
    argv += ["-a", GUEST, "-n", str(PREFIX), "-g", GATEWAY, "-M", GATEWAY_MAC, "--no-map-gw", "-S", "none"]
    argv += ["-a", GUEST6, "-g", GATEWAY6] if network.ipv6 else []
    argv += ["--dns-forward", GATEWAY] if egress.dns else ["-D", "none"]
    if not egress.dns and not network.ipv6:
        argv.append("--no-icmp")  # versions of 2023 would ignore router and neighbour solicitations, too
    argv += ["--dns-forward", DNS6] if egress.dns and network.ipv6 else []
    for option, protocol in (("-t", "tcp"), ("-u", "udp")):
        ports = [port for port in network.publish if port.protocol == protocol]
        for port in ports:
            argv += [option, f"{port.address}/{port.host_port}:{port.guest_port}"]
        if not ports:
            argv += [option, "none"]
    return HelperPlan(
        name="passt", argv=tuple(argv), wall=_describe(passt, egress), profile=PROFILE, egress=egress, program=passt
    )


def _describe(passt: str, egress: EgressPlan) -> tuple[str, ...]:
    allowed = {"none": "nothing", "internet": "public addresses", "list": ", ".join(egress.allow)}[egress.mode]
    published = ", ".join(f"{bracketed(address)}:{port}/{protocol}" for protocol, address, port in egress.published)
    empty = f"holds {GATEWAY6} on a loopback that is down" if egress.gateway6 else "stays empty"
    return (
        f"new user, mount, pid, network, ipc, uts and cgroup namespaces; the network namespace {empty}",
        f"new root: {passt}, its libraries, {RESOLV_CONF} of one line, an empty /tmp; read-only",
        "the VM's own uid and gid, no capabilities, no_new_privs, the VM's cgroup, limits",
        "Landlock (ABI 4 and newer): no TCP, no abstract sockets or signals outside; files are left to the empty root",
        f"seccomp allowlist {PROFILE}, default kill; every socket and destination asked of the broker",
        SELF_CONFINEMENT,
        f"guest reaches: {allowed}" + ("; DNS through the host's resolver" if egress.dns else ""),
        f"published: {published or 'nothing'}",
    )


def passt_wall(helper: HelperPlan, vm: Wall, files: dict[str, str], identity: Identity) -> Wall:
    """The wall of passt beside the VM's.

    Args:
        helper: from `plan_passt`.
        vm: the emulator's wall: cgroup, Landlock ABI and limit of processes are the same.
        files: path inside the root -> the host's file, for the program and what it loads.
        identity: the VM's.
    """
    root: list[RootEntry] = [BindFile(source, target) for target, source in sorted(files.items())]
    root += [CopyFile("resolv-conf", RESOLV_CONF, 4096), Directory("/tmp")]  # noqa: S108 - inside passt's own root
    # There is no /proc. passt looks there for two things: whether it is its AVX2 build already (if not it would exec
    # that), and, newer versions, whether its user namespace is the first one.
    root += [Link("/proc/self/exe", f"{helper.program}.avx2"), CopyFile("uid-map", "/proc/self/uid_map", 4096)]
    nproc = next((limit.value for limit in vm.rlimits if limit.name == "nproc"), 16)
    return Wall(
        argv=helper.argv,
        environment=(),
        root=tuple(root),
        root_size_bytes=_MIB,
        identity=identity,
        rlimits=process_rlimits(nofile=NOFILE, nproc=nproc, fsize=0),
        landlock_abi=vm.landlock_abi,
        landlock=(),
        cgroup=vm.cgroup,
        descriptors=(
            Descriptor(0, "null", "ro"),
            Descriptor(1, "log", "wo"),
            Descriptor(2, "log", "wo"),
            Descriptor(TAP_FD, "tap", "socket"),
        ),
        profile=helper.profile,
        makes_own_mounts=True,
        link_local=helper.egress.gateway6 if helper.egress is not None else "",
    )
