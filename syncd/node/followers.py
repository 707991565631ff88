"""Followers' locks, reports and votes: written by processes that predict, read by a daemon that believes little.

A report is hostile input: bounded in size, checked field by field, and worth no more than a vote and some figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from syncd.node.links import MAX_VERSION, FolderLock, ModelFolder

Verdict = Literal["accept", "refuse", "failed"]

MAX_REPORT_BYTES: Final = 16 * 1024
MAX_REASON: Final = 1000
MAX_FOLLOWERS: Final = 1024
MAX_ENTRIES: Final = 8 * MAX_FOLLOWERS
MAX_COUNT: Final = 2**53 - 1
MAX_ATTEMPT: Final = 1_000_000

_FORMAT: Final = "syncd.follower/1"
_ID = re.compile(r"[1-9][0-9]{0,9}-[0-9]{1,20}-[0-9a-f]{16}")
_REGISTER_TRIES: Final = 20


@dataclass(frozen=True)
class Vote:
    """A follower's verdict on `version`: accept or refuse one that is offered, or failed for one that serves.

    `attempt` is the offer's; 0 in a vote on `current`. A reason of more than 1,000 characters is cut.
    """

    version: int
    verdict: Verdict
    reason: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class FollowerReport:
    """One follower. Counts are of `version` since this process began to serve it; latencies are in ms.

    `alive` is False for the last words of one that voted against a version and ended: they are read once.
    """

    id: str = ""
    pid: int = 0
    version: int | None = None
    vote: Vote | None = None
    voter: bool = True
    held: bool = False
    predictions: int = 0
    errors: int = 0
    nonfinite: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    why: str = ""
    invalid: bool = field(default=False, compare=False)
    alive: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Tally:
    """The votes on an offer: who accepted, who refused and why, who has not answered this attempt."""

    accepted: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    waiting: tuple[str, ...]

    @property
    def all_accepted(self) -> bool:
        """Nobody refused and nobody is waited for; true without voters."""
        return not self.refused and not self.waiting


def count_votes(reports: list[FollowerReport], version: int, attempt: int) -> Tally:
    """Count the living voters' votes on `version` as offered the `attempt`-th time; a held follower accepts."""
    accepted: list[str] = []
    refused: list[tuple[str, str]] = []
    waiting: list[str] = []
    for report in reports:
        if not report.voter:
            continue
        vote = report.vote
        if vote and (vote.version, vote.attempt) != (version, attempt):
            vote = None  # the answer to another question
        if vote and vote.verdict != "accept":
            refused.append((report.id, vote.reason))
        elif vote or report.held or report.version == version:
            accepted.append(report.id)
        else:
            waiting.append(report.id)
    return Tally(tuple(accepted), tuple(refused), tuple(waiting))


def failed_votes(reports: list[FollowerReport], version: int) -> list[tuple[str, str]]:
    """(id, reason) of the living voters that say `version` failed or refused it, while it serves."""
    return [
        (report.id, report.vote.reason)
        for report in reports
        if report.voter and report.vote and report.vote.version == version and report.vote.verdict != "accept"
    ]


class Registration:
    """A follower's place in the folder: its lock, held for life, and its report. Not safe for use by two threads."""

    def __init__(self, folder: Path, follower: str, lock: FolderLock) -> None:
        self.id = follower
        self._folder = folder
        self._lock = lock

    def write(self, report: FollowerReport) -> None:
        """Replace this follower's report in one step; not durable, since after a power cut nobody follows.

        Raises:
            OSError: the folder is full, gone or no longer writable; the last report still stands.
        """
        document = {"format": _FORMAT, **_as_document(report)}
        aside = self._folder / f".{self.id}.part"
        descriptor = os.open(
            aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )
        try:
            os.fchmod(descriptor, 0o640)
            os.write(descriptor, json.dumps(document, separators=(",", ":")).encode())
        finally:
            os.close(descriptor)
        aside.replace(self._folder / f"{self.id}.json")

    def close(self) -> None:
        """Leave: the report and the lock go. A process that dies instead is swept by the daemon."""
        for name in (f".{self.id}.part", f"{self.id}.json", f"{self.id}.lock"):
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
        self._lock.close()

    def abandon(self) -> None:
        """Close the inherited descriptor in a forked child: the parent's lock stays in force, its files stay."""
        self._lock.close()


def register(folder: ModelFolder) -> Registration:
    """Become a follower of `folder` with an id of our own (pid-starttime-random), locked until the process ends.

    Raises:
        OSError: there is no followers' folder, or this user may not write to it; such a process only follows.
    """
    for _ in range(_REGISTER_TRIES):
        follower = f"{os.getpid()}-{_start_time()}-{secrets.token_hex(8)}"
        path = folder.followers / f"{follower}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        lock = FolderLock(descriptor)
        try:
            os.fchmod(descriptor, 0o640)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (
            BlockingIOError
        ):  # the daemon looked in the instant before the lock, and sweeps it: take another id
            lock.close()
            continue
        if os.fstat(descriptor).st_nlink:
            return Registration(folder.followers, follower, lock)
        lock.close()
    raise OSError(f"no place in {folder.followers} after {_REGISTER_TRIES} tries")


def read_followers(folder: ModelFolder, *, sweep: bool = True) -> list[FollowerReport]:
    """The living followers, in order of their ids; with `sweep` the files of dead ones are deleted.

    One that voted `refuse` or `failed` and ended before anyone read it (a program that gives up when it cannot open
    its model) is among them once, with `alive` False; the caller acts on it or remembers it.

    A report that is missing, too large, not a regular file, of another owner than its lock, or against the schema
    becomes one without figures and without a vote (`invalid`): it is waited for like any silent voter, and its `why`
    says what is wrong. At most 1,024 followers are looked at.
    """
    reports = []
    for follower in _ids(folder.followers):
        report = _look_at(folder.followers, follower, sweep)
        if report is not None:
            reports.append(report)
    return reports


def read_dead(folder: ModelFolder) -> list[FollowerReport]:
    """The last reports of followers that ended without leaving: their files are there, their locks are free."""
    dead = []
    for follower in _ids(folder.followers):
        with _open_regular(folder.followers / f"{follower}.lock") as opened:
            if opened is not None:
                try:
                    fcntl.flock(opened[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                last_words = _read_report(folder.followers, follower, opened[1].st_uid)
                dead.append(replace(last_words, alive=False))
    return dead


def _ids(folder: Path) -> list[str]:
    found = set()
    try:
        with os.scandir(folder) as entries:
            for position, entry in enumerate(entries):
                if position >= MAX_ENTRIES:
                    break
                stem, _, ending = entry.name.rpartition(".")
                if ending in ("lock", "json", "part") and _ID.fullmatch(stem.removeprefix(".")):
                    found.add(stem.removeprefix("."))
    except FileNotFoundError:
        return []
    return sorted(found)[:MAX_FOLLOWERS]


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[tuple[int, os.stat_result] | None]:
    """Yield a descriptor and its stat, None for all but a regular file; follows no link and waits on no pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        found = os.fstat(descriptor)
        yield (descriptor, found) if stat.S_ISREG(found.st_mode) else None
    finally:
        os.close(descriptor)


def _look_at(folder: Path, follower: str, sweep: bool) -> FollowerReport | None:
    """The report of a follower that lives or left a vote against a version; a dead one's files go under its lock.

    Deleting while we hold the lock is what lets `register` tell that the daemon came between its two steps.
    """
    with _open_regular(folder / f"{follower}.lock") as opened:
        last_words = None
        if opened is not None:
            owner = opened[1].st_uid
            try:
                fcntl.flock(opened[0], (fcntl.LOCK_EX if sweep else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_report(folder, follower, owner)
            last_words = _read_report(folder, follower, owner)
        if sweep:
            for name in (f".{follower}.part", f"{follower}.json", f"{follower}.lock"):
                with contextlib.suppress(OSError):  # a folder cannot be unlinked; it stays and costs a look
                    (folder / name).unlink()
        if last_words is None or last_words.vote is None or last_words.vote.verdict == "accept":
            return None
        return replace(last_words, alive=False)


def _read_report(folder: Path, follower: str, owner: int) -> FollowerReport:
    pid = int(follower.partition("-")[0])
    try:
        with _open_regular(folder / f"{follower}.json") as opened:
            if opened is None:
                raise ValueError("no report that is a regular file")
            descriptor, found = opened
            if found.st_uid != owner:
                raise ValueError(f"the report belongs to user {found.st_uid}, its lock to {owner}")
            if found.st_size > MAX_REPORT_BYTES:
                raise ValueError(f"the report has {found.st_size} bytes, more than {MAX_REPORT_BYTES}")
            data = os.read(descriptor, MAX_REPORT_BYTES + 1)
        return _parse_report(follower, pid, data)
    except (ValueError, RecursionError, OSError) as error:
        return FollowerReport(id=follower, pid=pid, why=str(error)[:MAX_REASON], invalid=True)


def _parse_report(follower: str, pid: int, data: bytes) -> FollowerReport:
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"not a report of format {_FORMAT}")
    version = document.get("version")
    return FollowerReport(
        id=follower,
        pid=pid,  # of the locked id, not of the text
        version=None if version is None else _integer(document, "version", 1, MAX_VERSION),
        vote=_parse_vote(document.get("vote")),
        voter=_boolean(document, "voter"),
        held=_boolean(document, "held"),
        predictions=_integer(document, "predictions", 0, MAX_COUNT),
        errors=_integer(document, "errors", 0, MAX_COUNT),
        nonfinite=_integer(document, "nonfinite", 0, MAX_COUNT),
        p50_ms=_milliseconds(document, "p50_ms"),
        p99_ms=_milliseconds(document, "p99_ms"),
        why=_text(document, "why"),
    )


def _parse_vote(document: Any) -> Vote | None:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise ValueError("vote is not an object")
    verdict: Any = document.get("verdict")
    if verdict not in get_args(Verdict):
        raise ValueError(f"vote.verdict is not one of {', '.join(get_args(Verdict))}")
    return Vote(
        version=_integer(document, "version", 1, MAX_VERSION),
        verdict=verdict,
        reason=_text(document, "reason"),
        attempt=_integer(document, "attempt", 0, MAX_ATTEMPT),
    )


def _integer(document: dict[str, Any], name: str, low: int, high: int) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is not an integer from {low} to {high}")
    return value


def _boolean(document: dict[str, Any], name: str) -> bool:
    value = document.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def _milliseconds(document: dict[str, Any], name: str) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < 1e12
        or not math.isfinite(value)
    ):
        raise ValueError(f"{name} is not a time in milliseconds")
    return float(value)


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_REASON:
        raise ValueError(f"{name} is not a text of at most {MAX_REASON} characters")
    # One printable line: it ends up in logs, terminals and pages.
    return "".join(sign if sign.isprintable() else " " for sign in value)


def _as_document(report: FollowerReport) -> dict[str, Any]:
    vote = report.vote and {
        "version": report.vote.version,
        "verdict": report.vote.verdict,
        "reason": report.vote.reason[:MAX_REASON],
        "attempt": report.vote.attempt,
    }
    return {
        "pid": report.pid or os.getpid(),
        "written_at": time.time(),
        "version": report.version,
        "vote": vote,
        "voter": report.voter,
        "held": report.held,
        "predictions": report.predictions,
        "errors": report.errors,
        "nonfinite": report.nonfinite,
        "p50_ms": report.p50_ms,
        "p99_ms": report.p99_ms,
        "why": report.why[:MAX_REASON],
    }


def _start_time() -> int:
    """The process's start in clock ticks since boot, which tells it from a later one of the same pid; 0 if unknown."""
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])
