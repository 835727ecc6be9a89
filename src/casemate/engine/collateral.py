"""The cache of what makers publish for evidence, and how it is filled. Nothing of this is on a launch's path.

    cache/collateral/<name>     as `evidence/wanted.py` names it; replaced by rename, 0600

Nothing in the cache is believed: certificates, lists and collateral carry their makers' signatures, and their times say
when they run out. What cannot be read is taken for absent. Downloads: https alone, no redirection, bounded, with a
deadline, and only from the services that a caller names.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from casemate.engine.authorities import known_authorities
from casemate.engine.files import read_bounded, write_atomic
from casemate.engine.paths import own_directory
from casemate.errors import CasemateError, HostError, InputError
from casemate.evidence.wanted import MAX_ANSWER_BYTES, Answer, Wanted, content_of, until

if TYPE_CHECKING:
    from http.client import HTTPResponse, HTTPSConnection
    from ssl import SSLContext

DEADLINE_S: Final = 60.0
STALL_S: Final = 15.0
_PIECE: Final = 1 << 16
_MAX_HEADERS: Final = 64


class Outcome(msgspec.Struct, frozen=True):
    """What became of one item. ``state``: ``fetched``, ``cached`` (still good), ``failed``, or ``not-needed`` when
    another of its kind was the right one; ``until``: when it runs out, or None; ``error``: why it failed."""

    item: Wanted
    state: str
    until: datetime.datetime | None
    error: CasemateError | None = None


def directory_of(cache: str) -> str:
    """Where the files are, in the cache's directory."""
    return f"{cache}/collateral"


def cached(cache: str, item: Wanted) -> bytes | None:
    """An item's content, whether it has run out or not; None when it is not there or is not of its kind."""
    try:
        content = read_bounded(f"{directory_of(cache)}/{item.name}", MAX_ANSWER_BYTES)
        until(item, content)
    except (OSError, CasemateError):
        return None
    return content


def fetch(
    cache: str,
    items: tuple[Wanted, ...],
    now: datetime.datetime,
    *,
    ca_file: str | None = None,
    refresh: bool = False,
    progress: Callable[[Wanted], None] = lambda item: None,
) -> list[Outcome]:
    """Bring items into the cache that are not there, or have run out; each by itself.

    Args:
        ca_file: with which servers are verified; None: the system's.
        refresh: also what is still good.
        progress: told of each that is fetched.

    Raises:
        HostError: the cache's directory cannot be made. InputError: ``ca_file`` cannot be read.
    """
    own_directory(cache)
    own_directory(directory_of(cache))
    context = _context(ca_file)
    outcomes = []
    for item in items:
        content = cached(cache, item)
        good_until = until(item, content) if content is not None else None
        if good_until is not None and good_until > now and not refresh:
            outcomes.append(Outcome(item, "cached", good_until))
            continue
        progress(item)
        try:
            end = time.monotonic() + DEADLINE_S
            answers = {part: download(url, context, end) for part, url in item.urls.items()}
            content = content_of(item, answers, known_authorities(), now)
            write_atomic(f"{directory_of(cache)}/{item.name}", content)
            outcomes.append(Outcome(item, "fetched", until(item, content)))
        except CasemateError as error:
            outcomes.append(Outcome(item, "failed", good_until, error))
        except OSError as error:
            fault = HostError(f"cannot write {directory_of(cache)}", got=str(error.strerror))
            outcomes.append(Outcome(item, "failed", good_until, fault))
    had = {found.item.one_of for found in outcomes if found.state != "failed" and found.item.one_of}
    return [
        Outcome(found.item, "not-needed", None) if found.state == "failed" and found.item.one_of in had else found
        for found in outcomes
    ]


def _context(ca_file: str | None) -> SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--ca-file {ca_file}", got=str(error)[:120]) from None


def download(url: str, context: SSLContext, end: float) -> Answer:
    """One answer of a service.

    Args:
        end: of `time.monotonic`, when it has to be there, whatever the server does until then.

    Raises:
        InputError: no https URL. HostError: no answer, another one than 200, too long, or too late.
    """
    import http.client
    import threading
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise InputError(f"{url[:120]} is no https URL")
    where = url.partition("?")[0]
    left = max(end - time.monotonic(), 0.001)
    connection = _connection(parts.hostname, parts.port or 443, context, min(STALL_S, left))
    guard = threading.Timer(left, _cut, (connection,))
    guard.daemon = True
    guard.start()
    try:
        connection.connect()
        if time.monotonic() >= end:  # until here there may have been nothing to cut
            raise _too_late(where)
        connection.request("GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")
        response = connection.getresponse()
        if response.status != 200:
            raise _no_answer(where, response)
        headers = {name.lower(): value for name, value in response.getheaders()[:_MAX_HEADERS]}
        answer = Answer(_bounded_body(response, where), headers)
    except (OSError, http.client.HTTPException, ValueError) as fault:
        if time.monotonic() >= end:
            raise _too_late(where) from None
        raise HostError(
            f"{where} cannot be reached",
            got=f"{type(fault).__name__}: {str(fault)[:160]}",
            next_step="offline, verify with what the cache has",
        ) from None
    finally:
        guard.cancel()
        connection.close()
    if time.monotonic() >= end:  # cut in the middle of headers or of a body without a length, which looks like its end
        raise _too_late(where)
    return answer


def _too_late(where: str) -> HostError:
    return HostError(
        f"{where} takes too long",
        expected=f"an answer within {DEADLINE_S:.0f} s",
        next_step="offline, verify with what the cache has",
    )


def _connection(host: str, port: int, context: SSLContext, stall_s: float) -> HTTPSConnection:
    """To the server, or through the proxy that the environment names."""
    from http.client import HTTPSConnection
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get("https", "")
    if not proxy or proxy_bypass(host):
        return HTTPSConnection(host, port, timeout=stall_s, context=context)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = HTTPSConnection(parts.hostname or "", parts.port or 8080, timeout=stall_s, context=context)
    connection.set_tunnel(host, port)
    return connection


def _cut(connection: HTTPSConnection) -> None:
    """End whatever waits for the other side: a server that trickles keeps every single wait short."""
    import socket

    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _no_answer(where: str, response: HTTPResponse) -> HostError:
    wait = response.getheader("Retry-After", "")
    step = f"the service asks to wait {wait[:16]} s" if wait.isdigit() else ""
    return HostError(f"{where} has no answer", got=f"HTTP {response.status}", expected="200", next_step=step)


def _bounded_body(response: HTTPResponse, where: str) -> bytes:
    pieces, size = [], 0
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise HostError(f"{where} answers too much", got=f"more than {MAX_ANSWER_BYTES} bytes")
    declared = response.getheader("Content-Length", "")
    if declared.isdigit() and int(declared) != size:
        raise HostError(f"{where} broke off", got=f"{size} of {declared} bytes")
    return b"".join(pieces)
