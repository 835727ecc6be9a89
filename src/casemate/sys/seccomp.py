"""seccomp(2): load a filter, take user notifications and answer them. See seccomp(2) and seccomp_unotify(2)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from casemate.sys.libc import syscall

# Not imported at run time: the supervisor of every VM loads this module, and typing would cost each 0.8 MB.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_GET_NOTIF_SIZES: Final = 3

SECCOMP_FILTER_FLAG_TSYNC: Final = 1 << 0
SECCOMP_FILTER_FLAG_LOG: Final = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_TSYNC_ESRCH: Final = 1 << 4
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1

# _IOWR('!', 0, 80), _IOWR('!', 1, 24), _IOW('!', 2, 8): include/uapi/linux/seccomp.h.
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC050_2100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC018_2101
SECCOMP_IOCTL_NOTIF_SET_FLAGS: Final = 0x4008_2104
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = 0x4008_2102

_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_NOTIF: Final = struct.Struct("=QII" + "iIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_SIZES: Final = struct.Struct("=HHH")
_INSTRUCTION_BYTES: Final = 8
_INSTRUCTIONS_MAX: Final = 4096
_ERRNO_MAX: Final = 4095


class _Fprog(ctypes.Structure):
    """``struct sock_fprog``: number of instructions, and where they are."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Notification:
    """A call that waits for an answer. ``pid`` is the thread, as the listener's pid namespace sees it (0: not at all).

    ``args`` that are pointers point into the caller's memory, which its other threads can change at any time.
    """

    __slots__ = ("arch", "args", "id", "nr", "pid")

    def __init__(self, cookie: int, pid: int, nr: int, arch: int, args: tuple[int, ...]) -> None:
        self.id = cookie
        self.pid = pid
        self.nr = nr
        self.arch = arch
        self.args = args


def seccomp_set_mode_filter(program: bytes, flags: int = 0) -> int:
    """Load ``program`` on the calling thread (all threads with TSYNC). It can never be removed.

    The thread must have no_new_privs or CAP_SYS_ADMIN in its user namespace.

    Args:
        program: 1 to 4096 instructions of 8 bytes.
        flags: SECCOMP_FILTER_FLAG_*.

    Returns:
        The listener's descriptor (close-on-exec) with SECCOMP_FILTER_FLAG_NEW_LISTENER, otherwise 0.

    Raises:
        ValueError: ``program`` has no size of a filter.
        OSError: EINVAL for a filter the kernel refuses, EACCES without no_new_privs, EBUSY for a second listener,
            ESRCH when TSYNC could not move thread ``OSError.args`` names.
    """
    count, rest = divmod(len(program), _INSTRUCTION_BYTES)
    if rest or not 1 <= count <= _INSTRUCTIONS_MAX:
        raise ValueError(f"a filter is 1 to {_INSTRUCTIONS_MAX} instructions of 8 bytes; got {len(program)} bytes")
    code = ctypes.create_string_buffer(program, len(program))
    fprog = _Fprog(count, ctypes.addressof(code))
    # SAFETY: `code` and `fprog` live until the call returns; the kernel copies both.
    result = _seccomp(SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(fprog))
    if result > 0 and not flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
        raise OSError(errno.ESRCH, f"thread {result} could not take the filter", "seccomp")
    return result


def seccomp_get_action_avail(action: int) -> bool:
    """Whether the kernel knows the SECCOMP_RET action ``action``."""
    value = ctypes.c_uint32(action)
    try:
        # SAFETY: `value` lives until the call returns; the kernel reads 4 bytes.
        _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(value))
    except OSError as fault:
        if fault.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
            return False
        raise
    return True


def seccomp_get_notif_sizes() -> tuple[int, int, int]:
    """The kernel's sizes in bytes of (seccomp_notif, seccomp_notif_resp, seccomp_data)."""
    sizes = ctypes.create_string_buffer(_SIZES.size)
    # SAFETY: the kernel writes three u16 into `sizes`, which has room for them.
    _seccomp(SECCOMP_GET_NOTIF_SIZES, 0, sizes)
    notif, response, data = _SIZES.unpack(sizes.raw)
    return notif, response, data


def notif_set_sync_wake_up(listener: int) -> bool:
    """Ask for wake-ups on the same CPU (Linux 6.6): a notification then costs half. False where the kernel cannot."""
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError as fault:
        if fault.errno in {errno.EINVAL, errno.ENOTTY}:
            return False
        raise
    return True


def notif_recv(listener: int) -> Notification:
    """Take the next waiting call. Blocks: poll the descriptor first where that matters.

    Raises:
        OSError: ENOENT when the caller died or was interrupted meanwhile (take the next), EINTR on a signal.
    """
    # The kernel insists on zeroes, and may have a bigger structure than ours one day.
    buffer = bytearray(max(_NOTIF.size, 512))
    fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, buffer)
    cookie, pid, _flags, nr, arch, _ip, *args = _NOTIF.unpack_from(buffer)
    return Notification(cookie, pid, nr, arch, tuple(args))


def notif_send_continue(listener: int, cookie: int) -> None:
    """Let the call go on as if there were no notification (its arguments may have changed since).

    Raises:
        OSError: ENOENT when the caller is gone, EINPROGRESS when it was answered already.
    """
    _respond(listener, _RESPONSE.pack(cookie, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))


def notif_send_error(listener: int, cookie: int, number: int) -> None:
    """Make the call fail with errno ``number`` (1 to 4095).

    Raises:
        ValueError: not an errno, which would make the call succeed.
        OSError: ENOENT when the caller is gone, EINPROGRESS when it was answered already.
    """
    if not 1 <= number <= _ERRNO_MAX:
        raise ValueError(f"errno is 1 to {_ERRNO_MAX}, got {number}")
    _respond(listener, _RESPONSE.pack(cookie, 0, -number, 0))


def notif_id_valid(listener: int, cookie: int) -> bool:
    """Whether the call still waits: after looking into /proc/PID this says that PID was still the caller."""
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, struct.pack("=Q", cookie))
    except OSError as fault:
        if fault.errno == errno.ENOENT:
            return False
        raise
    return True


def _respond(listener: int, response: bytes) -> None:
    buffer = bytearray(max(len(response), 64))
    buffer[: len(response)] = response
    fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, buffer)


def _seccomp(operation: int, flags: int, argument: object) -> int:
    machine = os.uname().machine
    if machine not in _NR_SECCOMP:
        raise OSError(errno.ENOSYS, f"seccomp on {machine}: not supported by Casemate")
    return syscall(_NR_SECCOMP[machine], operation, flags, argument)
