"""A release becomes visible in one step: everything it needs lies in the store before the timestamp moves.

claim (create-only) → packs → documents → head → index → roles → snapshot → timestamp by compare-and-set. Numbered
metadata is create-only and signed only for the number it gets; what a killed or beaten publisher left is skipped by
gaps, so no number is ever used for two contents. The loser of a race has destroyed nothing and plans anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from syncd.artifact.head import DocumentRef, Head
from syncd.artifact.index import Index, IndexEntry
from syncd.errors import (
    DocumentInvalid,
    KeyUnusable,
    SyncdError,
    UnknownChannel,
    UnknownVersion,
)
from syncd.publisher.claims import claim_document
from syncd.publisher.documents import put_documents, put_same
from syncd.store.base import Store
from syncd.trust import names
from syncd.trust.facts import ChannelFacts, DeltaRef
from syncd.trust.founding import put_next
from syncd.trust.keys import channel_key_path, load_key, model_key_path
from syncd.trust.receipts import digest
from syncd.trust.sign import ModelSigner, SignedRole, Target
from syncd.trust.signing import (
    SIGNING_STEPS,
    Step,
    channel_target,
    committed_target,
    no_step,
    refuse_foreign_key,
    sign_next,
)
from syncd.trust.verify import ModelTrust, SignedState

STEPS: Final = (
    "publisher.before_documents",
    "publisher.before_head",
    "publisher.before_index",
    *SIGNING_STEPS,
)


@dataclass(frozen=True)
class Release:
    """What a commit did: `channel` and `release` are None where no channel moved (an older version finished later)."""

    model: str
    version: int
    channel: str | None
    release: int | None


async def open_model(
    store: Store, model: str, trust_root: bytes, keys: Path | None, folder: Path
) -> ModelRepository:
    """The model's verified current state, with what this machine needs to sign the next.

    Args:
        keys: the folder of online keys; None opens it for reading alone.
        folder: receipts and metadata of this publisher, so that it too refuses a store set back.
    Raises:
        NotAuthentic, UnknownModel, StoreError, KeyUnusable.
    """
    trust = ModelTrust(store, model, folder, trust_root)
    state = await trust.state()
    signer = await asyncio.to_thread(_load_signer, model, keys, state) if keys is not None else None
    repository = ModelRepository(store, model, trust, signer)
    await repository.load(state)
    return repository


def _load_signer(model: str, keys: Path, state: SignedState) -> ModelSigner:
    online = load_key(model_key_path(keys, model))
    if online.public_key.keyid not in state.keys["timestamp"]:
        raise KeyUnusable(
            f"the online key {online.public_key.keyid[:12]} is not the one that the store names for {model}",
            do=f"copy the key that `syncd init` made for {model}",
            path=model_key_path(keys, model),
        )
    own = {
        channel: load_key(path)
        for channel in state.channels
        if (path := channel_key_path(keys, model, channel)).exists()
    }
    return ModelSigner(model, online, own)


class ModelRepository:
    """One model's signed state and the way to its next. One task at a time; processes race by compare-and-set.

    `index` and `channels` are what is committed as far as this process has seen; `load` looks again.
    """

    def __init__(self, store: Store, model: str, trust: ModelTrust, signer: ModelSigner | None) -> None:
        self.store = store
        self.model = model
        self.trust = trust
        self.index = Index(self.model)
        self.channels: dict[str, ChannelFacts | None] = {}
        self._signer = signer
        self._state: SignedState | None = None

    async def load(self, state: SignedState | None = None) -> SignedState:
        """Look at the store again: another publisher may have committed since."""
        state = await self.trust.state() if state is None else state
        ref = state.receipts.index
        self.index = Index(self.model) if ref is None else Index.parse(await self.trust.fetch_index(ref))
        self.channels = dict(state.channels)
        self._state = state
        return state

    async def claim(self) -> int:
        """A version number that nobody else has or will have."""
        taken = [each.version for each in self.index.versions]
        taken += [each.version for each in self.index.retired]
        taken += [facts.version for facts in self.channels.values() if facts is not None]
        version, _ = await self._put_next(names.claim, max(taken, default=0) + 1, claim_document)
        return version

    async def commit(
        self,
        *,
        version: int,
        head: bytes,
        documents: Mapping[str, bytes] | None = None,
        upload: Callable[[], Awaitable[None]] | None = None,
        channel: str | None,
        deltas: Sequence[DeltaRef] = (),
        rollout: Mapping[str, Any] | None = None,
        step: Step = no_step,
    ) -> Release:
        """Make a claimed version visible, and release it on `channel` unless that one has a later version already.

        Args:
            head: the head's bytes; every pack it leads to is stored, or is stored by `upload`.
            documents: name below the model's folder (`layouts/HEX`, `tables/HEX`) → bytes.
            channel: None commits to the index alone.
            step: called with each name of STEPS when it is reached.
        Raises:
            LostRace: another publisher committed first; plan anew, `version` stays claimed.
            UnknownChannel, KeyUnusable: this machine cannot release there.
            StoreError: StoreUnreachable leaves open whether it was committed; committing again finds out.
        """
        entry = self._entry(version, head)
        state = await self._current()
        refuse_foreign_key(self._keyed(), state, names.VERSIONS_ROLE)
        if channel is not None:
            self._refuse_unknown(channel)
            refuse_foreign_key(self._keyed(), state, names.channel_role(channel))
        if upload is not None:
            await upload()
        step("publisher.before_documents")
        await put_documents(self.store, self.model, documents or {})
        step("publisher.before_head")
        await put_same(self.store, self.model, names.head(version), head)
        step("publisher.before_index")
        index = self.index if self.index.find(version) else _with_version(self.index, entry)
        changes: dict[str, Target | None] = {}
        if index != self.index:
            changes[names.VERSIONS_ROLE] = await self._put_index(state, index)
        facts = self._next_facts(channel, version, head, deltas, rollout or {"percent": 100})
        if facts is not None:
            changes[names.channel_role(facts.channel)] = channel_target(facts)
        if changes:
            await self.sign(changes, step=step)
            self.index = index
        if facts is not None:
            self.channels[facts.channel] = facts
        return self._release(version, channel)

    async def promote(self, version: int, channel: str, *, step: Step = no_step) -> Release:
        """Release a version of the index on a channel, up or down: a person's choice. Raises as `promotion`."""
        await self._current()
        facts = self.promotion(version, channel)
        await self.sign({names.channel_role(channel): channel_target(facts)}, step=step)
        self.channels[channel] = facts
        return Release(self.model, version, channel, facts.release)

    def promotion(self, version: int, channel: str) -> ChannelFacts:
        """What the channel would say with a kept version on it; nothing is signed.

        Raises:
            UnknownChannel; UnknownVersion: there is none, it was retired, or it was yanked.
        """
        self._refuse_unknown(channel)
        entry = self.entry(version)
        if entry.yanked or any(version in each.yanked for each in self.channels.values() if each):
            raise UnknownVersion(
                f"version {version} was yanked" + (f": {entry.yanked}" if entry.yanked else ""),
                do="nothing was changed: promote another version",
                model=self.model,
            )
        return self._facts(channel, version, entry.head.digest, entry.head.length, (), {"percent": 100})

    def entry(self, version: int) -> IndexEntry:
        """A kept version of the index. Raises UnknownVersion, naming those that there are."""
        entry = self.index.find(version)
        if entry is not None:
            return entry
        kept = ", ".join(str(each.version) for each in self.index.versions[-20:])
        retired = any(each.version == version for each in self.index.retired)
        raise UnknownVersion(
            f"version {version} was retired" if retired else f"model {self.model} has no version {version}",
            do=f"kept are {kept}" if kept else "publish one",
            model=self.model,
        )

    async def commit_index(
        self, index: Index, facts: Sequence[ChannelFacts] = (), *, step: Step = no_step
    ) -> None:
        """Commit an index in place of the one last loaded, and channels along with it, in one step.

        Raises:
            KeyUnusable: a channel is signed by a key that is not here; nothing was written. LostRace.
        """
        state = await self._current()
        changes: dict[str, Target | None] = {
            names.channel_role(each.channel): channel_target(each) for each in facts
        }
        for role in (names.VERSIONS_ROLE, *changes):
            refuse_foreign_key(self._keyed(), state, role)
        step("publisher.before_index")
        changes[names.VERSIONS_ROLE] = await self._put_index(state, index)
        await self.sign(changes, step=step)
        self.index = index
        self.channels |= {each.channel: each for each in facts}

    async def renew(self, due_before: float) -> tuple[str, ...]:
        """Sign again, content unchanged, every role of ours that expires before `due_before` (unix time).

        Returns the roles that were renewed; snapshot and timestamp are signed with any.
        """
        state = await self._current()
        signer = self._keyed()
        due = {
            role
            for role, receipt in state.receipts.roles.items()
            if role not in ("root", "targets") and role in state.files and receipt.expires < due_before
        }
        changes = {
            role: committed_target(state, role)
            for role in due - {"snapshot", "timestamp"}
            if signer.key_of(role).public_key.keyid in state.keys[role]
        }
        if not due:
            return ()
        await self.sign(changes)
        return tuple(sorted({*changes, "snapshot", "timestamp"}))

    async def sign(
        self,
        changes: Mapping[str, Target | None],
        *,
        targets: SignedRole | None = None,
        ready: Mapping[str, SignedRole] | None = None,
        step: Step = no_step,
    ) -> None:
        """Sign the changed roles and what stands over them, and move the timestamp if nobody has since `load`.

        Args:
            targets: new top-level delegations that the fleet key has signed and that lie in the store already.
            ready: roles of `changes` that their own keys have signed elsewhere, as `sign_next`.
        Raises:
            LostRace: somebody did; nothing is lost, `load` and plan anew.
        """
        state = await self._current()
        self._state = None
        written = await sign_next(
            self.store, self._keyed(), state, changes, targets=targets, ready=ready, step=step
        )
        with suppress(SyncdError, OSError):  # committed it is; without this the next one only looks again
            self._state = await self.trust.adopt(written)

    async def state(self) -> SignedState:
        """What was verified last; looked at again after a commit of unknown outcome."""
        return await self._current()

    def can_sign(self, role: str) -> bool:
        """Whether the key of a signing role is on this machine. Only after `load` or `state`."""
        if self._signer is None or self._state is None:
            return False
        return self._signer.key_of(role).public_key.keyid in self._state.keys.get(role, ())

    async def _current(self) -> SignedState:
        return await self.load() if self._state is None else self._state

    def _entry(self, version: int, head: bytes) -> IndexEntry:
        parsed = Head.parse(head)
        if (parsed.model, parsed.version) != (self.model, version):
            raise DocumentInvalid(
                f"the head is of {parsed.model}@{parsed.version}, to be committed was {self.model}@{version}"
            )
        return IndexEntry.of(parsed, DocumentRef(digest(head), len(head)))

    def _release(self, version: int, channel: str | None) -> Release:
        """What holds for the version now, committed by this call or, after a lost answer, by one before it."""
        facts = self.channels.get(channel) if channel is not None else None
        if facts is None or facts.version != version:
            return Release(self.model, version, None, None)
        return Release(self.model, version, facts.channel, facts.release)

    def _next_facts(
        self,
        channel: str | None,
        version: int,
        head: bytes,
        deltas: Sequence[DeltaRef],
        rollout: Mapping[str, Any],
    ) -> ChannelFacts | None:
        """The channel with the version on it; None where it has that or a later one: it never moves back by itself."""
        if channel is None:
            return None
        before = self.channels.get(channel)
        if before is not None and before.version >= version:
            return None
        return self._facts(channel, version, digest(head), len(head), deltas, rollout)

    def _facts(
        self,
        channel: str,
        version: int,
        head_digest: str,
        head_length: int,
        deltas: Sequence[DeltaRef],
        rollout: Mapping[str, Any],
    ) -> ChannelFacts:
        before = self.channels.get(channel)
        return ChannelFacts(
            model=self.model,
            channel=channel,
            version=version,
            release=1 if before is None else before.release + 1,
            head_digest=head_digest,
            head_length=head_length,
            released_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            yanked=() if before is None else before.yanked,
            deltas=tuple(deltas)[-8:],
            rollout=rollout,
        )

    async def _put_index(self, state: SignedState, index: Index) -> Target:
        ref = state.receipts.index
        last = (names.index_number(ref.name) or 0) if ref is not None else 0
        data = index.to_bytes()
        number, _ = await self._put_next(names.index, last + 1, lambda number: data)
        return Target(names.index(number), digest(data), len(data))

    async def _put_next(
        self, name: Callable[[int], str], first: int, make: Callable[[int], bytes]
    ) -> tuple[int, bytes]:
        return await put_next(self.store, self.model, name, first, make)

    def _refuse_unknown(self, channel: str) -> None:
        if channel not in self.channels:
            raise UnknownChannel(
                f"model {self.model} has no channel {channel!r}",
                why=f"it has {', '.join(sorted(self.channels))}",
                do=f"a new channel needs the fleet key: `syncd init --model {self.model} --channel {channel}`",
                model=self.model,
            )

    def _keyed(self) -> ModelSigner:
        if self._signer is None:
            raise KeyUnusable("this was opened without keys: it can be read only", do="give [trust] keys")
        return self._signer

    def _key(self, name: str) -> str:
        return names.model_key(self.model, name)


def _with_version(index: Index, entry: IndexEntry) -> Index:
    """The index with one version more, by rising number: one that finished late takes its place."""
    versions = sorted((*index.versions, entry), key=lambda each: each.version)
    return replace(index, versions=tuple(versions))
