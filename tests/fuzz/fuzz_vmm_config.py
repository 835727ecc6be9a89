"""Fuzzes the readers of Firecracker's, Cloud Hypervisor's and Kata's configurations.

Run with ``python -m tests.fuzz.fuzz_vmm_config NEW -max_total_time=180`` (NEW: an empty directory); the smoke run is
tests/fuzz/test_fuzz_machines.py.
"""

from tests.fuzz.machine_cases import fuzz

if __name__ == "__main__":
    fuzz("vmm-config")
