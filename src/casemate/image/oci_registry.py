"""A disk in an OCI registry: the pull half of the distribution specification (v1.1), anonymous, https all the way.

    GET /v2/NAME/manifests/REFERENCE ─► 401 that names a realm: one anonymous token from there, and again
                                     ─► a manifest, or an index, of which this host's architecture is taken
    GET /v2/NAME/blobs/DIGEST        ─► the one layer, by `store_download`: resumed, bounded, every hop checked

What a registry says is believed as far as digests go: a reference by digest pins the manifest, the manifest its layer,
and the import compares the disk. A tag is whatever the registry makes of it today; the digest that it had is noted.
The token is sent to the registry alone, never to where it redirects us. Every answer has a bound and a deadline.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Final, NamedTuple

import msgspec

from casemate.errors import CasemateError, HostError, ImageError, InputError
from casemate.image.oci_layout import INDEXES, MANIFESTS, MAX_JSON_BYTES, TITLE, Descriptor, checked_digest, find_layer
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


def find_disk(source: str, ca_file: str | None = None) -> RegistryDisk:
    """Ask a registry for the one disk that a reference names.

    Args:
        ca_file: certificates that the registry is verified with, in place of the system's.

    Raises:
        InputError: no such image, or a login is wanted. ImageError: not exactly one disk, or not what its digest says.
        HostError: the registry cannot be reached.
    """
    client = _Client(parse_reference(source), ca_file)
    return RegistryDisk(client, client.layer())


class _Client:
    """One look at one name of one registry."""

    def __init__(self, reference: Reference, ca_file: str | None) -> None:
        self.reference = reference
        self.resolved = ""
        self._opener = https_opener(ca_file)
        self._challenge = ""
        self._token = ""

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
        if not self._challenge:
            return ""
        self._token = self._fetch_token(self._challenge)
        return f"Bearer {self._token}"

    def _manifest(self, reference: str) -> tuple[bytes, str]:
        url = f"{self.reference.base}/manifests/{reference}"
        accept = ", ".join((*MANIFESTS, *INDEXES))
        answer = self._get(url, accept, MAX_JSON_BYTES)
        if isinstance(answer, str):
            if self._challenge:
                raise self._wants_login("the anonymous token does not suffice")
            self._challenge = answer
            self._token = self._fetch_token(answer)
            answer = self._get(url, accept, MAX_JSON_BYTES)
            if isinstance(answer, str):
                raise self._wants_login("the anonymous token does not suffice")
        return answer

    def _fetch_token(self, challenge: str) -> str:
        """An anonymous token for pulling this name, from where the registry says."""
        from urllib.parse import urlencode

        scheme, _, rest = challenge.partition(" ")
        said = dict(_PARAMETER.findall(rest))
        realm = said.get("realm", "")
        if scheme.lower() != "bearer" or not realm:
            raise self._wants_login(f"it asks for {scheme[:20]!a}")
        asked = {"service": said["service"]} if "service" in said else {}
        asked["scope"] = f"repository:{self.reference.name}:pull"
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
        check_url(url)
        answer = self._get(url, "application/json", TOKEN_MAX_BYTES, with_token=False)
        if isinstance(answer, str):
            raise self._wants_login("it gives no anonymous token")
        try:
            found = msgspec.json.decode(answer[0], type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = _Token()
        token = found.token or found.access_token
        if not _TOKEN.fullmatch(token):
            raise ImageError(f"the registry of {self.reference} gives no token that could be sent")
        return token

    def _get(self, url: str, accept: str, max_bytes: int, *, with_token: bool = True) -> tuple[bytes, str] | str:
        """Body and media type; or the challenge of a 401."""
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        request = Request(url, headers={"User-Agent": "casemate", "Accept": accept})  # noqa: S310 - https, checked
        if with_token and self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                return self._read(response, max_bytes), kind
        except HTTPError as error:
            with error:
                if error.code in {401, 403}:
                    return str(error.headers.get("WWW-Authenticate", ""))[:4096]
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
        return InputError(
            f"{shown(str(self.reference))} needs a login, or is not there",
            got=got,
            expected="an image that everybody may pull",
            next_step=f"skopeo login; skopeo copy {str(self.reference).replace('oci:', 'docker:')} oci:DIR;"
            " casemate image add DIR",
        )


def _declared_type(data: bytes) -> str:
    """The media type that a manifest gives itself; the header's is the registry's word for it."""
    try:
        return msgspec.json.decode(data, type=_Typed).media_type
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
