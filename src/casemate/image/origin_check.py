"""Is this open file what somebody vouched for? One function, which ``image verify`` and ``image add`` call.

What vouches, by what is given::

    sums + signature        the signature covers the list, the list holds the file's digest
    sums                    the list is itself a signed OpenPGP message (cleartext or inline)
    signature               it covers the file itself

A signature is told by its content: OpenPGP (binary or armored), SSH, minisign, a sigstore bundle (JSON).

1. Read what was given, bounded. 2. Verify the signature over the list; or see which digest of the file it covers.
3. Read the file once, every digest from that one reading. 4. Compare. Whatever does not hold raises; there is no
result that means no.
"""

from __future__ import annotations

import datetime
import glob
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from casemate.errors import ImageError, InputError
from casemate.image import minisign, openpgp, sigstore_bundle, sshsig, sums
from casemate.image.origin import Signer, refuse
from casemate.image.origin_digest import Progress, digests_of, nothing
from casemate.image.store_files import read_small

DISTRIBUTION_KEYRINGS: Final = tuple(
    f"/usr/share/keyrings/{name}-*.{ending}" for name in ("debian", "ubuntu") for ending in ("gpg", "pgp", "asc")
)
"""Keyrings that Debian's and Ubuntu's packages put there; other publishers use the directory too."""
_GONE: Final = ("removed", "retired")


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the user gives to verify with; paths of files. ``name``: under which the file is listed in ``sums``."""

    sums: str | None = None
    signature: str | None = None
    name: str | None = None
    keyrings: tuple[str, ...] = ()
    allowed_signers: str | None = None
    namespace: str = sshsig.DEFAULT_NAMESPACE
    identity: str | None = None
    minisign_key: str | None = None
    trusted_root: str | None = None
    issuer: str | None = None

    def given(self) -> bool:
        """True if there is anything to verify with."""
        return self.sums is not None or self.signature is not None


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose origin holds. ``covered``: ``file``, or the list and the name in it."""

    sha256: str
    size_bytes: int
    signers: tuple[Signer, ...]
    covered: str

    def as_origin(self, now: datetime.datetime, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """The words that the store keeps (`store_model.StoredImage.origin`).

        Args:
            known: what it keeps already of the same content; who signed before stays, so that several files of
                signatures can satisfy a policy that wants all.
        """
        before = known or {}
        keys, names = before.get("verified_by", "").split("\n"), before.get("identity", "").split("\n")
        signed = dict(zip(keys, [*names, *[""] * len(keys)], strict=False)) if keys != [""] else {}
        signed |= {signer.key: signer.identity.replace("\n", " ") for signer in self.signers}
        return {
            "verified_by": "\n".join(signed),
            "verified_as": self.covered,
            "verified_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "verified_sha256": self.sha256,
            "identity": "\n".join(signed.values()),
        }


def check_origin(
    descriptor: int, file_name: str, evidence: Evidence, now: datetime.datetime, progress: Progress = nothing
) -> Verified:
    """Verify an open file; its position does not move.

    Args:
        file_name: how the file is called, for the list of checksums; ``evidence.name`` wins.

    Raises:
        InputError: nothing to verify with, or a file of the evidence cannot be read.
        ImageError: it does not hold, and why.
        HostError: an optional part is missing.
    """
    if not evidence.given():
        raise InputError(
            "there is nothing to verify with",
            expected="--signature FILE, or --sums FILE with --signature FILE",
            next_step="casemate image verify --help",
        )
    if evidence.sums is not None:
        return _by_list(descriptor, file_name, evidence, now, progress)
    assert evidence.signature is not None
    signature = read_evidence(evidence.signature, openpgp.SIGNATURE_MAX_BYTES)
    if kind_of(signature) == "openpgp":
        return _openpgp_file(descriptor, signature, evidence, now)
    algorithm, verify = _over_digest(signature, evidence, now)
    if algorithm == "":
        content = _whole(descriptor, evidence.signature)
        digests: Mapping[str, bytes] = {"sha256": hashlib.sha256(content).digest(), "": content}
    else:
        digests = digests_of(descriptor, {"sha256", algorithm}, progress)
    signer = verify(digests)
    size = os.fstat(descriptor).st_size
    return Verified(sha256=digests["sha256"].hex(), size_bytes=size, signers=(signer,), covered="file")


def kind_of(signature: bytes) -> str:
    """``ssh``, ``sigstore``, ``minisign``, or ``openpgp`` for everything else, which its parser then judges."""
    start = signature.lstrip()[:64]
    if start.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        return "ssh"
    if start[:1] == b"{":
        return "sigstore"
    return "minisign" if minisign.is_signature(signature) else "openpgp"


def distribution_keyrings() -> tuple[str, ...]:
    """Keyrings of the distribution on this host, without those of removed keys."""
    found = {path for pattern in DISTRIBUTION_KEYRINGS for path in glob.glob(pattern)}
    return tuple(sorted(path for path in found if not any(word in path for word in _GONE)))


def _by_list(
    descriptor: int, file_name: str, evidence: Evidence, now: datetime.datetime, progress: Progress
) -> Verified:
    assert evidence.sums is not None
    listed = read_evidence(evidence.sums, sums.SUMS_MAX_BYTES)
    what = evidence.sums
    if openpgp.is_message(listed):
        if evidence.signature is not None:
            raise InputError(
                f"{what} is a signed message", got="another signature beside it", expected="one of the two"
            )
        listed, signers = openpgp.verify_message(listed, _keyring(evidence), now, what)
    elif evidence.signature is None:
        raise InputError(
            f"{what} has no signature",
            got="a list of checksums that anybody could have written",
            expected="--signature FILE with it, or a list that is a signed OpenPGP message",
        )
    else:
        signers = _over_bytes(listed, read_evidence(evidence.signature, openpgp.SIGNATURE_MAX_BYTES), evidence, now)
    name = evidence.name or file_name
    entry = sums.entry_for(sums.parse_sums(listed, what), name, what)
    digests = digests_of(descriptor, {"sha256", entry.algorithm}, progress)
    found = digests[entry.algorithm].hex()
    if found != entry.digest:
        raise refuse(
            f"{name} is not the file that {what} lists",
            f"{entry.algorithm} {found}",
            expected=entry.digest,
            next_step="download it again; if it stays so, tell the publisher and do not use this image",
        )
    size = os.fstat(descriptor).st_size
    return Verified(
        sha256=digests["sha256"].hex(), size_bytes=size, signers=signers, covered=f"{os.path.basename(what)}: {name}"
    )


def _over_bytes(content: bytes, signature: bytes, evidence: Evidence, now: datetime.datetime) -> tuple[Signer, ...]:
    """Signers of bytes in memory, whatever the kind of signature."""
    if kind_of(signature) == "openpgp":
        assert evidence.signature is not None
        return openpgp.verify_detached(signature, content, _keyring(evidence), now, evidence.signature)
    algorithm, verify = _over_digest(signature, evidence, now)
    digests = {name: hashlib.new(name, content).digest() for name in {"sha256", algorithm} - {""}}
    return (verify({**digests, "": content}),)


def _over_digest(
    signature: bytes, evidence: Evidence, now: datetime.datetime
) -> tuple[str, Callable[[Mapping[str, bytes]], Signer]]:
    """The digest that a signature covers (empty: the content itself), and the judge that wants it."""
    assert evidence.signature is not None
    what = evidence.signature
    kind = kind_of(signature)
    if kind == "ssh":
        if evidence.allowed_signers is None:
            raise InputError(f"{what} is an SSH signature", expected="--allowed-signers FILE: who may sign")
        allowed_data = read_evidence(evidence.allowed_signers, sshsig.SIGNERS_MAX_BYTES)
        allowed = sshsig.parse_allowed_signers(allowed_data, evidence.allowed_signers)
        parsed = sshsig.parse_signature(signature, what)

        def ssh(digests: Mapping[str, bytes]) -> Signer:
            return sshsig.verify_signature(
                parsed, digests, allowed, now, what, namespace=evidence.namespace, identity=evidence.identity
            )

        return parsed.hash_algorithm, ssh
    if kind == "sigstore":
        judge = sigstore_bundle.judge_of(
            signature,
            what,
            identity=evidence.identity,
            issuer=evidence.issuer,
            trusted_root=None if evidence.trusted_root is None else read_evidence(evidence.trusted_root, 1 << 20),
        )
        return "sha256", lambda digests: judge(digests["sha256"])
    if evidence.minisign_key is None:
        raise InputError(f"{what} is a minisign signature", expected="--minisign-key FILE or KEY")
    key = _minisign_key(evidence.minisign_key)
    small = minisign.parse_signature(signature, what)
    covered = "blake2b" if small.prehashed else ""
    return covered, lambda digests: minisign.verify_signature(small, key, digests[covered], what)


def _minisign_key(given: str) -> minisign.MinisignKey:
    is_text = len(given) == 56 and given.startswith("RW") and not os.path.exists(given)
    data = given.encode() if is_text else read_evidence(given, minisign.FILE_MAX_BYTES)
    return minisign.parse_key(data, "the minisign key" if is_text else given)


def _keyring(evidence: Evidence) -> openpgp.Keyring:
    paths = evidence.keyrings or distribution_keyrings()
    if not paths:
        raise InputError(
            "no keyring is given, and the distribution has none in /usr/share/keyrings",
            expected="--keyring FILE: who may sign",
            next_step="apt install debian-archive-keyring debian-keyring, or export the publisher's key with gpg",
        )
    rings = [openpgp.Keyring(read_evidence(path, openpgp.KEYRING_MAX_BYTES), path) for path in paths]
    return rings[0] if len(rings) == 1 else openpgp.Keyring.joined(rings)


def _whole(descriptor: int, what: str) -> bytes:
    """A file that a legacy minisign signature covers: all of it has to be in memory."""
    size = os.fstat(descriptor).st_size
    if size > minisign.LEGACY_MAX_BYTES:
        raise refuse(
            f"{what} is a legacy minisign signature",
            f"an image of {size} bytes",
            expected=f"at most {minisign.LEGACY_MAX_BYTES} bytes: such a signature covers the content, not a digest",
            next_step="ask for a prehashed one: minisign -S -H",
        )
    parts, done = [], 0
    while part := os.pread(descriptor, min(1 << 20, size + 1 - done), done):
        parts.append(part)
        done += len(part)
    if done != size:
        raise ImageError("a file changed while it was read", got=f"{done} bytes", expected=f"{size} bytes")
    return b"".join(parts)


def _openpgp_file(descriptor: int, signature: bytes, evidence: Evidence, now: datetime.datetime) -> Verified:
    """A signature over the file itself. A child feeds the library and hashes what it feeds: one reading for both."""
    assert evidence.signature is not None
    ring = _keyring(evidence)
    content_read, content_write = os.pipe2(os.O_CLOEXEC)
    digest_read, digest_write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(content_read)
            _feed(descriptor, content_write, digest_write)
        finally:
            os._exit(1)
    os.close(content_write)
    os.close(digest_write)
    try:
        signers = openpgp.verify_detached(signature, f"/proc/self/fd/{content_read}", ring, now, evidence.signature)
        digest = os.read(digest_read, 64)
    finally:
        os.close(content_read)
        os.close(digest_read)
        _, status = os.waitpid(child, 0)
    if status != 0 or len(digest) != 40:
        raise ImageError("a file changed while it was read, or could not be read", next_step="try again")
    return Verified(
        sha256=digest[:32].hex(), size_bytes=int.from_bytes(digest[32:], "big"), signers=signers, covered="file"
    )


def _feed(descriptor: int, content: int, result: int) -> None:
    """In the child: the file into one pipe, its SHA-256 and length into the other."""
    digest, done = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, 1 << 20, done):
        digest.update(chunk)
        done += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(content, view) :]
    os.write(result, digest.digest() + done.to_bytes(8, "big"))
    os._exit(0)


def read_evidence(path: str, limit: int) -> bytes:
    """A file of the evidence.

    Raises:
        InputError: not there, no regular file, or too large.
    """
    try:
        return read_small(os.path.realpath(Path.cwd() / path), limit)
    except (OSError, ValueError) as fault:
        said = getattr(fault, "strerror", None) or str(fault)
        raise InputError(
            f"cannot read {path}", got=said.lower(), expected=f"a regular file of at most {limit} bytes"
        ) from None
