"""Speed of what `casemate measure` computes, on one core. Run: python bench/measure.py

CPU time of this process, so that a busy machine counts less. Needs the host's firmware (package ovmf) and the built-in
guest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from casemate.engine.paths import default_paths  # noqa: E402
from casemate.image.builtin import find_builtin  # noqa: E402
from casemate.measure.boot import REGISTERS, Direct, Platform, predict_direct  # noqa: E402
from casemate.measure.ovmf import parse_firmware  # noqa: E402
from casemate.measure.sev import Guest, snp_digest  # noqa: E402
from casemate.measure.tdvf import parse_tdvf  # noqa: E402
from casemate.measure.variables import parse_variables  # noqa: E402
from casemate.measure.vmsa import CPUS  # noqa: E402
from casemate.measure.volumes import Volumes, parse_volumes  # noqa: E402

SECONDS = 2.0


def rate(action: Callable[[], object]) -> float:
    """How often a second of CPU time holds it."""
    action()
    count, started = 0, time.process_time()
    while time.process_time() - started < SECONDS:
        action()
        count += 1
    return count / (time.process_time() - started)


def main() -> None:
    """What `casemate measure` computes, on the host's firmware and the built-in guest."""
    print("measurement, one core")
    image, code = Path("/usr/share/ovmf/OVMF.fd"), Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    if image.is_file():
        data = image.read_bytes()
        show_ms(
            f"SEV-SNP digest, firmware of {len(data) >> 20} MiB, 4 vCPUs",
            lambda: snp_digest(Guest(firmware=parse_firmware(data), vcpus=4, signature=CPUS["EPYC-Milan"])),
            "aim 15 for 4 MiB",
        )
        padded = bytes(len(data)) + data
        show_ms(
            "the same, of 4 MiB",
            lambda: snp_digest(Guest(firmware=parse_firmware(padded), vcpus=4, signature=CPUS["EPYC-Milan"])),
            "aim 15",
        )
        show_ms("TDX: MRTD", lambda: parse_tdvf(data).mrtd())
    guest = find_builtin([Path(default_paths().cache)])
    if guest is None or not code.is_file():
        return
    firmware, variables = code.read_bytes(), code.with_name("OVMF_VARS_4M.fd").read_bytes()
    kernel, initrd = guest.kernel.read_bytes(), guest.initrd.read_bytes()
    boot = Direct(kernel, initrd, guest.cmdline)

    def registers(volumes: Volumes) -> object:
        known = Platform(volumes=volumes, variables=parse_variables(variables), memory_bytes=512 << 20)
        return predict_direct(known, boot).values("sha256", REGISTERS)

    show_ms("TPM: firmware unpacked and read", lambda: parse_volumes(firmware))
    unpacked = parse_volumes(firmware)
    show_ms(f"TPM: PCRs of a given kernel, {(len(kernel) + len(initrd)) >> 20} MiB", lambda: registers(unpacked))


def show_ms(what: str, action: Callable[[], object], note: str = "") -> None:
    print(f"  {what:<46} {1000 / rate(action):>8.1f} ms   {note}".rstrip())


if __name__ == "__main__":
    main()
