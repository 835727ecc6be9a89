"""Sigstore bundles (optional extra ``casemate[sigstore]``): verified offline, with a trusted root that is given.

Certificate, its transparency and the log's inclusion proof or promise are judged by sigstore-python. Who may sign is
said here: an identity (mail address or workflow URL) *and* its issuer, both exact. Nothing is fetched: the trusted root
(certificate authorities, logs, their keys) is a file that the user gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from casemate.errors import HostError, InputError
from casemate.image.origin import Signer, refuse

BUNDLE_MAX_BYTES: Final = 1 << 20


def judge_of(
    bundle: bytes, what: str, *, identity: str | None, issuer: str | None, trusted_root: bytes | None
) -> Callable[[bytes], Signer]:
    """A function that wants the SHA-256 of what was signed, and returns the signer or raises.

    Raises:
        InputError: identity or issuer is missing. HostError: the extra is not installed. ImageError: no sound bundle.
    """
    if len(bundle) > BUNDLE_MAX_BYTES:
        raise refuse(what, f"{len(bundle)} bytes", expected=f"at most {BUNDLE_MAX_BYTES} bytes")
    if not identity or not issuer:
        raise InputError(
            f"{what} is a sigstore bundle",
            got="anybody may have signed it",
            expected="--identity WHO and --issuer URL: whose signature counts",
            next_step="for example --identity ana@example.org --issuer https://accounts.google.com",
        )
    if trusted_root is None:
        raise InputError(
            f"{what} is a sigstore bundle",
            got="no trusted root",
            expected="--trusted-root FILE: whose certificates and logs count",
            next_step="sigstore publishes trusted_root.json in its TUF repository; take it over a way that you trust",
        )
    verifier, parsed, policy = _load(bundle, what, identity, issuer, trusted_root)

    def judge(sha256: bytes) -> Signer:
        from sigstore.hashes import Hashed
        from sigstore_models.common.v1 import HashAlgorithm

        try:
            verifier.verify_artifact(Hashed(algorithm=HashAlgorithm.SHA2_256, digest=sha256), parsed, policy)
        except Exception as fault:  # the library has several families; all of them mean no
            raise refuse(what, f"a bundle that does not hold: {_said(fault)}") from None
        return Signer(key=f"sigstore:{identity} {issuer}", identity=identity)

    return judge


def _load(bundle: bytes, what: str, identity: str, issuer: str, root: bytes) -> tuple[Any, Any, Any]:
    try:
        from sigstore.models import Bundle, TrustedRoot
        from sigstore.verify import Verifier, policy
    except ImportError:
        raise HostError(
            "sigstore bundles need an optional part that is not installed",
            got="no module sigstore",
            expected="the extra casemate[sigstore]",
            next_step="pip install 'casemate[sigstore]'",
        ) from None
    try:
        return (
            Verifier(trusted_root=_root(TrustedRoot, root)),
            Bundle.from_json(bundle),
            policy.Identity(identity=identity, issuer=issuer),
        )
    except Exception as fault:
        raise refuse(what, f"no bundle or trusted root that is understood: {_said(fault)}") from None


def _root(kind: Any, data: bytes) -> Any:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return kind.from_file(file.name)


def _said(fault: BaseException) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    return "".join(char if char.isprintable() else " " for char in text)[:300]
