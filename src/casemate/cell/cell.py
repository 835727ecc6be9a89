"""`open_cell`: an image in a throwaway VM, and questions about what is on it.

::

    with open_cell(image_fd, header, name="debian.qcow2") as cell:
        for volume in cell.volumes(): ...
        for entry in cell.walk("vda1"): ...

The cell has no network, sees the image read-only, and ends with the ``with`` block, with this process (kill -9
included) or with the first answer that breaks the protocol. Nothing is mounted on the host, and nothing that comes out
is believed: counts, lengths and names are bounded here.

Call it from the main thread of a process without other threads: the wall is built in a forked child.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.cell.model import ENTRIES_MAX, LIST_MAX, READ_MAX_BYTES, Entry, ImageFile, Piece, Volume
from casemate.cell.session import Session
from casemate.cell.volumes import Volumes
from casemate.errors import ImageError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cell.other import OtherVolumes
    from casemate.engine.paths import Paths
    from casemate.image.model import ImageHeader


class Cell:
    """A running cell. Made by `open_cell`; every method may raise VmError when the cell died or lied."""

    def __init__(self, session: Session, volumes: Volumes | OtherVolumes) -> None:
        self._session = session
        self._volumes = volumes

    def volumes(self) -> tuple[Volume, ...]:
        """Every disk, partition and logical volume, in the order in which the guest's kernel names them."""
        return self._volumes.all()

    def system(self) -> Volume:
        """The volume that holds the operating system, or the only readable one.

        Raises:
            ImageError: no volume can be read, or several can and none holds a system.
        """
        return self._volumes.system()

    def stat(self, volume: str, path: str | bytes) -> Entry:
        """One file; a link at the end of ``path`` is not followed."""
        root, inside = self._volumes.place(volume, path)
        return self._session.stat(root, inside)

    def list(self, volume: str, path: str | bytes = b"/", *, entries_max: int = LIST_MAX) -> list[Entry]:
        """The entries of a directory (not of those below it), or the one entry of anything else."""
        root, inside = self._volumes.place(volume, path)
        return self._session.list(root, inside, entries_max)

    def walk(self, volume: str, path: str | bytes = b"/", *, entries_max: int = ENTRIES_MAX) -> Iterator[Entry]:
        """Every entry below a directory, parents first, in the file system's order.

        Raises:
            ImageError: more than ``entries_max``.
        """
        root, inside = self._volumes.place(volume, path)
        for item in self._session.walk(root, inside, entries_max, 0):
            assert isinstance(item, Entry)
            yield item

    def walk_contents(
        self, volume: str, path: str | bytes = b"/", *, limit: int, entries_max: int = ENTRIES_MAX
    ) -> Iterator[Entry | Piece]:
        """As `walk`, and after each regular file that is not empty its first ``limit`` bytes as `Piece` items.

        One stream for a whole tree: a question per file would cost a round trip each.
        """
        root, inside = self._volumes.place(volume, path)
        yield from self._session.walk(root, inside, entries_max, limit)

    def read(self, volume: str, path: str | bytes, limit: int = READ_MAX_BYTES) -> bytes:
        """The first ``limit`` bytes of a regular file; links are followed inside the volume."""
        return b"".join(self.stream(volume, path, limit))

    def stream(self, volume: str, path: str | bytes, limit: int = 1 << 62) -> Iterator[bytes]:
        """The content of a regular file in pieces of at most 256 KiB."""
        root, inside = self._volumes.place(volume, path)
        yield from self._session.read(root, inside, 0, limit)

    def exists(self, volume: str, path: str | bytes) -> bool:
        """Whether ``path`` names anything."""
        root, inside = self._volumes.place(volume, path)
        try:
            self._session.stat(root, inside)
        except (InputError, ImageError) as error:
            if getattr(error, "number", 0) in {errno.ENOENT, errno.ENOTDIR}:
                return False
            raise
        return True

    def messages(self) -> str:
        """The guest kernel's last messages, as it wrote them."""
        return self._session.kernel_messages()


@contextmanager
def open_cell(
    image_fd: int,
    header: ImageHeader,
    *,
    name: str = "image",
    more: Sequence[ImageFile] = (),
    keys: Sequence[bytes] = (),
    paths: Paths | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Cell]:
    """Boot a cell around an image.

    Args:
        image_fd: open for reading; stays the caller's.
        header: what `image.headers.inspect_image` said of that very descriptor.
        name: how messages call it.
        more: further disks of the same machine (md and LVM over several), at most three.
        keys: passphrases or key files for LUKS, tried in turn; never written anywhere.
        report: told each long step in a word.

    Raises:
        HostError: no kernel or compiler for the guest, or no wall on this host. RefusedError: a launch control of
        this host refuses it. ImageError: the image changed, or is in use by a writer. VmError: the cell did not start.
    """
    from casemate.cell.boot import boot
    from casemate.engine.paths import default_paths

    if header.encrypted:
        raise ImageError(
            f"{name} is encrypted as a qcow2 image",
            expected="an image whose blocks can be read",
            next_step="give the disk inside it: LUKS in a raw image takes --key-file",
        )
    images = (ImageFile(image_fd, header.format, name, header.virtual_size_bytes), *more)
    with boot(images, paths or default_paths(), memory_mib=1536 if keys else 256, report=report) as session:
        yield Cell(session, Volumes(session, images, keys))


@contextmanager
def open_with_dissect(
    image_fd: int,
    header: ImageHeader,
    *,
    name: str = "image",
    paths: Paths | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Cell]:
    """The same questions to a separately installed Dissect in a wall: no guest, fewer promises (`other.py`).

    Raises:
        HostError: Dissect is not installed, or no wall on this host. VmError: it crashed, or ran into its limits.
    """
    from casemate.cell.other import OtherVolumes, open_other
    from casemate.engine.paths import default_paths

    image = ImageFile(image_fd, header.format, name, header.virtual_size_bytes)
    with open_other(image, paths or default_paths(), report) as session:
        yield Cell(session, OtherVolumes(session))
