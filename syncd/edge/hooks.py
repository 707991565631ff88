"""Hooks: others told, or a program run, after install, swap, rollback; beside the edge, never in its way.

The events in state.db are the queue and a note is the place in it: after a kill a hook runs again rather than not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from syncd.config import HookSection
from syncd.edge.poll import back_off_s
from syncd.errors import SyncdError
from syncd.node.links import ModelFolder
from syncd.state import events
from syncd.state.db import Database
from syncd.store.base import public_url

_log: Final = logging.getLogger("syncd.edge")
ROOM: Final = "hooks"
KINDS: Final = frozenset({"install", "swap", "rollback"})
HTTP_ATTEMPTS: Final = 5
TAIL_BYTES: Final = 2000
_DEAD_WITHIN_S: Final = 5.0
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")


@dataclass(frozen=True)
class Outcome:
    """How one run ended. event: the id of the event that it was for. at: Unix seconds at its end."""

    event: int
    version: int | None
    ok: bool
    attempts: int
    seconds: float
    detail: str
    at: float


class Hooks:
    """All hooks of one model, run one after the other in the order of the events."""

    def __init__(
        self,
        sections: tuple[HookSection, ...],
        folder: ModelFolder,
        db: Database,
        *,
        retry_s: float = 1.0,
        node: str = "",
    ) -> None:
        self._sections = sections
        self._folder = folder
        self._db = db
        self._retry_s = retry_s
        self._node = node
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Run what is due until cancelled; a hook's failure is noted and nothing else."""
        if not self._sections:
            return
        while True:
            self.wake.clear()
            try:
                for event in await asyncio.to_thread(self._due):
                    await self._all(event)
            except SyncdError as error:  # the state file: the edge itself says so, and goes on
                _log.warning("%s: hooks wait: %s", self._folder.model, error.what)
            await self.wake.wait()

    async def _all(self, event: events.Event) -> None:
        for number, section in enumerate(self._sections):
            if section.on == event.kind:
                outcome = await self._once(section, event)
                await asyncio.to_thread(self._note, number, section, outcome)
        await asyncio.to_thread(self._db.set_note, ROOM, self._place, {"last": event.id})

    @property
    def _place(self) -> str:
        return f"{self._folder.model} place"

    def begin(self) -> None:
        """Where no hook of this model has ever run, begin with what happens from now on. Blocks."""
        place = self._db.note(ROOM, self._place)
        if self._sections and place is None:
            self._db.set_note(ROOM, self._place, {"last": events.newest(self._db)})
        if place is not None and not self._sections:  # hooks that come back later do not begin in the past
            self._db.set_note(ROOM, self._place, None)

    def _due(self) -> list[events.Event]:
        last = (self._db.note(ROOM, self._place) or {"last": 0})["last"]
        found = events.since(self._db, last, limit=events.KEPT)
        return [each for each in found if each.kind in KINDS and each.model == self._folder.model]

    async def _once(self, section: HookSection, event: events.Event) -> Outcome:
        began = time.monotonic()
        attempts, ok, detail = 0, False, ""
        for attempts in range(1, (HTTP_ATTEMPTS if section.http else 1) + 1):
            if attempts > 1:
                await asyncio.sleep(back_off_s(attempts - 1, base_s=self._retry_s, cap_s=60.0))
            try:
                ok, detail = await (self._post if section.http else self._start)(section, event)
            except (OSError, ValueError) as error:
                ok, detail = False, str(error)
            if ok:
                break
        seconds = round(time.monotonic() - began, 3)
        version = event.data.get("version")
        return Outcome(event.id, version, ok, attempts, seconds, detail[-TAIL_BYTES:], time.time())

    def _note(self, number: int, section: HookSection, outcome: Outcome) -> None:
        model = self._folder.model
        level = logging.INFO if outcome.ok else logging.WARNING
        _log.log(level, "%s: hook %s on %s: %s", model, shown(section), section.on, outcome.detail or "done")
        self._db.set_note(ROOM, _key(model, number, section), asdict(outcome))
        said = {"on": section.on, "ok": outcome.ok, "attempts": outcome.attempts, "detail": outcome.detail}
        events.record(self._db, "hook", model, hook=shown(section), version=outcome.version, **said)

    async def _post(self, section: HookSection, event: events.Event) -> tuple[bool, str]:
        """One request: a CloudEvent in binary mode, so that a server that knows nothing of them sees plain JSON."""
        import httpx

        assert section.http is not None
        data = self._data(event)
        headers = {
            "content-type": "application/json",
            "ce-specversion": "1.0",
            "ce-id": str(event.id),
            "ce-source": events.source(self._node),
            "ce-type": events.TYPE + event.kind,
            "ce-subject": self._folder.model,
        }
        try:
            async with (
                asyncio.timeout(section.within),
                httpx.AsyncClient(timeout=section.within, trust_env=False) as client,
                client.stream("POST", section.http, content=json.dumps(data), headers=headers) as answer,
            ):
                return answer.is_success, f"status {answer.status_code}"
        except TimeoutError:
            return False, f"no answer within {section.within:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return False, str(error) or type(error).__name__

    async def _start(self, section: HookSection, event: events.Event) -> tuple[bool, str]:
        """One run of the program: no shell, little of our environment, the event as JSON on stdin."""
        assert section.command is not None
        data = self._data(event)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {f"SYNCD_{name.upper()}": _plain(value) for name, value in data.items()}
        with _filled_pipe(json.dumps(data).encode()) as stdin:
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *section.command,
                    stdin=stdin,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            )
            try:  # asyncio, cancelled half-way in there, may wait for ever for a child that it has killed
                child = await asyncio.shield(starting)
            except asyncio.CancelledError:
                await _end(await starting)
                raise
        try:
            async with asyncio.timeout(section.within):
                tail = await _tail(child)
                status = await child.wait()
        except TimeoutError:
            return False, f"did not end within {section.within:g} s and was killed"
        finally:
            await _end(child)
        said = tail.decode("utf-8", "replace").strip()
        return status == 0, said if status == 0 else f"exit status {status}: {said}"

    def _data(self, event: events.Event) -> dict[str, Any]:
        """What a hook is told: the same names as JSON and, as SYNCD_NAME, in a program's environment."""
        return {
            "event": event.kind,
            "model": self._folder.model,
            "version": event.data.get("version"),
            "serving": self._folder.read_link("current"),
            "folder": str(self._folder.path),
            "reason": str(event.data.get("reason", ""))[:TAIL_BYTES],
        }


def _plain(value: Any) -> str:
    """A text as an environment can hold it: reasons quote names out of documents, and those hold anything."""
    text = "" if value is None else str(value)
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


@contextlib.contextmanager
def _filled_pipe(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that holds `data` and its end: whether it is read is the reader's affair."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)  # it fits: a pipe holds 64 KiB
        os.write(writing, data)
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


async def _tail(child: asyncio.subprocess.Process) -> bytes:
    """The last that the child says, when it has said all."""
    assert child.stdout is not None
    tail = b""
    while piece := await child.stdout.read(65536):
        tail = (tail + piece)[-TAIL_BYTES:]
    return tail


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill what is left of the child's session, and let go of its pipe: a stray grandchild may hold the other end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), _DEAD_WITHIN_S)
    child._transport.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0)


def shown(section: HookSection) -> str:
    """A hook in words, without secrets: its program, or its URL without user and query."""
    return section.command[0] if section.command else public_url(section.http or "")


def _key(model: str, number: int, section: HookSection) -> str:
    return f"{model} {number} {section.on} {shown(section)}"


def told(sections: tuple[HookSection, ...], model: str, db: Database) -> list[dict[str, Any]]:
    """Each hook with its last outcome (null: never ran), for `/v1/status`. Blocks."""
    return [
        {"on": each.on, "hook": shown(each), "last": db.note(ROOM, _key(model, number, each))}
        for number, each in enumerate(sections)
    ]
