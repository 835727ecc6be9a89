"""image add, ls, tag, rm, prune and inspect: the face of `casemate.images`."""

from __future__ import annotations

import argparse

from casemate import images
from casemate.cli import image_contents, output
from casemate.cli.args_image_verify import evidence_of
from casemate.cli.image_progress import byte_bar
from casemate.errors import ExitCode, InputError
from casemate.units import format_bytes, format_utc, parse_size_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.engine.registry_login import LoginChoice
    from casemate.image.store_model import StoredImage

SCHEMA = "casemate.images/1"


def no_command(arguments: argparse.Namespace) -> int:
    """Never reached: the parser asks for a command."""
    raise RuntimeError("image without a command")


def add(arguments: argparse.Namespace) -> int:
    """Take an image in; the digest on stdout."""
    quota_bytes = _size(arguments.quota, "--quota")
    with byte_bar() as progress:
        image = images.add(
            arguments.source,
            name=arguments.name,
            image_format=arguments.format,
            convert_to=arguments.convert_to,
            expected_digest=arguments.sha256,
            evidence=evidence_of(arguments),
            ca_file=arguments.ca_file,
            login=_login(arguments),
            quota_bytes=quota_bytes,
            progress=progress,
        )
    if arguments.json:
        output.print_json({"schema": SCHEMA, "images": [document(image)]})
    else:
        print(image.digest)
    return ExitCode.DONE


def _login(arguments: argparse.Namespace) -> LoginChoice | None:
    """For a registry, when the user said something about it."""
    given = arguments.username is not None, arguments.password_file is not None
    if not any(given) and arguments.authfile is None:
        return None
    if given[0] != given[1] or (any(given) and arguments.authfile is not None):
        raise InputError(
            "a login for a registry", expected="--authfile FILE, or --username NAME with --password-file FILE"
        )
    return images.registry_login(arguments.authfile, arguments.username, arguments.password_file)


def list_images(arguments: argparse.Namespace) -> int:
    """The images of the store."""
    found = images.list_images()
    if arguments.json:
        output.print_json({"schema": SCHEMA, "images": [document(image) for image in found]})
    elif arguments.quiet:
        for image in found:
            print(image.digest)
    else:
        output.print_table("", ("NAME", "DIGEST", "FORMAT", "DISK", "TAKES", "ADDED", "VERIFIED"), _rows(found))
    for digest, why in images.damaged().items():
        output.warn(f"image {digest[:12]} is damaged ({why}); casemate image rm --force {digest[:12]}")
    strange = images.strangers()
    if strange:
        output.note(f"not of the store, left alone: {', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}")
    return ExitCode.DONE


def _rows(found: list[StoredImage]) -> list[tuple[str, ...]]:
    import time

    now = time.time()
    return [
        (
            ", ".join(image.names) or "-",
            image.short,
            image.format,
            format_bytes(image.virtual_size_bytes),
            format_bytes(image.disk_bytes),
            output.ago(image.added_at, now),
            image.origin.get("verified_as", "-"),
        )
        for image in found
    ]


def tag(arguments: argparse.Namespace) -> int:
    """Give an image one more name."""
    images.tag(arguments.image, arguments.name)
    return ExitCode.DONE


def remove(arguments: argparse.Namespace) -> int:
    """Names and images, one after the other; the first that is refused ends it."""
    for reference in arguments.images:
        for gone in images.remove(reference, force=arguments.force):
            print(f"untagged {gone}" if not gone.startswith("sha256:") else f"removed {gone}")
    return ExitCode.DONE


def prune(arguments: argparse.Namespace) -> int:
    """Remove what nobody uses."""
    gone = images.prune(named=arguments.all, dry_run=arguments.dry_run)
    if arguments.json:
        output.print_json({"schema": SCHEMA, "images": [document(image) for image in gone]})
        return ExitCode.DONE
    for image in gone:
        print(image.digest)
    freed = format_bytes(sum(image.disk_bytes for image in gone))
    output.note(f"{len(gone)} image{'' if len(gone) == 1 else 's'}, {freed}{' would go' if arguments.dry_run else ''}")
    return ExitCode.DONE


def inspect(arguments: argparse.Namespace) -> int:
    """What the header and the store say, and which volumes a cell finds in it."""
    found = images.inspect_header(arguments.image, declared=arguments.format)
    looks_inside = not arguments.header and not found["header"]["encrypted"]  # type: ignore[index]
    if looks_inside:
        found = {**found, "volumes": image_contents.volumes_of(arguments)}
    if arguments.json:
        output.print_json(found)
        return ExitCode.DONE
    header, stored = found["header"], found["stored"]
    assert isinstance(header, dict)
    for key, value in header.items():
        if value not in (0, "", False):
            shown = f"{value} ({format_bytes(value)})" if key.endswith("_bytes") and isinstance(value, int) else value
            print(f"{key.replace('_', ' ').removesuffix(' bytes') + ':':<18} {shown}")
    if isinstance(stored, dict):
        _print_stored(stored)
    if looks_inside:
        image_contents.print_volumes(found["volumes"])  # type: ignore[arg-type]
    return ExitCode.DONE


def _print_stored(stored: dict[str, object]) -> None:
    origin = stored["origin"]
    assert isinstance(origin, dict)
    assert isinstance(stored["added_at"], float)
    rows = [("digest", f"sha256:{stored['digest']}"), ("names", ", ".join(map(str, stored["names"])))]  # type: ignore[call-overload]
    rows += [("added", format_utc(stored["added_at"])), ("fs-verity", str(stored["verity_digest"]) or "none")]
    rows += [(f"origin {key.replace('_', ' ')}", str(value)) for key, value in sorted(origin.items())]
    for key, text in rows:
        print(f"{key + ':':<18} {output.plain(text)}")


def document(image: StoredImage) -> dict[str, object]:
    """One image as ``--json`` shows it."""
    import msgspec

    found: dict[str, object] = msgspec.to_builtins(image)
    return {**found, "added_at": format_utc(image.added_at)}


def _size(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    try:
        return parse_size_bytes(text)
    except ValueError as fault:
        raise InputError(flag, got=str(fault)) from None
