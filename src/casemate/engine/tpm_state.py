"""Where a VM's TPM lives between runs, and the key that its state is encrypted with.

    vms/<id>/tpm/state/     swtpm's own uid, 0700; encrypted; appears by one rename when the TPM is whole
    vms/<id>/tpm/new/       a TPM that is being made; one that was not finished is thrown away by the next start
    vms/<id>/tpm/key        32 random bytes, 0600, where the specification names no secret
    vms/<id>/tpm.json       public parts of its endorsement and attestation keys

A VM that removes itself has neither directory nor key file: its state lies in a tmpfs of swtpm's wall, its key in
memory. The caller holds the VM's lock.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Final

import msgspec

from casemate.engine import files, owned
from casemate.engine.opening import Opened
from casemate.engine.paths import Paths
from casemate.engine.provisioning import sealed
from casemate.engine.secret_sources import read_secret
from casemate.engine.tpm_commands import AK_HANDLE
from casemate.engine.vmfiles import salvage_struct
from casemate.errors import HostError, InputError
from casemate.plan.model import LaunchPlan
from casemate.plan.swtpm import KEY_BYTES, STATE_MAX_BYTES
from casemate.provision.credentials import wipe
from casemate.spec.model import Spec

SECRET_MIN_BYTES: Final = 20
SECRET_MAX_BYTES: Final = 4096
NAMES: Final = frozenset(
    {".lock", "tpm2-00.permall", "TMP2-00.permall", "tpm2-00.permall.bak"}
    | {"tpm2-00.volatilestate", "TMP2-00.volatilestate"}
)
"""What swtpm 0.7 to 0.10 makes in its directory."""
# About 50 ms and 16 MiB: a guess at a weak secret costs that much.
_SCRYPT: Final = {"n": 1 << 14, "r": 8, "p": 1, "maxmem": 64 << 20}


class Keys(msgspec.Struct, frozen=True):
    """tpm.json. TPMT_PUBLIC of the endorsement key and of the attestation key, in hexadecimal."""

    ek_public: str
    ak_public: str
    made_at: str


@dataclass(frozen=True)
class Home:
    """Where the TPM of one launch lives.

    Attributes:
        directory: given to swtpm as its state; None for a tmpfs.
        fresh: there is no TPM yet: make one, then `settle`.
        record: path of tpm.json.
    """

    directory: str | None
    fresh: bool
    record: str

    def settle(self, keys: Keys) -> None:
        """The new TPM is whole: write down its public keys, then let it be the VM's."""
        files.write_json(self.record, keys)
        if self.directory is None:
            return
        home = os.path.dirname(self.directory)
        os.rename(self.directory, f"{home}/state")  # swtpm's mount of it goes along
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def prepare(plan: LaunchPlan, paths: Paths, opened: Opened) -> Home:
    """Make ready what swtpm is given: its directory, and in ``opened`` its keys, ``tpm-key`` and ``tpm-export-key``.

    Raises:
        InputError: the secret is not one. HostError: the state is not what swtpm leaves, or its key is gone.
    """
    helper = next(item for item in plan.helpers if item.name == "swtpm")
    who = helper.run_as
    if who is None:
        raise RuntimeError("a TPM's emulator without an identity")
    data = paths.vm_data(plan.vm_id)
    home, record = f"{data}/tpm", f"{data}/tpm.json"
    opened.by_role["tpm-export-key"] = sealed("tpm-export-key", os.urandom(KEY_BYTES))
    if not helper.keeps_state:
        opened.by_role["tpm-key"] = _key(plan.spec, plan.vm_id, None, made=False)
        return Home(None, True, record)
    os.makedirs(home, mode=0o700, exist_ok=True)
    state, new = f"{home}/state", f"{home}/new"
    owned.remove(new, who.mode)
    made = os.path.lexists(state)
    opened.by_role["tpm-key"] = _key(plan.spec, plan.vm_id, f"{home}/key", made=made)
    if not made:
        os.mkdir(new, 0o700)
    owned.take_over(state if made else new, who, NAMES, STATE_MAX_BYTES)
    return Home(state if made else new, not made, record)


def public_view(paths: Paths, vm_id: str) -> dict[str, str]:
    """What ``inspect`` shows of a VM's TPM: no secret; empty texts as long as no TPM was made.

    ``attestation_key`` is PEM: what `casemate attest verify --trust` takes.
    """
    keys = salvage_struct(f"{paths.vm_data(vm_id)}/tpm.json", Keys)
    if keys is None:
        return {"made_at": "", "endorsement_public": "", "attestation_key": "", "attestation_key_handle": ""}
    return {
        "made_at": keys.made_at,
        "endorsement_public": keys.ek_public,
        "attestation_key": _pem(bytes.fromhex(keys.ak_public)),
        "attestation_key_handle": f"{AK_HANDLE:#x}",
    }


def attestation_digest(paths: Paths, vm_id: str) -> dict[str, str]:
    """For the launch record: SHA-256 of the attestation key, as `attest verify` names it."""
    keys = salvage_struct(f"{paths.vm_data(vm_id)}/tpm.json", Keys)
    if keys is None:
        return {}
    from casemate.evidence.tpm import parse_public_key

    return {"tpm-attestation-key": hashlib.sha256(parse_public_key(bytes.fromhex(keys.ak_public))).hexdigest()}


def _pem(public: bytes) -> str:
    import base64

    from casemate.evidence.tpm import parse_public_key

    text = base64.b64encode(parse_public_key(public)).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""))


def discard(paths: Paths, vm_id: str) -> None:
    """The TPM of a VM, for good: first its key, without which the state is noise."""
    home = f"{paths.vm_data(vm_id)}/tpm"
    files.unlink_if_there(f"{home}/key")
    owned.remove(home)


def _key(spec: Spec, vm_id: str, kept: str | None, *, made: bool) -> int:
    if spec.tpm.key is not None:
        value = _derive(spec, spec.tpm.key, vm_id)
    elif kept is None:
        value = bytearray(os.urandom(KEY_BYTES))
    else:
        value = bytearray(_kept(kept, made=made))
    try:
        return sealed("tpm-key", value)
    finally:
        wipe(value)


def _derive(spec: Spec, name: str, vm_id: str) -> bytearray:
    """Another key for each VM, even of one secret."""
    secret = read_secret(name, spec.secrets[name], SECRET_MAX_BYTES)
    try:
        if len(secret) < SECRET_MIN_BYTES:
            raise InputError(
                f"secret {name}",
                got=f"{len(secret)} bytes",
                expected=f"{SECRET_MIN_BYTES} or more",
                next_step="head -c 32 /dev/urandom | base64 -w0 >FILE; chmod 600 FILE",
            )
        salt = b"casemate-tpm-state:" + vm_id.encode()
        return bytearray(hashlib.scrypt(secret, salt=salt, dklen=KEY_BYTES, **_SCRYPT))
    finally:
        wipe(secret)


def _kept(path: str, *, made: bool) -> bytes:
    """The key that is kept; a new one only where there is no TPM that an older one encrypts."""
    if not made:
        files.write_atomic(path, os.urandom(KEY_BYTES))
    try:
        key = files.read_bounded(path, KEY_BYTES)
    except OSError:  # missing, too long, or no file at all
        key = b""
    if len(key) != KEY_BYTES:
        raise HostError(
            "the key of the VM's TPM is gone, and its state cannot be read without it",
            got=f"{path}: {len(key)} bytes",
            expected=f"the {KEY_BYTES} bytes that were written when the TPM was made",
            next_step="put the key back from a copy; or casemate rm, which gives the TPM up",
        )
    return key
