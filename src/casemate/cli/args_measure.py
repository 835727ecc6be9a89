"""Arguments of measure. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate measure web.toml                                     the TPM's registers, as this VM will boot
  casemate measure web.toml --policy web-policy.toml            what attest verify, and key release, will want
  casemate measure web.toml --explain sha256.4=5feee3...        which single change gives that value
  casemate measure web.toml --firmware OVMF.fd --cpu EPYC-Milan          SEV-SNP
  casemate measure enclave.eif                                  the registers of a Nitro enclave

The same specification gives the guest and what it will measure. Pure: no root, no QEMU, no hardware. What cannot be
computed beforehand is listed with the reason, never guessed. Exit code 1 when --explain finds nothing, or
--compare a difference.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    measure = add_command(
        commands,
        "measure",
        "measure:measure",
        "what a launch will measure, before it runs: TPM, SEV-SNP, SEV-ES, TDX, Nitro",
        epilog=_EPILOG,
    )
    measure.add_argument(
        "spec", nargs="?", metavar="SPEC", help="the specification that starts the VM, or a Nitro enclave image"
    )
    measure.add_argument(
        "--kind", choices=("tpm", "sev-snp", "sev-es", "tdx", "nitro"), help="default: told by what is given"
    )
    measure.add_argument("--firmware", metavar="FILE", help="the OVMF that the guest starts from")
    _add_machine(measure)
    _add_confidential(measure)
    _add_outcome(measure)
    add_json(measure)


def _add_machine(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--variables", metavar="FILE", help="TPM: the variable store that the VM starts with")
    measure.add_argument(
        "--bank",
        action="append",
        choices=("sha1", "sha256", "sha384", "sha512"),
        metavar="HASH",
        help="TPM: sha256 (default), sha384, sha512 or sha1; repeat it",
    )
    measure.add_argument(
        "--reference-log",
        metavar="FILE",
        help="the log of a boot that you trust, of the same firmware and machine; it gives PCR 0, or RTMR 0",
    )
    measure.add_argument(
        "--address-bits",
        type=int,
        metavar="N",
        help="TPM: of a physical address, as the VM's CPU reports them (40 under TCG; with KVM the host's, see lscpu)",
    )
    measure.add_argument(
        "--qemu", metavar="VERSION", help="TPM: that will run it, where OVMF makes a difference of it (kernels given)"
    )
    measure.add_argument(
        "--grub-file",
        action="append",
        default=[],
        metavar="PATH=FILE",
        help="TPM: what GRUB reads from a partition that is not the ESP, by its path: (hd0,gpt2)/boot/vmlinuz",
    )


def _add_confidential(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--cpu", metavar="MODEL", help="SEV: QEMU's CPU model, such as EPYC-Milan")
    measure.add_argument("--vcpus", type=int, metavar="N", help="in place of the specification's")
    measure.add_argument(
        "--features", type=lambda text: int(text, 0), metavar="BITS", help="SEV_FEATURES of the guest (default 0x1)"
    )
    measure.add_argument(
        "--no-kernel-hashes", action="store_true", help="the SEV firmware does not check the kernel: it is not measured"
    )


def _add_outcome(measure: argparse.ArgumentParser) -> None:
    measure.add_argument(
        "--explain", metavar="[NAME=]HEX", help="a reported value: which single change of an input gives it"
    )
    measure.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="INPUT=FILE",
        help="for --explain: tried in place of firmware, variables, kernel, initrd, cmdline (a text) or disk",
    )
    measure.add_argument("--compare", metavar="LOG", help="an event log: where it differs from what was computed")
    measure.add_argument("--events", action="store_true", help="every event that was computed, not only the values")
    measure.add_argument("--policy", metavar="FILE", help="write a policy for attest verify; - is standard output")
