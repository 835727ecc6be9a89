"""Which system call a seccomp filter killed an emulator for: the kernel's audit record says it, in its own log.

The record (kernel/auditsc.c, audit_seccomp) looks like this; without an audit daemon it goes to /dev/kmsg::

    audit: type=1326 audit(...): ... pid=1234 comm="CPU 0/TCG" exe="/usr/bin/qemu-system-x86_64" sig=31 arch=c000003e
    syscall=41 compat=0 ip=0x7f... code=0x80000000

``comm`` is the emulator's to choose: it is shown printable, quoted and cut. Reading the log wants root, or a kernel
with dmesg_restrict off.
"""

from __future__ import annotations

import os
import re

from casemate.bpf.syscalls import names

_RECORD = re.compile(
    rb"audit: type=1326 audit\([0-9.:]+\):.* pid=(?P<pid>[0-9]+) comm=(?P<comm>\"[^\"]*\"|[0-9A-F]+) .*"
    rb"sig=31 arch=(?P<arch>[0-9a-f]+) syscall=(?P<call>[0-9]+) "
)
_ARCHES = {"c000003e": "x86_64", "c00000b7": "aarch64"}
RECORDS_MAX = 20_000
RECORD_MAX_BYTES = 8192


def killed_call(pid: int, log: str = "/dev/kmsg") -> str:
    """The last record about ``pid`` in words, or an empty string when there is none or it cannot be read."""
    found = b""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        for _ in range(RECORDS_MAX):
            try:
                record = os.read(descriptor, RECORD_MAX_BYTES)
            except BrokenPipeError:
                continue  # records were overwritten while we read: go on with the oldest that is left
            except OSError:
                break  # EAGAIN: the end
            if not record:
                break
            match = _RECORD.search(record)
            if match and int(match["pid"]) == pid:
                found = record
    finally:
        os.close(descriptor)
    return describe(found)


def describe(record: bytes) -> str:
    """One record in words, e.g. ``call socket (41) in thread "CPU 0/TCG"``; empty when it is not one."""
    match = _RECORD.search(record)
    if match is None:
        return ""
    number = int(match["call"])
    machine = _ARCHES.get(match["arch"].decode(), "")
    name = names(machine).get(number, "") if machine else ""
    comm = match["comm"]
    thread = comm[1:-1] if comm.startswith(b'"') else bytes.fromhex(comm.decode()) if len(comm) % 2 == 0 else comm
    shown = "".join(c if c.isprintable() and c != '"' else "?" for c in thread.decode("utf-8", "replace"))[:32]
    return f'call {name or "unknown"} ({number}) in thread "{shown}"'
