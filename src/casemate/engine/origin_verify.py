"""Verifying and signing images: the store, the policy and the host's key around the pure verifiers of `casemate.image`.

`note_of` is what ``image add`` calls for a source, `verify_reference` is ``image verify``, `sign_reference` ``image
sign``, `seal` and `note_tree` what an import does so that launches are quick.
"""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.engine.content import FS_VERITY, TREE_KEY, measure
from casemate.engine.imagestore import OpenedImage, default_store, open_reference
from casemate.engine.origins import image_origin
from casemate.engine.policy_file import read_policy
from casemate.errors import ImageError, InputError
from casemate.image import openpgp
from casemate.image.origin import judge_origin
from casemate.image.origin_check import Evidence, Verified, check_origin, kind_of, read_evidence
from casemate.image.origin_digest import Progress, digests_of, nothing, tree_digest
from casemate.image.reader import DAMAGED_STEP

if TYPE_CHECKING:
    from casemate.image.store import Store
    from casemate.image.store_model import StoredImage

VERIFY_SCHEMA = "casemate.image-verify/1"
SIGN_SCHEMA = "casemate.image-sign/1"


def note_of(
    descriptor: int, source: str, evidence: Evidence, progress: Progress = nothing
) -> tuple[str, dict[str, str]]:
    """Verify a source before it comes into the store: its SHA-256, and the words for `StoredImage.origin`.

    The caller gives the digest to the import as ``expected_digest``: what is kept must be what was verified.

    Args:
        source: URL or path; the last part of it is the name in a list of checksums.

    Raises:
        ImageError: it does not hold. InputError: the evidence cannot be read.
    """
    verified = _check(descriptor, os.path.basename(source), evidence, progress)
    return verified.sha256, verified.as_origin(_now())


def seal(descriptor: int) -> str:
    """Enable fs-verity on a file that nobody has open for writing: its digest, or empty where there is none.

    The measurement is compared with a digest computed from the content here.

    Raises:
        ImageError: the kernel measures something else. OSError: as the file system says.
    """
    from casemate.image.verity import fsverity_digest
    from casemate.sys.fsverity import fs_ioc_enable_verity, fs_ioc_measure_verity

    if not fs_ioc_enable_verity(descriptor):
        return ""
    measured, expected = fs_ioc_measure_verity(descriptor), fsverity_digest(descriptor)
    if measured != expected:
        raise ImageError("fs-verity measures another content than was written", got=measured, expected=expected)
    return measured


def note_tree(store: Store, image: StoredImage) -> StoredImage:
    """Note an image's tree digest, which launches compare on every core; not needed where fs-verity seals it."""
    if image.verity_digest or TREE_KEY in image.origin:
        return image
    descriptor = store.open(image)
    try:
        return store.annotate(image, {TREE_KEY: tree_digest(descriptor)})
    finally:
        os.close(descriptor)


def verify_reference(
    word: str, evidence: Evidence, *, policy_file: str | None = None, progress: Progress = nothing
) -> dict[str, Any]:
    """Document of ``image verify``. What does not hold is a finding (``ok`` false, ``why``), not an error.

    An image of the store is hashed as well, and what holds is noted with it.

    Raises:
        InputError: no such image, or evidence that cannot be read.
    """
    rules = read_policy(Path(policy_file) if policy_file else None).image.source
    document: dict[str, Any] = {"schema": VERIFY_SCHEMA, "image": word, "path": "", "ok": False, "why": ""}
    try:
        opened = open_reference(word)
    except ImageError as fault:
        if fault.next_step != DAMAGED_STEP:
            raise
        return {**document, "why": _in_one_line(fault)}
    document["path"] = opened.path
    try:
        if not evidence.given():
            if opened.stored is None:
                check_origin(opened.fd, word, evidence, _now())  # says what is missing
            return {**document, **_noted(opened, policy_file, progress)}
        verified = _check(opened.fd, _listed_name(opened, evidence), evidence, progress)
        if opened.stored is not None:
            if verified.sha256 != opened.stored.digest:
                raise _not_itself(opened.stored, verified.sha256)
            default_store().annotate(opened.stored, verified.as_origin(_now(), opened.stored.origin))
    except ImageError as fault:
        return {**document, "why": _in_one_line(fault) + _converted(opened)}
    except OSError as fault:
        if fault.errno != errno.EIO:
            raise
        return {**document, "why": f"cannot read {word}: {str(fault.strerror).lower()}; next: {DAMAGED_STEP}"}
    finally:
        os.close(opened.fd)
    keys = [signer.key for signer in verified.signers]
    names: tuple[str, ...] = (opened.path, os.path.basename(opened.path))
    if opened.stored is not None:
        source = opened.stored.origin.get("source", "")
        names = (source, os.path.basename(source), *opened.stored.names)
    why = judge_origin(rules, names, keys)
    return {
        **document,
        "ok": not why,
        "why": f"the signatures hold, but {why}" if why else "",
        "sha256": verified.sha256,
        "size_bytes": verified.size_bytes,
        "covered": verified.covered,
        "signers": [msgspec.to_builtins(signer) for signer in verified.signers],
        "noted": opened.stored is not None,
    }


def _in_one_line(fault: ImageError) -> str:
    return str(fault).replace("\n  next:", "; next:")


def sign_reference(
    word: str,
    *,
    key: str | None,
    output: str | None,
    namespace: str,
    passphrase: Callable[[], bytes],
    progress: Progress = nothing,
) -> dict[str, Any]:
    """Sign an image as ssh-keygen does; for an image of the store the signer is noted as its origin.

    Args:
        key: private key file; public key file whose private half an agent has; None for the host's own key.
        output: where the signature goes; None for the image's file name and ``.sig`` in the working directory or
            beside the file.
        passphrase: asked when the key wants one.

    Raises:
        InputError, HostError: the key cannot be used, or the signature not be written.
    """
    from casemate.image import sshsig
    from casemate.image.ssh_sign import signer_for

    opened = open_reference(word)
    try:
        sign, public = _host_signer() if key is None else signer_for(key, passphrase)
        digests = digests_of(opened.fd, {"sha256", "sha512"}, progress)
        raw = sign(sshsig.signed_bytes(namespace, "sha512", digests["sha512"]))
        signature = sshsig.SshSignature(public, namespace, "sha512", raw)
        who = sshsig.AllowedSigner("self", public, None, None, None, False, 1)
        found = sshsig.verify_signature(signature, digests, (who,), _now(), "the new signature", namespace=namespace)
        if opened.stored is not None and digests["sha256"].hex() != opened.stored.digest:
            raise _not_itself(opened.stored, digests["sha256"].hex())
        path = output or (f"{opened.stored.label}.sig" if opened.stored is not None else f"{opened.path}.sig")
        _write_new(path, sshsig.armor(signature))
        if opened.stored is not None:
            size = opened.stored.size_bytes
            mine = Verified(sha256=opened.stored.digest, size_bytes=size, signers=(found,), covered="file")
            default_store().annotate(opened.stored, mine.as_origin(_now(), opened.stored.origin))
    finally:
        os.close(opened.fd)
    return {
        "schema": SIGN_SCHEMA,
        "image": word,
        "sha256": digests["sha256"].hex(),
        "key": found.key,
        "signature": path,
        "namespace": namespace,
        "noted": opened.stored is not None,
    }


def _check(descriptor: int, name: str, evidence: Evidence, progress: Progress) -> Verified:
    if evidence.signature is not None and evidence.allowed_signers is None:
        signature = read_evidence(evidence.signature, openpgp.SIGNATURE_MAX_BYTES)
        if kind_of(signature) == "ssh":
            return _check_with_host_key(descriptor, name, evidence, progress)
    return check_origin(descriptor, name, evidence, _now(), progress)


def _check_with_host_key(descriptor: int, name: str, evidence: Evidence, progress: Progress) -> Verified:
    """An SSH signature and nobody named who may sign: only this host's own key may."""
    import tempfile

    _, public = _host_signer()
    with tempfile.NamedTemporaryFile("w", suffix="-this-host") as file:
        file.write(f"this-host {_public_line(public)}\n")
        file.flush()
        own = msgspec.structs.replace(evidence, allowed_signers=file.name)
        return check_origin(descriptor, name, own, _now(), progress)


def _public_line(public: bytes) -> str:
    import base64

    return f"ssh-ed25519 {base64.b64encode(public).decode()}"


def _host_signer() -> tuple[Callable[[bytes], bytes], bytes]:
    """The key that signs launch records, also for images: the namespace keeps the two apart."""
    from casemate.engine.keys import load_or_create_key
    from casemate.engine.paths import default_paths, prepare
    from casemate.image.ssh_keys import put

    paths = default_paths()
    prepare(paths)
    key = load_or_create_key(Path(paths.data))
    kind = put(b"ssh-ed25519")
    return lambda message: kind + put(key.private.sign(message)), kind + put(key.public)


def _noted(opened: OpenedImage, policy_file: str | None, progress: Progress) -> dict[str, Any]:
    """An image of the store without new evidence: its content again, and what was noted of its origin."""
    image = opened.stored
    assert image is not None
    found = digests_of(opened.fd, {"sha256"}, progress)["sha256"].hex()
    if found != image.digest:
        raise _not_itself(image, found)
    if image.verity_digest and measure(FS_VERITY, opened.fd) != image.verity_digest:
        raise ImageError(f"image {image.label} is no longer sealed by fs-verity", expected=image.verity_digest)
    note_tree(default_store(), image)
    why, keys = image_origin(image, read_policy(Path(policy_file) if policy_file else None).image)
    return {
        "ok": not why,
        "why": f"the content is what it was, but its origin is not verified: {why}" if why else "",
        "sha256": found,
        "size_bytes": image.size_bytes,
        "covered": image.origin.get("verified_as", ""),
        "signers": [{"key": key, "identity": "", "signed_at": ""} for key in keys],
        "noted": True,
    }


def _listed_name(opened: OpenedImage, evidence: Evidence) -> str:
    if evidence.name is not None:
        return evidence.name
    if opened.stored is not None:
        return os.path.basename(opened.stored.origin.get("source", "")) or opened.stored.label
    return os.path.basename(opened.path)


def _converted(opened: OpenedImage) -> str:
    """Said when an image is not the file that its publisher signed, because the import unpacked or converted it."""
    if opened.stored is None or opened.stored.origin.get("source_sha256", opened.stored.digest) == opened.stored.digest:
        return ""
    return "; it was unpacked or converted when it was added: give the signature to image add"


def _not_itself(image: StoredImage, found: str) -> ImageError:
    return ImageError(
        f"image {image.label} is not what was put into the store",
        got=f"sha256 {found}",
        expected=f"sha256 {image.digest}",
        next_step=f"casemate image rm --force {image.short}, and add it again from its source",
    )


def _write_new(path: str, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as fault:
        raise InputError(
            f"cannot write the signature {path}",
            got=(fault.strerror or str(fault)).lower(),
            next_step="name another file with --output",
        ) from None


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)
