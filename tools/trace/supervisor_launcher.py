"""Become the supervisor of a fake emulator, as the engine does it: fork the emulator, then exec the interpreter.

supervisor_launcher.py SOURCE CONFIG.json     (with inherited descriptors: see trace_supervisor.py)
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time


def emulate(qmp: socket.socket, console: socket.socket, log: int, behaviour: str) -> None:
    """Answer every QMP command; write to console and log; end when told to, or when asked to power off."""
    console.sendall(b"boot\n")
    os.write(log, b"a warning\n")
    for _ in range(60 if behaviour == "flood" else 1):
        console.sendall(b"x" * 4096)
        time.sleep(0.002)
    if behaviour == "panic":
        console.sendall(b"Kernel panic - not syncing: test\n")
        qmp.sendall(b'{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}\n')
        time.sleep(60)
    if behaviour == "garbage":
        qmp.sendall(b"{]\n")
        time.sleep(60)
    if behaviour == "abort":
        time.sleep(1)
        os.abort()
    text = b""
    while data := qmp.recv(4096):
        text += data
        while b"\n" in text or b"\r" in text:
            line, _, text = text.replace(b"\r", b"\n").partition(b"\n")
            if not line.strip():
                continue
            message = json.loads(line)
            qmp.sendall(json.dumps({"return": {}, "id": message.get("id")}).encode() + b"\n")
            if message["execute"] == "stop":
                qmp.sendall(b'{"event": "STOP"}\n')
            if message["execute"] == "system_powerdown" and behaviour != "stubborn":
                qmp.sendall(b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\n')
                time.sleep(0.2)
                return


def main() -> None:
    """Fork, hand over, exec."""
    source, path = sys.argv[1:]
    with open(path) as file:
        config = json.load(file)
    qmp, qmp_child = socket.socketpair()
    console, console_child = socket.socketpair()
    log, log_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        qmp.close()
        console.close()
        emulate(qmp_child, console_child, log_child, config.pop("behaviour"))
        os._exit(0)
    helper = os.fork()
    if helper == 0:
        for peer in (qmp, console, qmp_child, console_child):
            peer.close()
        time.sleep(1.0)
        os._exit(1)
    for end in (qmp_child, console_child):
        end.close()
    os.close(log_child)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{config['runtime']}/control.sock")
    listener.listen(16)
    config |= {
        "qmp_fd": qmp.fileno(),
        "console_fd": console.fileno(),
        "log_fd": log,
        "listener_fd": listener.fileno(),
        "pidfd": os.pidfd_open(pid),
        "helper_pidfds": {str(os.pidfd_open(helper)): "passt"},
    }
    keep = [config[name] for name in ("qmp_fd", "console_fd", "log_fd", "listener_fd", "pidfd")]
    config["inherited_fds"] = keep + [int(number) for number in config["helper_pidfds"]]
    handover = os.memfd_create("handover", os.MFD_CLOEXEC)
    os.write(handover, json.dumps(config).encode())
    os.lseek(handover, 0, os.SEEK_SET)
    for number in (*config["inherited_fds"], handover):
        os.set_inheritable(number, True)
    code = f"import sys; sys.path.insert(0, {source!r}); from casemate.engine.supervise import main; main({handover})"
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", "-c", code], {"LC_ALL": "C.UTF-8"})


main()
