"""Key release against a client written from the protocol's documents, with quotes of a real software TPM and with real
vectors; and against clients that cheat."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support import evidence_makers
from tests.support.kbs_client import Client, Evidence
from tests.support.tpm_client import SWTPM, Tpm, software_tpm

from casemate.engine.keys import load_or_create_key
from casemate.errors import HostError, InputError, SpecError
from casemate.evidence.policy import Policy, parse_policy
from casemate.measure.expected import policy_lines
from casemate.release import protocol, snp_json
from casemate.release.broker import Asked, Broker, Guarded
from casemate.release.decision_log import REFUSALS_PER_MINUTE, DecisionLog, read_log
from casemate.release.decisions import LINE_MAX_BYTES, Because, Decision
from casemate.release.policy import parse_release_policy
from casemate.release.sessions import Sessions
from casemate.release.tee_key import EcKey, RsaKey, TeeKey, check_key, encrypt
from casemate.releases import KeyServer, load, write_client

VECTORS = Path(__file__).parents[3] / "shared/vectors"
SECRET = b"\x00the disk's key, which no log may hold\xff"
needs_swtpm = pytest.mark.skipif(not SWTPM, reason="swtpm is not installed")
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="shared/vectors is not beside this checkout")


class Place:
    """A directory with a release policy, and a running server of it on a Unix socket."""

    def __init__(self, directory: Path, server: KeyServer) -> None:
        self.directory = directory
        self.server = server

    def connect(self) -> socket.socket:
        """A new connection."""
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(30)
        channel.connect(f"{self.directory}/keys.sock")
        return channel

    def log(self) -> list[Decision]:
        """The decisions so far, verified."""
        data = self.directory / "data"
        return list(read_log(str(data), load_or_create_key(data).public))


def write_policy(directory: Path, measured: str, *, extra: str = "", more: str = "") -> Path:
    """``release.toml`` with one resource, its secret, and the measurement policy ``measured``."""
    (directory / "measured.toml").write_text(f"format = 1\n{measured}\n")
    secret = directory / "disk.key"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    path = directory / "release.toml"
    path.write_text(
        'format = 1\n[resource."default/disk/web"]\npolicy = "measured.toml"\nsecret = { file = "disk.key" }\n'
        f"{extra}\n{more}\n"
    )
    return path


@contextlib.contextmanager
def serving(directory: Path, before: Callable[[KeyServer], object] = lambda _: None) -> Iterator[Place]:
    """A server of ``release.toml`` in that directory; ``before``: what else it listens on."""
    (directory / "data").mkdir(mode=0o700, exist_ok=True)
    server = KeyServer(str(directory / "release.toml"), data=str(directory / "data"))
    server.listen_unix(f"{directory}/keys.sock")
    before(server)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Place(directory, server)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        server.close()


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    with software_tpm(tmp_path_factory.mktemp("tpm") / "state") as found:
        found.extend(9, hashlib.sha256(b"initrd").digest())
        yield found


@pytest.fixture(scope="module")
def key(tpm: Tpm) -> int:
    """An attestation key that stays."""
    handle = tpm.create_key()
    tpm.persist(handle)
    return handle


@pytest.fixture
def place(tmp_path: Path, tpm: Tpm, key: int) -> Iterator[Place]:
    """A server that releases ``default/disk/web`` to this TPM in this state."""
    (tmp_path / "ak.der").write_bytes(tpm.public_key(key))
    write_policy(tmp_path, wanted(tpm), extra='attestation-keys = ["ak.der"]')
    with serving(tmp_path) as found:
        yield found


def wanted(tpm: Tpm) -> str:
    """A policy of the registers that say what was started, as they are now."""
    values = tpm.pcrs()
    return "[tpm.pcrs.sha256]\n" + "\n".join(f'{number} = "{values[number].hex()}"' for number in (4, 8, 9))


def quoting(tpm: Tpm, key: int) -> Evidence:
    """What a guest's attester does: quote over the first 32 bytes of the report data."""
    return lambda bound: json.loads(tpm.evidence(key, bound[:32]))


# ---- as it should be -------------------------------------------------------------------------------------------------


@needs_swtpm
@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.4.0"])
@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_a_guest_that_is_what_the_policy_wants_gets_the_secret(
    place: Place, tpm: Tpm, key: int, version: str, kind: str
) -> None:
    client = Client(place.connect, version=version, key=kind)
    assert client.auth("tpm").status == 200
    answered = client.attest(quoting(tpm, key))
    assert answered.status == 200, answered.body
    assert client.open(client.resource("default/disk/web")) == SECRET
    assert client.open(client.resource("default/disk/web")) == SECRET, "as often as the session lives"
    client.close()
    assert [item.event for item in place.log()] == ["started", "attested", "released", "released"]


@needs_swtpm
def test_the_token_is_a_jwt_that_works_in_place_of_the_cookie(place: Place, tpm: Tpm, key: int) -> None:
    from joserfc import jwt
    from joserfc.jwk import OKPKey

    client = Client(place.connect)
    client.auth("tpm")
    client.attest(quoting(tpm, key))
    public = load_or_create_key(place.directory / "data").private.public_key()
    claims = jwt.decode(client.token, OKPKey.import_key(_pem(public)), algorithms=["Ed25519"]).claims
    assert claims["tee-pubkey"] == client.jwk()
    assert claims["resources"] == ["default/disk/web"]
    assert claims["exp"] - claims["iat"] <= 300
    client.cookie = ""
    assert client.send("GET", "/kbs/v0/resource/default/disk/web", None).status == 401
    answered = client.send("GET", "/kbs/v0/resource/default/disk/web", None, bearer=client.token)
    assert client.open(answered) == SECRET
    assert client.send("GET", "/kbs/v0/resource/default/disk/web", None, bearer=client.token[:-1]).status == 401


def _pem(public: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return found


@needs_swtpm
def test_neither_log_nor_answers_hold_what_must_not_stand_there(place: Place, tpm: Tpm, key: int) -> None:
    client = Client(place.connect)
    client.auth("tpm")
    client.attest(quoting(tpm, key))
    client.resource("default/disk/web")
    text = (place.directory / "data/key-release/decisions.jsonl").read_bytes()
    for forbidden in (SECRET, base64.b64encode(SECRET), SECRET.hex().encode(), SECRET[5:20]):
        assert forbidden not in text
    for word in (client.cookie, client.nonce, client.token):
        assert word.encode() not in text
    (attested,) = [item for item in place.log() if item.event == "attested"]
    assert [(item.code, item.message) for item in attested.reasons] == [("accepted", "default/disk/web")]
    policy = parse_policy((place.directory / "measured.toml").read_text(), "x")
    identity = hashlib.sha256("\n".join(policy_lines(policy)).encode()).hexdigest()
    assert identity[:16] in attested.reasons[0].policy, "as `Expected.identity` of casemate measure names it"
    assert attested.claims["sha256-pcr9"] == tpm.pcrs()[9].hex()
    assert attested.peer == f"uid {os.getuid()}"


# ---- evidence that is refused ----------------------------------------------------------------------------------------


@needs_swtpm
def test_another_state_of_the_machine_is_refused_and_named(place: Place, tpm: Tpm, key: int) -> None:
    tpm.extend(9, hashlib.sha256(b"another initrd").digest())  # for good: the fixture's policy is made of what it is
    client = Client(place.connect)
    client.auth("tpm")
    answered = client.attest(quoting(tpm, key))
    assert answered.status == 401
    assert answered.json()["type"].endswith("/AttestationError")
    assert "sha256.pcr9" in answered.json()["detail"]
    assert client.resource("default/disk/web").status == 401
    *_, refused, denied = place.log()
    assert [item.code for item in refused.reasons] == ["sha256.pcr9"]
    assert "measured.toml (" in refused.reasons[0].policy
    assert denied.event == "denied"


@needs_swtpm
def test_a_key_that_nobody_knows_is_refused(place: Place) -> None:
    client = Client(place.connect)
    client.auth("tpm")
    with software_tpm(place.directory / "other") as stranger:
        answered = client.attest(quoting(stranger, stranger.create_key()))
    assert answered.status == 401
    assert "key.unknown" in answered.json()["detail"]


@needs_swtpm
@pytest.mark.parametrize("cheat", ["nonce", "key", "text"])
def test_a_quote_that_is_bound_to_something_else_is_refused(place: Place, tpm: Tpm, key: int, cheat: str) -> None:
    client = Client(place.connect)
    client.auth("tpm")
    bound = client.binding()
    evidence = json.loads(tpm.evidence(key, bound[:32]))
    message = client.attestation(evidence)
    runtime = message["runtime-data"]
    assert isinstance(runtime, dict)
    if cheat == "nonce":
        other = Client(place.connect)
        other.auth("tpm")
        message["tee-evidence"] = {"primary_evidence": json.loads(tpm.evidence(key, other.binding()[:32]))}
    elif cheat == "key":
        runtime["tee-pubkey"] = Client(place.connect).jwk()
    else:
        runtime["nonce"] = Client(place.connect).nonce or "AAAA"
    answered = client.send("POST", "/kbs/v0/attest", message)
    assert answered.status == 401
    assert place.log()[-1].event == "refused"
    assert client.resource("default/disk/web").status == 401


@needs_swtpm
def test_a_nonce_is_good_for_one_attempt_whatever_comes_of_it(place: Place, tpm: Tpm, key: int) -> None:
    client = Client(place.connect)
    client.auth("tpm")
    message = client.attestation(quoting(tpm, key)(client.binding()))
    assert client.send("POST", "/kbs/v0/attest", {"nonsense": 1}).status == 401
    assert client.send("POST", "/kbs/v0/attest", message).status == 401, "the attempt before spent it"
    client.auth("tpm")
    message = client.attestation(quoting(tpm, key)(client.binding()))
    assert client.send("POST", "/kbs/v0/attest", message).status == 200
    assert client.send("POST", "/kbs/v0/attest", message).status == 401, "a replay"
    assert client.open(client.resource("default/disk/web")) == SECRET, "the session itself lives on"


@needs_swtpm
def test_what_a_stolen_cookie_brings_is_encrypted_to_the_guest(place: Place, tpm: Tpm, key: int) -> None:
    client, thief = Client(place.connect), Client(place.connect)
    client.auth("tpm")
    client.attest(quoting(tpm, key))
    thief.cookie = client.cookie
    sealed = thief.resource("default/disk/web")
    with pytest.raises(Exception):  # noqa: B017  whatever joserfc raises, it is no plaintext
        thief.open(sealed)
    assert client.open(sealed) == SECRET


@pytest.mark.parametrize("tee", ["sample", "sampledevice", "sgx", "sev", "cca", "csv", "se", "", "TPM", "nvidia"])
def test_machines_that_prove_nothing_are_not_even_challenged(tmp_path: Path, tee: str) -> None:
    write_policy(tmp_path, '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]')
    with serving(tmp_path) as place:
        answered = Client(place.connect).auth(tee)
        assert answered.status == 401
        assert answered.json()["type"] == "https://github.com/confidential-containers/kbs/errors/AttestationError"
        assert "set-cookie" not in answered.headers


@pytest.mark.parametrize("version", ["0.1.0", "0.1.1", "0.5.0", "1.0.0", "", "0.4", "0.4.0-rc1"])
def test_other_versions_are_refused_in_the_words_that_clients_look_for(tmp_path: Path, version: str) -> None:
    write_policy(tmp_path, '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]')
    with serving(tmp_path) as place:
        answered = Client(place.connect, version=version).auth("snp")
        assert answered.status == 401
        assert "KBS Client Protocol Version Mismatch" in answered.json()["detail"]


# ---- real evidence of others, whose keys nobody here has -------------------------------------------------------------


@needs_vectors
def test_a_true_snp_report_that_is_not_bound_to_this_session_is_refused_for_that_alone(tmp_path: Path) -> None:
    report = (VECTORS / "snp/trustee-test-report.bin").read_bytes()
    write_policy(
        tmp_path, f'[sev-snp]\nmeasurement = ["{report[0x90:0xC0].hex()}"]\naccept-provisional-firmware = true'
    )
    certificates = [(VECTORS / name).read_bytes() for name in ("snp/trustee-test-vcek.der", "snp/ask_ark_milan.pem")]
    evidence = snp_evidence(report, certificates)
    with serving(tmp_path) as place:
        client = Client(place.connect)
        client.auth("snp")
        answered = client.attest(lambda _: evidence)
        assert answered.status == 401
        refused = place.log()[-1]
        assert [item.code for item in refused.reasons] == ["nonce"], refused.reasons
        assert refused.claims["measurement"] == report[0x90:0xC0].hex()


@needs_vectors
@pytest.mark.parametrize("name", ["go-sev-guest-milan-debug.bin", "trustee-test-report.bin"])
def test_a_report_as_json_is_the_report(name: str) -> None:
    report = (VECTORS / "snp" / name).read_bytes()
    packed, certificates = snp_json.parse_snp_json(json.dumps(snp_evidence(report, [])).encode())
    assert packed[:0x2A0] == report[:0x2A0]
    assert packed[0x2A0:0x330] == report[0x2A0:0x330]
    assert certificates == ()


def snp_evidence(report: bytes, certificates: list[bytes]) -> dict[str, object]:
    """What serde writes of the `sev` crate's types."""
    from casemate.evidence.snp import Tcb, parse_report

    found = parse_report(report)

    def tcb(value: Tcb) -> dict[str, int | None]:
        return {"fmc": value.fmc, **{name: getattr(value, name) for name in ("bootloader", "tee", "snp", "microcode")}}

    def version(value: tuple[int, int, int]) -> dict[str, int]:
        return dict(zip(("major", "minor", "build"), value, strict=True))

    return {
        "attestation_report": {
            "version": found.version,
            "guest_svn": found.guest_svn,
            "policy": found.policy,
            "family_id": list(found.family_id),
            "image_id": list(found.image_id),
            "vmpl": found.vmpl,
            "sig_algo": found.signature_algorithm,
            "current_tcb": tcb(found.current_tcb),
            "plat_info": found.platform,
            "key_info": int.from_bytes(report[0x48:0x4C], "little"),
            **{
                name: list(getattr(found, name))
                for name in ("report_data", "measurement", "host_data", "id_key_digest", "author_key_digest")
            },
            "report_id": list(found.report_id),
            "report_id_ma": list(found.report_id_ma),
            "reported_tcb": tcb(found.reported_tcb),
            "cpuid_fam_id": None,
            "cpuid_mod_id": None,
            "cpuid_step": None,
            "chip_id": list(found.chip_id),
            "committed_tcb": tcb(found.committed_tcb),
            "current": version(found.current_firmware),
            "committed": version(found.committed_firmware),
            "launch_tcb": tcb(found.launch_tcb),
            "launch_mit_vector": None,
            "current_mit_vector": None,
            "signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])},
        },
        "cert_chain": [
            {"cert_type": kind, "data": list(data)} for kind, data in zip(("VCEK", "ASK"), certificates, strict=False)
        ],
    }


@needs_vectors
@pytest.mark.parametrize(
    ("tee", "evidence", "code"),
    [
        ("tdx", {"quote": base64.b64encode(b"\x04\x00" * 400).decode(), "cc_eventlog": None}, "attestation"),
        ("snp", {"attestation_report": {}}, "attestation"),
        ("tpm", {"quote": "AAAA"}, "attestation"),
        ("az-snp-vtpm", {"svn": 1}, "attestation"),
    ],
)
def test_evidence_that_is_none_is_refused(tmp_path: Path, tee: str, evidence: object, code: str) -> None:
    write_policy(tmp_path, "", extra="accept-guests-whatever-they-measured = true")
    with serving(tmp_path) as place:
        client = Client(place.connect)
        assert client.auth(tee).status == 200
        assert client.attest(lambda _: evidence).status == 401
        assert place.log()[-1].reasons[0].code == code


@needs_vectors
def test_real_azure_and_tdx_evidence_is_refused_because_it_answers_no_challenge_of_ours(tmp_path: Path) -> None:
    write_policy(
        tmp_path,
        "",
        extra="accept-guests-whatever-they-measured = true",
        more='[evidence]\ncollateral = "collateral.json"\ncertificates = ["milan.pem"]',
    )
    (tmp_path / "collateral.json").write_bytes((VECTORS / "tdx/dcap-qvl-tdx-v4.collateral.json").read_bytes())
    (tmp_path / "milan.pem").write_bytes((VECTORS / "snp/ask_ark_milan.pem").read_bytes())
    azure = json.loads((VECTORS / "azure/snp-evidence-v1.json").read_bytes())
    quote = base64.b64encode((VECTORS / "tdx/dcap-qvl-tdx-v4.quote").read_bytes()).decode()
    with serving(tmp_path) as place:
        evidence: object
        for tee, evidence in (("azsnpvtpm", azure), ("tdx", {"quote": quote, "cc_eventlog": None})):
            client = Client(place.connect)
            assert client.auth(tee).status == 200
            assert client.send("POST", "/kbs/v0/attest", client.attestation(evidence)).status == 401
            assert "nonce" in [item.code for item in place.log()[-1].reasons]


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_sessions_are_bounded_in_number_and_time() -> None:
    from casemate.release.sessions import TooManyError

    sessions = Sessions(lifetime_s=10, most=5, per_peer=3)
    first = sessions.begin(peer="a", version="0.4.0", tee="tpm", kind="tpm", now=0)
    for _ in range(2):
        sessions.begin(peer="a", version="0.4.0", tee="tpm", kind="tpm", now=0)
    with pytest.raises(TooManyError, match="peer"):
        sessions.begin(peer="a", version="0.4.0", tee="tpm", kind="tpm", now=0)
    for peer in ("b", "c"):
        sessions.begin(peer=peer, version="0.4.0", tee="tpm", kind="tpm", now=0)
    with pytest.raises(TooManyError, match="all"):
        sessions.begin(peer="d", version="0.4.0", tee="tpm", kind="tpm", now=0)
    assert sessions.find(first.cookie, "b", 1) is None, "another peer's cookie is worth nothing"
    assert sessions.find(first.cookie, "a", 9.9) is not None
    assert sessions.find(first.cookie, "a", 10) is None
    assert len(sessions) == 0


class MemoryLog:
    """What was decided."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def write(self, event: str, **_: object) -> None:
        """Note it."""
        if event in ("released", "attested") and event in self.events:
            raise HostError("the log is full")
        self.events.append(event)


@needs_swtpm
def test_nothing_leaves_when_the_log_cannot_be_written(tpm: Tpm, key: int) -> None:
    from casemate.evidence.verify import Inputs

    log = MemoryLog()
    asked_for = 0

    def read() -> bytearray:
        nonlocal asked_for
        asked_for += 1
        return bytearray(SECRET)

    keys = (hashlib.sha256(tpm.public_key(key)).hexdigest(),)
    guarded = Guarded("p", Policy(), Inputs(keys=keys), frozenset({"tpm"}), read)
    broker = Broker({"default/disk/web": guarded}, log, lambda _: "token")
    client = Client(socket.socket)
    answer = broker.answer(
        Asked("POST", "/kbs/v0/auth", "x", body=b'{"version":"0.4.0","tee":"tpm","extra-params":""}')
    )
    client.nonce, cookie = json.loads(answer.body)["nonce"], answer.cookie
    message = json.dumps(client.attestation(quoting(tpm, key)(client.binding()))).encode()
    assert broker.answer(Asked("POST", "/kbs/v0/attest", "x", cookie, body=message)).status == 200
    wanted = Asked("GET", "/kbs/v0/resource/default/disk/web", "x", cookie)
    assert broker.answer(wanted).status == 200
    failed = broker.answer(wanted)
    assert failed.status == 500
    assert SECRET not in failed.body
    assert b"ciphertext" not in failed.body
    assert asked_for == 2
    assert log.events == ["attested", "released", "failed"]


def test_refusals_that_anybody_can_cause_do_not_fill_the_disk(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    log = DecisionLog(str(tmp_path / "data"))
    for _ in range(REFUSALS_PER_MINUTE + 50):
        log.write("refused", peer="x" * 10_000)
    log.write("released", resource="a/b/c")
    log.close()
    found = list(read_log(str(tmp_path / "data"), load_or_create_key(tmp_path / "data").public))
    assert len(found) == REFUSALS_PER_MINUTE + 2
    assert found[-1].suppressed == 50
    assert (tmp_path / "data/key-release/decisions.jsonl").stat().st_size < 200_000


# ---- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A data directory with a log of five entries."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    log = DecisionLog(str(data))
    for number in range(5):
        log.write("released", resource=f"a/b/{number}")
    log.close()
    return data


def test_a_log_goes_on_where_it_ended(written: Path) -> None:
    log = DecisionLog(str(written))
    log.write("released", resource="a/b/5")
    log.close()
    found = list(read_log(str(written), load_or_create_key(written).public))
    assert [item.sequence for item in found] == [1, 2, 3, 4, 5, 6]


def test_two_servers_do_not_write_one_log(written: Path) -> None:
    log = DecisionLog(str(written))
    with pytest.raises(HostError, match="another casemate serve-keys"):
        DecisionLog(str(written))
    log.close()


def test_a_line_cut_off_by_a_crash_is_removed_and_said(written: Path) -> None:
    path = written / "key-release/decisions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    log = DecisionLog(str(written))
    log.close()
    found = list(read_log(str(written), load_or_create_key(written).public))
    assert (len(found), found[-1].event, found[-1].reasons[0].code) == (6, "failed", "log.cut")
    assert "100 bytes" in found[-1].reasons[0].message


@pytest.mark.parametrize("more", [LINE_MAX_BYTES + 1, 3 * LINE_MAX_BYTES])
def test_more_than_a_crash_can_cut_off_is_left_as_it_is(written: Path, more: int) -> None:
    path = written / "key-release/decisions.jsonl"
    whole = path.read_bytes() + b"x" * more
    path.write_bytes(whole)
    with pytest.raises(HostError, match="did not sign"):
        DecisionLog(str(written))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["flip", "drop", "swap", "repeat", "cut"])
def test_a_log_that_was_changed_is_seen(written: Path, change: str) -> None:
    path = written / "key-release/decisions.jsonl"
    public = load_or_create_key(written).public
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "flip":
        lines[2] = lines[2].replace(b"a/b/2", b"a/b/9")
    elif change == "drop":
        del lines[2]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "repeat":
        lines.insert(2, lines[1])
    else:
        lines[-1] = lines[-1][:-20] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match="line"):
        list(read_log(str(written), public))
    if change == "cut":
        with pytest.raises(HostError, match="did not sign"):
            DecisionLog(str(written))


def test_a_log_that_was_emptied_does_not_pass(written: Path) -> None:
    (written / "key-release/decisions.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        list(read_log(str(written), load_or_create_key(written).public))


# ---- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('format = 2\n[resource."a/b/c"]\npolicy="p"\nsecret={file="f"}', "release.format"),
        ("format = 1\n[resource]\n", "release.count"),
        ('format = 1\n[resource."a/b"]\npolicy="p"\nsecret={file="f"}', "release.name"),
        ('format = 1\n[resource."a/../c"]\npolicy="p"\nsecret={file="f"}', "release.name"),
        ('format = 1\n[resource."a/b/c"]\npolicy="p"\nsecret={descriptor=3}', "release.descriptor"),
        ('format = 1\n[resource."a/b/c"]\npolicy="p"\nsecret={}', "release.source"),
        ('format = 1\n[resource."a/b/c"]\npolicy="p"\nsecret={file="f", age="g"}', "release.source"),
        ('format = 1\n[resource."a/b/c"]\npolicy="p"\nsecret={command=["cat"]}', "release.command"),
        ('format = 1\n[resource."a/b/c"]\npolicy="p"\nsecret={file="f"}\nkinds=["sample"]', "release.kind"),
    ],
)
def test_faults_of_a_release_policy(text: str, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_release_policy(text, "x.toml")
    assert fault in [item.fault_id for item in caught.value.faults]


@pytest.mark.parametrize("text", ["", "format = 1", 'format = 1\nresource = "x"', "format = 1\n[resources]", "\0"])
def test_no_release_policy(text: str) -> None:
    with pytest.raises(InputError):
        parse_release_policy(text, "x.toml")


def test_a_policy_that_would_accept_any_guest_is_refused_unless_that_is_said(tmp_path: Path) -> None:
    path = write_policy(tmp_path, "[tpm]\nsecure-boot = true")
    with pytest.raises(InputError, match="does not say what was started"):
        load(str(path))
    path = write_policy(tmp_path, "[tpm]\nsecure-boot = true", extra="accept-guests-whatever-they-measured = true")
    assert "tpm" in load(str(path))["default/disk/web"].kinds
    path = write_policy(tmp_path, '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]')
    assert load(str(path))["default/disk/web"].kinds == {"sev-snp"}, "kinds that it does not measure do not count"
    path = write_policy(tmp_path, '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]', extra='kinds = ["tpm"]')
    with pytest.raises(InputError, match="with tpm evidence"):
        load(str(path))


@pytest.mark.parametrize(
    ("numbers", "accepted"),
    [
        ({"4": "a", "8": "b", "9": "c"}, True),
        ({"4": "a", "11": "b"}, True),
        ({"4": "a", "11": "0"}, False),
        ({"4": "a", "9": "c"}, False),
        ({"8": "b", "9": "c", "11": "d"}, False),
        ({"0": "a", "2": "b", "7": "c"}, False),
    ],
)
def test_registers_that_do_not_say_what_was_started_are_no_measurement(
    tmp_path: Path, numbers: dict[str, str], accepted: bool
) -> None:
    lines = "\n".join(f'{number} = "{digit * 64}"' for number, digit in numbers.items())
    path = write_policy(tmp_path, f"[tpm.pcrs.sha256]\n{lines}")
    if accepted:
        assert load(str(path))["default/disk/web"].kinds == {"tpm"}
    else:
        with pytest.raises(InputError, match="does not say what was started"):
            load(str(path))
    (tmp_path / "measured.toml").write_text(f"format = 1\n[tpm.pcrs.sha1]\n{lines.replace('a' * 64, 'a' * 40)}\n")
    with pytest.raises((InputError, SpecError)):
        load(str(path))


@pytest.mark.parametrize(
    ("mrtd", "rtmr", "accepted"),
    [
        (True, {"1": "a", "2": "b"}, True),
        (True, {"1": "a", "2": "b", "3": "0"}, True),
        (True, {"1": "a", "3": "0"}, False),  # a disk with shim: nobody says what GRUB started
        (True, {"1": "a", "2": "0"}, False),  # a kernel that measures neither command line nor initrd
        (True, {"2": "b"}, False),
        (False, {"1": "a", "2": "b"}, False),
    ],
)
def test_a_trust_domain_whose_registers_do_not_say_what_was_started(
    tmp_path: Path, mrtd: bool, rtmr: dict[str, str], accepted: bool
) -> None:
    lines = "\n".join(f'{number} = "{digit * 96}"' for number, digit in rtmr.items())
    first = f'mrtd = ["{"c" * 96}"]' if mrtd else ""
    path = write_policy(tmp_path, f"[tdx]\n{first}\n[tdx.rtmr]\n{lines}")
    if accepted:
        assert load(str(path))["default/disk/web"].kinds == {"tdx"}
    else:
        with pytest.raises(InputError, match="does not say what was started"):
            load(str(path))


def test_a_key_is_the_same_in_each_of_its_forms(tmp_path: Path) -> None:
    """A TPM's public area as it is on the TPM, and as SubjectPublicKeyInfo: what a quote's key is compared with."""
    tpm = evidence_makers.Tpm("ecdsa")
    (tmp_path / "ak.tpm").write_bytes(tpm.public_area())
    (tmp_path / "ak.der").write_bytes(tpm.spki())
    measured = '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]'
    path = write_policy(tmp_path, measured, extra='attestation-keys = ["ak.tpm", "ak.der"]')
    digest = hashlib.sha256(tpm.spki()).hexdigest()
    assert load(str(path))["default/disk/web"].inputs.keys == (digest, digest)


def test_a_specification_in_place_of_a_policy_is_measured_by_whoever_can(tmp_path: Path) -> None:
    path = write_policy(tmp_path, "")
    path.write_text(path.read_text().replace('policy = "measured.toml"', 'spec = "web.toml"'))
    with pytest.raises(InputError, match="nobody here measures"):
        load(str(path))
    asked: list[str] = []

    def measure(spec: str) -> tuple[Policy, str]:
        asked.append(spec)
        return parse_policy(f'format = 1\n[sev-snp]\nmeasurement = ["{"00" * 48}"]', "x"), "web.toml (00ff)"

    found = load(str(path), measure)["default/disk/web"]
    assert asked == [str(tmp_path / "web.toml")]
    assert found.policy_name == "web.toml (00ff)"
    assert found.kinds == {"sev-snp"}


def test_the_client_of_guests_is_compiled(tmp_path: Path) -> None:
    """It runs in tests/boot/test_attested_disk.py; here it says what it wants, and that there is no TPM."""
    client = tmp_path / "keyclient"
    try:
        write_client(str(client))
    except HostError as error:
        pytest.skip(f"no compiler or static C library: {error}")
    done = subprocess.run([client], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "usage: keyclient [--last] PORT REPOSITORY/TYPE/TAG" in done.stderr
    done = subprocess.run([client, "/nonexistent", "a/b/c"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot open /nonexistent" in done.stderr


# ---- what others computed --------------------------------------------------------------------------------------------


def test_what_is_hashed_is_what_trustee_hashes() -> None:
    """Vector: parse_runtimedata_json_binding of trustee's attestation-service (SHA-384 of canonical JSON)."""
    document = {"b": 1, "a": "test", "c": {"d": "e"}}
    expected = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    assert protocol.canonical_sha384(document).hex() == expected


def test_the_header_of_an_answer_is_as_kbs_types_writes_it() -> None:
    """`ProtectedHeader::generate_aad` serialises alg, enc, then the rest by name; that is what clients authenticate."""
    key = Client(socket.socket, key="P-256").jwk()
    sealed = json.loads(encrypt(msgspec.convert(key, EcKey), b"x"))
    header = base64.urlsafe_b64decode(sealed["protected"] + "==")
    x, y = (json.loads(header)["epk"][name] for name in ("x", "y"))
    epk = f'"epk":{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    assert header.decode() == f'{{"alg":"ECDH-ES+A256KW","enc":"A256GCM",{epk}}}'
    assert "aad" not in sealed


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "RSA1_5"},
        {"alg": "dir"},
        {"crv": "P-384"},
        {"x": "AAAA"},
        {"x": "A" * 43},
        {"kty": "oct"},
        {"kty": "AKP"},
        {"d": "AAAA"},
        {"x": "A" * 5000},
        {"y": "!" * 43},
    ],
)
def test_keys_that_nothing_is_encrypted_to(change: dict[str, str]) -> None:
    key = {**Client(socket.socket).jwk(), **change}
    with pytest.raises((InputError, msgspec.ValidationError)):
        check_key(msgspec.convert(key, TeeKey))


@pytest.mark.parametrize(
    ("bits", "exponent", "fault"),
    [(1024, "AQAB", "1024 bits"), (8192, "AQAB", "8192 bits"), (2048, "Aw", "exponent 3"), (2048, "", "not base64url")],
)
def test_rsa_keys_that_are_too_weak_or_too_costly(bits: int, exponent: str, fault: str) -> None:
    number = base64.urlsafe_b64encode(((1 << bits) - 1).to_bytes(bits // 8, "big")).rstrip(b"=").decode()
    with pytest.raises(InputError, match=fault):
        check_key(RsaKey(alg="RSA-OAEP-256", n=number, e=exponent))


@pytest.mark.parametrize(("version", "family"), [(2, None), (3, 0x19), (3, 0x1A), (5, 0x1A)])
def test_any_report_comes_back_from_its_json(version: int, family: int | None) -> None:
    """Bytes that are reserved are zeros, in reports and here; all others count, the signature as well."""
    dice = random.Random(f"{version} {family}")
    report = bytearray(dice.randbytes(1184))
    report[0:4], report[0x34:0x38] = version.to_bytes(4, "little"), (1).to_bytes(4, "little")
    if family is not None:
        report[0x188] = family
    reserved = [(0x4C, 0x50), (0x18B if version > 2 else 0x188, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x330, 1184)]
    reserved.append((0x208 if version == 5 else 0x1F8, 0x2A0))
    for offset in (0x38, 0x180, 0x1E0, 0x1F0):
        reserved.append((offset + 4, offset + 7) if family == 0x1A else (offset + 2, offset + 6))
    for start, end in reserved:
        report[start:end] = bytes(end - start)
    evidence = snp_evidence(bytes(report), [])
    inner = evidence["attestation_report"]
    assert isinstance(inner, dict)
    if family is not None:
        inner |= {"cpuid_fam_id": family, "cpuid_mod_id": report[0x189], "cpuid_step": report[0x18A]}
    if version == 5:
        inner["launch_mit_vector"] = int.from_bytes(report[0x1F8:0x200], "little")
        inner["current_mit_vector"] = int.from_bytes(report[0x200:0x208], "little")
    assert snp_json.parse_snp_json(json.dumps(evidence).encode())[0] == bytes(report)


def test_the_longest_entry_fits(tmp_path: Path) -> None:
    """Whoever is refused must not choose whether that is written."""
    (tmp_path / "data").mkdir(mode=0o700)
    log = DecisionLog(str(tmp_path / "data"))
    wide = "\N{GRINNING FACE}" * 1000
    log.write(
        "refused",
        peer=wide,
        tee=wide,
        resource=wide,
        reasons=[Because(f"{number}{wide}", wide, wide) for number in range(100)],
        claims={f"{number}{wide}": wide for number in range(64)},
    )
    log.close()
    (found,) = read_log(str(tmp_path / "data"), load_or_create_key(tmp_path / "data").public)
    assert (len(found.reasons), len(found.claims)) == (33, 64)
    assert len((tmp_path / "data/key-release/decisions.jsonl").read_bytes()) < LINE_MAX_BYTES
