"""Rules by path: files that a public image should not have, and how their content is looked at.

The file system itself is read by the cell; here are patterns, and judgements of bytes that were read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from casemate.scan.model import Found, Level, PathRule

_CLEAN: Final = "remove it before the image is published; the machine makes its own at its first boot"
_REPLACE: Final = "remove it from the image and replace the key: whoever has a copy of the image has the key"

PATH_RULES: Final[tuple[PathRule, ...]] = (
    PathRule(
        id="host-key.ssh",
        title="SSH host key",
        severity=Level.CRITICAL,
        look="private_key",
        paths=("/etc/ssh/ssh_host_*_key", "/etc/dropbear/dropbear_*_host_key", "/etc/dropbear/*_host_key"),
        remedy="remove it: all machines made from the image would have it; sshd-keygen makes one at the first boot",
    ),
    PathRule(
        id="key.file",
        title="Private key file",
        severity=Level.CRITICAL,
        look="private_key",
        paths=(
            "/root/.ssh/id_*",
            "/home/*/.ssh/id_*",
            "/etc/ssl/private/*",
            "/etc/pki/tls/private/*",
            "/etc/letsencrypt/**/*.pem",
            "/etc/ipsec.d/private/*",
            "/etc/swanctl/private/*",
            "/etc/wireguard/*",
            "/etc/openvpn/**/*.key",
        ),
        remedy=_REPLACE,
    ),
    PathRule(
        id="key.store",
        title="Key store",
        severity=Level.HIGH,
        paths=("/**/*.p12", "/**/*.pfx", "/**/*.jks", "/**/*.keystore", "/**/*.kdbx"),
        remedy=_REPLACE,
    ),
    PathRule(
        id="key.gnupg",
        title="Secret keys of GnuPG",
        severity=Level.CRITICAL,
        paths=(
            "/root/.gnupg/private-keys-v1.d/*.key",
            "/home/*/.gnupg/private-keys-v1.d/*.key",
            "/root/.gnupg/secring.gpg",
            "/home/*/.gnupg/secring.gpg",
            "/etc/pacman.d/gnupg/private-keys-v1.d/*.key",
        ),
        remedy=_REPLACE,
    ),
    PathRule(
        id="key.authorized",
        title="Somebody's key that may log in",
        severity=Level.HIGH,
        look="authorized_keys",
        paths=(
            "/root/.ssh/authorized_keys*",
            "/home/*/.ssh/authorized_keys*",
            "/etc/ssh/authorized_keys*",
            "/etc/ssh/authorized_keys/*",
            "/etc/ssh/authorized_keys.d/*",
        ),
        remedy="remove it, or declare it in the waiver file ([[authorized_key]]) if everybody is meant to have it",
    ),
    PathRule(
        id="account.no-password",
        title="Account that needs no password",
        severity=Level.CRITICAL,
        look="shadow_empty",
        paths=("/etc/shadow", "/etc/shadow-"),
        remedy="passwd -l NAME in the image",
    ),
    PathRule(
        id="machine-id.file",
        title="machine-id",
        severity=Level.MEDIUM,
        look="machine_id",
        paths=("/etc/machine-id", "/var/lib/dbus/machine-id"),
        remedy="make /etc/machine-id an empty file and /var/lib/dbus/machine-id a link to it",
    ),
    PathRule(
        id="random-seed",
        title="Random seed",
        severity=Level.HIGH,
        paths=(
            "/var/lib/systemd/random-seed",
            "/var/lib/urandom/random-seed",
            "/boot/efi/loader/random-seed",
            "/efi/loader/random-seed",
            "/boot/loader/random-seed",
            "/loader/random-seed",
            "/var/lib/misc/random-seed",
            "/var/lib/random-seed",
        ),
        remedy="remove it: machines that start with one seed draw the same random numbers",
    ),
    PathRule(
        id="system-credential-key",
        title="Secret that encrypts systemd credentials",
        severity=Level.HIGH,
        paths=("/var/lib/systemd/credential.secret",),
        remedy=_CLEAN,
    ),
    PathRule(
        id="cloud-init.data",
        title="cloud-init data of another machine",
        severity=Level.HIGH,
        paths=(
            "/var/lib/cloud/instances/*/user-data.txt*",
            "/var/lib/cloud/instances/*/vendor-data.txt*",
            "/var/lib/cloud/seed/**/user-data",
            "/var/lib/cloud/seed/**/meta-data",
            "/var/lib/cloud/instances/*/obj.pkl",
            "/var/lib/cloud/instances/*/cloud-config.txt",
            "/run/cloud-init/instance-data-sensitive.json",
            "/var/lib/cloud/data/instance-id",
        ),
        remedy="cloud-init clean --logs --seed",
    ),
    PathRule(
        id="ignition.file",
        title="Ignition configuration",
        severity=Level.HIGH,
        paths=(
            "/config.ign",
            "/boot/ignition/**",
            "/boot/ignition.json",
            "/usr/lib/ignition/user.ign",
            "/etc/.ignition-result.json",
        ),
        remedy=_CLEAN,
    ),
    PathRule(
        id="cred.file",
        title="File of credentials",
        severity=Level.HIGH,
        paths=(
            "/root/.netrc",
            "/home/*/.netrc",
            "/root/.pgpass",
            "/home/*/.pgpass",
            "/root/.my.cnf",
            "/home/*/.my.cnf",
            "/root/.git-credentials",
            "/home/*/.git-credentials",
            "/root/.config/git/credentials",
            "/home/*/.config/git/credentials",
            "/root/.aws/credentials",
            "/home/*/.aws/credentials",
            "/root/.azure/*.json",
            "/home/*/.azure/*.json",
            "/root/.config/gcloud/*credentials*",
            "/home/*/.config/gcloud/*credentials*",
            "/root/.docker/config.json",
            "/home/*/.docker/config.json",
            "/root/.kube/config",
            "/home/*/.kube/config",
            "/etc/kubernetes/*.conf",
            "/etc/rancher/k3s/k3s.yaml",
            "/root/.npmrc",
            "/home/*/.npmrc",
            "/root/.pypirc",
            "/home/*/.pypirc",
            "/root/.vault-token",
            "/home/*/.vault-token",
            "/root/.config/gh/hosts.yml",
            "/home/*/.config/gh/hosts.yml",
            "/root/.terraform.d/credentials.tfrc.json",
            "/home/*/.terraform.d/credentials.tfrc.json",
            "/root/.huggingface/token",
            "/home/*/.cache/huggingface/token",
            "/root/.cache/huggingface/token",
            "/etc/ppp/chap-secrets",
            "/etc/ppp/pap-secrets",
        ),
        look="credentials",
        remedy="remove it; give credentials to the machine when it starts",
    ),
    PathRule(
        id="wifi.file",
        title="Network connection with its secrets",
        severity=Level.MEDIUM,
        look="has_secret",
        paths=(
            "/etc/NetworkManager/system-connections/*",
            "/etc/wpa_supplicant/*.conf",
            "/etc/netplan/*.yaml",
            "/var/lib/iwd/*.psk",
            "/etc/ipsec.secrets",
            "/var/lib/connman/*/settings",
        ),
        remedy="remove the connection; whoever has the image can use it",
    ),
    PathRule(
        id="browser.profile",
        title="Browser profile with saved passwords or sessions",
        severity=Level.HIGH,
        paths=(
            "/home/*/.mozilla/firefox/*/logins.json",
            "/home/*/.mozilla/firefox/*/key4.db",
            "/home/*/.mozilla/firefox/*/cookies.sqlite",
            "/root/.mozilla/firefox/*/logins.json",
            "/home/*/.config/*/Default/Login Data",
            "/home/*/.config/*/*/Login Data",
            "/home/*/.config/*/Default/Cookies",
            "/home/*/.local/share/keyrings/*.keyring",
            "/home/*/snap/firefox/**/logins.json",
        ),
        remedy="remove the profile",
    ),
    PathRule(
        id="history.shell",
        title="Shell history",
        severity=Level.LOW,
        paths=(
            "/root/.*_history",
            "/home/*/.*_history",
            "/root/.local/share/fish/fish_history",
            "/home/*/.local/share/fish/fish_history",
            "/root/.viminfo",
            "/home/*/.viminfo",
            "/root/.lesshst",
            "/home/*/.lesshst",
        ),
        remedy="remove it",
    ),
    PathRule(
        id="dhcp.file",
        title="DHCP lease of another machine",
        severity=Level.LOW,
        paths=(
            "/var/lib/dhcp/*.leases",
            "/var/lib/dhclient/*.lease*",
            "/var/lib/NetworkManager/*.lease",
            "/var/lib/dhcpcd/*.lease",
            "/var/lib/NetworkManager/secret_key",
        ),
        remedy="remove it",
    ),
    PathRule(
        id="kerberos.keytab",
        title="Kerberos keytab",
        severity=Level.HIGH,
        paths=("/etc/krb5.keytab", "/etc/*.keytab", "/var/lib/sss/secrets/*"),
        remedy=_REPLACE,
    ),
    PathRule(
        id="crash.dump",
        title="Memory of a program or kernel",
        severity=Level.MEDIUM,
        paths=("/var/crash/*", "/var/lib/systemd/coredump/*", "/root/core", "/core"),
        remedy="remove it: memory holds secrets",
    ),
)

Look = Callable[[bytes], tuple[Found, ...]]
_SHADOW: Final = re.compile(rb"(?m)^(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,63})::")
_KEY_LINE: Final = re.compile(
    rb"(?m)^(?P<options>[^#\n]*?)(?P<kind>(?:sk-)?(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp\d+)(?:@openssh\.com)?)"
    rb" (?P<body>[A-Za-z0-9+/]{40,}={0,2})"
)
_BEGIN: Final = re.compile(
    rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY|PrivateKey\s*=|-----BEGIN OpenVPN|\x00\x00\x00[\x07\x0b]ssh-(?:rsa|ed25519)"
)
_SECRETS: Final = re.compile(
    rb"(?im)^\s*\"?(?:psk|wep-key\d|leap-password|password|private-key|passphrase|presharedkey|auth-password)\"?\s*[=:]\s*\S|:\s*PSK\s+\""
)
_CREDENTIAL_WORDS: Final = re.compile(
    rb"(?i)password|passwd|token|_auth|secret|client-key|auth\"|private|://[^/\s:@]+:[^/\s@]+@|^[^#\s]+:[^:\s]+:[^:\s]+:[^:\s]+:|^hvs\.|^hf_"
)


def _exists(data: bytes) -> tuple[Found, ...]:
    return (Found(data[:4096]),)


def _nonempty(data: bytes) -> tuple[Found, ...]:
    return (Found(data[:4096], f"{len(data)} bytes"),) if data.strip() else ()


def _private_key(data: bytes) -> tuple[Found, ...]:
    return (Found(data[:4096]),) if _BEGIN.search(data) else ()


def _has_secret(data: bytes) -> tuple[Found, ...]:
    return (Found(data[:4096]),) if _SECRETS.search(data) else ()


def _credentials(data: bytes) -> tuple[Found, ...]:
    return (Found(data[:4096]),) if _CREDENTIAL_WORDS.search(data) else ()


def _machine_id(data: bytes) -> tuple[Found, ...]:
    text = data.strip()
    return (Found(text),) if re.fullmatch(rb"[0-9a-fA-F-]{32,36}", text) and set(text) != {0x30} else ()


def _shadow_empty(data: bytes) -> tuple[Found, ...]:
    return tuple(Found(m[0], f"user {m['user'].decode('ascii')}") for m in _SHADOW.finditer(data))


def _authorized_keys(data: bytes) -> tuple[Found, ...]:
    found = []
    for match in _KEY_LINE.finditer(data):
        print_ = key_fingerprint(match["body"])
        if print_:
            found.append(Found(match["body"], f"{match['kind'].decode()} {print_}"))
    return tuple(found[:256])


def key_fingerprint(body: bytes) -> str:
    """``SHA256:…`` of a public key in base 64, as ssh-keygen -l shows it; empty when it is none."""
    try:
        raw = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


LOOKS: Final[Mapping[str, Look]] = {
    "exists": _exists,
    "nonempty": _nonempty,
    "private_key": _private_key,
    "has_secret": _has_secret,
    "credentials": _credentials,
    "machine_id": _machine_id,
    "shadow_empty": _shadow_empty,
    "authorized_keys": _authorized_keys,
}


@lru_cache(maxsize=1024)
def pattern(glob: str) -> re.Pattern[str]:
    """A shell pattern of an absolute path as an expression: ``*`` and ``?`` stop at a slash, ``**`` does not."""
    out = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob):
        out.append({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)))
    return re.compile("".join(out), re.DOTALL)


@lru_cache(maxsize=8)
def _any_of(rules: tuple[PathRule, ...]) -> re.Pattern[str]:
    """All patterns in one: nearly every path of a system is of no interest."""
    return re.compile("|".join(pattern(glob).pattern for rule in rules for glob in rule.paths) or "(?!)", re.DOTALL)


def matching(rules: tuple[PathRule, ...], path: str) -> tuple[PathRule, ...]:
    """The rules about this path."""
    if _any_of(rules).fullmatch(path) is None:
        return ()
    return tuple(rule for rule in rules if any(pattern(glob).fullmatch(path) for glob in rule.paths))
