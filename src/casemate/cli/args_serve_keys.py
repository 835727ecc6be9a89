"""Arguments of serve-keys. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate serve-keys release.toml --socket keys.sock
  casemate serve-keys release.toml --listen 192.0.2.1:8443 --cert server.pem --key server.key --client-ca guests.pem
  casemate serve-keys release.toml --vm web
  casemate serve-keys --check-log

It speaks the protocol of confidential-containers' key broker (0.2.0 to 0.4.0), so its clients can be used. A resource
leaves only for a guest whose evidence is true and as the resource's policy wants, encrypted to a key that the evidence
carries. Each decision is signed and chained to the one before; no secret stands in them. Guide: docs/key-release.md.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    serve = add_command(
        commands,
        "serve-keys",
        "serve_keys:serve_keys",
        "release secrets to guests whose evidence is true and as a policy wants",
        epilog=_EPILOG,
    )
    serve.add_argument("policy", nargs="?", metavar="FILE", help="which evidence releases what (TOML)")
    serve.add_argument("--socket", metavar="PATH", help="listen on a Unix socket, for this user only")
    serve.add_argument("--listen", metavar="ADDRESS:PORT", help="listen on TCP; TLS 1.3 only")
    serve.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="VM",
        help="serve the port of this VM in each of its runs ([keys] port = true)",
    )
    serve.add_argument("--cert", metavar="FILE", help="the server's certificate chain, for --listen")
    serve.add_argument("--key", metavar="FILE", help="its private key, mode 0600")
    serve.add_argument("--client-ca", metavar="FILE", help="only clients with a certificate of these")
    serve.add_argument(
        "--write-client",
        metavar="FILE",
        help="compile the client for a guest's initrd into this file",
    )
    serve.add_argument("--check-log", action="store_true", help="verify the decision log and print it")
    serve.add_argument("--public-key", metavar="KEY", help="for --check-log: the host's key, when it is another host")
    add_json(serve)
