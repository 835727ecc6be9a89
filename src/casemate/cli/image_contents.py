"""image ls-files, cat and copy-out: the face of `casemate.contents`. Every name in here was chosen by an image."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from casemate import contents
from casemate.cli import output
from casemate.errors import ExitCode, InputError
from casemate.units import format_bytes, format_utc, parse_size_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.cell.extract import Skipped
    from casemate.cell.model import Entry, Volume

SCHEMA = "casemate.files/1"
_KEY_MAX_BYTES = 60_000


def list_files(arguments: argparse.Namespace) -> int:
    """One name a line, or with all that is known of it."""
    with _opening(arguments) as how:
        entries = contents.list_files(
            arguments.image, arguments.path, volume=arguments.volume, recursive=arguments.recursive, **how
        )
        if arguments.json:
            return _complete(_print_json_list(entries))
        failed = 0
        for entry in entries:
            failed += bool(entry.error)
            if arguments.null:
                sys.stdout.buffer.write(entry.path + b"\0")
            else:
                print(_long(entry) if arguments.long else _name(entry.path))
    if failed:
        output.warn(f"{failed} entries of the image cannot be read; --long and --json say why")
    return _complete(failed)


def _complete(unread: int) -> ExitCode:
    """What an image did not give is not nothing."""
    return ExitCode.FINDINGS if unread else ExitCode.DONE


def _print_json_list(entries: Iterator[Entry]) -> int:
    """As they come: a tree of millions of files is not kept in memory. How many could not be read."""
    import itertools
    import json

    first = next(entries, None)  # what cannot be listed at all is an error, not half a document
    failed = 0
    print(f'{{\n  "schema": "{SCHEMA}",\n  "files": [', end="")
    for number, entry in enumerate(itertools.chain(() if first is None else (first,), entries)):
        failed += bool(entry.error)
        print("," if number else "", f"    {json.dumps(document(entry))}", sep="\n", end="")
    print("\n  ]\n}")
    return failed


def cat(arguments: argparse.Namespace) -> int:
    """The bytes of a file; made harmless for a terminal."""
    with _opening(arguments) as how:
        output.write_bytes(contents.read_file(arguments.image, arguments.path, volume=arguments.volume, **how))
    return ExitCode.DONE


def copy_out(arguments: argparse.Namespace) -> int:
    """What was copied, and what was not."""
    with _opening(arguments) as how, output.working("copying") as report:

        def progress(files: int, done: int) -> None:
            if files % 100 == 1 and sys.stderr.isatty():
                report(f"{files} files, {format_bytes(done)}")

        copied = contents.copy_out(
            arguments.image,
            arguments.paths,
            arguments.directory,
            volume=arguments.volume,
            max_bytes=_size(arguments.max_size),
            max_files=arguments.max_files,
            outward_links=arguments.dangerous_outward_links,
            device_nodes=arguments.dangerous_device_nodes,
            progress=progress,
            **how,
        )
    if arguments.json:
        skipped = [{"path": _text(item.path), "why": item.why} for item in copied.skipped]
        counts = {name: getattr(copied, name) for name in ("files", "directories", "links", "bytes", "unread")}
        output.print_json({"schema": SCHEMA, **counts, "skipped": skipped, "skipped_more": copied.skipped_more})
        return _complete(copied.unread)
    for why, paths in _by_reason(copied.skipped).items():
        shown = ", ".join(_name(path) for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        output.warn(f"not copied, {why}: {shown}")
    if copied.skipped_more:
        output.warn(f"not copied, for these reasons or others: {copied.skipped_more} more")
    print(
        f"{copied.files} files, {copied.directories} directories, {copied.links} links, {format_bytes(copied.bytes)}"
        f" in {output.plain(arguments.directory)}"
    )
    return _complete(copied.unread)


def _by_reason(skipped: list[Skipped]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for item in skipped:
        found.setdefault(item.why, []).append(item.path)
    return found


def volumes_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For ``image inspect``: the volumes of an image, as ``--json`` shows them."""
    with _opening(arguments) as how:
        return [_volume(volume) for volume in contents.describe(arguments.image, **how)]


def print_volumes(volumes: list[dict[str, Any]]) -> None:
    """For ``image inspect``: a table, and below it what a reader must know."""
    rows = []
    for volume in volumes:
        system = volume["os"]["pretty_name"] or volume["os"]["id"] if volume["os"] else ""
        rows.append(
            (
                volume["name"],
                format_bytes(volume["size_bytes"]),
                volume["content"] or "unknown",
                volume["label"] or volume["partition_name"] or "-",
                volume["uuid"] or "-",
                system or ("files" if volume["readable"] else "-"),
            )
        )
    print()
    output.print_table("", ("VOLUME", "SIZE", "CONTENT", "LABEL", "UUID", "HOLDS"), rows)
    for volume in volumes:
        for note in volume["notes"]:
            print(output.plain(f"{volume['name']}: {note}"))


def document(entry: Entry) -> dict[str, object]:
    """One entry as ``--json`` shows it. A name that is not UTF-8 has its bytes as U+DC80 to U+DCFF (PEP 383)."""
    found: dict[str, object] = {
        "path": _text(entry.path),
        "type": _KINDS.get(stat.S_IFMT(entry.mode), "unknown"),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size_bytes": entry.size_bytes,
        "modified": _time(entry.mtime_s),
        "links": entry.links,
        "inode": entry.inode,
    }
    if entry.is_link:
        found["target"] = _text(entry.target)
    if stat.S_ISBLK(entry.mode) or stat.S_ISCHR(entry.mode):
        found["device"] = list(entry.device)
    if entry.error:
        found["error"] = os.strerror(entry.error).lower()
    return found


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _volume(volume: Volume) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(volume)
    return found


@contextmanager
def _opening(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What `contents` wants to know about how an image is opened; says what takes long."""
    keys = [_read_key(path, None) for path in arguments.key_file] + [
        _read_key("", number) for number in arguments.key_fd
    ]
    with output.working("the cell") as report:
        yield {
            "declared": arguments.format,
            "keys": tuple(keys),
            "more": tuple(arguments.disks),
            "reader": arguments.reader,
            "report": report,
        }


def _read_key(path: str, number: int | None) -> bytes:
    """A key from a file or a descriptor, whole: cryptsetup takes a key file's newline for a part of the key too."""
    try:
        if number is None:
            with open(path, "rb") as file:
                data = file.read(_KEY_MAX_BYTES + 1)
        else:
            with os.fdopen(os.dup(number), "rb") as file:
                data = file.read(_KEY_MAX_BYTES + 1)
    except (OSError, OverflowError, ValueError) as error:
        said = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
        raise InputError(f"the key from {path or f'descriptor {number}'} cannot be read", got=said) from None
    if not 0 < len(data) <= _KEY_MAX_BYTES:
        raise InputError(
            f"the key from {path or f'descriptor {number}'}", got=f"{len(data)} bytes", expected="1 to 60000"
        )
    return data


def _size(text: str | None) -> int | None:
    try:
        return parse_size_bytes(text) if text is not None else None
    except ValueError as fault:
        raise InputError("--max-size", got=str(fault)) from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _name(raw: bytes) -> str:
    """For people: controls and broken bytes as \\xNN, so that two names never look the same."""
    text = raw.decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def _long(entry: Entry) -> str:
    size = (
        f"{entry.device[0]},{entry.device[1]}"
        if entry.device != (0, 0) and not entry.is_file
        else str(entry.size_bytes)
    )
    name = _name(entry.path) + (f" -> {_name(entry.target)}" if entry.is_link else "")
    if entry.error:
        name += f"  [{os.strerror(entry.error).lower()}]"
    mode = stat.filemode(entry.mode)
    return f"{mode} {entry.links:>3} {entry.uid:>5} {entry.gid:>5} {size:>11} {_time(entry.mtime_s)} {name}"


def _time(seconds: int) -> str:
    try:
        return format_utc(float(seconds))
    except (ValueError, OverflowError, OSError):
        return "-"
