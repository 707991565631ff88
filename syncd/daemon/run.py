"""`syncd run`: start, signals, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import syncd
from syncd import allocator, paths
from syncd.config import Config
from syncd.daemon import roles
from syncd.daemon.child import keep_serving
from syncd.daemon.contact import Contact, ObservedStore
from syncd.daemon.notify import Notifier
from syncd.daemon.supervise import Supervisor
from syncd.errors import Failed, SyncdError, UnknownModel
from syncd.node.links import NodeFolder
from syncd.state.db import Database
from syncd.status.document import MODEL, PUBLISHED, instant, whole
from syncd.status.server import Listener, serve
from syncd.status.token import read_token
from syncd.store.base import Store, public_url
from syncd.store.open import open_store

log = logging.getLogger("syncd.daemon")

AT_RESTART: Final = ("store", "trust", "node", "status")
STATUS_EVERY_S: Final = 10.0
INTERRUPTED: Final = 130
_TIMES: Final = ("last_poll", "last_contact", "last_change", "probation_until")


def run_daemon(
    load: roles.Loader, *, config_file: Path | None, serve_words: Sequence[str] | None = None
) -> int:
    """Run until SIGTERM (0) or Ctrl-C (130).

    Args:
        load: reads the configuration, now and at every SIGHUP.
        config_file: where it comes from: it names the unit's folders.
        serve_words: what `syncd serve` is told as a child of this daemon; None: there is no such child.
    Raises:
        ConfigInvalid, NodeBusy, PortBusy and what opening the state says: nothing was started.
    """
    allocator.set_up()
    faulthandler.enable()  # the watchdog ends a hanging daemon with SIGABRT: say where it hung
    config = load()
    with contextlib.ExitStack() as open_things:
        try:
            daemon = _open(config, load, config_file, open_things)
        except OSError as error:
            raise Failed(
                f"{error.strerror}: {error.filename}",
                do="mend its owner or mode, or write another [node] folder; nothing was started",
            ) from error
        return asyncio.run(daemon.run(serve_words))


def _open(
    config: Config, load: roles.Loader, config_file: Path | None, open_things: contextlib.ExitStack
) -> Daemon:
    """Everything that can be refused, before anything runs."""
    root = roles.read_root(config.trust.root)
    node = NodeFolder(paths.node_folder(config.node.folder, daemon=True, config=config_file))
    open_things.enter_context(node.daemon_lock())
    token = read_token(config.status.token_file) if config.status.token_file is not None else None
    listener = Listener(paths.status_address(config.status.listen, daemon=True, config=config_file), token)
    open_things.callback(listener.close)
    db = open_things.enter_context(Database(node.path / "state.db"))
    contact = Contact()

    def connect() -> Store:
        return cast(
            "Store", ObservedStore(open_store(config.store), contact)
        )  # cast: its attributes are read only

    name = config.node.name or socket.gethostname()
    ground = roles.Ground(connect, root, config.trust.keys, node, db, name)
    return Daemon(config, load, ground, contact, listener)


class Daemon:
    """One running daemon; it is the `Source` of its own status endpoint."""

    def __init__(
        self,
        config: Config,
        load: roles.Loader,
        ground: roles.Ground,
        contact: Contact,
        listener: Listener,
    ) -> None:
        self._config = config
        self._load = load
        self._ground = ground
        self._contact = contact
        self._listener = listener
        self._notifier = Notifier()
        self._supervisor = Supervisor()
        self._roles: dict[str, roles.Role] = {}
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._started_at = time.time()

    async def run(self, serve_words: Sequence[str] | None = None) -> int:
        """Start everything, then obey signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        self._supervisor.start("watchdog", self._notifier.keep_alive)
        self._supervisor.start("status", lambda: serve(self._listener, self))
        await self._apply(self._config)
        self._supervisor.start("tell", self._tell_systemd)
        if serve_words is not None:
            within_s = self._config.shutdown_within
            self._supervisor.start(
                "serve", lambda: keep_serving(serve_words, self._ground.node.path, within_s)
            )
        node, address = self._ground.node.path, self._listener.address
        log.info(
            "runs",
            extra={"version": syncd.__version__, "node": node, "status": address, "roles": len(self._roles)},
        )
        if not self._roles:
            log.warning("has nothing to do: the configuration has no [[publish]] and no [[follow]]")
        self._notifier.ready(await asyncio.to_thread(self._summary))
        while (number := await self._signals.get()) == signal.SIGHUP:
            await self._reload()
        return await self._drain(number)

    async def _apply(self, config: Config) -> None:
        """Stop and start roles until exactly what `config` wants runs."""
        stop, start = roles.changes(self._roles, config)
        for name in stop:
            await self._supervisor.stop(name)
            await self._roles.pop(name).store.aclose()
        now = roles.wanted(config)
        for name in start:
            role = await asyncio.to_thread(roles.build, name, now[name], self._ground)
            self._roles[name] = role
            self._supervisor.start(name, role.start)
        for name in sorted({*stop, *start}):
            log.info("started" if name in start else "stopped", extra={"role": name})
        self._config = config

    async def _reload(self) -> None:
        """Take what may change while running; a bad configuration changes nothing."""
        self._notifier.reloading()
        try:
            config = await asyncio.to_thread(self._load)
        except SyncdError as error:
            log.error("the new configuration is refused; the old one goes on", exc_info=error)
        else:
            for name in AT_RESTART:
                if getattr(config, name) != getattr(self._config, name):
                    log.warning("changed, but takes effect at a restart only", extra={"section": f"[{name}]"})
            kept = {name: getattr(self._config, name) for name in AT_RESTART}
            await self._apply(config.model_copy(update=kept))
            log.info("reloaded", extra={"roles": len(self._roles)})
        self._notifier.ready(await asyncio.to_thread(self._summary))

    async def _drain(self, number: signal.Signals) -> int:
        """Let publishers finish what is in flight, within `shutdown_within`; a second signal ends it at once."""
        within_s = self._config.shutdown_within
        log.info("ends", extra={"signal": number.name, "within_s": within_s})
        self._notifier.stopping(within_s)
        flushing = asyncio.create_task(self._flush())
        again = asyncio.create_task(self._signals.get())
        done, _ = await asyncio.wait({flushing, again}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if flushing not in done:
            log.warning("ends with work in flight; the next start goes on from there")
        for task in (flushing, again):
            task.cancel()
        await self._supervisor.stop_all(within_s=5.0)
        for role in self._roles.values():
            await role.store.aclose()
        log.info("ended")
        return INTERRUPTED if number == signal.SIGINT else 0

    async def _flush(self) -> None:
        """Stop what follows, and let each publisher bring its current release to an end."""
        following = [name for name, role in self._roles.items() if not role.publishes]
        await asyncio.gather(
            self._supervisor.stop("serve", within_s=self._config.shutdown_within),
            *(self._supervisor.stop(name) for name in following),
        )
        for name, role in self._roles.items():
            flush = getattr(role.worker, "flush", None)
            if role.publishes and flush is not None:
                try:
                    await flush()
                except SyncdError as error:
                    log.error(
                        "could not be flushed; the next start goes on from there",
                        extra={"role": name},
                        exc_info=error,
                    )

    async def _tell_systemd(self) -> None:
        """Keep `systemctl status` true."""
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            self._notifier.send(STATUS=await asyncio.to_thread(self._summary))

    def _summary(self) -> str:
        """One line for `systemctl status`."""
        document = self.document()
        published = [
            f"{each['model']}@{each['last_version'] or '-'} published" for each in document["published"]
        ]
        serving = [f"{each['model']}@{each['serving'] or '-'} serving" for each in document["models"]]
        return ", ".join([*published, *serving]) or "nothing to do: no [[publish]], no [[follow]]"

    @property
    def db(self) -> Database:
        """The state file."""
        return self._ground.db

    @property
    def node_name(self) -> str:
        """`[node] name`, else the host's."""
        return self._ground.name

    async def obey(self, model: str, command: str, version: int | None, by: str) -> dict[str, Any]:
        """Tell the edge of a model; UnknownModel where none is followed, Failed where it does not run yet."""
        role = self._roles.get(f"follow {model}")
        if role is None:
            followed = [each.section.model for each in self._roles.values() if not each.publishes]
            raise UnknownModel(
                f"this node follows no model {model[:64]!r}", do=f"it follows {', '.join(followed) or 'none'}"
            )
        obey = getattr(role.worker, "obey", None)
        if obey is None:
            raise Failed(f"{model} has not started yet", do="ask again in a moment; `syncd status` says why")
        result: dict[str, Any] = await obey(command, version, by)
        return result

    def document(self) -> dict[str, Any]:
        """The object of `/v1/status`."""
        running = list(self._roles.values())
        return {
            "node": self.node_name,
            "version": syncd.__version__,
            "started_at": instant(self._started_at),
            "store": {
                "url": public_url(self._config.store.url),
                "reachable": self._contact.reachable,
                "last_contact": instant(self._contact.last_contact),
                "clock_skew_s": self._contact.clock_skew_s,
            },
            "published": [whole(PUBLISHED, _told(role)) for role in running if role.publishes],
            "models": [whole(MODEL, _told(role)) for role in running if not role.publishes],
            "failing": dict(self._supervisor.failures),
        }

    def not_ready(self) -> list[str]:
        """What has not had its first success."""
        document = self.document()
        missing = [
            f"{each['model']} has no current version"
            for each in document["models"]
            if each["serving"] is None
        ]
        if document["published"] and not self._contact.reachable:
            missing.append("the store has not answered the publisher yet")
        missing += [
            f"{each['model']} is not being published yet"
            for each in document["published"]
            if each["state"] in (None, "starting")
        ]
        missing += [
            f"{name} failed: {code}"
            for name, code in document["failing"].items()
            if name.startswith("publish ")
        ]
        return missing


def _told(role: roles.Role) -> dict[str, Any]:
    """What a role tells of itself, its Unix times as text."""
    told = role.snapshot()
    times = {name: instant(told[name]) for name in _TIMES if isinstance(told.get(name), int | float)}
    return {**told, **times, "model": role.section.model}
