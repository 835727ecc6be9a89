"""Speed of verification on one core. Run: python bench/attest.py [--peers] [--write]

Needs the evidence beside the project (shared/vectors). Each figure is CPU time of this process (`time.process_time`),
so that a busy machine counts less, with wall time beside it; the load average says how busy it was. "cold" forgets
before each piece what is remembered of authorities and parses every certificate anew; "cached" keeps the authorities,
as a verifier does that judges more than one piece. ``--peers`` measures what PyPI has beside ours, in an environment of
its own made for this run. ``--write`` puts the table into docs/attest.md.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VECTORS = ROOT.parent / "shared/vectors"
DOCUMENT = ROOT / "docs/attest.md"
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from bench.figures import processor, write_figures  # noqa: E402

from casemate.engine.authorities import known_authorities  # noqa: E402
from casemate.evidence import gotpm, tpm, x509  # noqa: E402
from casemate.evidence.event_log import parse_event_log, replay  # noqa: E402
from casemate.evidence.policy import Policy  # noqa: E402
from casemate.evidence.tdx import parse_tdx  # noqa: E402
from casemate.evidence.tdx_signed import truth_of_signed  # noqa: E402
from casemate.evidence.verify import Inputs, verify  # noqa: E402

NOW = datetime.datetime.now(datetime.UTC)
THEN = datetime.datetime(2025, 6, 20, tzinfo=datetime.UTC)
SECONDS = 2.0
PEERS = ("omne-attest", "sev-attest-tool", "dcap-qvl")


class Row(NamedTuple):
    """``cpu_s``, ``wall_s``: for one. ``aim``: how many a second are wanted, 0 for none."""

    what: str
    cpu_s: float
    wall_s: float
    aim: float = 0

    def cells(self) -> tuple[str, str, str, str]:
        """What, per second of CPU time, per second of wall time, aim."""
        missed = ", **missed**" if self.aim and 1 / self.cpu_s < self.aim else ""
        return (
            self.what,
            f"{1 / self.cpu_s:,.0f}",
            f"{1 / self.wall_s:,.0f}",
            f"{self.aim:,.0f}{missed}" if self.aim else "",
        )


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def measured(what: str, action: Callable[[], object], aim: float = 0) -> Row:
    """A row; the first call is not counted."""
    action()
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < SECONDS:
        action()
        count += 1
    row = Row(what, (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count, aim)
    print("  {:<58} {:>9}/s {:>9}/s wall   {}".format(*row.cells()), flush=True)
    return row


def cold(action: Callable[[], object]) -> Callable[[], object]:
    """Forgets first."""

    def run() -> object:
        x509.forget()
        return action()

    return run


def one_vtpm_quote() -> tuple[bytes, Inputs]:
    """One of the three quotes of the GCE attestation with its log of 24 KB, by a key that is known."""
    found = gotpm.parse_gotpm(read("tpm/gce-cos-85-nonce9009.pb"))
    quote, key = found.quotes[1], tpm.parse_public_key(found.key)
    document = {
        "ak_public": base64.b64encode(key).decode(),
        "tpm_quote": {
            "message": base64.b64encode(quote.quote).decode(),
            "signature": base64.b64encode(quote.signature).decode(),
            "pcrs": {quote.bank: {str(number): value.hex() for number, value in quote.pcrs.items()}},
        },
    }
    inputs = Inputs(
        moment=NOW,
        nonce=bytes.fromhex("9009"),
        event_log=found.event_log,
        keys=(hashlib.sha256(key).hexdigest(),),
    )
    return json.dumps(document).encode(), inputs


def true(data: bytes, inputs: Inputs) -> Callable[[], object]:
    """Verifies, and sees to it that what is measured is a verdict of true."""
    policy = Policy()
    found = verify(data, inputs, policy)
    if not found.is_true:
        sys.exit(f"not true, and so nothing to measure: {found.reasons}")
    return lambda: verify(data, inputs, policy)


def ours() -> list[Row]:
    authorities = known_authorities()
    report, vcek = read("snp/trustee-test-report.bin"), read("snp/trustee-test-vcek.der")
    chain, policy = read("snp/ask_ark_milan.pem"), Policy()
    print("verification, one core: per second of CPU time, and of wall time")
    rows = [
        measured(
            "SEV-SNP, whole chain, cold",
            cold(
                lambda: verify(
                    report, Inputs(certificates=(x509.parse(vcek), *x509.parse_many(chain)), moment=NOW), policy
                )
            ),
            900,
        ),
        measured(
            "SEV-SNP, AMD's chain cached",
            lambda: verify(report, Inputs(certificates=(x509.parse(vcek), *authorities), moment=NOW), policy),
            1100,
        ),
    ]
    tdx = true(
        read("tdx/dcap-qvl-tdx-v4.quote"),
        Inputs(collateral=read("tdx/dcap-qvl-tdx-v4.collateral.json"), moment=THEN),
    )
    rows.append(measured("TDX with collateral, nothing is cached", tdx, 1000))
    quote, collateral = parse_tdx(read("tdx/dcap-qvl-tdx-v4.quote")), read("tdx/dcap-qvl-tdx-v4.collateral.json")

    def by_both() -> None:
        # All that a TD costs at whose attributes dcap-qvl stops: there is no real one with its collateral.
        tdx()
        assert truth_of_signed(quote, collateral, THEN)[1].status == "UpToDate"

    rows.append(
        measured("TDX without SEPT_VE_DISABLE: dcap-qvl, then ours, collateral and platform cached", by_both, 1000)
    )
    nitro = true(read("nitro/sp2.bin"), Inputs())
    rows += [
        measured("Nitro, whole chain, cold", cold(nitro), 200),
        measured("Nitro, intermediates cached", nitro, 700),
    ]
    azure = true(read("azure/snp-evidence-v1.json"), Inputs(certificates=authorities, moment=NOW))
    rows.append(measured("Azure on SEV-SNP: report, binding, vTPM quote, cached", azure))
    data, inputs = one_vtpm_quote()
    rows.append(measured("vTPM quote with an event log of 24 KB", true(data, inputs), 3000))
    gce = Inputs(certificates=authorities, moment=NOW, nonce=bytes.fromhex("9009"))
    quotes = true(read("tpm/gce-cos-85-nonce9009.pb"), gce)
    rows.append(measured("GCE attestation: three quotes, a log, Google's chain, cached", quotes))
    log = read("tpm/cos-85-amd-sev.eventlog")
    rows.append(measured("event log of 24 KB alone, one bank", lambda: replay(parse_event_log(log), "sha256")))
    rows += mixed(authorities)
    return rows


def mixed(authorities: tuple[x509.Certificate, ...]) -> list[Row]:
    """Every vector that can be true, in an order that changes: caches and branch predictors have less to hold on to."""
    debug = x509.parse(read("snp/go-sev-guest-milan-debug.vcek.der"))
    milan = x509.parse(read("snp/trustee-test-vcek.der"))
    vtpm = one_vtpm_quote()
    everything: list[tuple[bytes, Inputs]] = [
        (read("snp/go-sev-guest-milan-debug.bin"), Inputs(certificates=(debug, *authorities), moment=NOW)),
        (read("snp/trustee-test-report.bin"), Inputs(certificates=(milan, *authorities), moment=NOW)),
        (read("azure/snp-evidence-v1.json"), Inputs(certificates=authorities, moment=NOW)),
        (read("azure/snp-evidence-genoa.json"), Inputs(certificates=authorities, moment=NOW)),
        (
            read("tdx/dcap-qvl-tdx-v4.quote"),
            Inputs(collateral=read("tdx/dcap-qvl-tdx-v4.collateral.json"), moment=THEN),
        ),
        (read("nitro/sp2.bin"), Inputs()),
        (read("nitro/evervault-valid.bin"), Inputs()),
        (read("tpm/gce-cos-85-nonce9009.pb"), Inputs(certificates=authorities, moment=NOW)),
        vtpm,
    ]
    actions = [true(data, inputs) for data, inputs in everything]
    order = random.Random(1)

    def any_of_them() -> object:
        return order.choice(actions)()

    return [
        measured("all of them in random order, cold", cold(any_of_them)),
        measured("all of them in random order, cached", any_of_them),
    ]


def peers() -> list[tuple[str, float, float, str]]:
    """What PyPI has, in an environment that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as place:
        print("peers: making an environment for them", flush=True)
        venv.create(place, with_pip=True)
        python = f"{place}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS], check=True)
        line = [python, str(ROOT / "bench/attest_peers.py"), str(VECTORS), str(SECONDS)]
        found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        names = subprocess.run(
            [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
        )
        versions = {item["name"].replace("_", "-"): item["version"] for item in json.loads(names.stdout)}
    rows = [(f"{name} {versions.get(name, '')}", cpu, wall, what) for name, (cpu, wall, what) in found.items()]
    for name, cpu, wall, what in rows:
        print(f"  {name:<58} {1 / cpu:>9,.0f}/s {1 / wall:>9,.0f}/s wall   {what}")
    return rows


def table(rows: list[Row], others: list[tuple[str, float, float, str]], load: tuple[float, float]) -> str:
    where = f"One core of {processor()}, Python {platform.python_version()}, {NOW:%Y-%m-%d}"
    busy = f"load average {load[0]:.1f} before and {load[1]:.1f} after, on {os.cpu_count()} cores"
    lines = [
        f"{where}; {busy}: wall time counts what others did meanwhile, CPU time does not.",
        "",
        "| what | per second of CPU time | of wall time | aim |",
        "|---|---|---|---|",
        *("| {} | {} | {} | {} |".format(*row.cells()) for row in rows),
    ]
    if others:
        lines += ["", "| peer | per second of CPU time | of wall time | what it does |", "|---|---|---|---|"]
        lines += [f"| {name} | {1 / cpu:,.0f} | {1 / wall:,.0f} | {what} |" for name, cpu, wall, what in others]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of verification.")
    parser.add_argument("--peers", action="store_true", help="measure PyPI's verifiers beside ours")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/attest.md")
    arguments = parser.parse_args()
    if not VECTORS.is_dir():
        sys.exit("shared/vectors is not beside this checkout")
    before = os.getloadavg()[0]
    rows = ours()
    others = peers() if arguments.peers else []
    text = table(rows, others, (before, os.getloadavg()[0]))
    if arguments.write:
        write_figures("bench/attest.py", text, DOCUMENT)


if __name__ == "__main__":
    main()
