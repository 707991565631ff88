"""The follower: a thread that looks at the node folder's links, gates what is offered, votes, and swaps."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import replace
from typing import Final

from syncd.errors import GateRefused, SyncdError
from syncd.model.gate import DEFAULT_WITHIN_S
from syncd.node.followers import MAX_REASON, FollowerReport, Registration, Verdict, Vote, register
from syncd.node.links import LinkName, Look, ModelFolder, VersionLock
from syncd.predictor.versions import FORKED, Serving, Unusable, VersionLoader, retire

LOOK_EVERY_S: Final = 0.05
REPORT_EVERY_S: Final = 1.0
RETRY_AFTER_S: Final = 5.0

# References to a version that nobody else holds, as sys.getrefcount counts: the list's and its own argument.
_OURS: Final = 2

log = logging.getLogger("syncd.predictor")

# What loading or gating a version may raise for reasons of the version or of this machine; forward's and the builder's
# own exceptions arrive wrapped.
_TROUBLE: Final = (SyncdError, OSError, RuntimeError, ValueError, TypeError, MemoryError)


class Place:
    """Where the serving version stands. A call reads `serving` once; a swap is one assignment, refused while held."""

    def __init__(self) -> None:
        self.serving: Serving | Unusable | None = None
        self.filled = threading.Event()
        self._holds = 0
        self._lock = threading.Lock()

    @property
    def version(self) -> Serving | None:
        """The serving version, None before the first and after the end."""
        return self.serving if isinstance(self.serving, Serving) else None

    def swap(self, serving: Serving) -> bool:
        """Let `serving` answer from now on; False, and nothing done, while held or after the end."""
        with self._lock:
            if (self._holds and self.serving is not None) or isinstance(self.serving, Unusable):
                return False
            self.serving = serving
        self.filled.set()
        return True

    def end(self, unusable: Unusable) -> None:
        """No answer from now on; calls in flight finish."""
        with self._lock:
            self.serving = unusable

    def forked(self) -> None:
        """In a forked child: no answer, and a lock that no thread of the parent holds."""
        self.serving = FORKED
        self._lock = threading.Lock()

    def hold(self, by: int) -> None:
        """Add to the number of holds."""
        with self._lock:
            self._holds += by

    @property
    def is_held(self) -> bool:
        """Whether swaps wait."""
        return self._holds > 0


class Follower:
    """Follows one model for one process. `look` does one round; `start` gives it a thread of its own.

    Args:
        voter: False only follows: it gates for itself and is never waited for.
    """

    def __init__(self, folder: ModelFolder, loader: VersionLoader, place: Place, *, voter: bool) -> None:
        self.error: Exception | None = None  # why the last version that should serve here does not
        self._folder = folder
        self._loader = loader
        self._place = place
        self._voter = voter
        self._registration: Registration | None = None
        self._may_register = True
        self._warm: Serving | None = None
        self._retiring: list[Serving] = []
        self._vote: Vote | None = None
        self._why = ""
        self._complaint: tuple[int, str] | None = None
        self._seen: dict[LinkName, object] = {}
        self._retry_at: float | None = None
        self._written: FollowerReport | None = None
        self._troubles = 0
        self._write_at = 0.0
        self._looked = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look every 50 ms from now on, in a thread that ends with `stop`.

        All loading and gating is done in that thread, the first too: the memory that it leaves to its allocator is
        then there before the first swap.
        """
        self._thread = threading.Thread(
            target=self._run, name=f"syncd-follow-{self._folder.model}", daemon=True
        )
        self._thread.start()

    def wait_for_first_look(self) -> None:
        """Wait until the thread has looked once: what can serve does, `error` says what cannot."""
        self._looked.wait()

    def stop(self, within_s: float = 10.0) -> None:
        """End the thread and leave the folder; a vote against a version stays for the daemon to read."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(within_s)
        registration, self._registration = self._registration, None
        self._may_register = False
        self._warm = None
        if registration is None:
            return
        if self._vote is not None and self._vote.verdict != "accept":
            registration.abandon()
        else:
            registration.close()

    @property
    def why(self) -> str:
        """The last thing that went wrong, for people; empty if nothing did."""
        return self._why

    def forked(self) -> None:
        """In a forked child: let go of everything without touching what is the parent's."""
        self._place.forked()
        self._stopping = True
        self._may_register = False
        self._warm = None
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.abandon()

    def wake(self) -> None:
        """Look now, not in 50 ms."""
        self._wake.set()

    def complain(self, version: int, reason: str) -> None:
        """The application finds `version` wanting: vote `failed`, go back to `previous` in this process."""
        self._complaint = (version, reason)
        self._wake.set()

    def look(self) -> None:
        """One round: read the links, follow `current`, gate `next`, report."""
        self._register()
        # `next` first: the daemon moves `current` before it takes `next` away, so a `next` that is gone was activated
        # or withdrawn, and `current`, read after it, tells which.
        offered = self._folder.look("next")
        current = self._folder.look("current")
        if not self._place.is_held or self._place.version is None:
            self._go_back(current)
            if current.version is not None and (
                current.identity != self._seen.get("current") or self._is_due()
            ):
                self._follow(current)
            if offered.identity != self._seen.get("next"):
                self._consider(offered)
        self._report()
        self._retire()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a predictor that stops following in silence is worse
                self._note(f"following failed: {type(error).__name__}: {error}")
                if self._place.version is None:
                    self.error = error
            self._looked.set()
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()

    def _register(self) -> None:
        if self._registration is not None or not self._may_register:
            return
        try:
            self._registration = register(self._folder)
        except FileNotFoundError:
            pass  # the daemon has not made the folder yet
        except OSError as error:
            self._may_register = False
            log.info(
                "%s: only follows, %s is not writable: %s", self._folder.model, self._folder.followers, error
            )

    def _is_due(self) -> bool:
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    def _follow(self, current: Look) -> None:
        """Serve what `current` points at: warm already, or loaded and gated now."""
        self._retry_at = None
        serving = self._place.version
        if serving is not None and serving.version == current.version:
            self._seen["current"] = current.identity
            return
        try:
            candidate = self._warm
            if candidate is None or candidate.version != current.version:
                self._warm = None
                candidate = self._load("current", current.version, DEFAULT_WITHIN_S)
        except _TROUBLE as error:
            self._seen["current"] = current.identity
            self._refuse_current(current, error)
            return
        if candidate is not None and self._swap(candidate):
            self._seen["current"] = current.identity
            self._warm = None
            self.error = None
            if self._vote is not None and self._vote.verdict == "failed":
                self._vote = None
            log.info("%s: version %d serves", self._folder.model, candidate.version)
        elif candidate is not None:  # held since this round began: keep it for the release
            self._warm = candidate

    def _refuse_current(self, current: Look, error: Exception) -> None:
        """`current` cannot serve here: vote failed, keep what serves; with nothing that serves, take `previous`."""
        self.error = error
        assert current.version is not None
        self._cast(current.version, "failed", error, 0)
        if not isinstance(error, SyncdError):  # memory or disk may come back
            self._retry_at = time.monotonic() + RETRY_AFTER_S
        if self._place.version is None:
            self._take_previous(current.version)

    def _go_back(self, current: Look) -> None:
        complaint, self._complaint = self._complaint, None
        serving = self._place.version
        if complaint is None or serving is None or serving.version != complaint[0]:
            return
        version, reason = complaint
        if current.version != version:
            return  # the daemon has moved on already
        self._seen["current"] = current.identity
        self._cast(version, "failed", GateRefused(reason), 0)
        self._take_previous(version)

    def _take_previous(self, instead_of: int) -> None:
        try:
            version = self._folder.read_link("previous")
            if version is None or version == instead_of:
                return
            candidate = self._load("previous", version, DEFAULT_WITHIN_S)
        except _TROUBLE as error:
            self._note(f"previous cannot serve either: {_reason(error)}")
            return
        if candidate is not None and self._swap(candidate):
            self._note(f"serves {candidate.version} in place of {instead_of}")

    def _swap(self, candidate: Serving) -> bool:
        before = self._place.version
        swapped = self._place.swap(candidate)
        if swapped and before is not None:
            self._retiring.append(before)
        return swapped

    def _retire(self) -> None:
        """Free versions that only we hold: the last of their calls has ended, and it shall not pay for it."""
        for position in reversed(range(len(self._retiring))):
            if sys.getrefcount(self._retiring[position]) <= _OURS:
                retire(self._retiring.pop(position))

    def _consider(self, offered: Look) -> None:
        """Gate what `next` points at and vote; the candidate stays warm until `current` moves or `next` goes."""
        version = offered.version
        if version is None:
            self._seen["next"] = None
            self._warm = None
            return
        offer = self._folder.read_offer()
        if offer is None or offer.version != version:
            return  # the links have moved meanwhile: look again
        self._seen["next"] = offered.identity
        known = {each.version for each in (self._warm, self._place.version) if each is not None}
        if version not in known:
            self._warm = None
            try:
                self._warm = self._load("next", version, offer.gate_within_s)
            except _TROUBLE as error:
                self._cast(version, "refuse", error, offer.attempt)
                return
            if self._warm is None:
                return
        self._cast(version, "accept", None, offer.attempt)

    def _load(self, name: LinkName, version: int | None, within_s: float) -> Serving | None:
        """The version that `name` points at, gated; None if the link has moved away from `version` meanwhile."""
        lock: VersionLock | None = self._folder.lock_linked(name)
        if lock is None:
            return None
        if lock.version != version:
            lock.close()
            return None
        try:
            return self._loader.load(lock, serving=self._place.version, within_s=within_s)
        except BaseException:
            lock.close()
            raise

    def _cast(self, version: int, verdict: Verdict, error: Exception | None, attempt: int) -> None:
        reason = "" if error is None else _reason(error)
        self._vote = Vote(version, verdict, reason, attempt)
        if error is not None:
            self._note(f"version {version}: {reason}")
        self._report()

    def _note(self, why: str) -> None:
        if why != self._why:
            self._why = why
            log.warning("%s: %s", self._folder.model, why)

    def _report(self) -> None:
        """Write the report at once if something happened, each second if only figures changed."""
        if self._registration is None:
            return
        serving = self._place.version
        report = FollowerReport(
            id=self._registration.id,
            pid=os.getpid(),
            version=serving.version if serving is not None else None,
            vote=self._vote,
            voter=self._voter,
            held=self._place.is_held,
            why=self._why[:MAX_REASON],
        )
        troubles = serving.calls.troubles() if serving is not None else 0
        is_news = (
            self._written is None or _without_figures(self._written) != report or troubles != self._troubles
        )
        if not is_news and time.monotonic() < self._write_at:
            return
        if serving is not None:
            figures = serving.calls.figures()
            report = replace(report, **vars(figures))
        if report != self._written:
            try:
                self._registration.write(report)
            except OSError as error:
                self._note(f"no report: {error}")  # tried again in a second: what serves goes on
            else:
                self._written, self._troubles = report, troubles
        self._write_at = time.monotonic() + REPORT_EVERY_S


def _without_figures(report: FollowerReport) -> FollowerReport:
    return replace(report, predictions=0, errors=0, nonfinite=0, p50_ms=None, p99_ms=None)


def _reason(error: Exception) -> str:
    """One line for a vote; a plain exception's type belongs to it, a SyncdError says enough."""
    text = error.what if isinstance(error, SyncdError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:MAX_REASON]
