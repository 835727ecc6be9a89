"""The option writer: whatever the value, QEMU's own splitting rule gives the same value back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.plan.options import write_option

PRINTABLE = st.text(
    st.characters(min_codepoint=0x20, blacklist_characters="\x7f", blacklist_categories=["Cs"]), max_size=60
)


def split_as_qemu(text: str) -> list[str]:
    """QemuOpts' rule (util/qemu-option.c): a comma ends a part, two commas are one comma."""
    parts, current, index = [], "", 0
    while index < len(text):
        if text[index] == ",":
            if text[index : index + 2] == ",,":
                current += ","
                index += 2
                continue
            parts.append(current)
            current = ""
        else:
            current += text[index]
        index += 1
    return [*parts, current]


@given(PRINTABLE, PRINTABLE)
def test_any_value_comes_back_as_one_part(first: str, second: str) -> None:
    text = write_option("driver", a=first, b_c=second)
    assert split_as_qemu(text) == ["driver", f"a={first}", f"b-c={second}"]


@pytest.mark.parametrize("bad", ["a\nb", "a\x00b", "\x1b[0m", "a\x7f"])
def test_control_characters_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        write_option("driver", a=bad)


def test_booleans_dots_and_empty_head() -> None:
    assert write_option("", read_only=True, addr__type="fd", n=3) == "read-only=on,addr.type=fd,n=3"
