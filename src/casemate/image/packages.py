"""Files out of the distribution's signed packages, as root or not, without installing anything.

Trust: ``apt-get download`` checks the chain from the archive's signed Release file to the package's SHA-256
(unauthenticated packages are refused
here whatever the host's configuration says). Files of an installed package are compared with dpkg's record of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from casemate.errors import HostError

_PROGRAM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ANSWER_TIMEOUT_S = 60.0
_DOWNLOAD_TIMEOUT_S = 600.0
_MAX_ANSWER_BYTES = 4 << 20
MAX_MEMBER_BYTES = 128 << 20

_STRICT_APT = (
    "-oAPT::Get::AllowUnauthenticated=false",
    "-oAcquire::AllowInsecureRepositories=false",
    "-oAcquire::Retries=3",
    # The download directory is 0700, which apt's own user cannot enter; the warning about it helps nobody.
    "-oAPT::Sandbox::User=root",
)


@dataclass(frozen=True, slots=True)
class Package:
    """One package version; ``path`` is the downloaded archive, ``None`` when the package is installed."""

    name: str
    version: str
    path: Path | None = None
    archive_sha256: str = ""


def find_program(name: str) -> str:
    """Absolute path of a distribution's program.

    Raises:
        HostError: it is not there; the host is no Debian.
    """
    found = shutil.which(name, path=_PROGRAM_PATH)
    if found is None:
        raise HostError(f"program {name}", got="nothing in " + _PROGRAM_PATH, expected="a Debian system")
    return found


def run_program(
    arguments: Sequence[str], *, cwd: Path | None = None, timeout_s: float = _ANSWER_TIMEOUT_S
) -> tuple[int, str]:
    """Run a program of the distribution; return its status and its output, or its errors when it failed.

    Raises:
        HostError: it is missing, did not end in time, or said more than 4 MiB.
    """
    command = [find_program(arguments[0]), *arguments[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(arguments)}", got=f"no end within {timeout_s:.0f} s") from error
    except OSError as error:
        raise HostError(f"{' '.join(arguments)}", got=str(error)) from error
    output = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    if len(output) > _MAX_ANSWER_BYTES:
        raise HostError(f"{' '.join(arguments)}", got=f"{len(output)} bytes of output")
    return done.returncode, output.decode("utf-8", "replace")


def installed_version(name: str) -> str | None:
    """Version of an installed package, ``None`` when it is not (fully) installed."""
    status, output = run_program(("dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Version}", name))
    fields = output.split()
    return fields[1] if status == 0 and len(fields) == 2 and fields[0] == "ii" else None


def installed_matching(pattern: str) -> tuple[Package, ...]:
    """Installed packages whose name matches dpkg's glob ``pattern``, in dpkg's order."""
    status, output = run_program(("dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\\n", pattern))
    rows = [line.split() for line in output.splitlines()] if status == 0 else []
    return tuple(Package(row[1], row[2]) for row in rows if len(row) == 3 and row[0] == "ii")


def is_intact(name: str) -> bool:
    """Whether dpkg finds the installed package's files as it recorded them (documentation left out by policy does not
    count).
    """
    status, output = run_program(("dpkg", "--verify", name), timeout_s=_DOWNLOAD_TIMEOUT_S)
    changed = [line for line in output.splitlines() if "/usr/share/doc/" not in line and "/usr/share/man/" not in line]
    return status in (0, 1) and not changed


def dependencies(name: str) -> tuple[str, ...]:
    """First alternatives of the candidate version's ``Depends`` field.

    Raises:
        HostError: apt knows no such package; its lists may be missing.
    """
    status, output = run_program(("apt-cache", "show", "--no-all-versions", name))
    match = re.search(r"^Depends: (.*)$", output, re.MULTILINE) if status == 0 else None
    if status != 0 or not output.strip():
        raise HostError(
            f"package {name}: apt knows no such package",
            expected="package lists of the distribution",
            next_step="sudo apt-get update",
        )
    items = match.group(1).split(",") if match else []
    return tuple(re.split(r"[\s(|:]", item.strip(), maxsplit=1)[0] for item in items)


def download(name: str, directory: Path, report: Callable[[str], None]) -> Package:
    """Fetch the candidate version of a package into ``directory`` (empty and private), verified by apt.

    Raises:
        HostError: apt could not fetch or would not trust it.
    """
    report(f"downloading the signed package {name}")
    before = set(directory.glob("*.deb"))
    status, output = run_program(
        ("apt-get", *_STRICT_APT, "download", name), cwd=directory, timeout_s=_DOWNLOAD_TIMEOUT_S
    )
    new = sorted(set(directory.glob("*.deb")) - before)
    if status != 0 or len(new) != 1:
        lines = [line for line in output.splitlines() if line.startswith("E:")]
        raise HostError(
            f"apt-get download {name}",
            got="; ".join(lines)[:500] or f"status {status}",
            next_step="sudo apt-get update",
        )
    status, output = run_program(("dpkg-deb", "-f", str(new[0]), "Version"))
    if status != 0:
        raise HostError(f"package file {new[0].name}", got=output.strip()[:200])
    with new[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Package(name, output.strip(), new[0], digest)


def read_members(package: Package, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield ``(path, content)`` of the regular files of a downloaded package that ``wanted`` picks.

    Paths have no leading ``./`` or ``/``. Nothing is written to disk, so no member can escape a directory.

    Raises:
        HostError: the archive is damaged or a member is larger than 128 MiB.
    """
    if package.path is None:
        raise RuntimeError(f"{package.name} was not downloaded")
    command = [find_program("dpkg-deb"), "--fsys-tarfile", str(package.path)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        if process.stdout is None:
            raise RuntimeError("dpkg-deb was started without a pipe")
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = str(PurePosixPath("/", member.name)).lstrip("/")
                    if not member.isreg() or not wanted(path):
                        continue
                    file = archive.extractfile(member)
                    if file is None or member.size > MAX_MEMBER_BYTES:
                        raise HostError(f"package {package.name}: {path}", got=f"{member.size} bytes")
                    yield path, file.read()
            # tarfile stops at the end marker; dpkg-deb must still be able to write its padding.
            while process.stdout.read(1 << 16):
                pass
        except tarfile.TarError as error:
            raise HostError(f"package {package.name}", got=f"a damaged archive: {error}") from error
        finally:
            if process.poll() is None and not process.stdout.closed:
                process.stdout.close()
    if process.returncode != 0:
        raise HostError(f"package {package.name}", got=f"dpkg-deb status {process.returncode}")
