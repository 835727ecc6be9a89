"""What a user names on the command line becomes a specification: ``builtin``, an image of the store, a file.

Specification (TOML) and disk image are told apart by content, never by suffix: the signature of an image, or a NUL
byte, means image.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from casemate.engine.paths import Paths
from casemate.errors import HostError, InputError
from casemate.spec.faults import Faults
from casemate.spec.file import load_spec
from casemate.spec.model import Spec
from casemate.spec.override import IMAGE_PREFIX, builtin_spec, override, spec_for_image
from casemate.spec.parse import ImageOf
from casemate.spec.text import resolve_path

BUILTIN = "builtin"
LOOK_BYTES = 65536
_VM_NAME = re.compile(r"[a-z0-9](?!.*\.(toml|qcow2|img|raw)$)[a-z0-9_.-]{0,62}")

_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{8,64}")

Report = Callable[[str], None]


def load_target(target: str | None, flags: Mapping[str, Any], *, paths: Paths, base_dir: Path, report: Report) -> Spec:
    """The specification behind ``target`` with the command line's ``flags`` (of `spec.override.override`) laid over it.

    Args:
        target: None when the flags say everything (``--kernel``).
        report: told one line per long step.

    Raises:
        InputError, SpecError, ImageError: with path and next step. HostError: the built-in guest cannot be built.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date()
    laid = dict(flags)
    firmware = laid.pop("firmware", None)
    if not target:
        if not laid.get("kernel"):
            raise InputError(
                "nothing to run",
                expected="a specification, an image, builtin, or --kernel",
                next_step="casemate run builtin",
            )
        spec = Spec()
    elif target == BUILTIN:
        spec = _builtin(paths, report)
    elif (stored := _stored(target, paths, base_dir)) is not None:
        path, image_format, digest, label = stored
        spec = spec_for_image(path, image_format, firmware or "uefi", image=label, sha256=digest)
        firmware = None
    elif _is_image(target, base_dir):
        path = _absolute(target, base_dir)
        spec = spec_for_image(path, _format_of(path), firmware or "uefi")
        firmware = None
    else:
        spec = load_spec(base_dir / target, today=today, image_of=_image_of(paths))
    if firmware is not None:
        laid["firmware"] = firmware
    return override(spec, base_dir=base_dir, today=today, format_of=_format_of, image_of=_image_of(paths), **laid)


def _stored(word: str, paths: Paths, base_dir: Path) -> tuple[str, str, str, str] | None:
    """Path, format, digest and label of the image of the store that ``word`` means; None when it means a file."""
    named = word.startswith(IMAGE_PREFIX) or _DIGEST.fullmatch(word) is not None
    if not named and ("/" in word or not os.path.lexists(f"{paths.data}/images/names/{word}")):
        return None  # most often it is a file: then the store is not even imported

    from casemate.engine.imagestore import default_store, look_up

    store = default_store(paths)
    image = look_up(store, word, base_dir)
    return None if image is None else (store.path(image), image.format, image.digest, image.label)


def _image_of(paths: Paths) -> ImageOf:
    """Looks images of the store up; nothing is imported before one is named."""

    def image_of(word: str) -> tuple[str, str, str]:
        from casemate.engine.imagestore import default_store

        store = default_store(paths)
        image = store.find(word)
        return store.path(image), image.format, image.digest

    return image_of


def _builtin(paths: Paths, report: Report) -> Spec:
    from casemate.image.builtin import build_builtin, find_builtin

    cache = Path(paths.cache)
    guest = find_builtin([cache]) or build_builtin(cache, report)
    return builtin_spec(str(guest.kernel), str(guest.initrd), guest.cmdline)


def _absolute(target: str, base_dir: Path) -> str:
    faults = Faults()
    path = resolve_path(target, str(base_dir), "IMAGE", faults)
    faults.raise_if_any("command line")
    assert path is not None
    return path


def _format_of(path: str) -> str:
    """The format of the image at an absolute path, from its header; closed by default (`image/headers.py`)."""
    from casemate.image.headers import inspect_image, open_image

    descriptor = open_image(path)
    try:
        return inspect_image(descriptor, path, None).format
    finally:
        os.close(descriptor)


def _is_image(target: str, base_dir: Path) -> bool:
    from casemate.image.signatures import recognise

    what = f"cannot read {target!r}"
    path = base_dir / target
    try:
        # Opening a device has side effects (a tape rewinds, a watchdog starts): look at what it is first.
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(
                    what, got="something that is not a regular file", expected="a specification (TOML) or a disk image"
                )
            descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        got = (getattr(error, "strerror", None) or str(error)).lower()
        next_step = "casemate run builtin needs no file"
        if _VM_NAME.fullmatch(target):
            next_step = f"casemate start {target}, if that is the name of a VM; {next_step}"
        raise InputError(what, got=got, expected="a specification, an image or builtin", next_step=next_step) from None
    try:
        head = os.pread(descriptor, LOOK_BYTES, 0)
    except OSError as error:
        raise HostError(what, got=(error.strerror or str(error)).lower()) from None
    finally:
        os.close(descriptor)
    # An empty file is a broken download more often than a specification that says nothing.
    return not head or b"\0" in head or recognise(head, b"") is not None
