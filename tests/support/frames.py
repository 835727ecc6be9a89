"""A guest that speaks Ethernet to passt itself: no QEMU, no kernel in between; a test sends exactly what it means.

The link is QEMU's: each frame is preceded by its length in 4 bytes, most significant first.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass, field

GUEST, GUEST6 = "10.211.0.2", "fdca:5e00:0:1:5054:ff:fe12:3456"
GATEWAY, GATEWAY6 = "10.211.0.1", "fe80::1"
MAC = bytes.fromhex("525400123456")
GATEWAY_MAC = bytes.fromhex("02ca5e000001")
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol: int, source: str, destination: str, payload: bytes, identifier: int = 1) -> bytes:
    """An IPv4 packet without options."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45, 0, 20 + len(payload), identifier, 0x4000, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(protocol: int, source: str, destination: str, payload: bytes, hops: int = 64) -> bytes:
    """An IPv6 packet without extension headers."""
    head = struct.pack("!IHBB", 0x6000_0000, len(payload), protocol, hops)
    return head + packed(source) + packed(destination) + payload


def packed(address: str) -> bytes:
    """The bytes of an address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def guest_for(peer: str) -> str:
    """The guest's address of the peer's family."""
    return GUEST6 if ":" in peer else GUEST


def _ip(protocol: int, source: str, destination: str, payload: bytes) -> bytes:
    return (ipv6 if ":" in source else ipv4)(protocol, source, destination, payload)


def _pseudo(protocol: int, source: str, destination: str, segment: bytes) -> bytes:
    tail = (
        struct.pack("!I3xB", len(segment), protocol)
        if ":" in source
        else struct.pack("!BBH", 0, protocol, len(segment))
    )
    return packed(source) + packed(destination) + tail


def udp(source: str, source_port: int, destination: str, port: int, data: bytes) -> bytes:
    """A UDP datagram in an IP packet."""
    segment = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
    value = checksum(_pseudo(17, source, destination, segment) + segment) or 0xFFFF
    return _ip(17, source, destination, segment[:6] + struct.pack("!H", value) + segment[8:])


def tcp(
    source: str, source_port: int, destination: str, port: int, flags: int, sequence: int, ack: int, data: bytes = b""
) -> bytes:
    """A TCP segment in an IP packet; a SYN carries an MSS."""
    options = struct.pack("!BBH", 2, 4, 1460) if flags & SYN else b""
    offset = (5 + len(options) // 4) << 4
    segment = struct.pack("!HHIIBBHHH", source_port, port, sequence, ack, offset, flags, 65535, 0, 0) + options + data
    value = checksum(_pseudo(6, source, destination, segment) + segment)
    return _ip(6, source, destination, segment[:16] + struct.pack("!H", value) + segment[18:])


def echo_request(source: str, destination: str, identifier: int, sequence: int = 1) -> bytes:
    """An ICMP or ICMPv6 echo request."""
    if ":" in source:
        body = struct.pack("!BBHHH", 128, 0, 0, identifier, sequence) + b"casemate"
        return ipv6(58, source, destination, icmpv6(source, destination, body))
    body = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence) + b"casemate"
    return ipv4(1, source, destination, body[:2] + struct.pack("!H", checksum(body)) + body[4:])


def icmpv6(source: str, destination: str, body: bytes) -> bytes:
    """An ICMPv6 message with its checksum."""
    return body[:2] + struct.pack("!H", checksum(_pseudo(58, source, destination, body) + body)) + body[4:]


@dataclass(frozen=True)
class Packet:
    """A received IP packet; ports are 0 where the protocol has none."""

    protocol: int
    source: str
    destination: str
    source_port: int
    port: int
    flags: int
    sequence: int
    ack: int
    data: bytes


def parse(frame: bytes) -> Packet | None:
    """The IP packet in an Ethernet frame, None for anything else."""
    packet = frame[14:]
    if frame[12:14] == b"\x08\x00" and len(packet) >= 20:
        head = (packet[0] & 15) * 4
        protocol, body = packet[9], packet[head : struct.unpack("!H", packet[2:4])[0]]
        source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    elif frame[12:14] == b"\x86\xdd" and len(packet) >= 40:
        protocol, body = packet[6], packet[40 : 40 + struct.unpack("!H", packet[4:6])[0]]
        source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
    else:
        return None
    if protocol == 17:
        source_port, port = struct.unpack("!HH", body[:4])
        return Packet(17, source, destination, source_port, port, 0, 0, 0, body[8:])
    if protocol == 6:
        source_port, port, sequence, ack, offset, flags = struct.unpack("!HHIIBB", body[:14])
        return Packet(6, source, destination, source_port, port, flags, sequence, ack, body[(offset >> 4) * 4 :])
    return Packet(protocol, source, destination, 0, 0, 0, 0, 0, body)


@dataclass
class Connection:
    """A TCP connection of the guest; ``state`` is ``open``, ``reset`` or ``silent``."""

    guest: Guest
    address: str
    port: int
    peer: str
    peer_port: int
    sequence: int
    ack: int
    state: str
    received: bytearray = field(default_factory=bytearray)

    def send(self, data: bytes) -> None:
        """Send and forget; the receiver's window is assumed to be open."""
        self.guest.send_ip(
            tcp(self.address, self.port, self.peer, self.peer_port, ACK | PSH, self.sequence, self.ack, data)
        )
        self.sequence += len(data)

    def receive(self, count: int, wait_s: float = 5.0) -> bytes:
        """``count`` bytes of the stream, fewer when they do not come."""
        end = time.monotonic() + wait_s
        while len(self.received) < count:
            packet = self.guest.next_packet(end - time.monotonic())
            if packet is None:
                break
            self.take(packet)
        data = bytes(self.received[:count])
        del self.received[:count]
        return data

    def take(self, packet: Packet) -> None:
        """One packet of this connection: in order, or dropped."""
        if (packet.protocol, packet.source, packet.source_port, packet.port) != (
            6,
            self.peer,
            self.peer_port,
            self.port,
        ):
            return
        if packet.flags & RST:
            self.state = "reset"
        elif packet.data and packet.sequence == self.ack:
            self.received += packet.data
            self.ack = (self.ack + len(packet.data)) & 0xFFFF_FFFF
            self.guest.send_ip(tcp(self.address, self.port, self.peer, self.peer_port, ACK, self.sequence, self.ack))


class Guest:
    """The guest's end of the link. Owns ``link``."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.link.setblocking(True)
        self._buffer = bytearray()
        self._ports = iter(range(40000, 60000))

    def close(self) -> None:
        """Unplug."""
        self.link.close()

    def send_frame(self, frame: bytes) -> None:
        """One Ethernet frame."""
        self.link.sendall(struct.pack("!I", len(frame)) + frame)

    def send_ip(self, packet: bytes) -> None:
        """One IP packet to the gateway."""
        self.send_frame(GATEWAY_MAC + MAC + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet)

    def next_frame(self, wait_s: float) -> bytes | None:
        """The next frame, None after ``wait_s``."""
        end = time.monotonic() + wait_s
        while True:
            if len(self._buffer) >= 4:
                length = struct.unpack("!I", self._buffer[:4])[0]
                if len(self._buffer) >= 4 + length:
                    frame = bytes(self._buffer[4 : 4 + length])
                    del self._buffer[: 4 + length]
                    return frame
            if not select.select([self.link], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            data = self.link.recv(1 << 18)
            if not data:
                return None
            self._buffer += data

    def next_packet(self, wait_s: float) -> Packet | None:
        """The next IP packet, None after ``wait_s``."""
        end = time.monotonic() + wait_s
        while (frame := self.next_frame(end - time.monotonic())) is not None:
            packet = parse(frame)
            if packet is not None:
                return packet
        return None

    def open(self, peer: str, port: int) -> int:
        """Ask for a connection and wait for nothing; gives its source port."""
        own = next(self._ports)
        self.send_ip(tcp(guest_for(peer), own, peer, port, SYN, 1000, 0))
        return own

    def connect(self, peer: str, port: int, wait_s: float = 3.0) -> Connection:
        """Three-way handshake; the result's ``state`` says how it went."""
        own, sequence = self.open(peer, port), 1000
        end = time.monotonic() + wait_s
        while (packet := self.next_packet(end - time.monotonic())) is not None:
            if packet.protocol != 6 or (packet.source_port, packet.port) != (port, own):
                continue
            if packet.flags & RST:
                return Connection(self, guest_for(peer), own, peer, port, sequence, 0, "reset")
            if packet.flags & SYN and packet.flags & ACK:
                ack = (packet.sequence + 1) & 0xFFFF_FFFF
                self.send_ip(tcp(guest_for(peer), own, peer, port, ACK, sequence + 1, ack))
                return Connection(self, guest_for(peer), own, peer, port, sequence + 1, ack, "open")
        return Connection(self, guest_for(peer), own, peer, port, sequence, 0, "silent")

    def serve_one(self, port: int, wait_s: float = 3.0) -> Connection | None:
        """Answer the next connection to ``port`` of the guest, None when nobody comes."""
        end = time.monotonic() + wait_s
        while (packet := self.next_packet(end - time.monotonic())) is not None:
            if packet.protocol == 6 and packet.flags & SYN and packet.port == port:
                ack = (packet.sequence + 1) & 0xFFFF_FFFF
                self.send_ip(tcp(packet.destination, port, packet.source, packet.source_port, SYN | ACK, 5000, ack))
                return Connection(self, packet.destination, port, packet.source, packet.source_port, 5001, ack, "open")
        return None

    def send_udp(
        self, peer: str, port: int, data: bytes, source_port: int | None = None, source: str | None = None
    ) -> int:
        """One datagram; gives its source port."""
        own = source_port if source_port is not None else next(self._ports)
        self.send_ip(udp(source or guest_for(peer), own, peer, port, data))
        return own

    def receive_udp(self, own: int, wait_s: float) -> Packet | None:
        """The next datagram to the guest's port ``own``, None when none comes."""
        end = time.monotonic() + wait_s
        while (packet := self.next_packet(end - time.monotonic())) is not None:
            if packet.protocol == 17 and packet.port == own:
                return packet
        return None

    def dhcp_discover(self, wait_s: float = 3.0) -> tuple[str, dict[int, bytes]] | None:
        """What a DHCP server offers: (address, options), None when nobody answers. See RFC 2131."""
        head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0xCA5E, 0, 0x8000) + bytes(16) + MAC + bytes(10 + 64 + 128)
        body = head + b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\x37\x03\x01\x03\x06" + b"\xff"
        self.send_frame(b"\xff" * 6 + MAC + b"\x08\x00" + udp("0.0.0.0", 68, "255.255.255.255", 67, body))
        packet = self.receive_udp(68, wait_s)
        if packet is None or packet.data[236:240] != b"\x63\x82\x53\x63":
            return None
        options, rest = {}, packet.data[240:]
        while rest and rest[0] != 255:
            if rest[0] == 0:
                rest = rest[1:]
                continue
            options[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        return socket.inet_ntoa(packet.data[16:20]), options

    def router_advertisement(self, wait_s: float = 3.0) -> dict[int, bytes] | None:
        """The options of what a router says, None when there is none. See RFC 4861, 4.2."""
        own, all_routers = "fe80::5054:ff:fe12:3456", "ff02::2"
        self.send_ip(ipv6(58, own, all_routers, icmpv6(own, all_routers, struct.pack("!BBHI", 133, 0, 0, 0)), 255))
        packet = self._control(134, wait_s)
        if packet is None or packet.source != GATEWAY6:
            return None
        options, rest = {}, packet.data[16:]
        while len(rest) >= 8 and rest[1]:
            options[rest[0]] = rest[: rest[1] * 8]
            rest = rest[rest[1] * 8 :]
        return options

    def neighbour(self, target: str, wait_s: float = 3.0) -> bytes | None:
        """The hardware address of ``target``, None when nobody has it. See RFC 4861, 4.3."""
        body = struct.pack("!BBHI", 135, 0, 0, 0) + packed(target)
        where = socket.inet_ntop(socket.AF_INET6, packed("ff02::1:ff00:0")[:13] + packed(target)[13:])
        self.send_ip(ipv6(58, GUEST6, where, icmpv6(GUEST6, where, body), 255))
        packet = self._control(136, wait_s)
        return packet.data[26:32] if packet is not None and packet.data[8:24] == packed(target) else None

    def dhcpv6_solicit(self, wait_s: float = 3.0) -> dict[int, bytes] | None:
        """The options of a DHCPv6 server's answer, None when nobody answers. See RFC 8415."""
        identity = struct.pack("!HHHH", 1, 10, 3, 1) + MAC
        association = struct.pack("!HHIII", 3, 12, 1, 0, 0)
        body = struct.pack("!I", 1 << 24 | 0xCA5E) + identity + association
        own = "fe80::5054:ff:fe12:3456"
        self.send_ip(udp(own, 546, "ff02::1:2", 547, body))
        packet = self.receive_udp(546, wait_s)
        if packet is None:
            return None
        options, rest = {}, packet.data[4:]
        while len(rest) >= 4:
            code, length = struct.unpack_from("!HH", rest)
            options[code] = rest[4 : 4 + length]
            rest = rest[4 + length :]
        return options

    def _control(self, kind: int, wait_s: float) -> Packet | None:
        end = time.monotonic() + wait_s
        while (packet := self.next_packet(end - time.monotonic())) is not None:
            if packet.protocol == 58 and packet.data[:1] == bytes([kind]):
                return packet
        return None
