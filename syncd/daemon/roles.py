"""What the configuration makes run: a publisher for each `[[publish]]`, an edge for each `[[follow]]`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from syncd.config import Config, FollowSection, PublishSection
from syncd.errors import ConfigInvalid
from syncd.node.links import NodeFolder
from syncd.state.db import Database
from syncd.store.base import Store

log = logging.getLogger("syncd.daemon")

MAX_ROOT_BYTES = 64 * 1024


class Worker(Protocol):
    """What runs for one section: until cancelled, woken early by its event, telling how it stands at any time."""

    async def run(self, wake: asyncio.Event) -> None: ...

    def snapshot(self) -> dict[str, Any]: ...


@dataclass
class Role:
    """One section at work; two sections that are equal need no restart.

    The worker is made within the supervised work: a role that cannot be made yet (its key is missing, say) is tried
    again like one that fails later, and the others go on.
    """

    name: str
    section: PublishSection | FollowSection
    store: Store
    make: Callable[[], Worker]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    worker: Worker | None = None

    async def start(self) -> None:
        """The supervised work."""
        if self.worker is None:
            self.worker = await asyncio.to_thread(self.make)
        await self.worker.run(self.wake)

    def snapshot(self) -> dict[str, Any]:
        """What the worker tells of itself; little while there is none."""
        if self.worker is None:
            return {"channel": self.section.channel, "state": None}
        return self.worker.snapshot()

    @property
    def publishes(self) -> bool:
        """Is it a `[[publish]]`?"""
        return isinstance(self.section, PublishSection)


@dataclass(frozen=True)
class Ground:
    """What all roles of a daemon stand on; it is made once and outlives a reload.

    `open_store` gives each role a store of its own, so that each counts its own bytes.
    """

    open_store: Callable[[], Store]
    trust_root: bytes
    keys: Path | None
    node: NodeFolder
    db: Database
    name: str = ""


def read_root(path: Path) -> bytes:
    """The fleet root that this machine was given.

    Raises:
        ConfigInvalid: it cannot be read, or is larger than any root.
    """
    try:
        with path.open("rb") as file:
            root = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(
            f"the fleet root cannot be read: {error.strerror}",
            do="`syncd init` wrote it beside the keys, `syncd join STORE --fingerprint F --model M` fetches it",
            path=path,
        ) from error
    if len(root) > MAX_ROOT_BYTES:
        raise ConfigInvalid(f"the fleet root is larger than {MAX_ROOT_BYTES} bytes", path=path)
    return root


def wanted(config: Config) -> dict[str, PublishSection | FollowSection]:
    """Name of the role → its section."""
    roles: dict[str, PublishSection | FollowSection] = {}
    for publish in config.publish:
        roles[f"publish {publish.model} {publish.watch}"] = publish
    for follow in config.follow:
        roles[f"follow {follow.model}"] = follow
    return roles


def build(name: str, section: PublishSection | FollowSection, ground: Ground) -> Role:
    """One section's role, with a store of its own; nothing runs yet, the network is not asked."""
    store = ground.open_store()
    make = _publisher if isinstance(section, PublishSection) else _follow
    return Role(name, section, store, partial(make, section, store, ground))


def _publisher(section: Any, store: Store, ground: Ground) -> Worker:
    from syncd.publisher.pipeline import Publisher
    from syncd.trust.keys import load_key, model_key_path

    if ground.keys is not None:
        load_key(
            model_key_path(ground.keys, section.model)
        )  # say at the start that it is missing or open to others
    return Publisher(
        section,
        store=store,
        trust_root=ground.trust_root,
        keys=ground.keys,
        db=ground.db,
        folder=ground.node.path / "trust",
    )


def _follow(section: Any, store: Store, ground: Ground) -> Worker:
    from syncd.edge.follow import Follow

    return Follow(
        section, store=store, trust_root=ground.trust_root, node=ground.node, db=ground.db, name=ground.name
    )


Change = tuple[list[str], list[str]]


def changes(running: dict[str, Role], config: Config) -> Change:
    """(names to stop, names to start) so that exactly what `config` wants runs; equal sections go on undisturbed."""
    now = wanted(config)
    stop = [name for name, role in running.items() if now.get(name) != role.section]
    start = [name for name in now if name not in running or name in stop]
    return stop, start


Loader = Callable[[], Config]
