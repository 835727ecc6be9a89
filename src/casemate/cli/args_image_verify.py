"""Arguments of image verify and image sign, and the flags that image add shares. Only argparse."""

from __future__ import annotations

import argparse

from casemate.cli.args_image import IMAGE_HELP
from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_VERIFY_EPILOG = """\
examples:
  casemate image verify disk.qcow2 --sums SHA256SUMS --signature SHA256SUMS.gpg --keyring publisher.gpg
  casemate image verify disk.qcow2 --sums CHECKSUM --keyring fedora.gpg        a list that is signed itself
  casemate image verify disk.raw --signature disk.raw.sig --allowed-signers ~/.ssh/allowed_signers
  casemate image verify disk.raw --signature disk.raw.minisig --minisign-key RWQ…
  casemate image verify debian              an image of the store: what was noted, and its content again

Without --keyring the distribution's keyrings count (/usr/share/keyrings/debian-*, ubuntu-*); for an SSH signature
without --allowed-signers only this host's own key (casemate key show). Exit code 1 when something does not hold.
"""

_SIGN_EPILOG = """\
examples:
  casemate image sign debian                           with the host's own key; the store notes that you vouch for it
  casemate image sign disk.raw --key ~/.ssh/id_ed25519
  casemate image sign disk.raw --key ~/.ssh/id_ed25519.pub     an agent has the private half

The signature is what ssh-keygen -Y sign -n file makes; ssh-keygen -Y verify judges it as well.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    verify = add_command(
        commands, "verify", "image_verify:verify", "verify who vouched for an image", epilog=_VERIFY_EPILOG
    )
    verify.add_argument("image", metavar="IMAGE|FILE", help=IMAGE_HELP)
    add_evidence(verify)
    verify.add_argument("--policy", metavar="FILE", help="policy in place of /etc/casemate/policy.toml")
    add_json(verify)
    sign = add_command(commands, "sign", "image_verify:sign", "sign an image with an SSH key", epilog=_SIGN_EPILOG)
    sign.add_argument("image", metavar="IMAGE|FILE", help=IMAGE_HELP)
    sign.add_argument(
        "--key", metavar="FILE", help="private key, or public key of an agent's; without it the host's own key"
    )
    sign.add_argument("--passphrase-fd", type=int, metavar="N", help="read the key's passphrase from descriptor N")
    sign.add_argument("--namespace", default="file", metavar="WORD", help="what the signature is for (default file)")
    sign.add_argument("-o", "--output", metavar="FILE", help="where the signature goes; FILE.sig without it")
    add_json(sign)


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """The flags of `casemate.image.origin_check.Evidence`."""
    group = parser.add_argument_group("origin")
    group.add_argument("--sums", metavar="FILE", help="list of checksums (SHA256SUMS, CHECKSUM) that names the image")
    group.add_argument(
        "--signature", metavar="FILE", help="signature of --sums, or of the image: OpenPGP, SSH, minisign, sigstore"
    )
    group.add_argument("--listed-as", metavar="NAME", help="the image's name in --sums, when the file has another")
    group.add_argument(
        "--keyring", action="append", default=[], metavar="FILE", help="OpenPGP keys that may sign; several times"
    )
    group.add_argument("--allowed-signers", metavar="FILE", help="SSH keys that may sign (ssh-keygen, ALLOWED SIGNERS)")
    group.add_argument("--namespace", default="file", metavar="WORD", help="of SSH signatures (default file)")
    group.add_argument("--minisign-key", metavar="FILE|KEY", help="the minisign key that may sign")
    group.add_argument("--identity", metavar="WHO", help="SSH principal or sigstore identity that must have signed")
    group.add_argument("--issuer", metavar="URL", help="who vouches for a sigstore identity")
    group.add_argument("--trusted-root", metavar="FILE", help="sigstore's trusted_root.json")


def evidence_of(arguments: argparse.Namespace) -> dict[str, object]:
    """The same flags as keyword arguments of `casemate.images.verify` and `add`."""
    return {
        "sums": arguments.sums,
        "signature": arguments.signature,
        "name": arguments.listed_as,
        "keyrings": tuple(arguments.keyring),
        "allowed_signers": arguments.allowed_signers,
        "namespace": arguments.namespace,
        "minisign_key": arguments.minisign_key,
        "identity": arguments.identity,
        "issuer": arguments.issuer,
        "trusted_root": arguments.trusted_root,
    }
