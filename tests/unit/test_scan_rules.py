"""Every rule of the scan: it finds what it is for, wherever that lies, with either engine; it shows nothing of it."""

from __future__ import annotations

import random

import msgspec
import pytest
from tests.support.scan_corpus import planted

from casemate.scan import ruleset
from casemate.scan.engine import OVERLAP_BYTES, Engine
from casemate.scan.model import Hit, Level, Rule
from casemate.scan.prefilter import Hyperscan, Plain, has_hyperscan, refused_by_hyperscan
from casemate.scan.redact import Redactor

RULES = ruleset.builtin().rules
KEY = b"k" * 32
pytestmark = pytest.mark.skipif(not has_hyperscan(), reason="hyperscan is not installed here")


@pytest.fixture(scope="module")
def engines() -> tuple[Engine, Engine]:
    redactor = Redactor(KEY)
    return Engine(RULES, Hyperscan(RULES), redactor), Engine(RULES, Plain(RULES), redactor)


def noise(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


def embedded(text: bytes, rule: Rule) -> tuple[bytes, int]:
    """The secret among other bytes; what stands alone in a block stands there."""
    before, behind = (
        (b"\0" * 4096, b"\0" * 4096) if rule.check == "block_start" else (noise(4096) + b"\n", b"\n" + noise(4096))
    )
    return before + text + behind, len(before)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_finds_what_it_is_for(rule: Rule, engines: tuple[Engine, Engine]) -> None:
    for seed in (1, 2, 3):
        item = planted(rule.id, seed)
        data, start = embedded(item.text, rule)
        for engine in engines:
            hits = [hit for hit in engine.scan(data) if hit.rule == rule.id]
            assert len(hits) == 1, (rule.id, item.text[:200], hits)
            assert start - 1 <= hits[0].offset < start + len(item.text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_shows_nothing_of_it(rule: Rule, engines: tuple[Engine, Engine]) -> None:
    item = planted(rule.id)
    data, _ = embedded(item.text, rule)
    for hit in engines[0].scan(data):
        said = msgspec.json.encode(hit)
        assert len(item.secret) < 12 or item.secret not in said
        for at in range(max(0, len(item.secret) - 12)):  # nor any dozen characters of it
            assert item.secret[at : at + 12] not in said
        assert len(hit.shown) <= 9
        assert len(hit.digest) == 16


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_is_found_across_a_cut(rule: Rule, engines: tuple[Engine, Engine]) -> None:
    """Runs that overlap find it once, wherever the cut is."""
    item = planted(rule.id)
    data, start = embedded(item.text, rule)
    whole = [hit.offset for hit in engines[0].scan(data) if hit.rule == rule.id]
    for place in (start + 1, start + len(item.text) // 2, start + len(item.text)):
        cut = -(-place // 512) * 512 if rule.check == "block_start" else place
        first = engines[0].scan(data[: cut + OVERLAP_BYTES], 0, cut)
        lead = min(cut, OVERLAP_BYTES) // 512 * 512 if rule.check == "block_start" else min(cut, OVERLAP_BYTES)
        second = engines[0].scan(data[cut - lead :], lead)
        offsets = [hit.offset for hit in first if hit.rule == rule.id]
        offsets += [hit.offset + cut - lead for hit in second if hit.rule == rule.id]
        assert offsets == whole, (rule.id, cut)


@pytest.mark.parametrize("kind", ["TraditionalOpenSSL", "PKCS8", "OpenSSH"])
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("line_end", "indent"),
    [(b"\n", b""), (b"\r\n", b""), (b"\\n", b""), (b"\n", b"    ")],
    ids=["unix", "dos", "json", "yaml"],
)
def test_pem_in_every_dress(
    kind: str, encrypted: bool, line_end: bytes, indent: bytes, engines: tuple[Engine, Engine]
) -> None:
    """As a file, in the JSON of a service account, in the YAML of a user-data."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    if encrypted and kind == "OpenSSH":
        pytest.skip("the library encrypts these only with another package; ssh-keygen's are told by their cipher")
    lock = s.BestAvailableEncryption(b"a passphrase") if encrypted else s.NoEncryption()
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(s.Encoding.PEM, getattr(s.PrivateFormat, kind), lock)
    dressed = line_end.join(indent + line for line in text.strip().split(b"\n")) + line_end
    hits = [hit for hit in engines[0].scan(b'{"private_key": "' + dressed + b'", "x": 1}') if hit.rule == "key.pem"]
    assert len(hits) == 1
    assert ("not encrypted" in hits[0].detail) is not encrypted
    cut = text[: len(text) * 2 // 3]  # the rest of a deleted file may be gone
    assert [hit.rule for hit in engines[0].scan(cut + bytes(4096))] == ["key.pem"]


def test_ids_titles_and_windows() -> None:
    every = ruleset.builtin().by_id()
    assert len(every) == len(RULES) + len(ruleset.builtin().paths)
    assert len(RULES) >= 80
    for rule in RULES:
        assert rule.title
        assert rule.remedy
        assert rule.severity in Level
        assert max(rule.before, rule.after) <= OVERLAP_BYTES
        assert all(word == word.lower() for word in rule.keywords)


def test_no_rule_is_refused_by_the_engine() -> None:
    assert refused_by_hyperscan(RULES) == {}


def broken(rule: str) -> bytes:
    """The planted secret of a rule with a checksum, one character of its middle changed."""
    text = bytearray(planted(rule).text)
    middle = len(text) // 2
    text[middle] = (
        ord("q") if text[middle] != ord("q") and rule != "key.age" else ord("Z" if text[middle] != ord("Z") else "L")
    )
    return bytes(text)


@pytest.mark.parametrize("rule", ["token.github", "token.npm", "key.age"])
def test_a_wrong_checksum_is_no_secret(rule: str, engines: tuple[Engine, Engine]) -> None:
    assert [hit for hit in engines[0].scan(b"\n" + broken(rule)) if hit.rule == rule] == []


@pytest.mark.parametrize(
    "text",
    [
        b"AKIAIOSFODNN7EXAMPLE",
        b"https://user:password@host.example.org/",
        b"-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA...\n",
        b"-----BEGIN PRIVATE KEY-----\n" + b"QUJD" * 40 + b"\n-----END PRIVATE KEY-----\n",
        b"eyJhbGciOiJIUzI1NiJ9.eyJub3QganNvbg.aaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"root:*:19000:0:99999:7:::\nroot:!:1:2:3\n",
        b"machine host login anonymous password user@site",
        b"export DB_PASSWORD=changeme_changeme",
        b"GITHUB_TOKEN=${GITHUB_TOKEN_FROM_CI}",
        b"PrivateKey = <your key here>",
        b"password: \n#cloud-config\n",
        b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nnot armour at all\n",
        b"npm_config_registry_something_long_enough",
        b"\nmysql --protocol=tcp --host db1.internal\n",
        b"\ncurl --user-agent x https://host/\n",
        b"hf_transformers_for_everybody_in_the_world",
    ],
)
def test_what_only_looks_like_a_secret(text: bytes, engines: tuple[Engine, Engine]) -> None:
    for engine in engines:
        assert engine.scan(b"\n" + text + b"\n" * 200) == []


def test_what_a_secret_says_of_itself_is_printable(engines: tuple[Engine, Engine]) -> None:
    """The algorithm of a token is the image's text."""
    import base64
    import json

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=")

    token = part({"alg": "\x1b[2J\u202e", "typ": "JWT"}) + b"." + part({"sub": "ana"}) + b"." + b"k3Yd" * 10
    (hit,) = engines[0].scan(b" " + token + b" ")
    assert hit.rule == "token.jwt"
    assert hit.detail.isprintable()


def test_a_modulus_of_nothing_is_no_key(engines: tuple[Engine, Engine]) -> None:
    """A length of zero where the expression saw two bytes."""
    for engine in engines:
        assert engine.scan(b"\x30\x82\x01\x00\x02\x01\x00\x02\x82\x00\x00\x00\x80" + b"a" * 300) == []


def test_noise_is_quiet(engines: tuple[Engine, Engine]) -> None:
    """Random bytes, hexadecimal text, base 64 text, zeros: nothing."""
    text = random.Random(3)
    import base64

    for data in (
        noise(4 << 20),
        text.randbytes(1 << 19).hex().encode(),
        base64.b64encode(noise(1 << 20)),
        bytes(1 << 20),
    ):
        assert engines[0].scan(data) == []


def test_a_flood_of_beginnings_costs_one_look_at_each_byte(engines: tuple[Engine, Engine]) -> None:
    data = b"-----BEGIN RSA PRIVATE KEY-----\n" * 20_000 + planted("token.github").text
    assert [hit.rule for hit in engines[0].scan(data)] == ["token.github"]


def test_both_engines_agree_on_a_heap_of_everything(engines: tuple[Engine, Engine]) -> None:
    parts: list[bytes] = []
    for rule in RULES:
        if rule.check != "block_start":
            parts += [noise(300, len(parts)), b"\n", planted(rule.id, 9).text, b"\n"]
    data = b"".join(parts)

    def shape(hits: list[Hit]) -> set[tuple[str, int, str]]:
        return {(hit.rule, hit.offset, hit.digest) for hit in hits}

    fast, slow = (shape(engine.scan(data)) for engine in engines)
    assert fast == slow
    assert {rule for rule, _, _ in fast} >= {rule.id for rule in RULES if rule.check != "block_start"}


def test_the_compiled_form_can_be_kept() -> None:
    first = Hyperscan(RULES)
    again = Hyperscan(RULES, first.dump())
    assert first.was_compiled
    assert not again.was_compiled
    data = planted("token.github").text
    assert list(again.places(data)) == list(first.places(data)) != []
    for damaged in (b"", b"casemate hyperscan\n" + b"x" * 100, first.dump()[:-500], b"other"):
        assert Hyperscan(RULES, damaged).was_compiled
