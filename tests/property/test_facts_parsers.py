"""Properties of the readers of /proc and /etc text: round trips, no crash, nothing given twice."""

from __future__ import annotations

import contextlib
import re

from hypothesis import given
from hypothesis import strategies as st

from casemate.facts.cgroup import parse_cgroup
from casemate.facts.mountinfo import Mount, parse_mountinfo, unescape
from casemate.facts.procfs import parse_fdinfo, parse_limits, parse_maps, parse_start_time, parse_status
from casemate.facts.subid import SubidRange, nth_id, parse_subid, total_ids

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
WORDS = st.text(st.sampled_from("abcdefgh0123456789_=:/@"), min_size=1, max_size=12)
NUMBERS = st.integers(0, 2**31 - 1)


def escape(name: str) -> str:
    """As the kernel's seq_path does for mountinfo."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", name)


MOUNTS = st.builds(
    Mount,
    mount_id=NUMBERS,
    parent_id=NUMBERS,
    device=st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 1 << 20)),
    root=NAMES,
    point=NAMES,
    options=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
    propagation=st.lists(WORDS, max_size=3).map(tuple),
    kind=NAMES,
    source=NAMES,
    super_options=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
)


def write_mount(mount: Mount) -> str:
    words = [str(mount.mount_id), str(mount.parent_id), mount.device, escape(mount.root), escape(mount.point)]
    words += [",".join(mount.options), *mount.propagation, "-", escape(mount.kind), escape(mount.source)]
    return " ".join([*words, ",".join(mount.super_options)])


@given(st.lists(MOUNTS, max_size=6))
def test_mountinfo_round_trip(mounts: list[Mount]) -> None:
    text = "".join(write_mount(mount) + "\n" for mount in mounts)
    assert parse_mountinfo(text) == tuple(mounts)


@given(NAMES)
def test_unescape_undoes_escape(name: str) -> None:
    assert unescape(escape(name)) == name


IDS = st.lists(
    st.builds(
        SubidRange, owner=st.sampled_from(["a", "b", "1000"]), first=st.integers(1, 300), count=st.integers(1, 60)
    ),
    max_size=6,
)


@given(IDS)
def test_subid_round_trip(ranges: list[SubidRange]) -> None:
    text = "\n".join(f"{item.owner}:{item.first}:{item.count}" for item in ranges)
    assert parse_subid(text) == tuple(ranges)


@given(IDS)
def test_each_vm_has_an_id_of_its_own_and_inside_the_ranges(ranges: list[SubidRange]) -> None:
    allowed = {number for item in ranges for number in range(item.first, item.first + item.count)}
    given_out = [nth_id(tuple(ranges), index) for index in range(total_ids(tuple(ranges)))]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == allowed


@given(st.text(max_size=200))
def test_subid_never_gives_out_what_must_not_be(text: str) -> None:
    for item in parse_subid(text):
        assert item.first > 0
        assert item.first + item.count - 1 < 2**32 - 1


CAPABILITIES = st.integers(0, 2**41 - 1)


@given(
    uids=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    groups=st.lists(NUMBERS, max_size=5),
    caps=st.tuples(CAPABILITIES, CAPABILITIES, CAPABILITIES, CAPABILITIES, CAPABILITIES),
    flag=st.booleans(),
    mode=st.integers(0, 2),
    filters=st.one_of(st.none(), st.integers(0, 99)),
    name=NAMES.map(lambda text: text.replace("\n", "\\n")).filter(lambda text: text.strip() == text),
)
def test_status_round_trip(
    uids: tuple[int, int, int, int],
    groups: list[int],
    caps: tuple[int, int, int, int, int],
    flag: bool,
    mode: int,
    filters: int | None,
    name: str,
) -> None:
    lines = [f"Name:\t{name}", "Uid:\t" + "\t".join(map(str, uids)), "Gid:\t" + "\t".join(map(str, reversed(uids)))]
    lines.append("Groups:\t" + " ".join(map(str, groups)) + " ")
    keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    lines += [f"{key}:\t{value:016x}" for key, value in zip(keys, caps, strict=True)]
    lines += [f"NoNewPrivs:\t{int(flag)}", f"Seccomp:\t{mode}"]
    if filters is not None:
        lines.append(f"Seccomp_filters:\t{filters}")
    thread = parse_status("\n".join(lines) + "\n", 5)
    found = (thread.cap_inheritable, thread.cap_permitted, thread.cap_effective, thread.cap_bounding)
    assert (*found, thread.cap_ambient) == caps
    assert (thread.name, thread.uids, thread.groups) == (name, uids, tuple(groups))
    assert (thread.no_new_privs, thread.seccomp, thread.seccomp_filters) == (flag, mode, filters)


@given(NAMES, st.integers(0, 2**63))
def test_no_name_of_a_process_moves_its_start_time(name: str, start: int) -> None:
    rest = " ".join(["S", *(str(number) for number in range(18)), str(start), "0", "0"])
    assert parse_start_time(f"77 ({name}) {rest}\n") == start


@given(st.text(max_size=300))
def test_odd_text_is_a_value_error_at_most(text: str) -> None:
    for parse in (parse_mountinfo, parse_cgroup, parse_limits, parse_maps, parse_start_time, parse_fdinfo):
        try:
            parse(text)
        except ValueError:
            continue
    with contextlib.suppress(ValueError):
        parse_status(text, 1)
