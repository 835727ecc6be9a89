"""Arguments of image encrypt and image rekey. Only argparse."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands, Parser

_ENCRYPT_EPILOG = """\
examples:
  head -c 32 /dev/urandom | base64 -w0 >key; chmod 600 key
  casemate image encrypt data.raw data.luks --key-file key
  systemd-creds encrypt --with-key=tpm2 --name=data key key.cred
  casemate image encrypt data.raw data.luks --key-creds key.cred --key-name data

The disk then stands in a specification as format = "raw", encryption = "luks", key = "data", with the secret in
[secrets.data], use = "disk". The source stays as it is: what lay on its disk unencrypted still does.
"""

_REKEY_EPILOG = """\
examples:
  casemate image rekey data.luks --key-file old --new-key-file new

The old key, and every other key of the disk, opens it no more. The data keep their master key: who had that, by an old
key and a copy of the header, keeps access; then encrypt anew.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    encrypt = add_command(
        commands, "encrypt", "image_crypt:encrypt", "write a raw disk encrypted to a new file", epilog=_ENCRYPT_EPILOG
    )
    encrypt.add_argument("source", metavar="SOURCE", help="a raw disk image")
    encrypt.add_argument("target", metavar="TARGET", help="the new file (LUKS1); one that exists is never overwritten")
    _key(encrypt, "", "the key")
    add_json(encrypt)
    rekey = add_command(
        commands, "rekey", "image_crypt:rekey", "change the key of an encrypted disk", epilog=_REKEY_EPILOG
    )
    rekey.add_argument("file", metavar="FILE", help="an encrypted disk that no VM uses")
    _key(rekey, "", "the present key")
    _key(rekey, "new-", "the new key")
    add_json(rekey)


def _key(parser: Parser, prefix: str, what: str) -> None:
    group = parser.add_argument_group(what)
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(f"--{prefix}key-file", metavar="FILE", help="from a file of mode 0600, text without NUL")
    source.add_argument(f"--{prefix}key-fd", type=int, metavar="N", help="from this open descriptor")
    source.add_argument(f"--{prefix}key-creds", metavar="FILE", help="from systemd-creds decrypt (host key, TPM2)")
    group.add_argument(
        f"--{prefix}key-name", metavar="NAME", default="disk-key", help="its name inside that file (default disk-key)"
    )
