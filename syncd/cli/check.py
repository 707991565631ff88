"""`syncd check`: tries, as this user and on this machine, whatever the configuration will need."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from syncd.cli.common import Common, bytes_text
from syncd.errors import ConfigInvalid, Failed, NotAuthentic, StoreUnreachable, SyncdError

if TYPE_CHECKING:
    from syncd.config import Config, FollowSection, HookSection, PublishSection
    from syncd.store.base import Store

WITHIN_S: Final = 60.0
MAX_SKEW_S: Final = 60.0
LOW_ROOM_BYTES: Final = 128 << 20
LOOKED_AT: Final = 20


@dataclass
class Report:
    """What was tried so far."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    exit_status: int = 0
    model_bytes: dict[str, int] = field(default_factory=dict)

    def good(self, name: str, detail: str) -> None:
        """Something works."""
        self.checks.append({"name": name, "ok": True, "detail": detail, "fix": ""})

    def bad(self, name: str, error: SyncdError) -> None:
        """Something does not; the first failure decides the exit status."""
        self.exit_status = self.exit_status or error.exit_status
        detail = error.what + (f" ({error.why})" if error.why else "")
        self.checks.append({"name": name, "ok": False, "detail": detail, "fix": error.do})

    async def attempt(self, name: str, work: Callable[[], Awaitable[str]]) -> bool:
        """Try one thing within its time."""
        try:
            async with asyncio.timeout(WITHIN_S):
                self.good(name, await work())
        except SyncdError as error:
            self.bad(name, error)
        except TimeoutError:
            self.bad(name, StoreUnreachable(f"no end within {WITHIN_S:.0f} s", do="look at the network"))
        except OSError as error:
            self.bad(name, Failed(f"{error.strerror}: {error.filename}", do="mend its owner or mode"))
        else:
            return True
        return False

    def result(self) -> dict[str, Any]:
        """INTERFACE's object."""
        return {"ok": not self.exit_status, "checks": self.checks, "exit_status": self.exit_status}


def run_check(common: Common) -> dict[str, Any]:
    """Try everything; a mistake in the configuration is told beside the rest of them and ends it."""
    report = Report()
    try:
        config = common.load()
    except ConfigInvalid as error:
        for finding in error.findings:
            place = ":".join(str(finding[part]) for part in ("file", "line") if finding[part])
            meant = f"did you mean {finding['nearest']}? " if finding["nearest"] else ""
            what = ": ".join(filter(None, (place, finding["key"], finding["problem"])))
            report.bad("config", ConfigInvalid(what, do=f"{meant}allowed: {finding['allowed']}"))
        return {**report.result(), "error": error.as_dict()}
    idle = "" if config.publish or config.follow else ": a daemon has nothing to do yet"
    report.good("config", f"{len(config.publish)} [[publish]], {len(config.follow)} [[follow]]{idle}")
    asyncio.run(_try_all(config, common, report))
    return report.result()


async def _try_all(config: Config, common: Common, report: Report) -> None:
    from syncd.store.open import open_store

    user = pwd.getpwuid(os.geteuid()).pw_name if _known_user() else str(os.geteuid())
    report.good("user", f"tried as {user}: run it as the user of the service")
    await report.attempt("trust.root", lambda: _root(config))
    try:
        store = await asyncio.to_thread(open_store, config.store)
    except SyncdError as error:
        report.bad("store", error)
    else:
        await _try_store(config, store, report)
        await store.aclose()
    for publish in config.publish:
        await report.attempt(f"key of {publish.model}", partial(_key, config, publish))
        await report.attempt(f"watch {publish.watch}", partial(_watch, publish))
    for follow in config.follow:
        await report.attempt(f"poll of {follow.model}", partial(_schedule, follow))
        for hook in follow.hooks:
            await report.attempt(f"hook of {follow.model} on {hook.on}", partial(_hook, hook))
    kept = (report.model_bytes.get(each.model, 0) * (each.keep + 1) for each in config.follow)
    room = LOW_ROOM_BYTES + sum(kept)
    await report.attempt("node folder", lambda: _node(config, common, room))
    await report.attempt("status", lambda: _status(config, common))


def _known_user() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


async def _root(config: Config) -> str:
    from syncd.daemon.roles import read_root

    root = await asyncio.to_thread(read_root, config.trust.root)
    return f"fingerprint {hashlib.sha256(root).hexdigest()}"


async def _try_store(config: Config, store: Store, report: Report) -> None:
    from syncd.daemon.contact import Contact, ObservedStore

    observed = ObservedStore(store, Contact())
    if not await report.attempt("store", lambda: _same_root(config, observed)):
        return
    await report.attempt("clock", lambda: _clock(observed))
    followed = [(each.model, each.channel) for each in config.follow]
    channels = dict.fromkeys([*followed, *((each.model, each.channel) for each in config.publish)])
    for model, channel in channels:
        await report.attempt(
            f"model {model}:{channel}", partial(_channel, config, observed, model, channel, report)
        )
    if config.publish:
        await report.attempt("store is honest", lambda: _honest(store))
    if config.store.url.startswith("http://"):
        report.good(
            "transport", "plain http: others can see what is fetched; authenticity does not rest on TLS"
        )


async def _same_root(config: Config, store: Any) -> str:
    from syncd.daemon.roles import MAX_ROOT_BYTES, read_root
    from syncd.trust.names import FLEET_ROOT

    root = (await store.get(FLEET_ROOT, limit=MAX_ROOT_BYTES)).data
    mine = await asyncio.to_thread(read_root, config.trust.root)
    if root != mine:
        raise NotAuthentic(
            f"the store's fleet root has fingerprint {hashlib.sha256(root).hexdigest()}, "
            f"{config.trust.root} has {hashlib.sha256(mine).hexdigest()}",
            why="another fleet's store, or somebody changed one of them",
            do="compare with what `syncd init` printed; nothing was changed",
        )
    return f"{store.url} answers and belongs to this fleet"


async def _clock(store: Any) -> str:
    skew = store.contact.clock_skew_s
    if skew is None:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S')} here; this store tells no time"
    if abs(skew) > MAX_SKEW_S:
        raise Failed(
            f"the store's clock is {skew:+.0f} s from this machine's",
            why="a wrong clock breaks TLS and lets signatures seem expired",
            do="set the clock (timedatectl set-ntp true)",
        )
    return f"{skew:+.1f} s from the store's"


async def _channel(config: Config, store: Any, model: str, channel: str, report: Report) -> str:
    """What the channel says verifies under the root that this machine has; nothing of it is kept."""
    from syncd.artifact.head import Head
    from syncd.daemon.roles import read_root
    from syncd.trust.verify import ModelTrust

    root = await asyncio.to_thread(read_root, config.trust.root)
    with tempfile.TemporaryDirectory(prefix="syncd-check-") as folder:
        trust = ModelTrust(store, model, Path(folder) / "trust", root)
        facts = await trust.refresh(channel)
        if facts is None:
            return "verified; nothing is released yet"
        head = Head.parse(await trust.fetch_head(facts))
    report.model_bytes[model] = head.model_bytes
    return f"verified: version {facts.version}, {bytes_text(head.model_bytes)}, released {facts.released_at}"


async def _honest(store: Store) -> str:
    from syncd.store.probe import probe

    await probe(store)
    return "create-only and compare-and-set puts are honoured"


async def _key(config: Config, section: PublishSection) -> str:
    from syncd.trust.keys import load_key, model_key_path

    assert config.trust.keys is not None  # load_config refuses a [[publish]] without
    path = model_key_path(config.trust.keys, section.model)
    key = await asyncio.to_thread(load_key, path)
    return f"{path}, key id {key.public_key.keyid[:12]}"


async def _watch(section: PublishSection) -> str:
    return await asyncio.to_thread(_look_into, section)


def _look_into(section: PublishSection) -> str:
    """Listed and, for the newest files that match, opened: training libraries write files of mode 0600."""
    if not section.watch.is_dir():
        raise Failed(
            f"{section.watch} is not there yet",
            why="training has not made it",
            do="make it, or mend the path",
        )
    found = sorted(
        (path for pattern in section.include for path in section.watch.glob(pattern) if path.is_file()),
        key=lambda path: -path.stat().st_mtime,
    )
    for path in found[:LOOKED_AT]:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError as error:
            raise Failed(
                f"{path} has mode {path.stat().st_mode & 0o7777:04o} and belongs to user {path.stat().st_uid}",
                why="checkpoints are often written for their own user alone",
                do="run the publisher as the user who trains: syncd-publish@USER.service",
            ) from error
    return f"readable, {len(found)} files match" if found else "readable, nothing there matches yet"


async def _schedule(section: FollowSection) -> str:
    if section.cron is None:
        return f"every {section.poll:g} s"
    from syncd.edge.poll import cron_trigger

    return f"cron {section.cron!r}: {cron_trigger(section.cron)}"


async def _hook(section: HookSection) -> str:
    """The program is there; a URL is only shown: asking it would do what it is for."""
    from syncd.edge.hooks import shown

    if section.command is None:
        return f"{shown(section)}: not asked now, it would act"
    found = await asyncio.to_thread(shutil.which, section.command[0])
    if found is None:
        raise Failed(
            f"{section.command[0]} is no program that this user may run",
            do="write its whole path, and make it executable for the user of the service",
        )
    return f"{found} is there"


async def _node(config: Config, common: Common, room: int) -> str:
    from syncd import paths

    folder = paths.node_folder(config.node.folder, daemon=True, config=paths.config_file(common.config))
    return await asyncio.to_thread(_try_folder, folder, room)


def _try_folder(folder: Path, room: int) -> str:
    """A file can be made there (or in the nearest folder above it), and there is room (bytes) for what comes."""
    there = folder
    while not there.is_dir() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".check-"):
            pass
    except OSError as error:
        raise Failed(
            f"{there} cannot be written: {error.strerror}",
            do=f"give {folder} to the user of the service, or write another [node] folder",
        ) from error
    free = shutil.disk_usage(there).free
    if free < room:
        raise Failed(
            f"{bytes_text(free)} free at {there}, {bytes_text(room)} may be needed",
            why="a node holds `keep` versions of each model and the one that comes",
            do="make room, or write another [node] folder",
        )
    return f"{folder}, writable, {bytes_text(free)} free"


async def _status(config: Config, common: Common) -> str:
    from syncd import paths
    from syncd.errors import DaemonSilent
    from syncd.status.client import fetch_status
    from syncd.status.token import read_token

    token = (
        await asyncio.to_thread(read_token, config.status.token_file) if config.status.token_file else None
    )
    address = paths.status_address(config.status.listen, config=paths.config_file(common.config))
    try:
        running = await asyncio.to_thread(fetch_status, address, token)
    except DaemonSilent:
        return f"{address}: no daemon answers there now"
    return f"{address}: the daemon of node {running['node']} answers there"
