"""The scan of whole images, in its jail: secrets planted in every place that an image has are found, and told apart.

Images are made by the real tools: mke2fs, debugfs, qemu-img, qemu-io. No root and no loop device are needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.support.scan_corpus import PHRASES, TOKENS, Planted, planted

from casemate import scans
from casemate.errors import CasemateError, InputError, RefusedError, VmError
from casemate.scan.model import Finding, Place
from casemate.scan.outcome import Outcome
from casemate.scan.prefilter import has_hyperscan

TOOLS = ("mke2fs", "debugfs", "qemu-img", "qemu-io", "mkswap")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not has_hyperscan(), reason="hyperscan is not installed here"),
    pytest.mark.skipif(
        any(shutil.which(tool, path=PATH) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]
MIB = 1 << 20
KEY = b"a key for digests"


def run(*words: str | Path, stdin: bytes = b"") -> None:
    subprocess.run([str(w) for w in words], check=True, capture_output=True, input=stdin, env={"PATH": PATH})


def scan(image: Path, **options: object) -> Outcome:
    return scans.scan_image(str(image), key=KEY, live=False, jobs=2, **options)  # type: ignore[arg-type]


def ext4(directory: Path, files: dict[str, bytes], size_mib: int = 24) -> Path:
    """An ext4 with these files, made without mounting it."""
    tree = directory / "tree"
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    image = directory / "fs.img"
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, f"{size_mib}M")
    return image


def by_rule(outcome: Outcome) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in outcome.findings:
        found.setdefault(finding.rule, []).append(finding)
    return found


def offset_of(image: Path, item: Planted) -> int:
    return image.read_bytes().find(item.secret)


def test_live_deleted_slack_journal_and_swap(tmp_path: Path) -> None:
    """One secret in each place of a disk: all found, nothing else, none printed."""
    live, deleted, slack, swap, journal = (planted("token.github", seed) for seed in range(5))
    key = planted("key.pem")
    image = ext4(
        tmp_path, {"home/ana/notes": live.text, "etc/gone": deleted.text, "etc/ssh/key": key.text, "a/b": b"x"}
    )
    run("debugfs", "-w", "-R", "rm /etc/gone", image)
    with image.open("r+b") as file:
        data = file.read()
        at = data.find(live.secret) & ~4095
        file.seek(at + 4096 - len(slack.text) - 100)  # behind the end of the file, in its block
        file.write(slack.text)
        inode = subprocess.run(
            ["debugfs", "-R", "bmap <8> 40", str(image)], capture_output=True, text=True, check=True, env={"PATH": PATH}
        )
        file.seek(int(inode.stdout.split()[-1]) * 4096 + 512)
        file.write(journal.text)
    swap_area = tmp_path / "swap"
    swap_area.write_bytes(bytes(4 * MIB))
    run("mkswap", swap_area)
    pages = bytearray(swap_area.read_bytes())
    pages[2 * MIB + 77 : 2 * MIB + 77 + len(swap.text)] = swap.text
    disk = tmp_path / "disk.img"
    disk.write_bytes(image.read_bytes() + bytes(pages))

    outcome = scan(disk, image_format="raw")

    assert outcome.failed
    assert outcome.not_scanned == ()
    offsets = {finding.offset for finding in by_rule(outcome)["token.github"]}
    assert offsets == {offset_of(disk, item) for item in (live, deleted, slack, swap, journal)}
    assert {finding.rule for finding in outcome.findings} == {"token.github", "key.pem"}
    said = json.dumps(scans.to_sarif(outcome, "0")) + repr(outcome)
    assert not any(item.secret.decode() in said for item in (live, deleted, slack, swap, journal))


def test_recall_and_precision_over_the_whole_corpus(tmp_path: Path) -> None:
    """Every rule with a form of its own, three secrets each, in files of all kinds, half of them deleted."""
    rules = [*TOKENS, *PHRASES]
    files, expected = {}, set()
    for number, rule in enumerate(rules):
        for seed in (1, 2, 3):
            files[f"d{number % 7}/{rule}-{seed}.txt"] = planted(rule, seed + 10).text
            expected.add((rule, seed))
    image = ext4(tmp_path, files, 48)
    commands = "".join(f"rm /{name}\n" for name in list(files)[::2])
    run("debugfs", "-w", "-f", "-", image, stdin=commands.encode())

    outcome = scan(image, image_format="raw")

    found = by_rule(outcome)
    same = {"ignition.config"}  # the same version three times is one secret
    hits = sum(min(3, len(found.get(rule, []))) if rule not in same else 3 for rule in rules if rule in found)
    recall = hits / len(expected)
    wrong = [finding for finding in outcome.findings if finding.rule not in rules]
    precision = hits / (hits + len(wrong))
    assert recall == 1.0, {rule: len(found.get(rule, [])) for rule in rules if len(found.get(rule, [])) < 3}
    assert precision >= 0.99, wrong


def qcow2(directory: Path, *options: str) -> Path:
    image = directory / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, image, "64M")
    return image


def write(image: Path, item: bytes, offset: int) -> None:
    """Through QEMU, so that clusters are allocated as a guest would."""
    blob = image.parent / "blob"
    length = -(-(offset % 512 + len(item)) // 512) * 512
    blob.write_bytes((bytes(offset % 512) + item).ljust(length, b"\0"))
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {blob} {offset - offset % 512} {length}", image)


def test_snapshots_and_freed_clusters(tmp_path: Path) -> None:
    """What only an internal snapshot has, what the disk has, and what no table points to any more."""
    image = qcow2(tmp_path)
    in_snapshot, on_disk, freed = (planted("token.npm", seed) for seed in range(3))
    write(image, in_snapshot.text, 5 * MIB + 300)
    write(image, freed.text, 9 * MIB)
    run("qemu-img", "snapshot", "-c", "before", image)
    run("qemu-io", "-f", "qcow2", "-c", "write -z -u 5M 1M", image)
    write(image, on_disk.text, 20 * MIB)
    outcome = scan(image)
    places = {finding.guest_offset: finding for finding in outcome.findings}
    assert places[5 * MIB + 300 + in_snapshot.text.find(in_snapshot.secret)].place is Place.SNAPSHOT
    assert places[5 * MIB + 300 + in_snapshot.text.find(in_snapshot.secret)].snapshot == "before"
    assert places[20 * MIB + on_disk.text.find(on_disk.secret)].place is Place.GUEST_DISK
    assert places[9 * MIB + freed.text.find(freed.secret)].place is Place.GUEST_DISK
    assert len(outcome.findings) == 3

    run("qemu-img", "snapshot", "-d", "before", image)
    after = {finding.digest: finding for finding in scan(image).findings}
    gone = places[5 * MIB + 300 + in_snapshot.text.find(in_snapshot.secret)]
    if gone.digest in after:  # QEMU may have discarded the cluster
        assert after[gone.digest].place is Place.UNREFERENCED


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("extended", ["off", "on"])
def test_compressed_clusters(tmp_path: Path, kind: str, extended: str) -> None:
    """Unpacked with bounds, and joined where a secret crosses from one cluster into the next."""
    raw = tmp_path / "raw.img"
    inside, across, key = planted("token.github", 1), planted("token.github", 2), planted("key.pem")
    data = bytearray(b"text " * (8 * MIB // 5 + 1))[: 8 * MIB]
    for item, at in ((inside, 3 * MIB + 100), (across, 5 * MIB - 20), (key, 6 * MIB - 200)):
        data[at : at + len(item.text)] = item.text
        data[at - 1] = data[at + len(item.text)] = 10
    raw.write_bytes(bytes(data))
    image = tmp_path / "packed.qcow2"
    options = f"compression_type={kind},extended_l2={extended}"
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
    assert kind == "zstd" or offset_of(image, inside) < 0  # zstd keeps what it cannot pack as it is
    outcome = scan(image)
    found = {(finding.rule, finding.guest_offset) for finding in outcome.findings}
    assert found == {
        ("token.github", 3 * MIB + 100 + 6),
        ("token.github", 5 * MIB - 20 + 6),
        ("key.pem", 6 * MIB - 200),
    }
    assert all(finding.compressed for finding in outcome.findings)
    assert outcome.not_scanned == ()


def test_compressed_clusters_across_entries_of_the_first_table(tmp_path: Path) -> None:
    """With clusters of 4 KiB an L2 table covers 2 MiB: each is a task of its own, and nothing is lost between them."""
    raw = tmp_path / "raw.img"
    data = bytearray(b"text " * (8 * MIB // 5 + 1))[: 8 * MIB]
    items = {2 * MIB * number - 20: planted("token.github", number) for number in (1, 2, 3)}
    for at, item in items.items():
        data[at : at + len(item.text)] = item.text
        data[at - 1] = data[at + len(item.text)] = 10
    raw.write_bytes(bytes(data))
    image = tmp_path / "packed.qcow2"
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", raw, image)
    outcome = scan(image)
    assert {(f.rule, f.guest_offset) for f in outcome.findings} == {("token.github", at + 6) for at in items}


def test_a_secret_across_clusters_that_lie_apart(tmp_path: Path) -> None:
    image = qcow2(tmp_path, "-o", "cluster_size=4096")
    item = planted("token.github")
    data = item.text.ljust(4096, b"\n")
    half = 26
    write(image, b"\n" * (4096 - half) + data[:half], 8 * MIB)
    write(image, b"other" * 800, 1 * MIB)
    write(image, data[half:], 8 * MIB + 4096)
    outcome = scan(image)
    assert [(f.rule, f.guest_offset) for f in outcome.findings] == [("token.github", 8 * MIB + 4096 - half + 6)]


def test_stripes_and_holes(tmp_path: Path) -> None:
    """A sparse file of 3 GiB is scanned in no time; secrets across the borders of stripes and chunks are found."""
    image = tmp_path / "sparse.img"
    places = {64 * MIB - 20: 1, 8 * MIB - 11: 2, 2048 * MIB - 31: 3, 3000 * MIB: 4}
    with image.open("wb") as file:
        file.truncate(3 << 30)
        for at, seed in places.items():
            file.seek(at)
            file.write(planted("token.github", seed).text)
    outcome = scan(image, image_format="raw")
    assert {finding.offset for finding in outcome.findings} == {at + 6 for at in places}
    assert outcome.read_bytes < 64 * MIB


def lie(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_lying_tables(tmp_path: Path) -> None:
    """L2 entries that point anywhere make no crash, no endless work, and never a silent pass."""
    image = qcow2(tmp_path)
    write(image, b"x" * 4096, 0)
    l1 = int.from_bytes(image.read_bytes()[40:48], "big")
    l2 = int.from_bytes(image.read_bytes()[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00
    for entries in (
        b"\xff" * 8192,
        b"".join((1 << 62 | 0x3FFF << 54 - 6 | n).to_bytes(8, "big") for n in range(1024)),
        b"".join((0x80 << 56 | 0x7FFF << 30 | n << 16).to_bytes(8, "big") for n in range(1024)),
    ):
        lie(image, l2, entries)
        outcome = scan(image)
        assert outcome.not_scanned or not outcome.failed
    lie(image, l2, (0x80 << 56 | 0x7FFF << 32).to_bytes(8, "big"))
    assert any("outside of the file" in note for note in scan(image).not_scanned)
    assert scan(image).failed, "what could not be scanned is no pass"


def test_encrypted_images_are_refused(tmp_path: Path) -> None:
    from casemate.cell.rawscan import raw_scan
    from casemate.image.model import ImageHeader

    header = ImageHeader(format="qcow2", virtual_size_bytes=MIB, file_size_bytes=MIB, encrypted=True)
    with pytest.raises(InputError, match="encrypted"):
        raw_scan(0, "secret.qcow2", header, None, (), None, range(0))  # type: ignore[arg-type]


def test_the_wall_of_the_scanner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner that has been taken over can open nothing, and dies with SIGSYS when it tries."""
    from casemate.cell import rawscan_worker

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    attempts = {
        "openat": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "socket": lambda: __import__("socket").socket(),
        "fork": os.fork,
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "kill": lambda: os.kill(1, 9),
        "ptrace": lambda: os.getpgid(1),
    }
    for attempt in attempts.values():
        monkeypatch.setattr(rawscan_worker, "_serve", lambda work, attempt=attempt: attempt())
        with pytest.raises(VmError, match="scanner died") as caught:
            scan(image, image_format="raw")
        assert "SIGSYS" in caught.value.got


@pytest.mark.parametrize(
    "change",
    [{"rule": "../x"}, {"shown": "whole secret of somebody"}, {"detail": "\x1b[2J"}, {"digest": "x"}, {"offset": -5}],
    ids=lambda change: next(iter(change)),
)
def test_reports_of_a_scanner_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    from casemate.cell import rawscan_worker
    from casemate.cell.rawscan_wire import Report
    from casemate.scan.model import Hit

    good = Hit(rule="key.pem", offset=0, length=1, shown="a…b", digest="0" * 16)
    report = Report(hits=(msgspec.structs.replace(good, **change),), done=True)
    monkeypatch.setattr(rawscan_worker, "_serve", lambda work: rawscan_worker._send(report))
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    with pytest.raises(VmError, match="makes no sense"):
        scan(image, image_format="raw")


def test_a_scanner_that_hangs_is_ended_and_its_rule_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.cell import rawscan

    monkeypatch.setattr(rawscan, "SILENCE_S", 1.0)
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nid = "slow.rule"\ntitle = "slow"\nseverity = "low"\nregex = "(?:a+)+b"\nprefilter = "aaaaa"\n'
    )
    image = tmp_path / "disk.img"
    image.write_bytes((b"a" * 400).ljust(MIB, b"\n"))
    with pytest.raises(VmError, match="hangs") as caught:
        scan(image, image_format="raw", rule_file=str(rules))
    assert "slow.rule" in caught.value.got


def test_waivers_and_the_gate_of_publish(tmp_path: Path) -> None:
    image = ext4(tmp_path, {"etc/a": planted("token.github").text, "b": planted("token.npm").text})
    waivers = tmp_path / "waivers.toml"
    one = '[[allow]]\nrule = "token.{}"\nreason = "revoked long ago"\nexpires = 2999-01-01\n'
    waivers.write_text("version = 1\n" + one.format("github"))
    outcome = scan(image, image_format="raw", waiver_file=str(waivers))
    with pytest.raises(RefusedError, match="may not be published") as caught:
        scans.may_publish(outcome)
    assert "token.npm" in caught.value.got
    assert "token.github" not in caught.value.got
    waivers.write_text("version = 1\n" + one.format("github") + one.format("npm"))
    outcome = scan(image, image_format="raw", waiver_file=str(waivers))
    with pytest.raises(RefusedError, match="may not be published"):
        scans.may_publish(outcome)  # rules by path were not tried
    scans.may_publish(msgspec.structs.replace(outcome, by_name=True))
    assert [bool(finding.waived) for finding in outcome.findings] == [True, True]


def test_files_that_could_not_be_read_are_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cell, rules by path were not tried: the scan has failed, and says why."""
    from casemate.cell import rawscan_image
    from casemate.errors import HostError

    def no_cell(*_: object, **__: object) -> object:
        raise HostError("no kernel for the guest")

    monkeypatch.setattr(rawscan_image, "open_cell", no_cell)
    outcome = scans.scan_image(str(ext4(tmp_path, {"a": b"nothing"})), image_format="raw")
    assert outcome.findings == ()
    assert outcome.not_scanned == ("files were not read by name: no kernel for the guest",)
    assert outcome.failed
    with pytest.raises(RefusedError, match="may not be published"):
        scans.may_publish(outcome)


def test_well_known_passwords_are_named(tmp_path: Path) -> None:
    """Tried by the C library inside the wall; a hash that asks for hours of work is reported and not tried."""
    from casemate.scan import weak

    library = weak.prepare()
    if library is None:
        pytest.skip("no libcrypt here")
    lines = [b"root:" + library.crypt(b"toor", b"$y$j9T$abcdefghijklmnop") + b":19000:0:::::"]
    lines.append(b"ana:" + library.crypt(b"ana123", b"$6$abcdefgh") + b":19000:0:::::")
    lines.append(b"eve:$6$rounds=999999999$abcdefgh$" + library.crypt(b"x", b"$6$abcdefgh").split(b"$")[3] + b":1:::::")
    outcome = scan(ext4(tmp_path, {"etc/shadow": b"\n".join(lines) + b"\n"}), image_format="raw")
    details = {finding.detail for finding in outcome.findings if finding.rule == "hash.password"}
    assert "of root, yescrypt, well-known password 'toor'" in details
    assert "of ana, SHA-512, well-known password 'ana123'" in details
    assert "of eve, SHA-512" in details


def test_digests_compare_only_under_one_key(tmp_path: Path) -> None:
    image = ext4(tmp_path, {"a": planted("token.github").text})
    one, two = scan(image, image_format="raw"), scan(image, image_format="raw")
    other = scans.scan_image(str(image), image_format="raw", live=False)
    assert one.findings[0].digest == two.findings[0].digest != other.findings[0].digest


def test_errors_name_the_next_step(tmp_path: Path) -> None:
    for word in (str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(CasemateError):
            scan(Path(word))
