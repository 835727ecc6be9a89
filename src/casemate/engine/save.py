"""Write a running VM's state into a file: the caller's side. The file is there whole or not at all.

1 checks · 2 temporary file beside the target, 0600 · 3 the supervisor stops the guest and lets the emulator write into
our pipe · 4 records; the disks' overlays behind them · 5 digests of kernel, initrd and disks, while the guest stands
still · 6 manifest, fsync, rename · 7 the supervisor ends the VM, or lets it go on. Whatever fails before 7: the guest
goes on, and nothing is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from casemate.engine import control, files, state
from casemate.engine.opening import digest_file, overlay_roles
from casemate.engine.paths import Paths
from casemate.engine.restore import hardware_digest
from casemate.engine.savedoverlay import copy_overlay
from casemate.engine.sealing import Sealing, wrap
from casemate.engine.state import Definition
from casemate.engine.statefile import PIECE_BYTES, Manifest, SavedOverlay, StateWriter
from casemate.errors import HostError, InputError, VmError
from casemate.evidence.record import canonical_json
from casemate.image.opening import open_image, open_regular_file
from casemate.spec.model import DiskMode, Spec

IDLE_S = 60.0
ENDS_S = 20.0


def save(
    paths: Paths,
    definition: Definition,
    target: str,
    *,
    sealing: Sealing,
    leave_running: bool,
    report: Callable[[int], None],
) -> dict[str, Any]:
    """Save the state to ``target`` (absolute).

    Args:
        report: told the number of bytes so far.

    Returns:
        ``bytes`` of the stream, ``overlay_bytes`` of what lies over its disks, ``prepared``: the guest froze itself
        before, and ``sealed`` with what.

    Raises:
        InputError: the VM cannot be saved as it is, or the file exists. VmError, HostError: it went wrong on the way.
    """
    running = _check(paths, definition, target, sealing, leave_running)  # 1
    header, key = wrap(sealing)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)  # 2
    except OSError as fault:
        raise InputError(f"cannot write {target!r}", got=fault.strerror or str(fault)) from None
    connection = control.connect(paths, definition)
    try:
        writer = StateWriter(descriptor, header, key)
        prepared = _stream(connection, writer, report)  # 3, 4
        overlays = _overlays(connection, definition.spec, writer, report)
        manifest = _manifest(paths, definition, running, writer.stream_bytes, prepared, overlays)  # 5
        writer.finish(manifest)
        os.fsync(descriptor)
        os.link(temporary, target)  # fails when somebody else made it meanwhile, which a rename would not
        files.unlink_if_there(temporary)
        _sync_directory(os.path.dirname(target))
        control.ask(connection, "saved", end=not leave_running)  # 7
    except OSError as fault:
        raise HostError(f"cannot write {target!r}", got=fault.strerror or str(fault)) from None
    finally:
        connection.close()
        os.close(descriptor)
        files.unlink_if_there(temporary)
    if not leave_running:
        _wait_for_rest(paths, definition)
    on_disks = sum(overlay.size_bytes for overlay in overlays.values())
    return {
        "bytes": writer.stream_bytes,
        "overlay_bytes": on_disks,
        "prepared": prepared,
        "sealed": header.sealing,
    }


def _check(paths: Paths, definition: Definition, target: str, sealing: Sealing, leave_running: bool) -> int:
    """The emulator's pid, if everything allows a save."""
    spec, name = definition.spec, definition.name
    vm = state.look(paths, definition)
    if vm.running is None or vm.running.emulator is None:
        raise control.not_running(paths, definition)
    if not spec.machine.saveable:
        step = "saveable = true in [machine], or --saveable; then start it anew"
        raise InputError(f"{name} was not started as saveable", next_step=step)
    if leave_running and any(disk.mode is DiskMode.PERSISTENT for disk in spec.disks):
        raise InputError(f"{name} would write on to a disk that its state belongs to", expected="no --leave-running")
    if spec.secrets and sealing.is_none:
        raise InputError(
            f"{name} has secrets, and its memory holds them",
            expected="a sealed file",
            next_step="casemate save --key-file KEY, or --age-recipient age1…",
        )
    if os.path.lexists(target):
        raise InputError(f"{target!r} is there already", next_step="choose another name, or remove it")
    return vm.running.emulator.pid


def _stream(connection: socket.socket, writer: StateWriter, report: Callable[[int], None]) -> bool:
    """Ask the supervisor, and write down what comes out of the pipe; whether the guest froze itself before."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            socket.send_fds(connection, [b'{"do": "save"}\n'], [write_end])
        finally:
            os.close(write_end)
        poller = select.poll()
        poller.register(read_end, select.POLLIN)
        held = bytearray()
        while True:
            if not poller.poll(IDLE_S * 1000):
                raise VmError("the state does not come", got=f"nothing for {IDLE_S:.0f} s")
            piece = os.read(read_end, PIECE_BYTES)
            held += piece
            while len(held) >= PIECE_BYTES or (held and not piece):
                writer.data(bytes(held[:PIECE_BYTES]))
                del held[:PIECE_BYTES]
                report(writer.stream_bytes)
            if not piece:
                break
    finally:
        os.close(read_end)
    answer = control.read_answer(connection, "save")
    result = answer.get("result")
    return isinstance(result, dict) and result.get("prepared") is True


def _overlays(
    connection: socket.socket, spec: Spec, writer: StateWriter, report: Callable[[int], None]
) -> dict[str, SavedOverlay]:
    """Copy what the guest wrote on top of its disks. It stands still, and the emulator has written everything out."""
    roles = overlay_roles(spec)
    if not roles:
        return {}
    descriptors = control.overlays(connection, len(roles))
    try:
        return {
            role: copy_overlay(descriptor, int(role.removeprefix("overlay")), writer, report)
            for role, descriptor in zip(roles, descriptors, strict=True)
        }
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _manifest(
    paths: Paths,
    definition: Definition,
    pid: int,
    stream_bytes: int,
    prepared: bool,
    overlays: dict[str, SavedOverlay],
) -> Manifest:
    vm = state.look(paths, definition)
    if vm.running is None or vm.running.emulator is None or vm.running.emulator.pid != pid:
        raise VmError(f"{definition.name} ended while it was saved")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        argv = [os.fsdecode(word) for word in file.read(1 << 20).rstrip(b"\0").split(b"\0")]
    wall = msgspec.json.decode(files.read_bounded(f"{paths.vm_data(definition.id)}/wall.json"))
    spec = canonical_json(definition.spec).decode()
    return Manifest(
        name=definition.name,
        saved_at=state.now(),
        spec=spec,
        spec_sha256=hashlib.sha256(spec.encode()).hexdigest(),
        hardware_sha256=hardware_digest(argv),
        machine=definition.spec.machine.type.value,
        accel=vm.running.accel,
        qemu_version=str(wall["qemu_version"]),
        files=_digests(definition.spec),
        guest_prepared=prepared,
        stream_bytes=stream_bytes,
        overlays=overlays,
    )


def _digests(spec: Spec) -> dict[str, str]:
    found = {}
    for role, path in (("kernel", spec.boot.kernel), ("initrd", spec.boot.initrd)):
        if path is not None:
            found[role] = _digest(open_regular_file(path, what=role))
    for index, disk in enumerate(spec.disks):
        found[f"disk{index}"] = _digest(open_image(disk.path))
    return found


def _digest(descriptor: int) -> str:
    try:
        return digest_file(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for_rest(paths: Paths, definition: Definition) -> None:
    end = time.monotonic() + ENDS_S
    while time.monotonic() < end:
        with contextlib.suppress(InputError):
            if state.look(paths, definition).state in state.AT_REST:
                return
        time.sleep(0.02)
    raise VmError(f"{definition.name} is saved and does not end", next_step=f"casemate kill {definition.name}")
