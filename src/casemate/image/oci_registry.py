"""A disk in an OCI registry: the pull half of the distribution specification (v1.1), https all the way.

    GET /v2/NAME/manifests/REFERENCE ─► 401 that names a realm: one token from there, and again. With the caller's
                                        login for this registry where there is one, else an anonymous one
                                     ─► 401 that asks for Basic: the login itself, and again
                                     ─► a manifest, or an index, of which this host's architecture is taken
    GET /v2/NAME/blobs/DIGEST        ─► the one layer, by `store_download`: resumed, bounded, every hop checked

What a registry says is believed as far as digests go: a reference by digest pins the manifest, the manifest its layer,
and the import compares the disk. A tag is whatever the registry makes of it today; the digest that it had is noted.
Token and password are sent to the registry alone, never to where it redirects us; the login also, once, to the realm
that the registry names, which could ask for it itself (distribution, docs/spec/auth/token.md and oauth.md). A login is
asked for only when a registry wants one. Every answer has a bound and a deadline.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from casemate.errors import CasemateError, HostError, ImageError, InputError
from casemate.image.oci_layout import INDEXES, MANIFESTS, MAX_JSON_BYTES, TITLE, Descriptor, checked_digest, find_layer
from casemate.image.oci_login import Login
from casemate.image.store_download import TIMEOUT_S, check_url, https_opener, shown

SCHEMES: Final = ("oci://", "docker://")
TOKEN_MAX_BYTES: Final = 64 * 1024
DEADLINE_S: Final = 60.0
_HOST = r"(?P<host>(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?)"
_NAME = r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
_TAG = r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
_DIGEST = r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
_REFERENCE = re.compile(f"(?:oci|docker)://{_HOST}/{_NAME}{_TAG}{_DIGEST}", re.ASCII)
_NAME_MAX: Final = 255
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,32768}", re.ASCII)
_SCHEME = re.compile(r"(?:^|, *)([A-Za-z][A-Za-z0-9-]{0,31})(?:$| +(?=[a-z]{1,16}=))", re.ASCII)
"""A header can hold several challenges (RFC 9110, 11.6.1)."""
_PARAMETER = re.compile(r'([a-z]{1,16})="([^"\\]{0,1024})"', re.ASCII)


class Reference(NamedTuple):
    """``oci://HOST[:PORT]/NAME[:TAG][@sha256:HEX]``; with a ``digest`` the tag is not asked for."""

    host: str
    name: str
    tag: str
    digest: str | None

    @property
    def base(self) -> str:
        """Where the registry keeps this name."""
        return f"https://{self.host}/v2/{self.name}"

    def __str__(self) -> str:
        """As the user would write it."""
        return f"oci://{self.host}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Typed(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    media_type: str = ""


class _Challenge(NamedTuple):
    """What a 401 asks for: the scheme as it was said, and its parameters."""

    scheme: str
    said: dict[str, str]

    def wants(self, scheme: str) -> bool:
        """Whether it is this one; upper and lower case are the same (RFC 9110, 11.1)."""
        return self.scheme.lower() == scheme


def is_reference(source: str) -> bool:
    """True for what is meant as an image of a registry."""
    return source.startswith(SCHEMES)


def parse_reference(source: str) -> Reference:
    """Read a reference.

    Raises:
        InputError: it is none.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None or len(match["name"]) > _NAME_MAX:
        raise InputError(
            f"{source[:200]!a} is no image of a registry",
            expected="oci://HOST[:PORT]/NAME[:TAG][@sha256:HEX], NAME in lower case",
            next_step="the host is always said: there is no default registry",
        )
    return Reference(match["host"], match["name"], match["tag"] or "latest", match["digest"])


class RegistryDisk:
    """A disk that was found. ``url`` gives it; ``sha256`` and ``size_bytes`` are what its manifest says of it."""

    def __init__(self, client: _Client, layer: Descriptor) -> None:
        self._client = client
        reference = client.reference
        self.sha256 = checked_digest(layer, str(reference))
        self.url = f"{reference.base}/blobs/sha256:{self.sha256}"
        self.size_bytes, self.media_type = layer.size, layer.media_type
        self.name = layer.annotations.get(TITLE, "") or reference.name.rpartition("/")[2]
        self.manifest = client.resolved

    def authorization(self) -> str:
        """A fresh ``Authorization`` header: tokens live for minutes, downloads for hours. Empty when none is wanted."""
        return self._client.authorization()


def find_disk(
    source: str, ca_file: str | None = None, login: Callable[[Reference], Login | None] = lambda _: None
) -> RegistryDisk:
    """Ask a registry for the one disk that a reference names.

    Args:
        ca_file: certificates that the registry is verified with, in place of the system's.
        login: asked, at most once, when the registry wants a login.

    Raises:
        InputError: no such image, or a login is wanted. ImageError: not exactly one disk, or not what its digest says.
        HostError: the registry cannot be reached.
    """
    client = _Client(parse_reference(source), ca_file, login)
    return RegistryDisk(client, client.layer())


class _Client:
    """One look at one name of one registry."""

    def __init__(self, reference: Reference, ca_file: str | None, login: Callable[[Reference], Login | None]) -> None:
        self.reference = reference
        self.resolved = ""
        self._opener = https_opener(ca_file)
        self._ask_login = login
        self._login: Login | None = None
        self._challenge: _Challenge | None = None
        self._header = ""

    def layer(self) -> Descriptor:
        """From the reference to the layer."""
        name = str(self.reference)
        data, kind = self._manifest(self.reference.digest or self.reference.tag)
        self.resolved = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.reference.digest not in {None, self.resolved}:
            raise ImageError(f"{name} is not what its digest says", got=self.resolved)
        first = Descriptor(_declared_type(data) or kind, self.resolved, len(data))

        def read(descriptor: Descriptor) -> bytes:
            if descriptor is first:
                return data
            return self._manifest(f"sha256:{checked_digest(descriptor, name)}")[0]

        return find_layer([first], read, name)

    def authorization(self) -> str:
        if self._challenge is not None:
            self._header = self._answer(self._challenge)
        return self._header

    def _manifest(self, reference: str) -> tuple[bytes, str]:
        url = f"{self.reference.base}/manifests/{reference}"
        accept = ", ".join((*MANIFESTS, *INDEXES))
        answer = self._get(url, accept, MAX_JSON_BYTES, self._header)
        if isinstance(answer, _Challenge):
            if self._challenge is not None:
                raise self._wants_login("the anonymous token does not suffice")
            self._challenge = answer
            self._login = self._ask_login(self.reference)
            answer = self._get(url, accept, MAX_JSON_BYTES, self.authorization())
            if isinstance(answer, _Challenge):
                raise self._wants_login("the anonymous token does not suffice")
        return answer

    def _answer(self, challenge: _Challenge) -> str:
        """The header that a challenge asks for."""
        if challenge.wants("basic") and self._login is not None and not self._login.is_token:
            return self._login.basic()
        if challenge.wants("bearer") and challenge.said.get("realm"):
            return f"Bearer {self._fetch_token(challenge.said)}"
        raise self._wants_login(f"it asks for {challenge.scheme[:20]!a}")

    def _fetch_token(self, said: dict[str, str]) -> str:
        """A token for pulling this name, from where the registry says: with the login, or anonymous."""
        from urllib.parse import urlencode

        asked = {"service": said["service"]} if "service" in said else {}
        asked["scope"] = f"repository:{self.reference.name}:pull"
        realm, header, form = said["realm"], "", b""
        if self._login is not None and self._login.is_token:
            grant = {"grant_type": "refresh_token", "client_id": "casemate", "refresh_token": self._login.secret}
            form = urlencode({**asked, **grant}).encode()
            url = realm
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
            header = self._login.basic() if self._login is not None else ""
        check_url(url)
        answer = self._get(url, "application/json", TOKEN_MAX_BYTES, header, form)
        if isinstance(answer, _Challenge):
            raise self._wants_login("it gives no anonymous token")
        try:
            found = msgspec.json.decode(answer[0], type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = _Token()
        token = found.token or found.access_token
        if not _TOKEN.fullmatch(token):
            raise ImageError(f"the registry of {self.reference} gives no token that could be sent")
        return token

    def _get(
        self, url: str, accept: str, max_bytes: int, authorization: str = "", form: bytes = b""
    ) -> tuple[bytes, str] | _Challenge:
        """Body and media type; or the challenge of a 401. With a ``form`` it is posted."""
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        request = Request(url, form or None, {"User-Agent": "casemate", "Accept": accept})  # noqa: S310 - https, checked
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                return self._read(response, max_bytes), kind
        except HTTPError as error:
            with error:
                if error.code in {401, 403} and _host_of(error.geturl()) == _host_of(url):
                    # One who was only pointed to must not name the realm that gets the login (as CVE-2020-15157 did).
                    return _challenge_of(error.headers.get_all("WWW-Authenticate", []))
                raise self._no_answer(error.code) from None
        except URLError as error:
            raise self._unreachable(error.reason) from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from None

    def _read(self, response: Any, max_bytes: int) -> bytes:
        data = bytearray()
        end = time.monotonic() + DEADLINE_S
        while piece := response.read1(65536):
            data += piece
            if len(data) > max_bytes:
                raise ImageError(f"the registry of {self.reference} answers with more than {max_bytes} bytes")
            if time.monotonic() > end:
                raise HostError(f"the registry of {self.reference} takes more than {DEADLINE_S:.0f} s for one answer")
        return bytes(data)

    def _no_answer(self, code: int) -> CasemateError:
        if code == 404:
            return InputError(f"there is no {self.reference}", got="HTTP 404", next_step="check name and tag")
        if code in {408, 429, 500, 502, 503, 504}:
            return HostError(f"the registry of {self.reference} is busy", got=f"HTTP {code}", next_step="try again")
        return InputError(f"the registry does not give {self.reference}", got=f"HTTP {code}")

    def _unreachable(self, reason: object) -> CasemateError:
        import ssl

        if isinstance(reason, ssl.SSLCertVerificationError):
            return InputError(
                f"the registry of {self.reference} cannot prove who it is",
                got=str(reason.verify_message)[:120],
                next_step="check the host; --ca-file names the certificates of an authority of your own",
            )
        said = getattr(reason, "strerror", None) or str(reason)
        return HostError(
            f"the registry of {self.reference} cannot be reached",
            got=ascii(said[:200].lower())[1:-1],
            next_step="check host and port, and that the registry speaks https",
        )

    def _wants_login(self, got: str) -> InputError:
        reference = shown(str(self.reference))
        if self._login is not None:
            return InputError(
                f"the registry refuses the login for {reference}, or the image is not there",
                got=f"the login from {self._login.source}",
                next_step="podman login, or docker login, asks for it anew",
            )
        return InputError(
            f"{reference} needs a login, or is not there",
            got=got,
            expected="an image that everybody may pull, or a login for this registry",
            next_step=f"podman login {self.reference.host}; or --authfile FILE; or --username and --password-file",
        )


def _challenge_of(headers: list[str]) -> _Challenge:
    """The first that we can answer, Bearer before Basic; else the first."""
    found = []
    for header in headers[:8]:
        starts = list(_SCHEME.finditer(header[:4096]))
        ends = [*(match.start() for match in starts[1:]), 4096]
        for match, end in zip(starts, ends, strict=True):
            found.append(_Challenge(match[1], dict(_PARAMETER.findall(header[match.end() : end]))))
    order = [one for wanted in ("bearer", "basic") for one in found if one.wants(wanted)]
    return next(iter((*order, *found)), _Challenge("nothing", {}))


def _host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc.lower()


def _declared_type(data: bytes) -> str:
    """The media type that a manifest gives itself; the header's is the registry's word for it."""
    try:
        return msgspec.json.decode(data, type=_Typed).media_type
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
