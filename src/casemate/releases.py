"""The public API of key release: a policy file in, a server that releases secrets to guests that are what it wants.

Everything below is imported on use, as in ``app.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from casemate.errors import InputError

if TYPE_CHECKING:
    import socket

    from casemate.evidence.companions import Companions
    from casemate.evidence.policy import Policy
    from casemate.release.broker import Guarded
    from casemate.release.decisions import Decision
    from casemate.release.listen import Server
    from casemate.release.policy import Resource

    Measure = Callable[[str], tuple[Policy, str]]

__all__ = ["KeyServer", "check_log", "decision_json", "keep_memory_private", "load", "render_decision", "write_client"]

POLICY_MAX_BYTES = 1 << 20
COMPANION_MAX_BYTES = 32 << 20


class KeyServer:
    """A broker with its log and its listeners; ``run`` until ``stop``, then ``close``."""

    def __init__(self, policy: str, *, data: str | None = None, measure: Measure | None = None) -> None:
        """Read the policy and everything that it names but the secrets, which are asked for when they are released.

        Args:
            data: where the log lies; None: Casemate's data directory.
            measure: a specification's file to the policy that its launch has to meet, and a name of that policy.

        Raises:
            InputError, SpecError: a file cannot be read or has faults. HostError: the log cannot be written.
        """
        from casemate.engine.paths import default_paths, prepare
        from casemate.release.broker import Broker
        from casemate.release.decision_log import DecisionLog
        from casemate.release.listen import Server

        resources = load(policy, measure)
        paths = default_paths()
        if data is None:
            prepare(paths)
        self._log = DecisionLog(data or paths.data)
        key = self._log.private_key
        self.resources = tuple(sorted(resources))
        self._server: Server = Server(Broker(resources, self._log, lambda claims: _token(claims, key)).answer)

    def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket."""
        self._server.listen_unix(path)

    def listen_tls(self, host: str, port: int, *, certificate: str, key: str, client_ca: str = "") -> int:
        """Listen on TCP with TLS; returns the port. ``client_ca``: file; empty: anybody may come."""
        from casemate.release.listen import Tls

        return self._server.listen_tls(host, port, Tls(certificate, key, client_ca))

    def serve_vm(self, reference: str) -> str:
        """Serve the port of a VM in this run and those that come; returns the VM's name.

        Raises:
            InputError: there is no such VM, or it has no port.
        """
        from casemate.engine.control import keys_port
        from casemate.engine.paths import default_paths
        from casemate.engine.state import resolve
        from casemate.errors import CasemateError

        paths = default_paths()
        definition = resolve(paths, reference)
        if not definition.spec.keys.port:
            raise InputError(
                f"{definition.name} has no port to a key broker", next_step="port = true in [keys], then create it anew"
            )

        def connect() -> socket.socket | None:
            try:
                return keys_port(paths, definition)
            except CasemateError:  # it does not run now
                return None

        self._server.follow_port(connect, definition.name)
        return definition.name

    def serve_port(self, channel: socket.socket, vm: str) -> None:
        """Serve a VM's serial port until the VM ends; takes the socket over."""
        self._server.serve_port(channel, vm)

    def run(self) -> None:
        """Serve until `stop`; every release stands in the log before it happens."""
        from casemate.release.decisions import Because

        self._log.write("started", reasons=[Because("resources", " ".join(self.resources))])
        self._server.run()

    def stop(self) -> None:
        """Make `run` return."""
        self._server.stop()

    def close(self) -> None:
        """Close everything."""
        self._server.close()
        self._log.close()


def load(policy: str, measure: Measure | None = None) -> dict[str, Guarded]:
    """The resources of a release policy, with the policies and keys that it names.

    Raises:
        InputError, SpecError: a file cannot be read, has faults, or a policy would accept any guest.
    """
    import datetime
    import hashlib
    from pathlib import Path

    from casemate.audit.text import read_input
    from casemate.engine.authorities import known_authorities
    from casemate.evidence.verify import Inputs
    from casemate.release.policy import parse_release_policy

    found = parse_release_policy(_text(policy), policy)
    evidence = found.evidence
    base = Path(policy).absolute().parent

    def at(name: str) -> str:
        return str(base / name)

    given, believed = ([_companions(at(name)) for name in names] for names in (evidence.certificates, evidence.trust))
    anchors = [item for one in believed for item in one.certificates]
    inputs = Inputs(
        certificates=(*(item for one in given for item in one.certificates), *anchors, *known_authorities()),
        collateral=read_input(at(evidence.collateral), COMPANION_MAX_BYTES) if evidence.collateral else None,
        moment=datetime.datetime.now(datetime.UTC),  # replaced in each session
        anchors=tuple(hashlib.sha256(item.encoded).hexdigest() for item in anchors),
        revocations=tuple(item for one in given for item in one.lists),
    )
    wanted = {name: _wanted(resource, at, measure) for name, resource in found.resource.items()}
    return {name: _guard(name, resource, inputs, at, wanted[name]) for name, resource in found.resource.items()}


def _wanted(resource: Resource, at: Callable[[str], str], measure: Measure | None) -> tuple[Policy, str]:
    """(policy, its name in the log) of a resource: a file's, or computed from the specification that starts the VM."""
    from casemate.evidence.policy import parse_policy
    from casemate.measure.expected import policy_identity

    if resource.policy:
        path = at(resource.policy)
        policy = parse_policy(_text(path), path)
        return policy, f"{path} ({policy_identity(policy)[:16]})"
    if measure is None:
        raise InputError(f"{resource.spec}: nobody here measures specifications", expected="policy = FILE")
    return measure(at(resource.spec))


def _guard(name: str, resource: Resource, inputs: Any, at: Callable[[str], str], wanted: tuple[Policy, str]) -> Guarded:
    import msgspec

    from casemate.engine.secret_sources import read_secret
    from casemate.evidence.policy import names_measurements
    from casemate.release.broker import Guarded
    from casemate.release.policy import KINDS, RESOURCE_MAX_BYTES

    policy, path = wanted
    any_guest = resource.accept_guests_whatever_they_measured
    kinds = [kind for kind in resource.kinds or KINDS if names_measurements(kind, policy)]
    loose = [kind for kind in resource.kinds if kind not in kinds]
    if not any_guest and (loose or not kinds):
        raise InputError(
            f"resource {name}: {path} does not say what was started, with {' or '.join(loose) or 'any'} evidence",
            expected="a measurement; of a TPM PCR 4, and 8 and 9 or 11; of TDX RTMR 1 and 2",
            next_step="casemate measure SPEC --policy FILE writes one, or says what cannot be predicted",
        )
    source = msgspec.structs.replace(
        resource.secret,
        **{
            field: at(value)
            for field in ("file", "systemd_creds", "age", "identity")
            if (value := getattr(resource.secret, field)) is not None
        },
    )
    return Guarded(
        path,
        policy,
        msgspec.structs.replace(inputs, keys=_fingerprints(resource.attestation_keys, at)),
        frozenset((resource.kinds or KINDS) if any_guest else kinds),
        lambda: read_secret(name, source, RESOURCE_MAX_BYTES),
    )


def _companions(path: str) -> Companions:
    from casemate.audit.text import read_input
    from casemate.evidence.companions import parse_companions

    return parse_companions(read_input(path, COMPANION_MAX_BYTES), path)


def _fingerprints(names: Sequence[str], at: Callable[[str], str]) -> tuple[str, ...]:
    """SHA-256 of the attestation keys of VMs (``vm:NAME``) and in files.

    Raises:
        InputError: a file has none, or there is no such VM with a TPM.
    """
    found: list[str] = []
    for name in names:
        found += [_key_of_vm(name.removeprefix("vm:"))] if name.startswith("vm:") else _keys_of_file(at(name))
    return tuple(found)


def _keys_of_file(path: str) -> list[str]:
    import hashlib

    from casemate.evidence.tpm import parse_key

    keys = _companions(path).keys
    if not keys:
        raise InputError(
            f"{path} has no public key", expected="SubjectPublicKeyInfo, PEM or DER, or a TPM's public area"
        )
    return [hashlib.sha256(parse_key(key).key).hexdigest() for key in keys]


def _key_of_vm(reference: str) -> str:
    """The attestation key of a VM's own TPM, as it was written down when that was made."""
    from casemate.engine.paths import default_paths
    from casemate.engine.state import resolve
    from casemate.engine.tpm_state import attestation_digest

    paths = default_paths()
    definition = resolve(paths, reference)
    try:
        digest = attestation_digest(paths, definition.id).get("tpm-attestation-key")
    except ValueError:
        digest = None
    if digest is None:
        raise InputError(
            f"{definition.name} has no TPM yet, or the note of its keys is damaged",
            expected="a VM with [tpm] enabled = true that was started once",
            next_step=f"casemate start {definition.name}",
        )
    return digest


def keep_memory_private() -> None:
    """No core dump of this process, and no look into its memory by others of its user: secrets pass through it."""
    import resource

    from casemate.sys.process import PR_SET_DUMPABLE, prctl

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(PR_SET_DUMPABLE, 0)


def write_client(path: str) -> None:
    """Compile the key client and write it to ``path``, executable.

    Raises:
        HostError: no compiler, or no static C library. OSError: it cannot be written.
    """
    import tempfile
    from pathlib import Path

    from casemate.engine import files
    from casemate.release.keyclient import compile_client

    with tempfile.TemporaryDirectory(prefix="casemate-client-") as scratch:
        files.write_atomic(str(Path.cwd() / path), compile_client(Path(scratch)), mode=0o755)


def check_log(data: str | None = None, public_key: str | None = None) -> Iterator[Decision]:
    """Every entry of the decision log, verified in turn.

    Args:
        public_key: the host's, as ``casemate key show`` prints it; None: the key that lies on this host.

    Raises:
        InputError: there is no log, or an entry is faulty, missing, or out of order.
    """
    from pathlib import Path

    from casemate.engine.keys import load_or_create_key
    from casemate.engine.paths import default_paths
    from casemate.evidence.record import parse_public_key
    from casemate.release.decision_log import read_log

    where = data or default_paths().data
    key = parse_public_key(public_key) if public_key else load_or_create_key(Path(where)).public
    yield from read_log(where, key)


def render_decision(found: Decision) -> str:
    """One entry for a person."""
    if found.event == "attested":  # which resources may now be asked for, each with the policy that says so
        head = " ".join(filter(None, (found.at, found.event.ljust(8), found.tee, found.peer)))
        return "\n".join(
            [
                head,
                *(f"  {item.message} [{item.code}{', ' * bool(item.policy)}{item.policy}]" for item in found.reasons),
            ]
        )
    words = [found.at, found.event.ljust(8), *filter(None, (found.resource, found.tee, found.peer))]
    if found.suppressed:
        words.append(f"({found.suppressed} more before it were not written)")
    lines = [" ".join(words)]
    lines += [f"  {item.message} [{item.code}]" for item in found.reasons]
    return "\n".join(lines)


def decision_json(found: Decision) -> str:
    """One entry as a line of JSON, schema ``casemate.decision/1``."""
    import msgspec

    return msgspec.json.encode({"schema": "casemate.decision/1", **msgspec.to_builtins(found)}).decode()


def _token(claims: dict[str, Any], key: Any) -> str:
    """A signed JWT (Ed25519): what trustee's clients expect as answer to an attestation."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from joserfc import jwt
    from joserfc.jwk import OKPKey

    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    header = {"alg": "Ed25519", "typ": "JWT"}
    return jwt.encode(header, claims, OKPKey.import_key(pem), algorithms=["Ed25519"])


def _text(path: str) -> str:
    from casemate.audit.text import read_document

    return read_document(path, POLICY_MAX_BYTES)
