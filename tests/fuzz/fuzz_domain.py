"""Fuzzes the readers of libvirt's domain documents.

Run with ``python -m tests.fuzz.fuzz_domain NEW -max_total_time=180`` (NEW: an empty directory); the smoke run is
tests/fuzz/test_fuzz_machines.py.
"""

from tests.fuzz.machine_cases import fuzz

if __name__ == "__main__":
    fuzz("domain")
