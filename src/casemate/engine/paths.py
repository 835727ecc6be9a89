"""Where Casemate keeps things, and how the directories are made.

    runtime   /run/casemate or $XDG_RUNTIME_DIR/casemate            gone after a reboot
      vms/<id>/lock          lock (see files.py), held by the supervisor for its whole life, else by who starts,
                             removes or cleans up
      vms/<id>/state.json    what runs now; replaced by rename
      vms/<id>/exit.json     how the run ended, only while the data disk is full
      vms/<id>/control.sock  requests to the supervisor
      vms/<id>/root/         empty; the new root is mounted here in the emulator's own mount namespace
      ids/<uid>              lock: one VM per reserved uid
    data      /var/lib/casemate or $XDG_DATA_HOME/casemate
      names.lock             lock: taken while a name is claimed or freed
      vms/<id>/definition.json   specification, name, created_at
      vms/<id>/run.json          the run that has no end yet: boot id, start, supervisor, cgroups
      vms/<id>/exit.json         how the last run ended
      vms/<id>/console.log[.1]   bounded
      vms/<id>/emulator.log[.1]  bounded
      vms/<id>/supervisor.log    the supervisor's last words, if it ever has any
      vms/<id>/events.jsonl[.1]  bounded
      vms/<id>/vars.fd           UEFI variables
      vms/<id>/tpm/ tpm.json     see tpm_state.py
      vms/<id>/keys.json         Secure Boot's keys at the first start
      records/<n>-<id>.json chain.json   launch records, signed and chained; they outlive their VMs
      key                        ed25519, 0600
    cache     /var/cache/casemate or $XDG_CACHE_HOME/casemate
      filters/ emulators/ guest/ kvm.json   derived, checked before use

All directories are 0700 and owned by the caller; anything else is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat

import msgspec

from casemate.errors import HostError

_SHARED = "/tmp/casemate-run-"  # noqa: S108 - made 0700, owner is checked


class Paths(msgspec.Struct, frozen=True):
    """The three base directories, absolute."""

    runtime: str
    data: str
    cache: str

    def vm_runtime(self, vm_id: str) -> str:
        """Runtime directory of one VM."""
        return f"{self.runtime}/vms/{vm_id}"

    def vm_data(self, vm_id: str) -> str:
        """Data directory of one VM."""
        return f"{self.data}/vms/{vm_id}"


def default_paths() -> Paths:
    """Directories by the XDG rules, or the system's when root.

    Raises:
        HostError: a home directory is needed and there is none, or the runtime directory is another user's.
    """
    if os.geteuid() == 0:
        return Paths("/run/casemate", "/var/lib/casemate", "/var/cache/casemate")
    home = os.environ.get("HOME", "")
    if not home.startswith("/"):
        raise HostError("no home directory", got=f"HOME={home!r}", next_step="set HOME to an absolute path")
    uid = os.getuid()
    # Without a login session there is no XDG_RUNTIME_DIR; a private directory under /tmp is what podman takes too.
    runtime = _absolute("XDG_RUNTIME_DIR", f"{_SHARED}{uid}")
    if not runtime.startswith(_SHARED):  # that one is checked, and made, where it is used
        _refuse_foreign("XDG_RUNTIME_DIR", runtime, uid)
    data = _absolute("XDG_DATA_HOME", f"{home}/.local/share")
    cache = _absolute("XDG_CACHE_HOME", f"{home}/.cache")
    return Paths(f"{runtime}/casemate", f"{data}/casemate", f"{cache}/casemate")


def _absolute(variable: str, fallback: str) -> str:
    value = os.environ.get(variable, "")
    return value.rstrip("/") if value.startswith("/") else fallback


def _refuse_foreign(variable: str, directory: str, uid: int) -> None:
    """su and sudo leave the caller's session in the environment, whose directories are not ours."""
    try:
        owner = os.stat(directory).st_uid
    except OSError:
        return  # it is made, or refused, where it is used
    if owner != uid:
        raise HostError(
            f"{variable} is the directory of another user",
            got=f"{directory}, which belongs to uid {owner}",
            expected=f"a directory of uid {uid}",
            next_step=f"unset {variable}, or log in as that user (machinectl shell, ssh) instead of su",
        )


def prepare(paths: Paths) -> None:
    """Make the base directories.

    Raises:
        HostError: one cannot be made, or is not ours alone.
    """
    if paths.runtime.startswith(_SHARED):
        # Anybody may make names in /tmp: whoever owns the parent could put his own sockets in the place of ours.
        own_directory(os.path.dirname(paths.runtime))
    for base, parts in (
        (paths.runtime, ("vms", "ids")),
        (paths.data, ("vms",)),
        (paths.cache, ("filters", "emulators")),
    ):
        own_directory(base)
        for part in parts:
            own_directory(f"{base}/{part}")


def own_directory(path: str) -> None:
    """Make ``path`` 0700 if it is missing, and check that it belongs to the caller alone."""
    try:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another command was faster
                os.mkdir(path, 0o700)
            found = os.lstat(path)
    except OSError as fault:
        raise HostError(
            f"directory {path} cannot be made", got=str(fault.strerror), next_step="make its parent writable"
        ) from fault
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o077:
        raise HostError(
            f"{path} is not a private directory of ours",
            got=f"{stat.filemode(found.st_mode)} uid {found.st_uid}",
            expected=f"drwx------ uid {os.geteuid()}",
            next_step=f"remove it or chmod 700 {path}",
        )
