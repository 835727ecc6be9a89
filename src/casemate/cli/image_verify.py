"""image verify and image sign: the face of `casemate.images`."""

from __future__ import annotations

import argparse
import os
import sys

from casemate import images
from casemate.cli import output
from casemate.cli.args_image_verify import evidence_of
from casemate.cli.progress import progress_bar
from casemate.errors import ExitCode, InputError

PASSPHRASE_MAX_BYTES = 1024


def verify(arguments: argparse.Namespace) -> int:
    """Who vouched for an image."""
    with progress_bar() as bar:
        found = images.verify(
            arguments.image,
            evidence_of(arguments),
            policy_file=arguments.policy,
            progress=lambda done, of: bar(done >> 20, of >> 20, "MiB verified"),
        )
    if arguments.json:
        output.print_json(found)
    elif found["ok"]:
        print(f"{output.plain(arguments.image)}: verified")
        print(f"  sha256  {found['sha256']}")
        for signer in found["signers"]:
            print(f"  signed  {output.plain(signer['key'])}")
            if signer["identity"] or signer["signed_at"]:
                print(f"          {output.plain(' '.join((signer['identity'], signer['signed_at'])).strip())}")
        if found["noted"]:
            print("  noted in the store")
    else:
        print(f"{output.plain(arguments.image)}: NOT verified")
        print(f"  {output.plain(found['why'])}")
    return ExitCode.DONE if found["ok"] else ExitCode.FINDINGS


def sign(arguments: argparse.Namespace) -> int:
    """Sign an image."""
    with progress_bar() as bar:
        found = images.sign(
            arguments.image,
            key=arguments.key,
            output=arguments.output,
            namespace=arguments.namespace,
            passphrase=lambda: passphrase_from(arguments.passphrase_fd, "the key"),
            progress=lambda done, of: bar(done >> 20, of >> 20, "MiB read"),
        )
    if arguments.json:
        output.print_json(found)
    else:
        print(found["signature"])
    return ExitCode.DONE


def passphrase_from(descriptor: int | None, of: str) -> bytes:
    """Of a key: from a descriptor, or typed.

    Raises:
        InputError: neither is possible.
    """
    if descriptor is not None:
        try:
            data = os.read(descriptor, PASSPHRASE_MAX_BYTES + 1)
        except OSError as fault:
            raise InputError(f"--passphrase-fd {descriptor}", got=(fault.strerror or "").lower()) from None
        if len(data) > PASSPHRASE_MAX_BYTES:
            raise InputError(f"--passphrase-fd {descriptor}", got="more than a passphrase")
        return data.rstrip(b"\n")
    if not sys.stdin.isatty():
        raise InputError(f"{of}: a passphrase is needed", next_step="--passphrase-fd N, or run this in a terminal")
    import getpass

    try:
        return getpass.getpass(f"passphrase of {of}: ").encode()
    except EOFError:
        raise InputError(f"{of}: a passphrase is needed", got="the end of the input") from None
