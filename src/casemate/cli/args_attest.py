"""Arguments of attest. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate attest verify report.bin --certs vcek.der --certs amd-milan.crl --nonce 00112233
  casemate attest verify quote.bin --collateral collateral.json --policy web.toml --nonce 00112233
  casemate attest verify enclave.cbor --at document       as of the time that the document names
  casemate attest fetch report.bin quote.bin              certificates, revocation lists, collateral into the cache
  casemate attest verify report.bin --certs vcek.der --ear - | my-relying-party
  casemate attest verify response.bin --request-key request.key --policy se.toml       IBM Secure Execution
  casemate attest verify quote.msg --signature quote.sig --pcrs quote.pcrs --trust ak.pub --nonce 00112233
  casemate attest challenge ak.pub --ek-cert ek.pem --trust maker.pem --blob credential.blob --challenge asked.json
  casemate attest answer secret.bin --challenge asked.json     what tpm2_activatecredential made of the blob

Evidence is told by its content: SEV-SNP reports, TDX quotes, TPM attestations (go-tpm-tools, JSON, tpm2-tools), Nitro
and NitroTPM documents, Azure's evidence on SEV-SNP and TDX, pvattest's responses (Secure Execution), event logs. verify
fetches nothing; fetch goes to AMD's, Intel's and Google's services.
Exit codes: 0 true and as the policy wants, 1 refused, 2 unreadable.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    attest = add_command(
        commands,
        "attest",
        "attest:attest",
        "verify evidence of TPM, SEV-SNP, TDX, Nitro: is it true, and what the policy wants",
        epilog=_EPILOG,
    )
    attest.add_argument(
        "action",
        choices=("verify", "fetch", "challenge", "answer"),
        help="verify: judge evidence, offline; fetch: bring into the cache what makers publish for it; challenge: ask "
        "a TPM, by its endorsement key, whether it has an attestation key; answer: judge what it says",
    )
    attest.add_argument(
        "evidence",
        nargs="+",
        metavar="EVIDENCE",
        help="files of evidence; challenge: the attestation key's public area; answer: what the TPM gave back",
    )
    attest.add_argument("--policy", metavar="FILE", help="what it must say; without one no debugging, and no more")
    attest.add_argument(
        "--certs",
        action="append",
        default=[],
        metavar="FILE",
        help="certificates and revocation lists that came along, PEM or DER; repeat it",
    )
    attest.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="FILE",
        help="what you believe: certificates above attestation keys, or public keys of TPMs",
    )
    attest.add_argument("--collateral", metavar="FILE", help="Intel's collateral for TDX, as JSON")
    attest.add_argument("--event-log", metavar="FILE", help="the log that has to replay to the registers")
    attest.add_argument("--signature", metavar="FILE", help="of a TPM's quote (tpm2_quote -s)")
    attest.add_argument("--pcrs", metavar="FILE", help="the values that a TPM's quote is over (tpm2_quote -o)")
    attest.add_argument(
        "--request-key", metavar="FILE", help="Secure Execution: what sealed the request, from pvattest create"
    )
    attest.add_argument("--ek-cert", metavar="FILE", help="challenge: the endorsement key's certificate, PEM or DER")
    attest.add_argument("--ek", metavar="FILE", help="challenge: its public area, where it is of no usual template")
    attest.add_argument("--blob", metavar="FILE", help="challenge: write what tpm2_activatecredential -i takes")
    attest.add_argument("--challenge", metavar="FILE", help="what challenge writes, and answer is judged by")
    attest.add_argument("--nonce", metavar="HEX", help="that you asked for: without it evidence may be a replay")
    attest.add_argument("--at", metavar="TIME", help="verify as of this time; document: the evidence's own (Nitro)")
    attest.add_argument("--no-cache", action="store_true", help="verify without what fetch brought")
    attest.add_argument("--refresh", action="store_true", help="fetch also what is still good")
    attest.add_argument("--kds", metavar="URL", help="where to fetch in place of AMD's key distribution service")
    attest.add_argument("--pcs", metavar="URL", help="where to fetch in place of Intel's service: a PCCS, for example")
    attest.add_argument("--ca-file", metavar="FILE", help="certificates that servers are verified with")
    attest.add_argument("--ear", metavar="FILE", help="write a signed attestation result (EAR, a JWT); - for stdout")
    attest.add_argument(
        "--ear-profile",
        choices=("2023", "2026-03"),
        default="2023",
        help="names of its claims: as today's libraries read them, or as the draft of 2026 has them",
    )
    add_json(attest)
