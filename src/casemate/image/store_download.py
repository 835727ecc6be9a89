"""Downloads into the store: HTTPS only, bounded, resumed where they were interrupted.

    downloads/<sha256 of the URL>/lock        held while a command works on it
    downloads/<sha256 of the URL>/part        what has come so far
    downloads/<sha256 of the URL>/about.json  `Partial`: which version of the file that is; replaced by rename

1. Every hop of a redirection is https, at most `MAX_HOPS`; certificates are verified (system trust, or ``ca_file``).
2. A part is continued with ``Range`` and ``If-Range`` and only when the server gave a strong validator (RFC 9110, 8.8)
   and answers 206 with the very range and size; anything else starts again.
3. A connection that breaks is taken up again while there is progress; one that trickles below `SLOWEST_BYTES_S` ends.
4. What has come is handed over as a descriptor. A finished or refused download is removed, an interrupted one is kept
   for a week (`store.Store`).

What a URL says about who made the file: nothing. Origin is verified by signature or digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from casemate.errors import HostError, ImageError, InputError
from casemate.image import store_files as files
from casemate.image.store import Store
from casemate.units import format_bytes

MAX_URL: Final = 2048
MAX_HOPS: Final = 8
TIMEOUT_S: Final = 30.0
DEADLINE_S: Final = 12 * 3600.0
ATTEMPTS: Final = 6
PIECE_BYTES: Final = 1 << 18
SLOWEST_BYTES_S: Final = 1024
WINDOW_S: Final = 60.0
ABOUT_MAX_BYTES: Final = 16 * 1024
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.ASCII)

Progress = Callable[[int, int], None]
"""Told (bytes that have come, size or 0)."""


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """Which version of its file a part is of. ``validator``: a strong ETag, or empty: then nothing is continued.

    The URL itself is not written down; the directory's name is its digest.
    """

    validator: str = ""
    size_bytes: int = 0


class _Broken(Exception):
    """The connection broke; what has come is kept."""


def shown(url: str) -> str:
    """A URL as messages and notes have it: what follows ``?`` is often a secret."""
    text = re.split(r"[?#]", url, maxsplit=1)[0]
    return text[:120] + ("..." if len(text) > 120 else "") + ("?..." if text != url else "")


def file_name(url: str) -> str:
    """The last part of a URL's path, which lists of checksums and names of images go by; ``download`` without one."""
    from urllib.parse import unquote, urlsplit

    last = unquote(urlsplit(url).path.rpartition("/")[2])
    return last if last.isprintable() and last not in {"", ".", ".."} and "/" not in last else "download"


def is_url(source: str) -> bool:
    """True for what is meant as a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


@contextlib.contextmanager
def downloaded(
    store: Store,
    url: str,
    *,
    max_bytes: int,
    ca_file: str | None = None,
    deadline_s: float = DEADLINE_S,
    authorization: Callable[[], str] = lambda: "",
    progress: Progress = lambda done, of: None,
) -> Iterator[int]:
    """The whole file behind ``url`` as a descriptor (closed at the end of the block, and removed unless interrupted).

    Args:
        authorization: asked before each connection for a header that no other host is sent; empty for none.

    Raises:
        InputError: no https URL, or the server refuses it. ImageError: larger than ``max_bytes``, or it never came
            whole. HostError: no room; another command downloads it.
    """
    check_url(url)
    with store.changing():
        place = f"{store.directory}/downloads/{hashlib.sha256(url.encode()).hexdigest()}"
        files.private_directory(place)
        lock = files.try_lock(f"{place}/lock")
    if lock is None:
        raise HostError(f"another command downloads {shown(url)}", next_step="wait for it")
    part = -1
    keep = True
    try:
        part = os.open(f"{place}/part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        end = time.monotonic() + deadline_s
        _Download(place, part, url, max_bytes, ca_file, end, authorization, progress).run()
        yield part
        keep = False
    except (ImageError, InputError):
        keep = False  # it will never be what was wanted
        raise
    finally:
        if part >= 0:
            os.close(part)
        if not keep:
            files.remove_tree(place)
        os.close(lock)


def check_url(url: str) -> None:
    """Refuse what is no https URL, or has a password in it (InputError)."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    plain = len(url) <= MAX_URL and url.isascii() and url.isprintable() and " " not in url
    if parts.scheme != "https" or not host or not plain:
        raise InputError(
            f"cannot download {shown(url)!r}",
            got=f"{parts.scheme or 'no scheme'}",
            expected="https://HOST/PATH",
            next_step="get it by other means, and add the file",
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "a URL with a password in it would stay in the shell's history and in the list of processes",
            next_step="get it by other means, and add the file",
        )


class _Download:
    """One download, over as many connections as it takes."""

    def __init__(
        self,
        place: str,
        part: int,
        url: str,
        max_bytes: int,
        ca_file: str | None,
        end: float,
        authorization: Callable[[], str],
        progress: Progress,
    ) -> None:
        self._place, self._part, self._url, self._max = place, part, url, max_bytes
        self._end, self._authorization, self._progress = end, authorization, progress
        self._opener = https_opener(ca_file)
        self._about = self._remembered()

    def run(self) -> None:
        """Return when the whole file has come."""
        left = ATTEMPTS
        while True:
            before = os.fstat(self._part).st_size
            try:
                self._once()
                return
            except _Broken as broken:
                left = ATTEMPTS if os.fstat(self._part).st_size > before else left - 1
                if left <= 0 or time.monotonic() > self._end:
                    raise HostError(
                        f"{shown(self._url)} did not come",
                        got=str(broken)[:200],
                        next_step="try again: what has come is kept and continued",
                    ) from None
                time.sleep(min(2.0, 0.1 * (1 << ATTEMPTS - left)))

    def _remembered(self) -> Partial:
        """What the part is of; the part is emptied when nobody knows."""
        try:
            about = msgspec.json.decode(files.read_small(f"{self._place}/about.json", ABOUT_MAX_BYTES), type=Partial)
            if about.validator:
                return about
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            pass
        os.ftruncate(self._part, 0)
        return Partial()

    def _once(self) -> None:
        """One connection: ask for the rest, write what comes."""
        from urllib.request import Request

        at = os.fstat(self._part).st_size if self._about.validator else 0
        headers = {"User-Agent": "casemate", "Accept-Encoding": "identity", "Accept": "*/*"}
        if at:
            headers |= {"Range": f"bytes={at}-", "If-Range": self._about.validator}
        request = Request(self._url, headers=headers)  # noqa: S310 - the scheme was checked
        if allowed := self._authorization():
            request.add_unredirected_header("Authorization", allowed)
        response = self._open(request)
        with response:
            at = self._begin(response, at)
            self._receive(response, at)

    def _open(self, request: Any) -> Any:
        import http.client
        import ssl
        from urllib.error import HTTPError, URLError

        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except HTTPError as error:
            with error:
                if error.code == 416:  # the part is longer than the file is now
                    os.ftruncate(self._part, 0)
                    self._about = Partial()
                    raise _Broken("the file has changed on the server") from None
                if error.code in {408, 429, 500, 502, 503, 504}:
                    raise _Broken(f"HTTP {error.code}") from None
                raise InputError(
                    f"the server does not give {shown(self._url)}",
                    got=f"HTTP {error.code}",
                    next_step="check the URL",
                ) from None
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise InputError(
                    f"the server of {shown(self._url)} cannot prove who it is",
                    got=str(error.reason.verify_message)[:120],
                    next_step="check the URL; --ca-file names the certificates of an authority of your own",
                ) from None
            raise _Broken(str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"{type(error).__name__}: {error}") from None

    def _begin(self, response: Any, at: int) -> int:
        """Where what comes now belongs; notes which version it is of."""
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch("[0-9]{1,19}", length) else 0
        if response.status == 206 and at:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != at or int(match[3]) != self._about.size_bytes:
                os.ftruncate(self._part, 0)
                self._about = Partial()
                raise _Broken("the server continues another file")
            return at
        if response.status != 200:
            raise InputError(f"the server does not give {shown(self._url)}", got=f"HTTP {response.status}")
        if size > self._max:
            raise self._too_large(size)
        os.ftruncate(self._part, 0)
        etag = response.headers.get("ETag", "")
        strong = re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag) is not None and size > 0
        self._about = Partial(validator=etag if strong else "", size_bytes=size)
        files.write_file(
            f"{self._place}/about.json", msgspec.json.encode(self._about), temporary=f"{self._place}/about.tmp"
        )
        return 0

    def _receive(self, response: Any, at: int) -> None:
        import http.client

        size = self._about.size_bytes
        window_at, window_bytes = time.monotonic(), 0
        while True:
            try:
                piece = response.read1(PIECE_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(f"{type(error).__name__}: {error}") from None
            if not piece:
                break
            if at + len(piece) > self._max or (size and at + len(piece) > size):
                raise self._too_large(at + len(piece))
            at = self._write(piece, at)
            window_bytes += len(piece)
            self._progress(at, size)
            now = time.monotonic()
            if now > self._end:
                raise ImageError(f"{shown(self._url)} takes too long", got=f"{format_bytes(at)} so far")
            if now - window_at > WINDOW_S:
                if window_bytes < SLOWEST_BYTES_S * (now - window_at):
                    raise _Broken(f"less than {SLOWEST_BYTES_S} bytes a second")
                window_at, window_bytes = now, 0
        if size and at != size:
            raise _Broken(f"{at} of {size} bytes came")

    def _write(self, piece: bytes, at: int) -> int:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._part, view, at)
            view, at = view[written:], at + written
        return at

    def _too_large(self, size: int) -> ImageError:
        return ImageError(
            f"{shown(self._url)} is too large",
            got=f"{format_bytes(size)} or more",
            expected=f"at most {format_bytes(self._max)}",
            next_step="raise the quota on purpose, or make room: casemate image prune",
        )


def https_opener(ca_file: str | None) -> Any:
    """An opener for https and nothing else."""
    import ssl
    from urllib import request

    class OnlyHttps(request.HTTPRedirectHandler):
        """Refuses to be sent anywhere else."""

        max_redirections = MAX_HOPS
        max_repeats = 2

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            try:
                check_url(newurl)
            except InputError:
                raise InputError(
                    "the server sends us elsewhere",
                    got=ascii(shown(newurl)),
                    expected="https:// all the way",
                    next_step="give the final URL, if you trust it",
                ) from None
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--ca-file {ca_file}", got=str(error)[:120]) from None
    opener = request.OpenerDirector()
    handlers = (
        request.ProxyHandler(),
        request.HTTPDefaultErrorHandler(),
        OnlyHttps(),
        request.HTTPErrorProcessor(),
        request.HTTPSHandler(context=context),
        request.UnknownHandler(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    return opener
