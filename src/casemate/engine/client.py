"""One connection to a VM's control socket, as its supervisor sees it. Standard library only."""

from __future__ import annotations

import os
import socket
import struct
import time

CONGESTED_BYTES = 128 * 1024
FIRST_REQUEST_S = 10.0
_ONE_DESCRIPTOR = socket.CMSG_LEN(4)  # with its padding there would be room for two


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.descriptor = connection.fileno()
        self.request = bytearray()
        self.output = bytearray()
        self.attached = False
        self.busy = False
        self.waits_for_exit = False
        self.open = True
        self.idle_until: float | None = time.monotonic() + FIRST_REQUEST_S
        self.stalled_until: float | None = None
        self.taken_bytes = 0
        self.passed = -1

    def receive(self) -> bytes:
        """What has arrived; a descriptor that came along is kept, the last one only."""
        data, rights, _, _ = self.socket.recvmsg(16384, _ONE_DESCRIPTOR)
        for level, kind, content in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                for (descriptor,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    self.close_passed()
                    self.passed = descriptor
        return data

    def close_passed(self) -> None:
        """A descriptor that nobody asked for goes."""
        if self.passed >= 0:
            os.close(self.passed)
            self.passed = -1

    @property
    def is_congested(self) -> bool:
        """Whether the console should wait for it."""
        return self.open and self.attached and len(self.output) > CONGESTED_BYTES
