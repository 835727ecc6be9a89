"""image build: the face of `casemate.images.build_verity`; --debian is in `image_debian`."""

from __future__ import annotations

import argparse

from casemate import images
from casemate.cli import output
from casemate.cli.progress import progress_bar
from casemate.errors import ExitCode, InputError


def build(arguments: argparse.Namespace) -> int:
    """A directory with a disk, a kernel, an initrd and a specification; or a Debian disk."""
    if arguments.debian:
        from casemate.cli.image_debian import debian

        return debian(arguments)
    if arguments.image is None:
        raise InputError("--verity needs an image", next_step="casemate image build --verity root.ext4 -o DIR")
    if not 32 <= arguments.memory_mib <= 1_048_576:
        raise InputError("--memory-mib", got=str(arguments.memory_mib), expected="32 to 1048576")
    with progress_bar() as bar:
        found = images.build_verity(
            arguments.image,
            arguments.output,
            overlay=arguments.overlay,
            memory_mib=arguments.memory_mib,
            report=output.note,
            progress=lambda done, of: bar(done >> 20, of >> 20, "MiB"),
        )
    if arguments.json:
        output.print_json(found)
    else:
        print(f"root hash  {found['root_hash']}")
        print(f"run it     casemate run {output.plain(found['spec'])}")
    return ExitCode.DONE
