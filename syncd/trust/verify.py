"""What a node may believe about one model: verified facts out of a store that nobody has to trust.

An idle poll is one conditional request. On a change the names that the timestamp hints at are prefetched side by side,
then python-tuf verifies them in a thread (updating.py): two round trips, for a known node and a fresh one alike.
Nothing here imports tuf before the first refresh.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from syncd.artifact.index import Index
from syncd.errors import (
    DocumentInvalid,
    NotAuthentic,
    ObjectMissing,
    ObjectTooLarge,
    RolledBack,
    SegmentCorrupt,
    StoreDenied,
    StoreError,
    SyncdError,
    UnknownModel,
)
from syncd.store.base import Blob, Store
from syncd.trust import names
from syncd.trust.facts import MAX_HEAD_BYTES, MAX_INDEX_BYTES, ChannelFacts, DeltaRef
from syncd.trust.hints import limit_of, read_hints, worth_fetching
from syncd.trust.limits import TIMESTAMP_BYTES
from syncd.trust.receipts import (
    IndexRef,
    Poll,
    Receipts,
    digest,
    disk_errors,
    load_receipts,
    locked,
    refuse_expired,
)
from syncd.trust.sign import SignedRole

if TYPE_CHECKING:
    from syncd.trust.updating import Outcome

__all__ = ["ChannelFacts", "DeltaRef", "ModelTrust", "SignedState"]

ROOT_PROBE_S: Final = 3600.0
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
_ON_THE_WAY: Final = ("root", "timestamp", "snapshot", "targets")
Fetched = dict[str, "bytes | SyncdError"]


@dataclass(frozen=True)
class SignedState:
    """All of a model's verified metadata, for one who signs the next.

    `etag` belongs to exactly these timestamp bytes; `files` has every role as served; `keys` who may sign it.
    """

    etag: str | None
    files: Mapping[str, SignedRole]
    keys: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, ChannelFacts | None]
    receipts: Receipts


@dataclass(frozen=True)
class Written:
    """What a publisher has just committed: the timestamp's new ETag, and every role but root as it is served."""

    etag: str | None
    files: Mapping[str, SignedRole]


class ModelTrust:
    """One model of one store, as this node has accepted it so far. One at a time per folder is fast, more are safe.

    Args:
        folder: receipts and copies of signed metadata; made with mode 0700.
        root: the bytes of the fleet root that `init` or `join` wrote.
        accept_expired: take expired metadata as it is; a person's choice, for one command.
        clock: unix time.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        folder: Path,
        root: bytes,
        *,
        accept_expired: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        names.model_folder(model)
        self._store = store
        self._model = model
        self._folder = folder
        self._root = root
        self._fleet = digest(root)
        self._accept_expired = accept_expired
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: Receipts | None = None
        self._probed_at: float | None = None
        self._at_hand: Fetched = {}
        self._told: dict[
            str, ChannelFacts | None
        ] = {}  # so that news whose refresh was cut short is told again

    async def refresh(self, channel: str) -> ChannelFacts | None:
        """Look for news of a channel; None if what it says is what was accepted last, or if it has no release yet.

        Idle: one conditional request and no body (two requests at the first poll of a process and hourly, for a new
        root). `accepted` has the facts in every case. After an error nothing has changed, on disk or here.
        Raises:
            NotAuthentic, RolledBack, Expired: refused; keep serving.
            UnknownModel, UnknownChannel; StoreUnreachable and other StoreErrors.
        """
        async with self._lock:
            before = self._told.setdefault(channel, (await self._receipts()).channels.get(channel))
            after = (await self._poll(names.channel_role(channel))).channels.get(channel)
            self._told[channel] = after
            return None if after is None or after.says_the_same(before) else after

    def accepted(self, channel: str) -> ChannelFacts | None:
        """What was accepted last, with no network: the ground for starting offline. None if nothing was."""
        if self._known is None:
            self._known = load_receipts(self._folder, self._fleet, self._model)
        return self._known.channels.get(channel)

    async def index(self) -> bytes:
        """The verified bytes of the newest index, one without versions before the first. Raises as `refresh`."""
        async with self._lock:
            ref = (await self._poll(names.VERSIONS_ROLE)).index
        return Index(self._model).to_bytes() if ref is None else await self.fetch_index(ref)

    async def fetch_index(self, ref: IndexRef) -> bytes:
        """The index that the receipts name, verified by its signed digest."""
        if ref.length > MAX_INDEX_BYTES:
            raise DocumentInvalid(
                f"the index has {ref.length} bytes, {MAX_INDEX_BYTES} are allowed", model=self._model
            )
        return await self._verified(ref.name, ref.digest, ref.length)

    async def fetch_head(self, facts: ChannelFacts) -> bytes:
        """The head that a channel releases, verified by its signed digest."""
        return await self._verified(names.head(facts.version), facts.head_digest, facts.head_length)

    async def fetch_version_head(self, version: int, head_digest: str, length: int) -> bytes:
        """The head of a version out of the index, verified by its digest."""
        if length > MAX_HEAD_BYTES:
            raise DocumentInvalid(
                f"the head has {length} bytes, {MAX_HEAD_BYTES} are allowed", model=self._model
            )
        return await self._verified(names.head(version), head_digest, length)

    async def fetch_document(self, kind: names.DocumentKind, document_digest: str, length: int) -> bytes:
        """A layout, segment table, delta document or whole pack, verified by its digest.

        Raises:
            NotAuthentic: the store has other bytes there (SegmentCorrupt for a pack).
        """
        if length > MAX_DOCUMENT_BYTES:
            raise DocumentInvalid(
                f"a document of {length} bytes, {MAX_DOCUMENT_BYTES} are allowed", model=self._model
            )
        return await self._verified(names.document(kind, document_digest), document_digest, length)

    async def state(self) -> SignedState:
        """Everything signed for the model, freshly verified, for a publisher. Raises as `refresh`."""
        async with self._lock:
            outdated: bytes | None = None
            while True:
                receipts = await self._receipts()
                blob, root = await self._look(receipts, etag=None, probe=True)
                if blob is None:
                    raise StoreError(
                        "the store answered a plain get as if it were conditional", model=self._model
                    )
                try:
                    outcome = await self._update(receipts, blob.data, root, None)
                except RolledBack:
                    # Another process of this machine may have accepted later metadata after ours was fetched: then
                    # the store has that too. One that still offers the same was set back.
                    if blob.data == outdated:
                        raise
                    outdated, self._known = blob.data, None
                    continue
                self._accept(outcome.receipts)
                return _state(blob.etag, outcome)

    async def adopt(self, written: Written) -> SignedState:
        """Take what this process has committed as accepted, verified like any other, with no request."""
        async with self._lock:
            receipts = await self._receipts()
            timestamp = written.files["timestamp"].data
            root: Fetched = {
                names.metadata(self._next_root(receipts), "root"): ObjectMissing(
                    "the next root was not looked for"
                )
            }
            files: Fetched = {
                names.metadata(each.number, role): each.data for role, each in written.files.items()
            }
            outcome = await self._verify(timestamp, {**files, **root}, None)
            self._known = outcome.receipts
            return _state(written.etag, outcome)

    async def _receipts(self) -> Receipts:
        if self._known is None:
            self._known = await asyncio.to_thread(load_receipts, self._folder, self._fleet, self._model)
        return self._known

    def _accept(self, receipts: Receipts) -> None:
        self._known = receipts
        self._probed_at = time.monotonic()

    async def _poll(self, role: str) -> Receipts:
        """The receipts after looking for news of one signing role."""
        receipts = await self._receipts()
        known = receipts.roles.get("timestamp")
        poll = receipts.polls.get(role)
        current = poll is not None and known is not None and poll.timestamp == known.digest
        probe = self._probed_at is None or time.monotonic() - self._probed_at >= ROOT_PROBE_S
        etag = poll.etag if poll is not None and current else None
        blob, root = await self._look(receipts, etag=etag, probe=probe)
        same = blob is None or (current and known is not None and digest(blob.data) == known.digest)
        if same and not _found(root):
            self._refuse_expired(receipts, role)
            if blob is not None and blob.etag != etag:
                receipts = await self._remember(receipts, role, blob.etag)
            self._known = receipts
            if probe and _answered(root):
                self._probed_at = time.monotonic()
            return receipts
        if blob is None:
            blob = await self._store.get(self._key(names.TIMESTAMP), limit=TIMESTAMP_BYTES)
        outcome = await self._update(receipts, blob.data, root, (role,))
        self._accept(await self._remember(outcome.receipts, role, blob.etag))
        return await self._receipts()

    async def _look(
        self, receipts: Receipts, *, etag: str | None, probe: bool
    ) -> tuple[Blob | None, Fetched]:
        """The timestamp if it changed and, side by side, the next root if it is time to look for one."""
        root = names.metadata(self._next_root(receipts), "root")
        roots = asyncio.ensure_future(self._fetch_all([root] if probe else []))
        try:
            blob = await self._store.get_if_changed(self._key(names.TIMESTAMP), etag, limit=TIMESTAMP_BYTES)
        except ObjectMissing as error:
            if "timestamp" in receipts.roles:
                raise
            raise UnknownModel(
                f"the store has no model {self._model!r}",
                do="check the name, or publish one: `syncd init --model NAME`",
                store=self._store.url,
            ) from error
        except ObjectTooLarge as error:
            raise NotAuthentic(
                f"the timestamp has more than the {TIMESTAMP_BYTES} bytes that it may have",
                do="nothing was changed: what serves goes on serving",
                model=self._model,
            ) from error
        finally:
            found = await roots
        return blob, found

    async def _update(
        self, receipts: Receipts, timestamp: bytes, root: Fetched, roles: tuple[str, ...] | None
    ) -> Outcome:
        """Prefetch what the timestamp hints at, then let python-tuf verify it all in a thread."""
        next_root = self._next_root(receipts)
        looked_for = names.metadata(next_root, "root")
        after = names.metadata(next_root + 1, "root") if _found(root) else looked_for
        wanted = [] if after in root else [after]
        wanted += worth_fetching(read_hints(timestamp), receipts, roles)
        fetched = {**root, **await self._fetch_all(wanted)}
        self._at_hand = {name: each for name, each in fetched.items() if names.parse_metadata(name) is None}
        return await self._verify(timestamp, fetched, roles)

    async def _verify(self, timestamp: bytes, fetched: Fetched, roles: tuple[str, ...] | None) -> Outcome:
        from syncd.store.blocking import BlockingStore

        fetched = {**fetched, names.TIMESTAMP: timestamp}
        blocking = BlockingStore(self._store, asyncio.get_running_loop())

        def update() -> Outcome:
            from syncd.trust.updating import Request, refresh

            def get(name: str, limit: int) -> bytes:
                return blocking.get(self._key(name), limit).data

            now, accept = self._clock(), self._accept_expired
            return refresh(Request(self._model, self._folder, self._root, roles, fetched, get, now, accept))

        return await asyncio.to_thread(update)

    def _refuse_expired(self, receipts: Receipts, role: str) -> None:
        if not self._accept_expired:
            roles = {each: receipts.roles[each] for each in (*_ON_THE_WAY, role) if each in receipts.roles}
            refuse_expired(self._model, roles, max(self._clock(), receipts.signed_at))

    async def _remember(self, receipts: Receipts, role: str, etag: str | None) -> Receipts:
        """Keep the ETag across restarts; None where the store's must not be remembered."""
        poll = Poll(etag, receipts.roles["timestamp"].digest)

        def save() -> Receipts:
            with disk_errors(self._folder), locked(self._folder):
                current = load_receipts(self._folder, self._fleet, self._model)
                if current.polls.get(role) != poll:
                    current = current.with_poll(role, poll)
                    current.save(self._folder)
                return current

        return await asyncio.to_thread(save)

    async def _verified(self, name: str, wanted_digest: str, length: int) -> bytes:
        """An object whose length and digest are signed."""
        data = self._at_hand.pop(name, None)
        if not isinstance(data, bytes) or digest(data) != wanted_digest:
            try:
                data = (await self._store.get(self._key(name), limit=length)).data
            except ObjectTooLarge as error:
                raise self._tampered(name, f"has more than the {length} bytes that are signed") from error
        if len(data) != length or digest(data) != wanted_digest:
            raise self._tampered(
                name, f"has digest {digest(data)} ({len(data)} bytes), signed is {wanted_digest}"
            )
        return data

    def _tampered(self, name: str, how: str) -> SyncdError:
        kind = SegmentCorrupt if name.startswith("packs/") else NotAuthentic
        return kind(
            f"{name} {how}",
            why="the store, or a cache before it, served changed bytes",
            do="nothing was changed: what serves goes on serving; `syncd verify --remote` lists what is bad",
            model=self._model,
        )

    async def _fetch_all(self, wanted: Iterable[str]) -> Fetched:
        """Names side by side → bytes, or the error that each gave."""

        async def fetch(name: str) -> bytes | SyncdError:
            try:
                return (await self._store.get(self._key(name), limit=limit_of(name))).data
            except SyncdError as error:
                return error

        listed = list(wanted)
        return dict(zip(listed, await asyncio.gather(*map(fetch, listed)), strict=True))

    def _next_root(self, receipts: Receipts) -> int:
        accepted = receipts.roles.get("root")
        return (accepted.number if accepted is not None else _root_number(self._root)) + 1

    def _key(self, name: str) -> str:
        return names.model_key(self._model, name)


def _state(etag: str | None, outcome: Outcome) -> SignedState:
    channels = {
        channel: outcome.receipts.channels.get(channel)
        for channel in map(names.role_channel, outcome.delegated)
        if channel is not None
    }
    return SignedState(etag, outcome.files, outcome.delegated, channels, outcome.receipts)


def _found(root: Fetched) -> bool:
    return any(isinstance(each, bytes) for each in root.values())


def _answered(root: Fetched) -> bool:
    return all(isinstance(each, ObjectMissing | StoreDenied) for each in root.values())


def _root_number(root: bytes) -> int:
    try:
        return int(json.loads(root)["signed"]["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise NotAuthentic(
            "the fleet root is not signed metadata", do="write it again with `syncd join`"
        ) from error
