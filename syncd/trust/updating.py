"""One refresh of signed metadata by python-tuf, in a copy of the metadata folder that one rename puts in place.

FOLDER/metadata → metadata-7     a link; python-tuf's own files, fsynced before they are named
FOLDER/metadata-7/…              whole once it has its name; others are swept at the next accepted refresh
FOLDER/.refresh-PID/…            torn or refused; nobody reads it
FOLDER/receipts.json             written last

Runs in a thread, imports tuf. The two things of python-tuf that have no public door are used here alone: the reference
time for expiry, and loading one named role (`get_targetinfo` wants the target's name, which only the role tells).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import BadVersionNumberError, DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Targets
from tuf.ngclient import Updater, UpdaterConfig

from syncd.crashpoint import reached
from syncd.durable import fsync_folder, make_folder, replace_link
from syncd.errors import DocumentInvalid, Expired, NotAuthentic, RolledBack, SyncdError, UnknownChannel
from syncd.trust import names
from syncd.trust.facts import ChannelFacts, parse_channel
from syncd.trust.fetcher import StoreFetcher
from syncd.trust.limits import ROLE_BYTES, ROOT_BYTES, SNAPSHOT_BYTES, TIMESTAMP_BYTES
from syncd.trust.receipts import (
    IndexRef,
    Receipts,
    RoleReceipt,
    digest,
    disk_errors,
    load_receipts,
    locked,
    refuse_expired,
)
from syncd.trust.sign import MODEL_FIELD, SIGNED_AT_FIELD, SignedRole

TOP_ROLES: Final = ("root", "timestamp", "snapshot", "targets")
LINK: Final = "metadata"
CRASH_POINTS: Final = (
    "trust.before_name",
    "trust.before_link",
    "trust.before_sweep",
    "trust.before_receipts",
)
_MISMATCH = re.compile(r"Expected (root|snapshot) version |Expected \S+ v\d+, got v\d+")
_NEVER_EXPIRED: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """What one refresh needs. `roles`: the signing roles to load below `targets`; None for every one delegated."""

    model: str
    folder: Path
    root: bytes
    roles: tuple[str, ...] | None
    fetched: Mapping[str, bytes | SyncdError]
    get: Callable[[str, int], bytes]
    now: float
    accept_expired: bool


@dataclass(frozen=True)
class Outcome:
    """What was accepted: the receipts, every loaded role as served, and who may sign what."""

    receipts: Receipts
    files: Mapping[str, SignedRole]
    delegated: Mapping[str, tuple[str, ...]]


def refresh(request: Request) -> Outcome:
    """Verify what the store offers and put it in place; after any error everything on disk is as it was.

    Raises:
        NotAuthentic, RolledBack, Expired, DocumentInvalid, UnknownChannel: refused.
        StoreError: the store could not answer.
        NodeBusy: another process has been refreshing this folder for a minute.
    """
    with disk_errors(request.folder):
        make_folder(request.folder, 0o700)
    with disk_errors(request.folder), locked(request.folder):
        fleet = digest(request.root)
        receipts = load_receipts(request.folder, fleet, request.model)
        work = request.folder / f".refresh-{os.getpid()}"
        try:
            _copy_metadata(request.folder, work)
            outcome = _verify(request, receipts, work)
            if outcome.files != _files(request.folder / LINK, outcome.files):
                _put_in_place(request.folder, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        reached("trust.before_receipts")
        if outcome.receipts != receipts:
            outcome.receipts.save(request.folder)
        return outcome


def _verify(request: Request, receipts: Receipts, work: Path) -> Outcome:
    with _wrapped(request.model):
        signed, delegated = _walk(request, receipts, work)
    files = {role: _served(work, role, each.version) for role, each in signed.items()}
    fetched = request.fetched.get(names.TIMESTAMP)
    if (
        isinstance(fetched, bytes) and fetched != files["timestamp"].data
    ):  # python-tuf drops an equal number unseen
        raise NotAuthentic(
            f"number {signed['timestamp'].version} of timestamp has two contents",
            why="somebody else signs with the same keys, or the store was set back and written to again",
            do="nothing was changed: the next number is looked at afresh",
            model=request.model,
        )
    loaded = {
        role: RoleReceipt(each.version, digest(files[role].data), each.expires.timestamp(), delegated[role])
        for role, each in signed.items()
    }
    offered = {**_named(signed["snapshot"], delegated), **loaded}
    receipts.refuse_older(offered, delegated)
    signed_at = max(receipts.signed_at, _signed_at(signed["timestamp"]))
    if not request.accept_expired:
        refuse_expired(request.model, loaded, max(request.now, signed_at))
    channels, index = _targets(request.model, receipts, signed, loaded, delegated)
    return Outcome(
        replace(
            receipts,
            signed_at=signed_at,
            roles={**receipts.roles, **loaded},
            channels={**receipts.channels, **channels},
            index=index if names.VERSIONS_ROLE in signed else receipts.index,
        ),
        files,
        delegated,
    )


def _walk(
    request: Request, receipts: Receipts, work: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """python-tuf's client workflow; → signed objects by role, keys by role."""
    fetcher = StoreFetcher(request.model, request.fetched, request.get)
    config = UpdaterConfig(
        root_max_length=ROOT_BYTES,
        timestamp_max_length=TIMESTAMP_BYTES,
        snapshot_max_length=SNAPSHOT_BYTES,
        targets_max_length=ROLE_BYTES,
    )
    updater = Updater(str(work), LINK, fetcher=fetcher, config=config, bootstrap=request.root)
    trusted = updater._trusted_set
    now = datetime.fromtimestamp(max(request.now, receipts.signed_at), UTC)
    trusted.reference_time = _NEVER_EXPIRED if request.accept_expired else now
    updater.refresh()
    targets = trusted.targets
    delegations = (targets.delegations and targets.delegations.roles) or {}
    signed: dict[str, Any] = {role: trusted[role] for role in TOP_ROLES}
    for role in delegations if request.roles is None else request.roles:
        if role not in delegations:
            raise _unknown(request.model, role, delegations)
        signed[role] = updater._load_targets(role, Targets.type)
        for name in signed[role].targets:
            if not delegations[role].is_delegated_path(name):
                raise NotAuthentic(f"{role} may not sign {name!r:.100}", model=request.model)
    for role, each in signed.items():
        if each.unrecognized_fields.get(MODEL_FIELD) != request.model and (role, each.version) != ("root", 1):
            raise NotAuthentic(f"{role} is not for model {request.model!r}", model=request.model)
    keys = {role: tuple(sorted(trusted.root.roles[role].keyids)) for role in TOP_ROLES}
    keys |= {role: tuple(sorted(each.keyids)) for role, each in delegations.items()}
    return signed, keys


def _unknown(model: str, role: str, delegations: Mapping[str, Any]) -> UnknownChannel:
    channels = sorted(filter(None, map(names.role_channel, delegations)))
    return UnknownChannel(
        f"model {model} has no channel {names.role_channel(role)!r}",
        why=f"it has {', '.join(channels)}",
        do="a new channel needs the fleet key: `syncd init --channel NAME`",
        model=model,
    )


def _targets(
    model: str,
    receipts: Receipts,
    signed: Mapping[str, Any],
    loaded: Mapping[str, RoleReceipt],
    delegated: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, ChannelFacts], IndexRef | None]:
    """The facts of every loaded channel, and where the index is."""
    channels: dict[str, ChannelFacts] = {}
    index: IndexRef | None = None
    for role in signed.keys() - set(TOP_ROLES):
        target = _single_target(model, role, signed[role])
        channel = names.role_channel(role)
        if channel is not None:
            expires = {each: loaded[each].expires for each in (*TOP_ROLES, role)}
            facts = None
            if target is not None:
                ref = _reference(target)
                facts = parse_channel(
                    model, channel, ref.name, ref.digest, ref.length, target.custom, expires
                )
                channels[channel] = facts
            receipts.refuse_replay(channel, facts, delegated[role])
        elif role == names.VERSIONS_ROLE and target is not None:
            index = _reference(target)
            if names.index_number(index.name) is None:
                raise DocumentInvalid(f"{index.name!r:.100} is no index", model=model)
    return channels, index


def _single_target(model: str, role: str, signed: Any) -> Any | None:
    if len(signed.targets) > 1 or any("sha256" not in each.hashes for each in signed.targets.values()):
        raise DocumentInvalid(
            f"{role} has {len(signed.targets)} targets, at most one with a SHA-256 is right", model=model
        )
    return next(iter(signed.targets.values()), None)


def _reference(target: Any) -> IndexRef:
    return IndexRef(target.path, f"sha256:{target.hashes['sha256']}", target.length)


def _named(snapshot: Any, delegated: Mapping[str, tuple[str, ...]]) -> dict[str, RoleReceipt]:
    """What the snapshot says of the roles that were not loaded: number and digest."""
    return {
        (role := name.removesuffix(".json")): RoleReceipt(
            meta.version, f"sha256:{(meta.hashes or {}).get('sha256')}", 0.0, delegated.get(role, ())
        )
        for name, meta in snapshot.meta.items()
    }


def _signed_at(timestamp: Any) -> float:
    """When the timestamp says it was signed; nothing that lies after its own expiry is believed."""
    value = timestamp.unrecognized_fields.get(SIGNED_AT_FIELD)
    believable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if believable and 0 < value <= timestamp.expires.timestamp() else 0.0


@contextlib.contextmanager
def _wrapped(model: str) -> Iterator[None]:
    """python-tuf's errors as ours."""
    do = "nothing was changed: what serves goes on serving"
    try:
        yield
    except ExpiredMetadataError as error:
        raise Expired(
            f"the store's metadata has expired: {error}",
            why="nobody has renewed it, an old copy of the store is being served, or a clock is wrong",
            do=f"{do}; `syncd pull --accept-expired` takes it as it is",
            model=model,
        ) from error
    except BadVersionNumberError as error:
        if _MISMATCH.match(str(error)):
            raise NotAuthentic(
                f"documents of different commits are mixed: {error}", do=do, model=model
            ) from error
        raise RolledBack(
            "the store offers older metadata than this node has accepted",
            why="an old copy of the store is being served, by a cache, a restored backup or an attacker",
            do=do,
            model=model,
        ) from error
    except RepositoryError as error:
        kind = RolledBack if str(error).startswith("New snapshot is missing info") else NotAuthentic
        raise kind(f"the store's metadata does not verify: {error}", do=do, model=model) from error
    except DownloadError as error:
        raise NotAuthentic(f"the store's metadata cannot be used: {error}", do=do, model=model) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAuthentic(f"the store's metadata breaks its format: {error}", do=do, model=model) from error


def _copy_metadata(folder: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree((folder / LINK).resolve(strict=True), work, symlinks=True)
    work.mkdir(mode=0o700, exist_ok=True)


def _files(folder: Path, like: Mapping[str, SignedRole]) -> dict[str, SignedRole]:
    """The same roles as they lie in `folder`; without what is not there."""
    found = {}
    for role, each in like.items():
        with contextlib.suppress(OSError):
            found[role] = _served(folder, role, each.number)
    return found


def _served(folder: Path, role: str, number: int) -> SignedRole:
    path = folder / "root_history" / f"{number}.root.json" if role == "root" else folder / f"{role}.json"
    return SignedRole(number, path.read_bytes())


def _put_in_place(folder: Path, work: Path) -> None:
    """fsync all of `work`, name it, and point the link at it; then sweep what nobody reads any more."""
    for parent, _, found in os.walk(work):
        for name in found:
            path = Path(parent, name)
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        fsync_folder(Path(parent))
    numbers = [int(each.name.partition("-")[2]) for each in folder.glob(f"{LINK}-[0-9]*")]
    name = f"{LINK}-{max(numbers, default=0) + 1}"
    reached("trust.before_name")
    work.rename(folder / name)
    fsync_folder(folder)
    reached("trust.before_link")
    replace_link(folder / LINK, name)
    reached("trust.before_sweep")
    for each in (*folder.glob(f"{LINK}-*"), *folder.glob(".refresh-*"), *folder.glob(".part-*")):
        if each.name != name:
            shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
