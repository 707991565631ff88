"""What each transition does, blocking and idempotent, and what the machine may conclude from channel and disk."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from syncd import allocator
from syncd.artifact.head import Head
from syncd.artifact.segment import digest
from syncd.config import FollowSection
from syncd.crashpoint import reached
from syncd.edge import activate, install
from syncd.edge.documents import DocumentCache, cached_documents
from syncd.edge.fetch import Source
from syncd.edge.poll import back_off_s
from syncd.edge.retention import clear_incoming, retire_versions
from syncd.edge.standing import Hindrance, Intention, Standing, Target
from syncd.edge.transitions import MAX_REPLANS, WITHIN, Action, Event, State, crash_point
from syncd.edge.verify import check_installed
from syncd.errors import DocumentInvalid, Failed, NeedsNewerSyncd, SyncdError
from syncd.node.followers import read_dead, read_followers
from syncd.node.links import HEAD_FILE, MODEL_FILE, ModelFolder
from syncd.state import events, installed, wishes
from syncd.state.db import Database
from syncd.trust.verify import ChannelFacts

_log: Final = logging.getLogger("syncd.edge")
_LOUD: Final = ("bug", "lost", "refused", "rollback", "rotten", "waiting")


class Actions:
    """One model's folder, state and standing, and the actions of the table upon them.

    Its fields are written by one task at a time; others may read them at any moment.
    """

    def __init__(self, section: FollowSection, folder: ModelFolder, db: Database, documents: Path) -> None:
        self.section = section
        self.folder = folder
        self.db = db
        self.cache = DocumentCache(documents)
        self.standing = Standing()
        self.facts: ChannelFacts | None = None
        self.due = 0.0
        self.last_poll: float | None = None
        self.last_contact: float | None = None
        self.last_error: dict[str, Any] | None = None
        self.poll_error: SyncdError | None = None
        self.progress: tuple[int, int] | None = None
        self.dead_before: frozenset[str] = frozenset()
        self._retry_s = 1.0
        self._stop = threading.Event()

    # What is so.

    def wanted(self) -> Target | None:
        """The version that this node should have and has not: the chosen one, unless yanked or in quarantine."""
        target = self.chosen()
        if target is None or (self.facts is not None and target.version in self.facts.yanked):
            return None
        for each in installed.quarantine(self.db, self.section.model):
            if (each.version, each.head_digest) == (target.version, target.head_digest):
                return None
        serving = self.folder.read_link("current")
        if serving == target.version and install.installed_head(self.folder, serving) == target.head_digest:
            return None
        return target

    def chosen(self) -> Target | None:
        """What a person pinned, else what the channel releases."""
        pinned, facts = wishes.load(self.db, self.section.model).pinned, self.facts
        if pinned is not None:
            return Target(pinned.version, pinned.head_digest, pinned.head_length)
        return Target(facts.version, facts.head_digest, facts.head_length) if facts else None

    def hindrance(self, target: Target) -> Hindrance | None:
        """Why `target` may not be fetched or offered now, None if it may."""
        model = self.section.model
        wish = wishes.load(self.db, model)
        if wish.held:
            return Hindrance("hold", f"this node is held: `syncd resume {model}` ends it")
        pinned = wish.pinned is not None and wish.pinned.version == target.version
        if self.section.approve == "automatic" or pinned:
            return None
        if wishes.is_approved(self.db, model, target.version, target.head_digest):
            return None
        return Hindrance("approval", f"waits for `syncd approve {model}@{target.version}`")

    def news(self) -> Event | None:
        """What the channel's facts and people's wishes mean to the state of the machine, None for nothing."""
        standing = self.standing
        wish = wishes.load(self.db, self.section.model)
        if wish.leaving is not None:
            return Event.TURNED_BACK
        wanted, state = self.wanted(), standing.state
        if state in (State.IDLE, State.PROBATION):
            serving, facts = self.folder.read_link("current"), self.facts
            if facts and serving in facts.yanked and serving and self.way_back(serving) is not None:
                return Event.WITHDRAWN
            if wanted is None or state is State.PROBATION:
                return None
            return Event.POSTPONED if self.hindrance(wanted) else Event.RELEASED
        if wanted is None:
            return Event.WITHDRAWN if self.facts else None
        hindrance = self.hindrance(wanted)
        if hindrance is not None:
            known = wanted == standing.target and hindrance.kind == standing.waits_for
            return None if known else Event.POSTPONED
        if state is State.WAITING and standing.waits_for:
            return Event.DUE if wanted == standing.target else Event.RELEASED
        enough = state is State.FETCHING and standing.replans >= MAX_REPLANS and wish.pinned is None
        return None if wanted == standing.target or enough else Event.RELEASED

    def intend(self, event: Event, reason: str) -> Intention | None:
        """The transition to carry out on `event`; None where what led to it has changed meanwhile: look again."""
        target = self.standing.target
        if event is Event.TURNED_BACK:
            leaving = wishes.load(self.db, self.section.model).leaving
            target = Target(leaving.version, leaving.head_digest, leaving.head_length) if leaving else None
            reason = "rolled back by hand"
        elif event in (Event.RELEASED, Event.POSTPONED):
            target = self.wanted()
            if event is Event.POSTPONED and target is not None:
                hindrance = self.hindrance(target)
                if hindrance is None:
                    return None
                reason = hindrance.text
        else:
            return Intention(event, reason, target)
        return Intention(event, reason, target) if target is not None else None

    def refused_versions(self) -> set[int]:
        """Versions that may not serve: in quarantine here, or yanked by the channel."""
        refused = {each.version for each in installed.quarantine(self.db, self.section.model)}
        return refused | set(self.facts.yanked if self.facts else ())

    def way_back(self, failing: int) -> int | None:
        """The version to go back to from `failing`, None if there is none."""
        return activate.way_back_from(self.folder, failing, self.refused_versions())

    def has_model(self, version: int) -> bool:
        """Whether an installed version has a model view."""
        return (self.folder.version_folder(version) / MODEL_FILE).exists()

    def is_whole_on_disk(self, target: Target) -> bool:
        """Whether the version is installed with every byte as signed; reads all of it.

        One that rotted on this disk is taken away, to be fetched again; Failed where a process still uses it.
        """
        if install.installed_head(self.folder, target.version) != target.head_digest:
            return False
        documents = cached_documents(self.cache, target.head_digest)
        bad = check_installed(self.folder.version_folder(target.version), documents).bad if documents else []
        if not bad:
            return True
        self.say("rotten", f"{bad[0]['what']}: {bad[0]['reason']}; it is fetched again", target)
        for name in ("next", "previous"):
            if self.folder.read_link(name) == target.version:
                self.folder.set_link(name, None)
        if not self.folder.remove_version(target.version):
            raise Failed(
                f"version {target.version} is damaged on this disk and in use", do="stop what uses it"
            )
        return False

    def sources(self) -> list[Source]:
        """Installed model files whose documents are here, newest first: segments that need not be fetched."""
        found = []
        for version in reversed(self.folder.versions()):
            with contextlib.suppress(OSError, DocumentInvalid, NeedsNewerSyncd):
                head_digest = install.installed_head(self.folder, version)
                documents = head_digest and cached_documents(self.cache, head_digest)
                if documents and documents.has_model:
                    path = self.folder.version_folder(version) / MODEL_FILE
                    found.append(install.source_of(path, documents))
        return found

    # What is done.

    def take_aim(self, intention: Intention) -> None:
        """Aim at the wanted version; what other attempts left is removed."""
        standing, target = self.standing, intention.target
        assert target is not None
        if target != standing.target:
            standing.failures = 0
            standing.replans += standing.state is State.FETCHING
        standing.target, standing.unfit = target, ""
        reached(crash_point(WITHIN, Action.TAKE_AIM))
        clear_incoming(self.folder, keep=target.version)

    def let_go(self, intention: Intention) -> None:
        """Want nothing any more: the offer and what was fetched go."""
        activate.withdraw_offer(self.folder)
        reached(crash_point(WITHIN, Action.LET_GO))
        clear_incoming(self.folder)
        self.standing.target = None
        self.say("withdrawn", intention.reason, intention.target)
        self.tidy()

    def back_off(self, intention: Intention) -> None:
        """Wait longer after each failure in a row."""
        self.standing.failures += 1
        self.standing.waits_for = ""
        reached(crash_point(WITHIN, Action.BACK_OFF))
        pause = back_off_s(self.standing.failures, base_s=self._retry_s)
        self.due = time.monotonic() + pause
        self.say("waiting", f"{intention.reason}; again in {pause:.0f} s", intention.target)

    def postpone(self, intention: Intention) -> None:
        """Want a version and do nothing about it yet: what was fetched or installed of it stays."""
        target = intention.target
        assert target is not None
        activate.withdraw_offer(self.folder)
        reached(crash_point(WITHIN, Action.POSTPONE))
        hindrance = self.hindrance(target)
        self.standing.target = target
        self.standing.waits_for = hindrance.kind if hindrance else "nothing"
        self.say("postponed", intention.reason, target)

    def install(self, intention: Intention) -> None:
        """Make the download an installed version; one that is installed already stays as it is."""
        target = intention.target
        assert target is not None
        if install.installed_head(self.folder, target.version) != target.head_digest:
            documents = cached_documents(self.cache, target.head_digest)
            staged = self.folder.incoming / str(target.version) / "version"
            if documents is None or not staged.is_dir():
                raise Failed(
                    f"what was fetched of version {target.version} is gone", do="it is fetched again"
                )
            self.standing.unfit = install.finish(staged, documents, self._stop)
            install.place(self.folder, target.version, staged)
            self.say("install", intention.reason, target)
        row = installed.Installed(target.version, target.head_digest, target.head_length)
        installed.note_installed(self.db, self.section.model, row)
        clear_incoming(self.folder)
        self.standing.replans = self.standing.failures = self.standing.asked = 0
        self.last_error = None

    def offer(self, intention: Intention) -> None:
        """Ask the voters, for the first time or again."""
        standing = self.standing
        assert standing.target is not None
        standing.asked += 1
        standing.attempt += 1
        within = self.section.gate_within
        version = standing.target.version
        self.dead_before = frozenset(each.id for each in read_dead(self.folder))
        activate.offer(self.folder, version, attempt=standing.attempt, gate_within_s=within)
        if standing.asked > 1:
            self.say("asked-again", intention.reason, standing.target)

    def activate(self, intention: Intention) -> None:
        """Let the version serve, on probation."""
        target = self.standing.target
        assert target is not None
        activate.activate(self.folder, target.version)
        self.standing.probation_until = time.time() + self.section.probation
        self.say("swap", intention.reason, target)
        if intention.event is Event.UNSERVABLE:  # no probation follows
            self.standing.target = None
            self.tidy()

    def quarantine(self, intention: Intention) -> None:
        """Give the version up on this node; what serves goes on serving."""
        stage = "install" if intention.event is Event.UNFIT else "gate"
        self._put_in_quarantine(intention, stage)
        reached(crash_point(WITHIN, Action.QUARANTINE))
        activate.withdraw_offer(self.folder)
        self.say("refused", intention.reason, intention.target)
        self.standing.target = None
        self.tidy()

    def go_back(self, intention: Intention) -> None:
        """Leave a yanked version for the one before it."""
        serving = self.folder.read_link("current")
        if serving is not None and serving in self.refused_versions():
            serving = activate.go_back(self.folder, serving, self.way_back(serving), Action.GO_BACK)
        self.say("rollback", f"yanked; version {serving} serves", intention.target)
        self.standing.target = None
        self.tidy()

    def roll_back(self, intention: Intention) -> None:
        """Give up a version that failed in probation and go back to the one before it."""
        target = intention.target
        assert target is not None
        self._put_in_quarantine(intention, "probation")
        way_back = self.way_back(target.version)
        serving = activate.go_back(self.folder, target.version, way_back, Action.ROLL_BACK)
        what = (
            f"version {serving} serves"
            if serving != target.version
            else "there is none to go back to: it stays"
        )
        self.say("rollback", f"{intention.reason}; {what}", target)
        self.standing.target = None
        self.tidy()

    def turn_back(self, intention: Intention) -> None:
        """Leave the version that a person has had enough of, and do not take it again unless approved."""
        leaving = intention.target
        assert leaving is not None
        self._put_in_quarantine(intention, "hand")
        way_back = self.way_back(leaving.version)
        serving = activate.go_back(self.folder, leaving.version, way_back, Action.TURN_BACK)
        wishes.forget_leaving(self.db, self.section.model)
        self.say("rollback", f"{intention.reason}; version {serving} serves", leaving)
        self.standing.target = None
        self.tidy()

    def retire(self, intention: Intention) -> None:
        """Probation is over: let go of what is not needed any more."""
        reached(crash_point(WITHIN, Action.RETIRE))
        self.standing.target = None
        self.tidy()

    ACTIONS: ClassVar[dict[Action, Callable[[Actions, Intention], None]]] = {
        Action.TAKE_AIM: take_aim,
        Action.LET_GO: let_go,
        Action.BACK_OFF: back_off,
        Action.POSTPONE: postpone,
        Action.INSTALL: install,
        Action.OFFER: offer,
        Action.ACTIVATE: activate,
        Action.QUARANTINE: quarantine,
        Action.GO_BACK: go_back,
        Action.ROLL_BACK: roll_back,
        Action.TURN_BACK: turn_back,
        Action.RETIRE: retire,
    }

    def _put_in_quarantine(self, intention: Intention, stage: str) -> None:
        target = intention.target
        assert target is not None
        row = installed.Quarantined(target.version, target.head_digest, stage, intention.reason)
        installed.put_in_quarantine(self.db, self.section.model, row)

    def tidy(self) -> None:
        """Retire versions and documents that nothing needs; what is in use waits for the next time."""
        refused = {each.version for each in installed.quarantine(self.db, self.section.model)}
        read_followers(self.folder, sweep=True)
        for version in retire_versions(self.folder, self.db, self.section.keep, refused):
            _log.info("%s: version %s retired", self.section.model, version)
        keep: set[str] = set()
        target = self.standing.target
        heads = [self.cache.get(target.head_digest) if target else None]
        for version in self.folder.versions():
            with contextlib.suppress(FileNotFoundError):
                heads.append((self.folder.version_folder(version) / HEAD_FILE).read_bytes())
        for data in heads:
            if data is not None:
                head = Head.parse(data)
                keep |= {digest(data), head.layout.digest, head.table.digest}
        self.cache.sweep(keep)
        allocator.give_back()

    # What is said.

    def say(self, kind: str, reason: str, target: Target | None = None) -> None:
        """Record an event, for people and for the status endpoint."""
        data = {"reason": reason} | ({"version": target.version} if target else {})
        level = logging.WARNING if kind in _LOUD else logging.INFO
        _log.log(level, "%s: %s %s %s", self.section.model, kind, target.version if target else "", reason)
        events.record(self.db, kind, self.section.model, **data)
        self.db.count("syncd_edge_events_total", model=self.section.model, kind=kind)

    def note_error(self, error: Exception) -> None:
        """Keep the last thing that went wrong, with its time."""
        if isinstance(error, SyncdError):
            shown = error.as_dict()
        else:
            shown = {
                "code": "failed",
                "what": str(error) or type(error).__name__,
                "where": {},
                "why": "",
                "do": "",
            }
        self.last_error = {**shown, "at": time.time()}
        _log.warning("%s: %s", self.section.model, shown["what"])

    @contextlib.contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Note an error and go on: for what may be left undone until the next time."""
        try:
            yield
        except (SyncdError, OSError) as error:
            self.note_error(error)

    def show_progress(self, received: int, total: int) -> None:
        """Told by a running download: encoded bytes."""
        self.progress = (received, total)
