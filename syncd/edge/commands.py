"""What people may tell one followed model: each command is kept in state.db first, then the machine looks at it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from syncd.edge.by_hand import version_target
from syncd.edge.standing import Target
from syncd.errors import Failed, NotInstalled, StoreUnreachable, UnknownVersion, UsageError
from syncd.state import events, installed, wishes
from syncd.state.installed import Installed
from syncd.state.wishes import COMMANDS, WITH_VERSION

if TYPE_CHECKING:
    from syncd.edge.follow import Follow
    from syncd.trust.verify import ModelTrust

DONE_WITHIN_S: Final = 10.0
FIND_WITHIN_S: Final = 60.0


async def obey(
    follow: Follow, trust: ModelTrust, command: str, version: int | None, by: str
) -> dict[str, Any]:
    """Carry out one command; durable when this returns.

    Args:
        by: who asks, for the events: "uid 0", "token".
    Returns: {model, version, previous, held, pinned}: `version` is what the command was about or led to, `previous`
        what was so before.
    Raises:
        UsageError: no such command, or a version is missing, superfluous or not one to choose.
        UnknownVersion: no such version, or none that waits. NotInstalled, Failed: nothing to go back to.
    """
    model = follow.section.model
    if command not in COMMANDS:
        raise UsageError(f"there is no command {command!r}", do=f"one of {', '.join(COMMANDS)}")
    if (version is None) == (command in WITH_VERSION):
        needs = f"write {model}@N" if version is None else f"write {model} alone"
        raise UsageError(f"{command} takes {'a' if version is None else 'no'} version", do=needs, model=model)
    target = await _find(follow, trust, version) if command == "pin" and version is not None else None
    result = await asyncio.to_thread(_note, follow, command, version, target, by)
    follow.look_again()
    if command == "poll":
        follow.poll_now()
    if command == "rollback":
        result |= await _gone_back(follow)
    return result


async def _find(follow: Follow, trust: ModelTrust, version: int) -> Target:
    """A version's signed target: as it is installed or released, else out of the index in the store."""
    model = follow.section.model
    here = (await asyncio.to_thread(installed.installed, follow.db, model)).get(version)
    if here is not None and version in await asyncio.to_thread(follow.folder.versions):
        return Target(here.version, here.head_digest, here.head_length)
    if follow.facts is not None and follow.facts.version == version:
        return Target(version, follow.facts.head_digest, follow.facts.head_length)
    try:
        async with asyncio.timeout(FIND_WITHIN_S):
            return await version_target(trust, model, version)
    except TimeoutError as error:
        raise StoreUnreachable(f"the store did not answer within {FIND_WITHIN_S:g} s") from error


def _note(
    follow: Follow, command: str, version: int | None, target: Target | None, by: str
) -> dict[str, Any]:
    """Check the command and keep what it wants, with an event, in one transaction."""
    model, db = follow.section.model, follow.db
    serving = follow.folder.read_link("current")
    with db.transaction():
        before = wishes.load(db, model)
        about, previous = serving, follow.folder.read_link("previous")
        now = before
        if command in ("hold", "resume"):
            now = replace(before, held=command == "hold")
        elif command == "pin" and target is not None:
            _check_may_serve(follow, target)
            now = replace(before, pinned=Installed(target.version, target.head_digest, target.head_length))
            about, previous = target.version, serving
        elif command == "unpin":
            now = replace(before, pinned=None)
            about = follow.facts.version if follow.facts else None
            previous = before.pinned.version if before.pinned else None
        elif command == "approve" and version is not None:
            _approve(follow, version)
            about, previous = version, serving
        elif command == "rollback":
            now = _leave(follow, serving, before)
            about, previous = None, serving
        if now != before:
            wishes.save(db, model, now)
        said = about if command != "rollback" else previous
        events.record(db, "command", model, command=command, version=said, by=by)
    pinned = now.pinned.version if now.pinned else None
    return {"model": model, "version": about, "previous": previous, "held": now.held, "pinned": pinned}


def _check_may_serve(follow: Follow, target: Target) -> None:
    model = follow.section.model
    for each in installed.quarantine(follow.db, model):
        if (each.version, each.head_digest) == (target.version, target.head_digest):
            raise UsageError(
                f"version {target.version} is in quarantine here: {each.reason}",
                do=f"`syncd approve {model}@{target.version}` lifts it; then pin it",
                model=model,
            )
    if follow.facts is not None and target.version in follow.facts.yanked:
        raise UsageError(f"version {target.version} was yanked", do="pin another one", model=model)


def _approve(follow: Follow, version: int) -> None:
    """Lift the version's quarantine and let it be fetched; UnknownVersion where nothing of that number waits."""
    model, db = follow.section.model, follow.db
    given_up = installed.quarantine(db, model)
    heads = {each.head_digest for each in given_up if each.version == version}
    if follow.facts is not None and follow.facts.version == version:
        heads.add(follow.facts.head_digest)
    if version in (here := installed.installed(db, model)):
        heads.add(here[version].head_digest)
    if not heads:
        known = {each.version for each in given_up} | ({follow.facts.version} if follow.facts else set())
        raise UnknownVersion(
            f"no version {version} of {model} waits for an approval here",
            do=f"known here: {', '.join(map(str, sorted(known))) or 'none'}",
            model=model,
        )
    installed.lift_quarantine(db, model, version)
    for each in heads:
        wishes.approve(db, model, version, each)


def _leave(follow: Follow, serving: int | None, before: wishes.Wishes) -> wishes.Wishes:
    """The wish to leave what serves; a pin on it goes too."""
    model = follow.section.model
    if serving is None:
        raise NotInstalled(f"no version of {model} serves on this node yet", model=model)
    if follow.way_back(serving) is None:
        raise Failed(
            f"there is no version to go back to from {serving}",
            why="no other version is installed, or all others are in quarantine",
            do=f"`syncd pin {model}@N` fetches another one; version {serving} goes on serving",
            model=model,
        )
    leaving = installed.installed(follow.db, model).get(serving)
    if leaving is None:
        raise Failed(f"version {serving} is not one that this daemon installed", model=model)
    pinned = None if before.pinned and before.pinned.version == serving else before.pinned
    return replace(before, leaving=leaving, pinned=pinned)


async def _gone_back(follow: Follow) -> dict[str, Any]:
    """Wait until the machine has gone back, `DONE_WITHIN_S` at most; `version` is what serves then."""
    deadline = time.monotonic() + DONE_WITHIN_S
    while True:
        wish = await asyncio.to_thread(wishes.load, follow.db, follow.section.model)
        if wish.leaving is None:
            return {"version": await asyncio.to_thread(follow.folder.read_link, "current")}
        if time.monotonic() > deadline:
            raise Failed(
                "the node has not gone back yet",
                why="the edge is busy with a step that it does not leave half-way",
                do="the wish is kept and carried out; `syncd status` shows when",
            )
        await asyncio.sleep(0.02)
