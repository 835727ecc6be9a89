"""image repo init, add, publish, renew and sync: the face of `casemate.images.repository`."""

from __future__ import annotations

import argparse
from typing import Any

from casemate import images, scans
from casemate.cli import output
from casemate.cli.image_verify import passphrase_from
from casemate.cli.progress import progress_bar
from casemate.errors import ExitCode, InputError


def no_command(arguments: argparse.Namespace) -> int:
    """Never reached: the parser asks for a command."""
    raise RuntimeError("image repo without a command")


def init(arguments: argparse.Namespace) -> int:
    """Make a repository."""
    found = images.repository(
        "init",
        repo=arguments.repo,
        keys=arguments.keys,
        root=arguments.root_keys,
        targets=arguments.targets_keys,
        passphrase=_asker(arguments.passphrase_fd, new=True),
    )
    if not _as_json(arguments, found):
        print(f"repository  {output.plain(found['repository'])}")
        print(f"keys        {output.plain(found['keys'])}: move root-*.pem to where no network is")
        print(f"root        sha256 {found['root_sha256']} of metadata/1.root.json: tell it to those who will trust you")
    return ExitCode.DONE


def add(arguments: argparse.Namespace) -> int:
    """Put an image into a repository."""
    if arguments.without_scan is not None and len(arguments.without_scan) < 8:
        raise InputError("--without-scan wants a reason", expected="8 characters or more")

    def gate(image: str) -> None:
        with progress_bar() as bar:
            outcome = scans.scan_image(
                image,
                waiver_file=arguments.allow_file,
                progress=lambda what, done, of: bar(done >> 20, of >> 20, f"MiB of {what}"),
            )
        scans.may_publish(outcome)

    found = images.repository(
        "add",
        repo=arguments.repo,
        image=arguments.image,
        keys=arguments.keys,
        name=arguments.name,
        passphrase=_asker(arguments.passphrase_fd),
        gate=None if arguments.without_scan is not None else gate,
    )
    if not _as_json(arguments, found):
        print(f"{found['name']} {found['sha256']}")
    return ExitCode.DONE


def publish(arguments: argparse.Namespace) -> int:
    """Sign the state."""
    found = images.repository(
        "publish", repo=arguments.repo, keys=arguments.keys, passphrase=_asker(arguments.passphrase_fd)
    )
    if not _as_json(arguments, found):
        print(f"{len(found['images'])} images; publish again before {found['publish_again_before']}")
    return ExitCode.DONE


def renew(arguments: argparse.Namespace) -> int:
    """Sign a new root."""
    found = images.repository(
        "renew", repo=arguments.repo, keys=arguments.keys, passphrase=_asker(arguments.passphrase_fd)
    )
    if not _as_json(arguments, found):
        print(f"root version {found['root_version']}; now publish")
    return ExitCode.DONE


def rotate(arguments: argparse.Namespace) -> int:
    """New keys for a role."""
    found = images.repository(
        "rotate",
        repo=arguments.repo,
        role=arguments.role,
        keys=arguments.keys,
        passphrase=_asker(arguments.passphrase_fd),
    )
    if not _as_json(arguments, found):
        for path in found["keys"]:
            print(output.plain(path))
        output.note("now publish; the old keys count no longer")
    return ExitCode.DONE


def sync(arguments: argparse.Namespace) -> int:
    """Take images in."""
    with progress_bar() as bar:
        found = images.repository(
            "sync",
            where=arguments.source,
            root=arguments.root,
            names=tuple(arguments.names),
            every=arguments.all,
            progress=lambda done, of: bar(done >> 20, of >> 20, "MiB taken in"),
        )
    if _as_json(arguments, found):
        return ExitCode.DONE
    for one in found["taken"]:
        print(f"{one['image']} {one['digest']}{'' if one['new'] else ' (was there)'}")
    if not found["taken"]:
        rows = [(one["name"], one["sha256"][:12], str(one["size_bytes"])) for one in found["offers"]]
        output.print_table("", ("NAME", "DIGEST", "BYTES"), rows)
    return ExitCode.DONE


def _as_json(arguments: argparse.Namespace, found: dict[str, Any]) -> bool:
    if arguments.json:
        output.print_json(found)
    return bool(arguments.json)


def _asker(descriptor: int | None, *, new: bool = False) -> Any:
    """Asked once, for all roles."""
    known: list[bytes] = []

    def ask(_role: str) -> bytes:
        if not known:
            word = passphrase_from(descriptor, "the keys")
            if new and len(word) < 8:
                raise InputError("the passphrase is too short", got=f"{len(word)} bytes", expected="8 or more")
            if new and descriptor is None and passphrase_from(None, "the keys once more") != word:
                raise InputError("the two passphrases differ")
            known.append(word)
        return known[0]

    return ask
