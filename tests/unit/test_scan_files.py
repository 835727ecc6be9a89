"""Rule files of ours and of gitleaks, waivers, rules by path, redaction, the cache of the compiled form, merging."""

from __future__ import annotations

import datetime
import os
import random
import re
from pathlib import Path

import msgspec
import pytest
from tests.support.scan_corpus import planted

from casemate.errors import CasemateError, InputError
from casemate.scan import cache, paths, weak
from casemate.scan.engine import Engine
from casemate.scan.model import Hit, Place
from casemate.scan.outcome import FileHit, Outcome, apply_waivers, merge
from casemate.scan.prefilter import Plain
from casemate.scan.redact import Redactor
from casemate.scan.rulefile import read_rules
from casemate.scan.ruleset import builtin, with_rules
from casemate.scan.sarif import outcome_to_sarif
from casemate.scan.translate import NotTranslatableError, from_re2
from casemate.scan.waivers import NO_WAIVERS, read_waivers

TODAY = datetime.date(2026, 1, 1)
OWN = b"""
[[rule]]
id = "acme.token"
title = "ACME token"
severity = "high"
regex = "acme_(?P<secret>[a-z0-9]{32})"
keywords = ["acme_"]
check = "mixed"
entropy = 3.0
allow = ["^0{32}$"]
"""


@pytest.mark.parametrize(
    ("there", "matches", "not_matches"),
    [
        (r"(?i)abc", b"ABC", b"abd"),
        (r"ab(?i)c|d", b"D", b"AB"),
        (r"x(?:a(?i)b)c", b"xaBc", b"xaBC"),
        (r"(?P<n>a)(?<m>b)", b"ab", b"ba"),
        (r"[[:alpha:]]{3}", b"abc", b"ab1"),
        (r"[a[b]", b"[", b"c"),
        (r"a\z", b"a", b"b"),
        (r"\Qa.b\E", b"a.b", b"axb"),
        (r"\x{41}\x42", b"AB", b"ab"),
        (r"(?-i:A)b", b"Ab", b"ab"),
        (r"(?s:a.b)", b"a\nb", b"ab"),
        (r"[^\s&&]", b"x", b"&"),
        (r"dp\.pt\.(?i)[a-z]{3}", b"dp.pt.ABC", b"DP.pt.abc"),
        (r"(?i)(?:x|(?-i)Y)z", b"XZ", b"xq"),
    ],
)
def test_expressions_of_re2(there: str, matches: bytes, not_matches: bytes) -> None:
    expression = re.compile(from_re2(there).encode())
    assert expression.search(matches)
    assert not expression.search(not_matches)


@pytest.mark.parametrize(
    "text",
    [
        r"\pL",
        r"\p{Greek}",
        "(?U)a",
        r"(a)\1",
        "(?=a)",
        "(?<!a)b",
        r"a\\"[:2],
        "[a",
        "(a",
        "a)",
        r"\x{100}",
        "é",
        "[[:nope:]]",
    ],
)
def test_what_cannot_be_said_is_refused(text: str) -> None:
    with pytest.raises((NotTranslatableError, re.error)):
        re.compile(from_re2(text).encode())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hostile_expressions_end() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choices(r"()[]{}\|?*+^$.:Pp<>i-s1QEzx", k=rng.randrange(1, 40)))
        try:
            re.compile(from_re2(text).encode())
        except (NotTranslatableError, re.error, OverflowError):
            continue
    with pytest.raises(NotTranslatableError, match="deeper"):
        from_re2("(" * 5000 + ")" * 5000)


def test_a_rule_of_ones_own() -> None:
    rules, left = read_rules(OWN, "rules.toml")
    assert left == ()
    engine = Engine(rules, Plain(rules), Redactor())
    assert [hit.rule for hit in engine.scan(b"x acme_k2j4h5k6j7h8g9f0d1s2a3p4o5i6u7y8 y")] == ["acme.token"]
    assert engine.scan(b"x acme_" + b"0" * 32) == []
    everything = with_rules(builtin(), rules)
    assert everything.rule("acme.token") == rules[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("acme.token", "../x"), "no id"),
        (('severity = "high"', 'severity = "dire"'), "Level"),
        (("check", "chekc"), "unknown key"),
        (('"mixed"', '"crypt"'), "no check"),
        (("acme_(?P<secret>[a-z0-9]{32})", "(?P<secret>a*)"), "match everywhere"),
        (("acme_(?P<secret>[a-z0-9]{32})", "(a"), "unterminated"),
        (("entropy = 3.0", "entropy = 99"), "no number"),
        (("[[rule]]", "[[what]]"), "no rules"),
        (("[[rule]]", "[[rule"), "not TOML"),
    ],
)
def test_faults_in_a_rule_file_are_errors(change: tuple[str, str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        read_rules(OWN.decode().replace(*change).encode(), "rules.toml")


GITLEAKS = b"""
title = "x"
[[rules]]
id = "one"
description = "One"
regex = '''(?i)\\b(one_[a-z]{20})(?:['"\\s]|$)'''
entropy = 2
keywords = ["ONE_"]
[[rules.allowlists]]
stopwords = ["sample"]
[[rules]]
id = "by-path"
path = '''\\.p12$'''
[[rules]]
id = "unicode"
regex = '''\\p{Greek}+'''
"""


def test_a_file_of_gitleaks() -> None:
    rules, left = read_rules(GITLEAKS, "gitleaks.toml")
    assert [rule.id for rule in rules] == ["one"]
    assert [text.split(":")[0] for text in left] == ["by-path", "unicode"]
    engine = Engine(rules, Plain(rules), Redactor())
    hits = engine.scan(b"key ONE_abcdefghijklmnopqrst rest")
    assert [hit.offset for hit in hits] == [4]
    assert engine.scan(b"key ONE_abcsampleghijklmnopq rest") == []
    assert engine.scan(b"key ONE_aaaaaaaaaaaaaaaaaaaa rest") == []


def test_a_file_of_which_nothing_can_be_taken_is_an_error() -> None:
    """Otherwise a scan that looked for none of it would pass."""
    with pytest.raises(InputError, match="no rule that can be taken"):
        read_rules(b'[[rules]]\nid = "x"\nregex = "("\n', "gitleaks.toml")


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/etc/ssh/ssh_host_ed25519_key", "host-key.ssh"),
        ("/root/.ssh/id_rsa", "key.file"),
        ("/home/ana/.ssh/authorized_keys", "key.authorized"),
        ("/etc/machine-id", "machine-id.file"),
        ("/var/lib/systemd/random-seed", "random-seed"),
        ("/var/lib/cloud/instances/i-1/user-data.txt.i", "cloud-init.data"),
        ("/var/lib/cloud/seed/nocloud-net/user-data", "cloud-init.data"),
        ("/boot/ignition/config.ign", "ignition.file"),
        ("/home/ana/.netrc", "cred.file"),
        ("/etc/NetworkManager/system-connections/home.nmconnection", "wifi.file"),
        ("/home/ana/.mozilla/firefox/abc.default/logins.json", "browser.profile"),
        ("/root/.bash_history", "history.shell"),
        ("/var/lib/dhcp/dhclient.eth0.leases", "dhcp.file"),
        ("/home/ana/x/y/store.p12", "key.store"),
    ],
)
def test_rules_by_path(path: str, rule: str) -> None:
    assert rule in {found.id for found in paths.matching(paths.PATH_RULES, path)}


@pytest.mark.parametrize(
    "path", ["/etc/ssh/ssh_host_rsa_key.pub", "/etc/ssh/sshd_config", "/etc/machine-id/x", "/usr/bin/env"]
)
def test_paths_that_no_rule_is_about(path: str) -> None:
    assert paths.matching(paths.PATH_RULES, path) == ()


def test_looks() -> None:
    look = paths.LOOKS
    assert [item.detail for item in look["shadow_empty"](b"root::1:2\nana:*:1\nbob::3\n")] == ["user root", "user bob"]
    assert look["machine_id"](b"uninitialized\n") == () == look["machine_id"](b"")
    assert look["machine_id"](b"0123456789abcdef0123456789abcdef\n")
    key = b"AAAAC3NzaC1lZDI1NTE5AAAAI" + b"B" * 43
    assert "SHA256:" in look["authorized_keys"](b'from="x" ssh-ed25519 ' + key + b" ana\n")[0].detail
    assert look["authorized_keys"](b"# ssh-ed25519 nothing\n") == ()
    assert look["private_key"](b"ssh-ed25519 AAAA") == ()
    for name, judge in look.items():
        for data in (b"", b"\0" * 4096, os.urandom(4096), b"a:" * 30_000):
            assert isinstance(judge(data), tuple), name


def hit(rule: str, digest: str, offset: int = 5) -> Hit:
    return Hit(rule=rule, offset=offset, length=4, shown="abcd…wxyz", digest=digest)


class _Block(msgspec.Struct):
    hit: Hit
    offset: int
    guest_offset: int
    views: tuple[str, ...]


class _Blocks(msgspec.Struct):
    hits: tuple[_Block, ...]


def outcome_of(*blocks: _Block, files: tuple[FileHit, ...] = ()) -> Outcome:
    found = merge(_Blocks(tuple(blocks)), files, builtin())
    return Outcome(image="x", format="raw", size_bytes=1, read_bytes=1, seconds=1.0, rules=1, findings=found)


def test_merging_blocks_and_files() -> None:
    files = (FileHit("/etc/a", hit("token.npm", "1")), FileHit("/etc/b", hit("token.npm", "1")))
    found = outcome_of(
        _Block(hit("token.npm", "1"), 900, 900, ("",)),
        _Block(hit("token.npm", "2"), 100, 100, ("",)),
        _Block(hit("token.npm", "2"), 200, 200, ("",)),
        _Block(hit("token.npm", "3"), 300, 77, ("old",)),
        _Block(hit("token.npm", "4"), 400, -1, ()),
        files=files,
    ).findings
    by_digest = {finding.digest: finding for finding in found}
    assert (by_digest["1"].place, by_digest["1"].path, by_digest["1"].offset, by_digest["1"].more) == (
        Place.FILE, "/etc/a", 900, 1,
    )  # fmt: skip
    assert (by_digest["2"].place, by_digest["2"].more) == (Place.GUEST_DISK, 1)
    assert (by_digest["3"].place, by_digest["3"].snapshot) == (Place.SNAPSHOT, "old")
    assert by_digest["4"].place is Place.UNREFERENCED


def test_waivers_name_what_they_accept() -> None:
    text = b"""version = 1
[[allow]]
rule = "token.npm"
path = "/etc/*"
reason = "revoked long ago"
expires = 2026-06-01
[[allow]]
rule = "key.pem"
reason = "there is none any more"
expires = 2026-06-01
"""
    found = outcome_of(
        _Block(hit("token.npm", "2"), 1, 1, ("",)), files=(FileHit("/etc/a", hit("token.npm", "1")),)
    ).findings
    done, remarks = apply_waivers(found, read_waivers(text, "w"), TODAY)
    assert {finding.digest: bool(finding.waived) for finding in done} == {"1": True, "2": False}
    assert remarks == ("the waiver of key.pem covers nothing; remove it",)
    late, remarks = apply_waivers(found, read_waivers(text, "w"), datetime.date(2027, 1, 1))
    assert not any(finding.waived for finding in late)
    assert "ended" in remarks[0]


@pytest.mark.parametrize(
    "text",
    [
        b"version = 2",
        b'version = 1\n[[allow]]\nrule = "*"\nreason = "because of it"\nexpires = 2026-01-01',
        b'version = 1\n[[allow]]\nrule = "a"\nexpires = 2026-01-01',
        b'version = 1\n[[allow]]\nrule = "a"\nreason = "short"\nexpires = 2026-01-01',
        b'version = 1\n[[allow]]\nrule = "a"\nreason = "long enough"',
        b"version = 1\nx = 2",
        b"\xff",
    ],
)
def test_faults_in_a_waiver_file(text: bytes) -> None:
    with pytest.raises(InputError):
        read_waivers(text, "w")


def test_what_was_not_scanned_is_no_pass() -> None:
    clean = outcome_of()
    assert not clean.failed
    assert msgspec.structs.replace(clean, not_scanned=("a cluster",)).failed
    assert apply_waivers(clean.findings, NO_WAIVERS, TODAY) == ((), ())


def test_sarif_follows_its_schema() -> None:
    import json

    import jsonschema

    found = outcome_of(
        _Block(hit("token.npm", "2"), 100, 100, ("",)), files=(FileHit("/a b/{c}", hit("key.pem", "1")),)
    )
    log = json.loads(outcome_to_sarif(found, builtin(), "1.0"))
    schemas = list((Path(__file__).parents[1] / "data" / "sarif").glob("*.json"))
    assert schemas
    jsonschema.validate(log, json.loads(schemas[0].read_text()))
    assert len(log["runs"][0]["results"]) == 2


def test_redaction_shows_less_of_short_ones() -> None:
    show = Redactor.shown
    assert show(b"0123456789abcdef") == "0123…cdef"
    assert show(b"0123456789") == "01…89"
    assert show(b"hunter2") == "…"
    assert show(b"\x00\xff\n\x1b" + b"a" * 20) == "....…aaaa"
    with pytest.raises(RuntimeError):
        Redactor(b"short")


def test_the_cache_trusts_only_what_is_ours(tmp_path: Path) -> None:
    folder = str(tmp_path / "scan")
    assert cache.load(folder, "a") == b""
    cache.save(folder, "a", b"data")
    assert cache.load(folder, "a") == b"data"
    assert (tmp_path / "scan").stat().st_mode & 0o777 == 0o700
    (tmp_path / "scan" / "a.hsdb").chmod(0o666)
    assert cache.load(folder, "a") == b""
    (tmp_path / "scan" / "a.hsdb").chmod(0o600)
    (tmp_path / "scan").chmod(0o777)
    assert cache.load(folder, "a") == b""
    (tmp_path / "scan").chmod(0o700)
    (tmp_path / "scan" / "b.hsdb").symlink_to(tmp_path / "scan" / "a.hsdb")
    assert cache.load(folder, "b") == b""
    for number in range(cache.KEPT + 3):
        cache.save(folder, f"n{number}", b"x")
    assert len(list((tmp_path / "scan").glob("*.hsdb"))) <= cache.KEPT + 1
    cache.save("/proc/nothing", "a", b"x")  # no error


def test_weak_passwords_are_named() -> None:
    library = weak.prepare()
    if library is None:
        pytest.skip("no libcrypt here")
    weak._tried[0] = 0
    word = library.crypt(b"changeme", b"$6$abcdefgh").decode()
    assert weak.crypt_detail(word, "root") == "SHA-512, well-known password 'changeme'"
    own = library.crypt(b"ana", b"$1$abcdefgh").decode()
    assert weak.crypt_detail(own, "ana") == "MD5, well-known password 'ana'"
    strong = library.crypt(planted("token.npm").secret, b"$5$abcdefgh").decode()
    assert weak.crypt_detail(strong, "root") == "SHA-256"


def test_samples_of_documents_are_known_but_no_account_has_them() -> None:
    """The hash of cloud-init's example, which everybody can look up, is no finding in a document and one in shadow."""
    rules = builtin().rules
    engine = Engine(rules, Plain(rules), Redactor())
    sample = b"$1$oaL$" + b"eyrazuM7TkxVkKgBim1WH1"
    assert engine.scan(b"--md5 " + sample + b" rest") == []
    assert [hit.rule for hit in engine.scan(b"root:" + sample + b":1:2:3\n")] == ["hash.password"]


@pytest.mark.parametrize(
    "text",
    ["$6$rounds=999999999$abcdefgh$" + "a" * 86, "$2b$31$" + "a" * 53, "$y$jET$abc$" + "a" * 43, "$7$" + "a" * 60],
)
def test_hashes_that_cost_too_much_are_not_tried(text: str) -> None:
    assert not weak.affordable(text)


def test_hostile_rule_files_are_errors() -> None:
    rng = random.Random(5)
    for number in range(300):
        data = bytearray(OWN if number % 2 else GITLEAKS)
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_rules(bytes(data), "x")
        except CasemateError:
            continue
