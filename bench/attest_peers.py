"""The peers' side of bench/attest.py: run by the interpreter of an environment that has them and nothing of ours.

Prints one JSON object: name of the row -> [CPU seconds for one, wall seconds for one, what it is].
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
VECTORS = Path(sys.argv[1])
SECONDS = float(sys.argv[2])
THEN = 1750377600
"""2025-06-20."""


def rate(action: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) for one."""
    action()
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < SECONDS:
        action()
        count += 1
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def omne() -> tuple[Callable[[], object], str]:
    omne_attest = import_module("omne_attest")
    pem = read("snp/ask_ark_milan.pem")
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.DOTALL)
    ask, ark = (base64.b64decode(b"".join(block.split())) for block in blocks)
    report, vcek = read("snp/trustee-test-report.bin"), read("snp/trustee-test-vcek.der")
    pinned, policy = hashlib.sha256(ark).digest(), omne_attest.Policy()
    return lambda: omne_attest.verify(report, vcek, ask, ark, pinned, policy), "whole chain, each time anew"


def sev_tool() -> tuple[Callable[[], object], str]:
    tool = import_module("sev_attest_tool")
    report, vcek = tool.SAMPLE_ATTESTATION, tool.SAMPLE_VCEK
    return lambda: tool.verify_attestation_report(report, vcek), "its own sample, as JSON; Rust"


def dcap() -> tuple[Callable[[], object], str]:
    dcap_qvl = import_module("dcap_qvl")
    quote, collateral = read("tdx/dcap-qvl-tdx-v4.quote"), read("tdx/dcap-qvl-tdx-v4.collateral.json").decode()
    return (
        lambda: dcap_qvl.verify(quote, dcap_qvl.QuoteCollateralV3.from_json(collateral), THEN),
        "the library that ours calls, by itself; Rust",
    )


def main() -> None:
    found: dict[str, Any] = {}
    for name, make in (("omne-attest", omne), ("sev-attest-tool", sev_tool), ("dcap-qvl", dcap)):
        action, what = make()
        found[name] = [*rate(action), what]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
