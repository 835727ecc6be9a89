"""A TUF repository of images: the publisher's side (https://theupdateframework.github.io/specification/latest/).

    REPO/metadata/1.root.json 2.root.json …   signed by the root keys, offline; the newest also says who the others are
                  1.targets.json …            names, lengths and digests of the images
                  1.snapshot.json …           which targets.json belongs to it: no mixing of old and new parts
                  timestamp.json              which snapshot is the newest, valid for days: no freezing
    REPO/targets/<sha256>.<name>              the images (consistent snapshots: nothing is ever overwritten)
    KEYS/root-1.pem … targets-1.pem … snapshot-1.pem timestamp-1.pem     PKCS #8, Ed25519, encrypted, 0600

The whole directory REPO can lie on any web server, which is trusted with nothing. KEYS never does: keep the root keys
on something that is not in a machine, `add` wants only the targets keys, `publish` snapshot and timestamp.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import InputError
from casemate.image.store_files import read_small

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
DAYS: Final = {"root": 365, "targets": 90, "snapshot": 14, "timestamp": 7}
METADATA_MAX_BYTES: Final = 8 << 20
KEY_MAX_BYTES: Final = 16 << 10
MAX_KEYS: Final = 16
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,120}", re.ASCII)

Passphrase = Callable[[str], bytes]
"""Asked for the passphrase of a role's keys."""


def check_target_name(name: str) -> str:
    """``name`` if a target may have it: no directories, nothing that a file system or URL reads in another way.

    Raises:
        InputError: it may not.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(f"{name[:100]!r} cannot name a target", expected="1 to 121 characters a-z 0-9 _ . -")
    return name


def create(
    repo: str, keys: str, counts: dict[str, tuple[int, int]], passphrase: Passphrase, now: datetime.datetime
) -> str:
    """Make keys and an empty repository; returns the SHA-256 of ``1.root.json``, which clients must know.

    Args:
        counts: role -> (threshold, number of keys); 1 of 1 for roles that are not in it.

    Raises:
        InputError: something is there already, or a threshold that cannot be met.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

    wanted = {role: counts.get(role, (1, 1)) for role in ROLES}
    for role, (threshold, number) in wanted.items():
        if not 1 <= threshold <= number <= MAX_KEYS:
            raise InputError(f"{threshold} of {number} keys for {role}", expected=f"1 to {MAX_KEYS}, no more than keys")
    for place in (repo, keys):
        if os.path.isdir(place) and os.listdir(place):
            raise InputError(f"{place} is not empty", expected="a new directory for each: repository and keys")
    words = {role: passphrase(role) for role in ROLES}  # before anything is made
    os.makedirs(f"{repo}/metadata", exist_ok=True)
    os.makedirs(f"{repo}/targets", exist_ok=True)
    os.makedirs(keys, mode=0o700, exist_ok=True)
    os.chmod(keys, 0o700)
    root = Root(expires=_expiry("root", now), consistent_snapshot=True)
    signers: dict[str, list[CryptoSigner]] = {}
    for role, (threshold, number) in wanted.items():
        root.roles[role].threshold = threshold
        for index in range(1, number + 1):
            private = Ed25519PrivateKey.generate()
            signer = CryptoSigner(private)
            _write_key(f"{keys}/{role}-{index}.pem", private, words[role])
            root.add_key(signer.public_key, role)
            signers.setdefault(role, []).append(signer)
    for role, signed in (
        ("root", root),
        ("targets", Targets(expires=_expiry("targets", now))),
        ("snapshot", Snapshot(expires=_expiry("snapshot", now))),
        ("timestamp", Timestamp(expires=_expiry("timestamp", now))),
    ):
        _save(repo, role, Metadata(signed), signers[role])
    return hashlib.sha256(_read(f"{repo}/metadata/1.root.json")).hexdigest()


def add_target(
    repo: str,
    keys: str,
    name: str,
    descriptor: int,
    custom: dict[str, str],
    passphrase: Passphrase,
    now: datetime.datetime,
) -> str:
    """Copy an open file into the repository and sign a new list of targets; returns its SHA-256.

    Nothing changes for clients before `publish`.

    Raises:
        InputError: a bad name, no repository, or keys that do not fit.
    """
    from tuf.api.metadata import TargetFile, Targets

    check_target_name(name)
    targets = _load(repo, "targets")
    signers = _signers(repo, keys, "targets", passphrase)
    temporary = f"{repo}/targets/.{os.urandom(8).hex()}"
    try:
        length, digest = _copy(descriptor, temporary)
        os.rename(temporary, f"{repo}/targets/{digest}.{name}")
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    assert isinstance(targets.signed, Targets)
    entry = TargetFile(length, {"sha256": digest}, name, {"custom": custom} if custom else {})
    targets.signed.targets[name] = entry
    _bump(targets, "targets", now)
    _save(repo, "targets", targets, signers)
    return digest


def publish(repo: str, keys: str, passphrase: Passphrase, now: datetime.datetime) -> dict[str, int]:
    """Sign a new snapshot and timestamp over what `add_target` left; returns the versions of all roles.

    Run it before the timestamp expires, also without changes: that is what says that nothing was held back.

    Raises:
        InputError: no repository, or keys that do not fit.
    """
    from tuf.api.metadata import MetaFile, Snapshot, Timestamp

    root, targets = _load(repo, "root"), _load(repo, "targets")
    snapshot, timestamp = _load(repo, "snapshot"), _load(repo, "timestamp")
    assert isinstance(snapshot.signed, Snapshot)
    assert isinstance(timestamp.signed, Timestamp)
    signing = {role: _signers(repo, keys, role, passphrase) for role in ("snapshot", "timestamp")}
    data = _read(f"{repo}/metadata/{targets.signed.version}.targets.json")
    snapshot.signed.meta["targets.json"] = MetaFile(
        targets.signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()}
    )
    _bump(snapshot, "snapshot", now)
    data = _save(repo, "snapshot", snapshot, signing["snapshot"])
    timestamp.signed.snapshot_meta = MetaFile(
        snapshot.signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()}
    )
    _bump(timestamp, "timestamp", now)
    _save(repo, "timestamp", timestamp, signing["timestamp"])
    found = (("root", root), ("targets", targets), ("snapshot", snapshot), ("timestamp", timestamp))
    return {role: metadata.signed.version for role, metadata in found}


def renew_root(repo: str, keys: str, passphrase: Passphrase, now: datetime.datetime) -> int:
    """Sign the root again with a new number and date; clients go from root to root. Returns the number.

    Raises:
        InputError: no repository, or not enough root keys.
    """
    root = _load(repo, "root")
    signers = _signers(repo, keys, "root", passphrase)
    _bump(root, "root", now)
    _save(repo, "root", root, signers)
    return int(root.signed.version)


def rotate(repo: str, keys: str, role: str, passphrase: Passphrase, now: datetime.datetime) -> tuple[str, ...]:
    """Give a role new keys, as many as it has, and let a new root say so; returns their files. Then `publish`.

    The old keys count for nothing from then on, with every client that sees the new root. A new root is signed by
    enough of the old root keys and by the new ones.

    Raises:
        InputError: no repository, no such role, or not enough root keys.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    if role not in ROLES:
        raise InputError(f"there is no role {role!r}", expected=", ".join(ROLES))
    root = _load(repo, "root")
    signing = _signers(repo, keys, "root", passphrase)
    word, fresh, written = passphrase(role), [], []
    taken = [int(name[len(role) + 1 : -4]) for name in os.listdir(keys) if re.fullmatch(rf"{role}-\d+\.pem", name)]
    old = list(root.signed.roles[role].keyids)
    for index in range(max(taken, default=0) + 1, max(taken, default=0) + 1 + len(old)):
        private = Ed25519PrivateKey.generate()
        written.append(f"{keys}/{role}-{index}.pem")
        _write_key(written[-1], private, word)
        fresh.append(CryptoSigner(private))
        root.signed.add_key(fresh[-1].public_key, role)
    for keyid in old:
        root.signed.revoke_key(keyid, role)
    _bump(root, "root", now)
    _save(repo, "root", root, [*signing, *fresh] if role == "root" else signing)
    if role != "root":
        metadata = _load(repo, role)
        _bump(metadata, role, now)
        _save(repo, role, metadata, fresh)
    return tuple(written)


def target_names(repo: str) -> tuple[str, ...]:
    """Names that the newest list of targets has."""
    return tuple(sorted(_load(repo, "targets").signed.targets))


def _load(repo: str, role: str) -> Metadata[Any]:
    """The newest metadata of a role; our own files, signed by us."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata

    path = f"{repo}/metadata/timestamp.json"
    try:
        if role != "timestamp":
            ending = f".{role}.json"
            numbers = [
                int(name.removesuffix(ending))
                for name in os.listdir(f"{repo}/metadata")
                if name.endswith(ending) and name.removesuffix(ending).isdigit()
            ]
            path = f"{repo}/metadata/{max(numbers)}{ending}"
        return Metadata.from_bytes(_read(path))
    except (OSError, ValueError, RepositoryError) as fault:
        raise InputError(
            f"{repo} is no repository of images",
            got=f"{path}: {str(fault)[:200]}",
            next_step=f"casemate image repo init {repo} --keys DIR",
        ) from None


def _signers(repo: str, keys: str, role: str, passphrase: Passphrase) -> list[CryptoSigner]:
    """The signers of a role, as many as its threshold wants and the directory has."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    root = _load(repo, "root").signed
    names = sorted(name for name in os.listdir(keys) if re.fullmatch(rf"{role}-\d+\.pem", name))
    word, found = passphrase(role), []
    for name in names[:MAX_KEYS]:
        path = f"{keys}/{name}"
        if os.stat(path).st_mode & 0o077:
            raise InputError(f"the key {path} is readable by others", next_step=f"chmod 600 {path}")
        try:
            signer = CryptoSigner(load_pem_private_key(read_small(path, KEY_MAX_BYTES), word))
        except (ValueError, TypeError, OSError):
            raise InputError(f"the key {path} cannot be read", got="a wrong passphrase, or no key") from None
        if signer.public_key.keyid in root.roles[role].keyids:
            found.append(signer)
    threshold = root.roles[role].threshold
    if len(found) < threshold:
        raise InputError(
            f"not enough keys for {role} in {keys}",
            got=f"{len(found)}",
            expected=f"{threshold}, of those that the newest root names",
        )
    return found


def _save(repo: str, role: str, metadata: Metadata[Any], signers: list[CryptoSigner]) -> bytes:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    data = metadata.to_bytes()
    name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
    path = f"{repo}/metadata/{name}"
    temporary = f"{path}.{os.urandom(6).hex()}"
    with open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    return data


def _bump(metadata: Metadata[Any], role: str, now: datetime.datetime) -> None:
    metadata.signed.version += 1
    metadata.signed.expires = _expiry(role, now)


def _expiry(role: str, now: datetime.datetime) -> datetime.datetime:
    return (now + datetime.timedelta(days=DAYS[role])).replace(microsecond=0)


def _copy(descriptor: int, path: str) -> tuple[int, str]:
    digest, done = hashlib.sha256(), 0
    with open(path, "xb") as file:
        while chunk := os.pread(descriptor, 1 << 20, done):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return done, digest.hexdigest()


def _write_key(path: str, private: Any, word: bytes) -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(word))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: str) -> bytes:
    return read_small(path, METADATA_MAX_BYTES)
