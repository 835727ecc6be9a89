"""Smoke run of the fuzzer of harden: mutated command lines and Xen domains, and any bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.harden_cases import CONFIDENTIAL_SEEDS, XL_SEEDS, command_input, xl_input
from tests.fuzz.machine_cases import mutated, seeds


@pytest.mark.parametrize("data", XL_SEEDS)
def test_seeds_of_xen(data: bytes) -> None:
    xl_input(data)


def test_seeds_of_command_lines() -> None:
    for data in seeds("command-line"):
        command_input(data)


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=60))
def test_mutated_command_lines(choices: bytes) -> None:
    command_input(mutated("command-line", choices))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(XL_SEEDS), st.binary(max_size=48))
def test_mutated_xen_domains(seed: bytes, choices: bytes) -> None:
    xl_input(changed(seed, choices))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CONFIDENTIAL_SEEDS), st.binary(max_size=16))
def test_mutated_confidential_guests(seed: bytes, choices: bytes) -> None:
    command_input(changed(seed, choices))


def changed(seed: bytes, choices: bytes) -> bytes:
    """A seed with pieces replaced: four bytes of ``choices`` for each."""
    image = bytearray(seed)
    for start in range(0, len(choices) - 3, 4):
        position, length, value = struct.unpack_from("<HBB", choices, start)
        at = position % max(len(image), 1)
        image[at : at + length % 9] = bytes([value]) * (length % 3)
    return bytes(image)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    xl_input(data)
    command_input(data)
