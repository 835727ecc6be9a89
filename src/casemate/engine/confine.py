"""The supervisor's own wall: what it keeps is its VM's directories, its children's pidfds and the control socket.

It runs unconfined code paths of ours on input from the emulator and the guest; a mistake there must not reach further
than this VM. Capabilities go even for root: a process that owns the emulator's user namespace may signal it without.
"""

from __future__ import annotations

import base64
import os
import resource
import time

from casemate.sys import caps, landlock
from casemate.sys.process import PR_SET_NO_NEW_PRIVS, prctl, set_process_name
from casemate.sys.seccomp import seccomp_set_mode_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OWN = landlock.READ_FILE | landlock.READ_DIR | landlock.WRITE_FILE | landlock.TRUNCATE
_OWN |= landlock.MAKE_REG | landlock.REMOVE_FILE | landlock.REMOVE_DIR
_LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NOFILE, 256),
    (resource.RLIMIT_FSIZE, 1 << 30),
    (resource.RLIMIT_DATA, 256 << 20),
    (resource.RLIMIT_MEMLOCK, 0),
)


def confine_supervisor(config: dict[str, Any]) -> None:
    """Confine the calling process for good.

    Raises:
        OSError: a layer could not be put on; the caller must not go on.
    """
    time.strftime("%Z", time.gmtime(0))  # the C library reads the time zone now: later it finds no file
    for limit, value in _LIMITS:
        resource.setrlimit(limit, (value, value))
    set_process_name("casemate-sup")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    caps.clear_ambient_set()
    if os.geteuid() == 0:
        caps.drop_bounding_set()
        caps.lock_securebits()
        caps.capset()
    abi = landlock.landlock_abi()
    if abi >= 1:
        paths = [(directory, _OWN) for directory in config["writable"]]
        parents = {os.path.dirname(item) for item in (*config["writable"], *config["state"]["cgroups"])}
        paths += [(parent, landlock.REMOVE_DIR) for parent in sorted(parents)]
        landlock.landlock_restrict_self(abi, tuple(paths), may_signal_outside=True)
    if config["seccomp_program"]:
        seccomp_set_mode_filter(base64.b64decode(config["seccomp_program"]), 0)
