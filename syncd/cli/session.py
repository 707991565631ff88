"""What a command needs from the configuration: the store, the fleet root, the node's folder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from syncd.cli.common import Common
from syncd.errors import NotAuthentic, UsageError

if TYPE_CHECKING:
    from syncd.config import StoreSection
    from syncd.store.base import Store

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels it, waits for its clean-up and raises KeyboardInterrupt."""
    return asyncio.run(work)


def parse_reference(text: str) -> tuple[str, int | None, str | None]:
    """`M`, `M@N` or `M:CHANNEL` as (model, version, channel); UsageError for anything else."""
    model, at, number = text.partition("@")
    model, colon, channel = model.partition(":")
    wrong = at and not (number.isascii() and number.isdigit() and int(number) > 0)
    if not model or wrong or (colon and (at or not channel)):
        raise UsageError(f"{text!r} names no version", do="write M, M@N (a version) or M:CHANNEL")
    return model, int(number) if at else None, channel or None


def store_section(common: Common, *, alone: bool = False) -> StoreSection:
    """`[store]` of the configuration, or `--store` alone: where there is no configuration, or if told so."""
    from syncd import paths
    from syncd.config import StoreAlone
    from syncd.configfile import Sources, read_sources
    from syncd.findings import check

    file = None if alone else paths.config_file(common.config)
    if file is None and common.store is None:
        raise UsageError(
            "no store is named",
            why="there is no configuration file, and no --store",
            do="add --store URL, or -c FILE",
        )
    if file is not None:
        return common.load().store
    sources = read_sources(None, common.flags())
    section = sources.document["store"]
    return check(StoreAlone, Sources(None, {"store": section}, set_by=sources.set_by)).store


@asynccontextmanager
async def opened_store(section: StoreSection) -> AsyncIterator[Store]:
    """The store, closed at the end."""
    from syncd.store.open import open_store

    store = await asyncio.to_thread(open_store, section)
    try:
        yield store
    finally:
        await store.aclose()


async def trust_root(common: Common, store: Store, fingerprint: str | None) -> bytes:
    """The fleet root: fetched and compared with `--fingerprint`, else what `[trust] root` says.

    Raises:
        NotAuthentic: the store's root has another fingerprint; nothing was kept.
    """
    if fingerprint is None:
        return await asyncio.to_thread(configured_root, common)
    from syncd.daemon.roles import MAX_ROOT_BYTES
    from syncd.trust.names import FLEET_ROOT

    root = (await store.get(FLEET_ROOT, limit=MAX_ROOT_BYTES)).data
    found = hashlib.sha256(root).hexdigest()
    if found != plain_fingerprint(fingerprint):
        raise NotAuthentic(
            f"the store's root has fingerprint {found}, not {fingerprint}",
            why="another fleet's store, a mistyped fingerprint, or somebody between you and the store",
            do="compare with what `syncd init` printed; nothing was kept",
            store=store.url,
        )
    return root


def plain_fingerprint(text: str) -> str:
    """64 hex digits, in small letters, with or without `sha256:` and colons; UsageError for anything else."""
    plain = text.removeprefix("sha256:").replace(":", "").lower()
    if len(plain) != 64 or any(letter not in "0123456789abcdef" for letter in plain):
        raise UsageError(
            f"{text!r} is not a fingerprint", do="it has 64 hex digits, as `syncd init` printed it"
        )
    return plain


def configured_root(common: Common) -> bytes:
    """The bytes of `[trust] root`."""
    from syncd import paths
    from syncd.daemon.roles import read_root

    if paths.config_file(common.config) is None:
        raise UsageError(
            "nothing says whom to trust",
            why="there is no configuration file, and no --fingerprint",
            do="add --fingerprint F (`syncd init` printed it), or -c FILE",
        )
    return read_root(common.load().trust.root)


def node_path(common: Common) -> Path:
    """The node folder of this machine, as the daemon with this configuration has it."""
    from syncd import paths

    file = paths.config_file(common.config)
    configured = common.load().node.folder if file is not None else None
    return paths.node_folder(configured, config=file)
