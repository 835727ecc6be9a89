"""A TPM's quote in files of its own, as tpm2-tools write them: message, signature, PCR values, public area.

    tpm2_quote -c ak.ctx -l sha256:0,4,7 -q NONCE -m quote.msg -s quote.sig -o quote.pcrs

The message (TPMS_ATTEST) is the evidence; the others come along with it. PCR values are read in both forms that
``tpm2_quote -F`` knows: values one after the other, and ``serialized``, which is C structures of the tool: a
TPML_PCR_SELECTION of 132 octets, a number of lists, lists (TPML_DIGEST) of 532 octets; all little endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from casemate.errors import InputError
from casemate.evidence.octets import Octets
from casemate.evidence.tpm import DIGEST_BYTES, Quote, Signature, parse_signature

_SELECTION_BYTES: Final = 132
_DIGESTS_BYTES: Final = 532
_DIGESTS_OF_LIST: Final = 8
_BUFFER_BYTES: Final = 64
_MAX_LISTS: Final = 16
_RSA_BYTES: Final = (256, 384, 512)


def parse_signature_file(data: bytes) -> Signature:
    """A TPMT_SIGNATURE, or an RSA signature alone (``tpm2_quote -f plain``), which is taken for one over SHA-256.

    Raises:
        InputError: neither.
    """
    if len(data) in _RSA_BYTES:
        return Signature("rsa", "sha256", data)
    return parse_signature(data)


def parse_pcr_file(data: bytes, quote: Quote) -> dict[str, dict[int, bytes]]:
    """The values in a file, by bank and number: they go in the order of the quote's selection.

    Raises:
        InputError: others than the quote selects, or another form.
    """
    wanted = [(bank, number) for bank, numbers in quote.selected for number in numbers]
    sizes = [DIGEST_BYTES[bank] for bank, _ in wanted]
    if len(data) == sum(sizes):
        octets = Octets(data, "PCR values", "little")
        values = [octets.take(size, "value") for size in sizes]
    else:
        values = list(_serialized(data))
    if [len(value) for value in values] != sizes:
        raise InputError("PCR values of another selection than the quote's", got=f"{len(values)} values")
    found: dict[str, dict[int, bytes]] = {}
    for (bank, number), value in zip(wanted, values, strict=True):
        found.setdefault(bank, {})[number] = value
    return found


def _serialized(data: bytes) -> Iterator[bytes]:
    octets = Octets(data, "PCR values", "little")
    octets.take(_SELECTION_BYTES, "selection")
    lists = octets.number(4, "number of lists")
    if lists > _MAX_LISTS or octets.left != lists * _DIGESTS_BYTES:
        raise InputError(
            "PCR values in another form", got=f"{len(data)} bytes", expected="as tpm2_quote -o writes them"
        )
    for _ in range(lists):
        count = octets.number(4, "number of digests")
        for index in range(_DIGESTS_OF_LIST):
            size, buffer = octets.number(2, "size"), octets.take(_BUFFER_BYTES, "digest")
            if index < count:
                yield buffer[:size]
