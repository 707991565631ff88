"""Any HTTP server in front of a store, on httpx: read-only, for edges behind nginx or a CDN.

What comes back is checked before it is believed: status, length, Content-Range, the limit while it streams. An ETag is
only handed out where it may be remembered: nginx makes it of the file's second and size, so of two contents of equal
length within a second the later would be answered 304 for ever (`_etag`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from syncd.config import StoreSection
from syncd.errors import (
    ConfigInvalid,
    ObjectMissing,
    ObjectTooLarge,
    StoreBroken,
    StoreCannot,
    StoreDenied,
    StoreReadOnly,
    StoreUnreachable,
)
from syncd.store.base import Blob, Capabilities, Mode, ObjectInfo, public_url, validate_key, validate_prefix

if TYPE_CHECKING:
    import httpx

CONNECTIONS = 32
READ_TIMEOUT_S = 20.0
SETTLED_S = 2.0
"""An ETag younger than this may hide a second change within the same second."""


class HttpStore:
    """A store that some HTTP server shows, under a base URL. Plain http:// is fine: authenticity lies in signatures."""

    capabilities = Capabilities(
        write=False, create_only=False, compare_and_set=False, list=False, delete=False, ranges=True
    )

    def __init__(self, section: StoreSection, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self.url = public_url(section.url).rstrip("/")
        self.wire_bytes = 0
        self.requests = 0
        self._section = section
        self._read_timeout_s = read_timeout_s
        self._opened: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"HttpStore({self.url!r})"

    async def get(self, key: str, *, limit: int) -> Blob:
        blob = await self._get(key, {}, limit)
        assert blob is not None
        return blob

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        return await self._get(key, {"If-None-Match": etag} if etag else {}, limit)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        validate_key(key)
        if length == 0:
            return b""
        last = start + length - 1
        async with self._asked("GET", key, {"Range": f"bytes={start}-{last}"}, length) as answer:
            self._judge(answer, key)
            if answer.status_code != 206:
                raise self._broken(
                    key, f"{answer.status_code} to a range: this server or a cache ignores Range"
                )
            given = answer.headers.get("Content-Range", "")
            if given.rpartition("/")[0] != f"bytes {start}-{last}":
                raise self._broken(
                    key, f"bytes {start}-{last} were asked for, {given or 'no Content-Range'} came"
                )
            try:
                data = await self._body(answer, key, length)
            except ObjectTooLarge:
                raise self._broken(key, f"more than the {length} bytes that were asked for came") from None
        if len(data) != length:
            raise self._broken(key, f"{len(data)} bytes came where {length} from {start} were asked for")
        return data

    async def head(self, key: str) -> ObjectInfo:
        validate_key(key)
        async with self._asked("HEAD", key, {}, 0) as answer:
            self._judge(answer, key)
            length = answer.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise self._broken(key, "no Content-Length")
            return ObjectInfo(key, int(length), _etag(answer), _date(answer, "Last-Modified"))

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        validate_key(key)
        raise self._read_only(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        validate_prefix(prefix)
        raise StoreCannot(f"{self.url} cannot be listed: HTTP has no such request", store=self.url)
        yield  # an async generator, as the protocol wants it

    async def delete(self, key: str) -> None:
        validate_key(key)
        raise self._read_only(key)

    async def aclose(self) -> None:
        async with self._opening:
            if self._opened:
                await self._opened.aclose()
            self._opened = None

    async def _get(self, key: str, condition: dict[str, str], limit: int) -> Blob | None:
        validate_key(key)
        async with self._asked("GET", key, condition, limit) as answer:
            if answer.status_code == 304 and condition:
                return None
            self._judge(answer, key)
            if answer.status_code != 200:
                raise self._broken(key, f"{answer.status_code} where 200 was due")
            data = await self._body(answer, key, limit)
            return Blob(data, _etag(answer), _date(answer, "Date"))

    async def _client(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._opened is None:
                self._opened = await asyncio.to_thread(_make_client, self._section, self._read_timeout_s)
            return self._opened

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, key: str, headers: dict[str, str], length: int
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and yield its answer, the body unread; the whole of it within `_patience_s`."""
        client = await self._client()
        self.requests += 1
        headers = {"Accept-Encoding": "identity", **headers}
        url = client.base_url.copy_with(path=f"{client.base_url.path.rstrip('/')}/{key}")
        with self._told(key):
            async with (
                asyncio.timeout(_patience_s(length)),
                client.stream(method, url, headers=headers, follow_redirects=False) as answer,
            ):
                yield answer

    async def _body(self, answer: httpx.Response, key: str, limit: int) -> bytes:
        """The body, counted as it comes and never more than a chunk past `limit`."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._broken(
                key, f"an encoded body ({answer.headers['Content-Encoding']}) nobody asked for"
            )
        declared = answer.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise self._too_large(key, limit)
        data = bytearray()
        async for chunk in answer.aiter_raw():
            self.wire_bytes += len(chunk)
            data += chunk
            if len(data) > limit:
                raise self._too_large(key, limit)
        return bytes(data)

    def _judge(self, answer: httpx.Response, key: str) -> None:
        """Raise for every status but 2xx, and for a page that someone put between us and the store."""
        status = answer.status_code
        wants_certificate = status == 400 and self.url.startswith(
            "https:"
        )  # what nginx says to a client without one
        if status in (401, 403, 407, 495, 496) or wants_certificate:
            raise StoreDenied(
                f"{self.url} answered {status} for {key}",
                do="look at store.client_cert, the server's rules and the proxy's user",
                store=self.url,
                key=key,
            )
        if status in (404, 410):
            raise ObjectMissing(f"there is no {key}", store=self.url, key=key)
        if 300 <= status < 400:
            to = public_url(answer.headers.get("Location", "elsewhere"))[:200]
            if to.endswith(f"{answer.url.path}/"):
                raise ObjectMissing(f"there is no {key}, but a folder", store=self.url, key=key)
            what = f"{self.url} sends {key} on to {to}"
            raise StoreUnreachable(
                what, why="a captive portal, or the store has moved", store=self.url, key=key
            )
        if status >= 500 or status in (408, 425, 429):
            raise StoreUnreachable(f"{self.url} answered {status} for {key}", store=self.url, key=key)
        if status >= 400 or status < 200:
            raise self._broken(key, f"{status}")
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            why = "a captive portal or a proxy answered in the store's place"
            raise StoreUnreachable(f"a web page came in place of {key}", why=why, store=self.url, key=key)

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn httpx's errors into the store's. Their text may hold a URL with a password, so only the kind is told."""
        import httpx

        try:
            yield
        except httpx.ProxyError as error:
            raise self._unreachable(key, f"the proxy refused: {error}") from None
        except httpx.ConnectError as error:
            raise self._unreachable(key, _connect_reason(error)) from None
        except httpx.TimeoutException as error:
            raise self._unreachable(key, f"nothing came in time ({type(error).__name__})") from None
        except TimeoutError:
            raise self._unreachable(
                key, "the answer trickled for longer than any honest link would take"
            ) from None
        except httpx.RemoteProtocolError as error:
            raise self._unreachable(key, f"the answer was cut off: {error}") from None
        except httpx.TransportError as error:
            raise self._unreachable(key, f"the connection broke ({type(error).__name__})") from None

    def _unreachable(self, key: str, why: str) -> StoreUnreachable:
        do = "it is asked again later"
        return StoreUnreachable(f"no whole answer about {key}", why=why, do=do, store=self.url, key=key)

    def _broken(self, key: str, what: str) -> StoreBroken:
        return StoreBroken(f"{key}: {what}", store=self.url, key=key)

    def _too_large(self, key: str, limit: int) -> ObjectTooLarge:
        return ObjectTooLarge(
            f"{key} has more than the {limit} bytes that are taken", store=self.url, key=key
        )

    def _read_only(self, key: str) -> StoreReadOnly:
        return StoreReadOnly(
            f"{self.url} can only be read: {key} is unchanged",
            do="publish to the folder or bucket behind it (file://, s3://, gs://, az://)",
            store=self.url,
            key=key,
        )


def _patience_s(length: int) -> float:
    """How long an answer of up to `length` bytes may take in all: 1 KiB/s is slower than any link in use."""
    return min(1800.0, 60.0 + length / 1024)


def _date(answer: httpx.Response, name: str) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers[name]).timestamp()
    except (KeyError, ValueError):
        return None


def _etag(answer: httpx.Response) -> str | None:
    """The ETag, or None where it must not be remembered: Last-Modified less than 2 s before the answer's Date."""
    modified, answered = _date(answer, "Last-Modified"), _date(answer, "Date")
    if "Last-Modified" in answer.headers and (
        modified is None or answered is None or answered - modified < SETTLED_S
    ):
        return None
    etag: str | None = answer.headers.get("ETag")
    return etag


def _connect_reason(error: httpx.ConnectError) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"the server's certificate is not trusted ({text[-120:]}): store.ca_file, or this machine's clock"
        )
    return f"no connection: {text[-160:]}"


def _make_client(section: StoreSection, read_timeout_s: float) -> httpx.AsyncClient:
    """Blocks: reads certificates. Redirects are not followed: a store does not move by itself."""
    import httpx

    try:
        return httpx.AsyncClient(
            base_url=section.url,
            verify=_tls(section),
            proxy=section.proxy,
            timeout=httpx.Timeout(20.0, connect=5.0, read=read_timeout_s, pool=120.0),
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=30
            ),
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigInvalid(
            "store.url or store.proxy is no URL that can be used", why=type(error).__name__
        ) from None


def _tls(section: StoreSection) -> ssl.SSLContext | bool:
    """True for the public authorities; with `ca_file` that one alone is trusted."""
    if not section.ca_file and not section.client_cert:
        return True
    try:
        context = ssl.create_default_context(cafile=section.ca_file)
        if section.client_cert:
            context.load_cert_chain(section.client_cert, section.client_key, password=_no_password)
        return context
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(
            str(each) for each in (section.ca_file, section.client_cert, section.client_key) if each
        )
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigInvalid(
            f"the certificates of [store] cannot be used: {files}",
            why=str(why),
            do="ca_file, client_cert and client_key are PEM; the key has no passphrase and fits the certificate",
        ) from None


def _no_password() -> str:
    raise ValueError("the client key has a passphrase")
