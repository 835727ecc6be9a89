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
  casemate image encrypt --format qcow2 data.raw data.qcow2 --key-file key
  systemd-creds encrypt --with-key=tpm2 --name=data key key.cred
  casemate image encrypt data.raw data.luks --key-creds key.cred --key-name data

The disk then stands in a specification as format = "raw" (or "qcow2"), encryption = "luks", key = "data", with the
secret in [secrets.data], use = "disk". The source stays as it is: what lay on its disk unencrypted still does.
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
    encrypt.add_argument(
        "--format",
        choices=("raw", "qcow2"),
        default="raw",
        help="raw: as large as the disk; qcow2: without what is zero, which shows where that is (default raw)",
    )
    _key(encrypt, "", "the key")
    add_json(encrypt)
    rekey = add_command(
        commands, "rekey", "image_crypt:rekey", "change the key of an encrypted disk", epilog=_REKEY_EPILOG
    )
    rekey.add_argument("file", metavar="FILE", help="an encrypted disk that no VM uses")
    _key(rekey, "", "the present key")
    _key(rekey, "new-", "the new key")
    add_json(rekey)
    _add_check(commands)


_CHECK_EPILOG = """\
examples:
  casemate image check-luks data.img
  casemate image check-luks data.img --expect-digest 5feee3... --keyslots 2

A LUKS2 header is whoever wrote the disk's, and cryptsetup obeys it: null ciphers are how the disks of confidential VMs
were read (CVE-2025-59054, CVE-2025-58356). Check a copy, and open that copy: cryptsetup open --header COPY. Exit code 1
when the volume must not be opened with this header.
"""


def _add_check(commands: Commands) -> None:
    check = add_command(
        commands,
        "check-luks",
        "image_crypt:check_luks",
        "judge the LUKS2 header of a disk before it is opened",
        epilog=_CHECK_EPILOG,
    )
    check.add_argument("file", metavar="FILE", help="a raw disk, or a copy of its first megabytes")
    check.add_argument("--offset", type=int, default=0, metavar="BYTES", help="where the volume begins (default 0)")
    check.add_argument(
        "--expect-digest", default="", metavar="HEX", help="SHA-256 of the header, as this command prints it"
    )
    check.add_argument("--keyslots", type=int, default=1, metavar="N", help="as many key slots (default 1)")
    check.add_argument("--tokens", type=int, default=0, metavar="N", help="as many tokens (default 0)")
    check.add_argument("--flag", action="append", default=[], metavar="FLAG", help="expected, such as allow-discards")
    add_json(check)


def _key(parser: Parser, prefix: str, what: str) -> None:
    group = parser.add_argument_group(what)
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(f"--{prefix}key-file", metavar="FILE", help="from a file of mode 0600, text without NUL")
    source.add_argument(f"--{prefix}key-fd", type=int, metavar="N", help="from this open descriptor")
    source.add_argument(f"--{prefix}key-creds", metavar="FILE", help="from systemd-creds decrypt (host key, TPM2)")
    group.add_argument(
        f"--{prefix}key-name", metavar="NAME", default="disk-key", help="its name inside that file (default disk-key)"
    )
