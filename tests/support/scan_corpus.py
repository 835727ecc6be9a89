"""Secrets for the scanner to find, made up at run time: one maker for every rule by content.

Nothing here is a secret of anybody, and no literal of this file looks like one: forms are put together from pieces.
"""

from __future__ import annotations

import base64
import json
import random
import string
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from casemate.scan import weak
from casemate.scan.checks import base62
from casemate.scan.checks_keys import _BECH32, _polymod

LETTERS = string.ascii_letters
B62 = string.digits + LETTERS
URL = B62 + "-_"
HEX = "0123456789abcdef"


class Planted(NamedTuple):
    """Text as it stands in a file, and the part that must never be printed."""

    text: bytes
    secret: bytes


class Maker:
    """Draws secrets from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def of(self, alphabet: str, length: int) -> str:
        """Random characters; from `B62` with at least two of each kind, so that it is no word."""
        while True:
            text = "".join(self._random.choices(alphabet, k=length))
            if (
                alphabet not in (B62, URL)
                or length < 14
                or (sum(map(str.isdigit, text)) > 1 and sum(map(str.isalpha, text)) > 3)
            ):
                return text

    def bytes(self, length: int) -> bytes:
        """Random bytes."""
        return self._random.randbytes(length)

    def b64(self, length: int) -> str:
        """Base 64 of random bytes."""
        return base64.b64encode(self.bytes(length)).decode()


def _crc(prefix: str, m: Maker) -> str:
    body = m.of(B62, 30)
    return f"{prefix}_{body}{base62(zlib.crc32(body.encode()))}"


def _age(m: Maker) -> str:
    human = "age" + "-secret-key-"
    values = [m._random.randrange(32) for _ in range(52)]
    expanded = [ord(c) >> 5 for c in human] + [0] + [ord(c) & 31 for c in human]
    check = _polymod([*expanded, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [(check >> 5 * (5 - i)) & 31 for i in range(6)]
    return (human + "1" + "".join(chr(_BECH32[v]) for v in values)).upper()


def _jwt(m: Maker) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': m.of(HEX, 12), 'exp': 1999999999})}.{m.of(URL, 43)}"


def _pypi(m: Maker) -> str:
    raw = b"\x02\x01\x08pypi." + b"org\x02\x24" + m.bytes(36) + m.bytes(40)
    return "pypi-" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _aws_id(m: Maker) -> str:
    return "AKIA" + m.of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)


def _discord(m: Maker) -> str:
    number = base64.urlsafe_b64encode(str(m._random.randrange(10**17, 10**18)).encode()).decode().rstrip("=")
    return f"{number}.{m.of(URL, 6)}.{m.of(B62, 38)}"


TOKENS: dict[str, Callable[[Maker], str]] = {
    "token.aws-key-id": _aws_id,
    "token.gcp-api-key": lambda m: "AIza" + m.of(B62, 35),
    "token.gcp-oauth-secret": lambda m: "GOC" + "SPX-" + m.of(B62, 28),
    "token.gcp-access": lambda m: "ya29." + m.of(B62, 120),
    "token.digitalocean": lambda m: "dop" + "_v1_" + m.of(HEX, 64),
    "token.heroku": lambda m: "HRKU" + "-AA" + m.of(B62, 58),
    "token.alibaba": lambda m: "LTAI" + m.of(B62, 20),
    "token.github": lambda m: _crc("gh" + "p", m),
    "token.github-fine-grained": lambda m: "github" + "_pat_" + m.of(B62, 22) + "_" + m.of(B62, 59),
    "token.gitlab": lambda m: "glp" + "at-" + m.of(B62, 20),
    "token.npm": lambda m: _crc("np" + "m", m),
    "token.pypi": _pypi,
    "token.rubygems": lambda m: "rubygems" + "_" + m.of(HEX, 48),
    "token.crates": lambda m: "cio" + m.of(B62, 32),
    "token.docker-hub": lambda m: "dckr" + "_pat_" + m.of(B62, 27),
    "token.atlassian": lambda m: "ATATT" + "3" + m.of(URL, 186),
    "token.openai": lambda m: "sk-" + "proj-" + m.of(B62, 74) + "T3Blbk" + "FJ" + m.of(B62, 74),
    "token.anthropic": lambda m: "sk-" + "ant-api03-" + m.of(B62, 93) + "AA",
    "token.hugging-face": lambda m: "hf" + "_" + m.of("ABCDEFGHIJKLMNOP", 17) + m.of("abcdefghijklmnop", 17),
    "token.slack": lambda m: (
        "xox" + "b-" + m.of(string.digits, 12) + "-" + m.of(string.digits, 12) + "-" + m.of(B62, 24)
    ),
    "token.telegram": lambda m: m.of("123456789", 10) + ":AA" + m.of(B62, 33),
    "token.discord": _discord,
    "token.sendgrid": lambda m: "SG" + "." + m.of(B62, 22) + "." + m.of(B62, 43),
    "token.mailgun": lambda m: "key" + "-" + m.of(HEX, 32),
    "token.mailchimp": lambda m: m.of(HEX, 32) + "-us" + "12",
    "token.stripe": lambda m: "sk" + "_live_" + m.of(B62, 24),
    "token.stripe-webhook": lambda m: "whsec" + "_" + m.of(B62, 32),
    "token.square": lambda m: "EAAA" + m.of(B62, 60),
    "token.shopify": lambda m: "shpat" + "_" + m.of(HEX, 32),
    "token.vault": lambda m: "hvs" + "." + m.of(B62, 95),
    "token.terraform": lambda m: m.of(B62, 14) + ".atlas" + "v1." + m.of(B62, 67),
    "token.grafana": lambda m: "glsa" + "_" + m.of(B62, 32) + "_" + m.of(HEX, 8),
    "token.databricks": lambda m: "dap" + "i" + m.of(HEX, 32),
    "token.doppler": lambda m: "dp.p" + "t." + m.of(B62, 43),
    "token.tailscale": lambda m: "tskey" + "-auth-" + m.of(B62, 12) + "-" + m.of(B62, 32),
    "token.new-relic": lambda m: "NRA" + "K-" + m.of("ABCDEFGHIJ0123456789", 27),
    "token.pulumi": lambda m: "pu" + "l-" + m.of(HEX, 40),
    "token.jwt": _jwt,
    "key.age": _age,
}

# (before, alphabet and length or maker of the secret, behind)
PHRASES: dict[str, tuple[str, Callable[[Maker], str], str]] = {
    "token.aws-secret": ("aws_secret_access_key = ", lambda m: m.of(B62, 40), "\n"),
    "token.heroku-legacy": (
        "HEROKU_API_KEY=",
        lambda m: f"{m.of(HEX, 8)}-{m.of(HEX, 4)}-4{m.of(HEX, 3)}-9{m.of(HEX, 3)}-{m.of(HEX, 12)}",
        "\n",
    ),
    "token.cloudflare": ("CLOUDFLARE_API_TOKEN=", lambda m: m.of(B62, 40), "\n"),
    "token.mailgun-new": ("mailgun_key: ", lambda m: f"{m.of(HEX, 32)}-{m.of(HEX, 8)}-{m.of(HEX, 8)}", "\n"),
    "token.twilio-auth": ('"twilio_auth_token": "', lambda m: m.of(HEX, 32), '"\n'),
    "token.twilio-key": ("TWILIO_KEY=", lambda m: "SK" + m.of(HEX, 32), "\n"),
    "token.vault-legacy": ("VAULT_TOKEN=", lambda m: "s." + m.of(B62, 24), "\n"),
    "token.slack-webhook": (
        "https://hooks.slack" + ".com/",
        lambda m: f"services/T{m.of(B62, 8)}/B{m.of(B62, 10)}/{m.of(B62, 24)}",
        "\n",
    ),
    "cloud.gcp-service-account": (
        '{"type": "service_account", "project_id": "p", "private_key_id": "',
        lambda m: m.of(HEX, 40),
        '"}',
    ),
    "cloud.azure-storage": ("AccountName=a;AccountKey=", lambda m: m.b64(64), ";\n"),
    "cloud.azure-client-secret": ("secret: ", lambda m: m.of(B62, 3) + "8Q~" + m.of(B62, 34), "\n"),
    "cloud.azure-sas": ("?sv=2022-11-02&ss=b&srt=sco&sp=rwd&sig=", lambda m: m.of(B62, 44) + "%3D", "\n"),
    "cred.url": ("url = https://deploy:", lambda m: m.of(B62, 16), "@git.internal.net/x.git\n"),
    "cred.netrc": ("\nmachine git.internal.net login ana password ", lambda m: m.of(B62, 14), "\n"),
    "cred.pgpass": ("\ndb.internal.net:5432:app:ana:", lambda m: m.of(B62, 14), "\n"),
    "cred.mysql": ("[client]\nuser = root\npassword = ", lambda m: m.of(B62, 14), "\n"),
    "cred.docker": (
        '{"auths": {"registry.internal.net": {"auth": "',
        lambda m: base64.b64encode(f"ana:{m.of(B62, 20)}".encode()).decode(),
        '"}}}',
    ),
    "cred.kubeconfig": (
        "    client-key-data: ",
        lambda m: base64.b64encode(f"-----BEGIN {'EC PRIV'}ATE KEY-----\n{m.b64(120)}\n".encode()).decode(),
        "\n",
    ),
    "cred.kube-token": ("kubeadm join --token ", lambda m: m.of("abcdef0123456789", 6) + "." + m.of(HEX, 16), " \n"),
    "cred.browser": ('"encryptedPassword":"', lambda m: "MD" + m.of(B62, 54), '"'),
    "cred.command-line": ("\nsshpass -p ", lambda m: m.of(B62, 14), " ssh root@10.0.0.7\n"),
    "cred.environment": ("\nexport DEPLOY_TOKEN=", lambda m: m.of(B62, 32), "\n"),
    "cloud-init.user-data": ("#cloud-config\nusers: [default]\npassword: ", lambda m: m.of(B62, 14), "\n"),
    "cloud-init.instance-data": (
        '{\n "base64_encoded_keys": [],\n "v1": {\n  "instance_id": "',
        lambda m: "i-" + m.of(HEX, 17),
        '"\n }}',
    ),
    "ignition.config": ('{"ignition": {"config": {}, "version": "', lambda m: "3.4.0", '"}, "passwd": {}}'),
    "dhcp.lease": (
        'lease {\n  interface "eth0";\n  fixed-address ',
        lambda m: f"10.{m._random.randrange(255)}.3.77",
        ";\n",
    ),
    "vpn.wireguard": ("[Interface]\nPrivateKey = ", lambda m: m.b64(32), "\n"),
    "vpn.ipsec-psk": ("\n10.0.0.1 10.0.0.2 : PSK ", lambda m: '"' + m.of(B62, 20), '"\n'),
    "wifi.wpa-supplicant": ('network={\n\tssid="home"\n\tpsk="', lambda m: m.of(B62, 16), '"\n}\n'),
    "wifi.networkmanager": ("[wifi-security]\nkey-mgmt=wpa-psk\npsk=", lambda m: m.of(B62, 16), "\n"),
    "vpn.openvpn-static": (
        "-----BEGIN OpenVPN Static " + "key V1-----\n",
        lambda m: "\n".join(m.of(HEX, 32) for _ in range(16)),
        "\n-----END OpenVPN Static key V1-----\n",
    ),
    "key.putty": (
        "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\nPublic-Lines: 1\nAAAA\nPrivate-Lines: 1\n",
        lambda m: m.b64(40),
        "\nPrivate-MAC: 00\n",
    ),
    "key.dnssec": (
        "Private-key-format: v1.3\nAlgorithm: 13 (ECDSAP256SHA256)\nPrivateKey: ",
        lambda m: m.b64(32),
        "\n",
    ),
}


def planted(rule: str, seed: int = 1) -> Planted:
    """What the rule must find."""
    m = Maker(zlib.crc32(f"{rule}/{seed}".encode()))
    if rule in TOKENS:
        secret = TOKENS[rule](m)
        return Planted(f"token={secret}\n".encode(), secret.encode())
    if rule in PHRASES:
        before, make, behind = PHRASES[rule]
        secret = make(m)
        return Planted(f"{before}{secret}{behind}".encode(), secret.strip('"').encode())
    return _special(rule, m)


@lru_cache(maxsize=4)
def rsa_key(seed: int) -> object:
    """A real RSA key; a new one each run."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _special(rule: str, m: Maker) -> Planted:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    plain = s.NoEncryption()
    if rule == "key.pem":
        text = ed25519.Ed25519PrivateKey.generate().private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, plain)
        return Planted(text, text.splitlines()[3])
    if rule == "key.der-rsa":
        raw = rsa_key(1).private_bytes(s.Encoding.DER, s.PrivateFormat.TraditionalOpenSSL, plain)  # type: ignore[attr-defined]
        return Planted(raw, raw[:64])
    if rule == "key.der-ec":
        raw = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            s.Encoding.DER, s.PrivateFormat.TraditionalOpenSSL, plain
        )
        return Planted(raw, raw[7:39])
    if rule == "key.der-ed25519":
        raw = ed25519.Ed25519PrivateKey.generate().private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, plain)
        return Planted(raw, raw[16:48])
    if rule == "key.openssh-binary":
        text = ed25519.Ed25519PrivateKey.generate().private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, plain)
        raw = base64.b64decode(b"".join(text.splitlines()[1:-1]))
        return Planted(raw, raw[-64:])
    if rule == "key.pgp":
        body = b"\x95\x03\x58\x04" + m.bytes(600)
        lines = base64.encodebytes(body).replace(b"\n\n", b"\n")
        head = b"-----BEGIN PGP " + b"PRIVATE KEY BLOCK-----\n\n"
        return Planted(head + lines + b"=abcd\n-----END PGP PRIVATE KEY BLOCK-----\n", lines.splitlines()[2])
    if rule == "key.gnupg-agent":
        raw = b"(11:private-key" + b"(3:ecc(5:curve7:Ed25519)(1:d32:" + m.bytes(32) + b")))"
        return Planted(raw, raw[-36:-3])
    if rule == "hash.password":
        library = weak.prepare()
        word = library.crypt(m.of(B62, 20).encode(), f"$6${m.of(B62, 12)}".encode())
        return Planted(b"root:" + word + b":19000:0:99999:7:::\n", word)
    if rule == "machine-id.block":
        name = m.of(HEX, 12) + "4" + m.of(HEX, 3) + "9" + m.of(HEX, 15)
        return Planted(f"{name}\n".encode(), name.encode())
    raise KeyError(f"no maker for {rule}: a new rule needs one in tests/support/scan_corpus.py")
