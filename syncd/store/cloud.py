"""Stores in a cloud, on obstore: s3:// (and what speaks S3), gs:// and az://.

- A whole request may take half an hour, but never 20 s without a byte: a slow link is slow, a dead one is noticed.
- Conditional puts are sent by a client that never repeats by itself. When an answer is lost we read back: what is there
  is compared with what was sent, and only then is the put called won, lost or open.
- Credentials come from the SDK's own places: environment, or boto3's chain (profiles, SSO) with the extra `aws`. They
  are never part of a URL, a repr, a log line or an error.
- GCS compares generations, not ETags: an ETag of a gs:// store carries both.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from syncd.config import StoreSection
from syncd.errors import (
    KeyInvalid,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StoreBroken,
    StoreCannot,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from syncd.store.base import (
    MAX_OBJECT_BYTES,
    Blob,
    Capabilities,
    Create,
    IfMatch,
    Mode,
    ObjectInfo,
    public_url,
    validate_key,
    validate_prefix,
)
from syncd.store.cloud_client import READ_TIMEOUT_S, check_section, make_clients, reason

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PUT_ATTEMPTS = 3
_STATUS = re.compile(r"status code: (\d{3})")
_FULL = ("507 ", "StorageFull", "QuotaExceeded", "no space left")
_WRONG_ANSWER = ("non-partial response", "Requested ", "Content-Range", "ContentRange", "requested 0..")


class _NeverSent(StoreUnreachable):
    """No connection was made, so nothing can have been stored."""


class CloudStore:
    """A bucket or container, or a path in one. The client is made at the first use: a config alone costs nothing."""

    capabilities = Capabilities(
        write=True, create_only=True, compare_and_set=True, list=True, delete=True, ranges=True
    )

    def __init__(self, section: StoreSection, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        check_section(section)
        self.url = public_url(section.url)
        self.wire_bytes = 0
        self.requests = 0
        self._section = section
        self._read_timeout_s = read_timeout_s
        self._generations = section.url.startswith("gs:")
        self._making = asyncio.Lock()
        self._repeating: ObjectStore | None = None
        self._single: ObjectStore | None = None

    def __repr__(self) -> str:
        return f"CloudStore({self.url!r})"

    async def get(self, key: str, *, limit: int) -> Blob:
        blob = await self._get(key, None, limit, await self._client())
        assert blob is not None
        return blob

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        return await self._get(key, etag, limit, await self._client())

    async def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        import obstore

        validate_key(key)
        client = await self._client()
        if length == 0:
            return b""
        data = memoryview(
            await self._ask(key, obstore.get_range_async(client, key, start=start, length=length))
        )
        self.wire_bytes += len(data)
        if len(data) != length:
            what = f"{key}: {len(data)} bytes came where {length} from {start} were asked for"
            raise StoreBroken(what, store=self.url, key=key)
        return data

    async def head(self, key: str) -> ObjectInfo:
        import obstore

        validate_key(key)
        return self._info(key, await self._ask(key, obstore.head_async(await self._client(), key)))

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        validate_key(key)
        if len(data) > MAX_OBJECT_BYTES:
            raise ObjectTooLarge(f"{len(data)} bytes for {key}: a put takes at most {MAX_OBJECT_BYTES}")
        client = await self._client()
        if isinstance(mode, Create | IfMatch):
            return await self._put_on_condition(key, data, mode)
        return await self._send(key, data, mode, client)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        import obstore

        prefix = validate_prefix(prefix)
        batches = aiter(obstore.list(await self._client(), prefix or None, chunk_size=1000))
        while True:
            batch = await self._ask(prefix, anext(batches, None))
            if batch is None:
                return
            for meta in batch:
                try:
                    validate_key(meta["path"])
                except KeyInvalid:
                    continue  # something else lies in the same bucket
                yield self._info(meta["path"], meta)

    async def delete(self, key: str) -> None:
        import obstore

        validate_key(key)
        try:
            await self._ask(key, obstore.delete_async(await self._client(), key))
        except ObjectMissing:
            return

    async def aclose(self) -> None:
        """Connections close when the clients are dropped."""
        self._repeating = self._single = None

    async def _client(self) -> ObjectStore:
        async with self._making:
            if self._repeating is None:
                made = await asyncio.to_thread(make_clients, self._section, self._read_timeout_s)
                self._repeating, self._single = made
                return made[0]
            return self._repeating

    async def _get(self, key: str, etag: str | None, limit: int, client: ObjectStore) -> Blob | None:
        import obstore
        from obstore.exceptions import NotModifiedError

        validate_key(key)
        condition = etag.rpartition(" ")[2] if etag and self._generations else etag
        try:
            options: Any = {"if_none_match": condition} if condition else None
            result = await self._ask(key, obstore.get_async(client, key, options=options), NotModifiedError)
        except NotModifiedError:
            return None
        size = result.meta["size"]
        if not result.meta["e_tag"]:
            why = "the answer has no ETag: it is not the store's (a captive portal, a proxy)"
            raise StoreBroken(f"something else came in place of {key}", why=why, store=self.url, key=key)
        if size > limit:
            raise ObjectTooLarge(
                f"{key} has {size} bytes, at most {limit} are taken", store=self.url, key=key
            )
        data = bytearray()
        chunks = aiter(result.stream())
        while (chunk := await self._heard(key, anext(chunks, None))) is not None:
            self.wire_bytes += len(chunk)
            data += chunk
            if len(data) > size:
                break
        if len(data) != size:
            raise StoreBroken(f"{key}: {len(data)} of {size} bytes came", store=self.url, key=key)
        return Blob(bytes(data), self._token(result.meta))

    async def _put_on_condition(self, key: str, data: bytes, mode: Create | IfMatch) -> str | None:
        """Send once; after a lost answer read back, compare, and only then send again."""
        client = self._single
        assert client is not None
        doubtful = False
        for attempt in range(PUT_ATTEMPTS):
            try:
                return await self._send(key, data, mode, client)
            except (ObjectExists, ObjectChanged):
                stored, etag = await self._is_stored(key, data) if doubtful else (False, None)
                if stored:
                    return etag
                raise
            except StoreUnreachable as error:
                lost = error
                doubtful = doubtful or not isinstance(error, _NeverSent)
            stored, etag = await self._is_stored(key, data) if doubtful else (False, None)
            if stored:
                return etag
            await asyncio.sleep(0.2 * 2**attempt)
        raise lost

    async def _is_stored(self, key: str, data: bytes) -> tuple[bool, str | None]:
        assert self._single is not None
        try:
            found = await self._get(key, None, len(data), self._single)
        except StoreError:
            return False, None  # not there, another's, or not to be read: the put's own error counts
        return (True, found.etag) if found and found.data == data else (False, None)

    async def _send(self, key: str, data: bytes, mode: Mode, client: ObjectStore) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        how: Any = "overwrite"
        if isinstance(mode, Create):
            how = "create"
        elif isinstance(mode, IfMatch):
            how = self._condition(mode.etag)
        try:
            sending = obstore.put_async(client, key, data, mode=how, use_multipart=False)
            return self._token(await self._ask(key, sending, AlreadyExistsError, PreconditionError))
        except (AlreadyExistsError, PreconditionError):
            if isinstance(mode, IfMatch):
                raise ObjectChanged(f"{key} is no longer what was read", store=self.url, key=key) from None
            raise ObjectExists(f"{key} is there already", store=self.url, key=key) from None
        except ObjectMissing:
            if isinstance(mode, IfMatch):
                raise ObjectChanged(f"{key} is no longer there", store=self.url, key=key) from None
            raise StoreUnreachable(f"{self.url} has no such bucket", store=self.url, key=key) from None

    async def _ask(self, key: str, call: Awaitable[T], *expected: type[Exception]) -> T:
        """One request; obstore's errors become the store's, `expected` ones pass."""
        self.requests += 1
        return await self._heard(key, call, *expected)

    async def _heard(self, key: str, call: Awaitable[T], *expected: type[Exception]) -> T:
        from obstore.exceptions import BaseError

        try:
            return await call
        except expected:
            raise
        except (BaseError, FileNotFoundError, NotImplementedError, ValueError) as error:
            raise _sorted(error, self.url, key) from None  # its text may hold a signed URL

    def _info(self, key: str, meta: Any) -> ObjectInfo:
        return ObjectInfo(key, meta["size"], self._token(meta), meta["last_modified"].timestamp())

    def _token(self, meta: Any) -> str | None:
        etag: str | None = meta["e_tag"]
        return f"{meta['version']} {etag}" if self._generations and etag else etag

    def _condition(self, token: str) -> dict[str, str]:
        if not self._generations:
            return {"e_tag": token}
        version, _, etag = token.partition(" ")
        return {"e_tag": etag, "version": version}


def _sorted(error: Exception, url: str, key: str) -> StoreError:
    """obstore's error as one of ours: what the message says is all that tells network troubles apart."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    where: dict[str, Any] = {"store": url, "key": key}
    why = reason(text)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "AccessDenied" in text:
        do = "look at the credentials and what they may do; `syncd check` tries each permission"
        return StoreDenied(f"the store refused {key}", why=why, do=do, **where)
    if "NoSuchBucket" in text:
        return StoreUnreachable(
            f"there is no bucket {urlsplit(url).netloc}", do="make it, or mend store.url", **where
        )
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"there is no {key}", **where)
    if isinstance(error, NotImplementedError) or status == 501:
        return StoreCannot(f"the store does not offer this for {key}", why=why, **where)
    if any(sign in text for sign in _FULL):
        return StoreFull(f"no room for {key}", why=why, **where)
    if (400 <= status < 500 and status not in (408, 429)) or any(sign in text for sign in _WRONG_ANSWER):
        return StoreBroken(f"the store answered against its protocol about {key}", why=why, **where)
    kind = _NeverSent if "kind: Connect," in text else StoreUnreachable
    return kind(f"no answer about {key}", why=why, do="it is asked again later", **where)
