"""What a followed model looks like from outside: its object in `/v1/status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from syncd.edge import hooks
from syncd.edge.transitions import State
from syncd.errors import DocumentInvalid
from syncd.node.followers import read_followers
from syncd.node.links import LinkName
from syncd.state import installed, wishes

if TYPE_CHECKING:
    from syncd.edge.actions import Actions
    from syncd.edge.follow import Follow

_DAY_S = 86400.0


def snapshot(follow: Follow) -> dict[str, Any]:
    """The object, plain JSON. Blocks for a few small reads; from any thread."""
    standing, facts = follow.standing, follow.facts
    progress = follow.progress
    wish = wishes.load(follow.db, follow.section.model)
    return {
        "model": follow.section.model,
        "channel": follow.section.channel,
        "state": str(standing.state),
        "reason": standing.reason,
        "target": standing.target.version if standing.target else None,
        "serving": _link(follow, "current"),
        "available": facts.version if facts else None,
        "previous": _link(follow, "previous"),
        "installed": follow.folder.versions(),
        "probation_until": standing.probation_until if standing.state is State.PROBATION else None,
        "quarantined": [
            {"version": each.version, "stage": each.stage, "reason": each.reason}
            for each in installed.quarantine(follow.db, follow.section.model)
        ],
        "held": wish.held,
        "pinned": wish.pinned.version if wish.pinned else None,
        "approve": follow.section.approve,
        "waits_for": (standing.waits_for or None) if standing.state is State.WAITING else None,
        "hooks": hooks.told(follow.section.hooks, follow.section.model, follow.db),
        "last_poll": follow.last_poll,
        "last_contact": follow.last_contact,
        "last_change": _changed_at(follow),
        "last_error": follow.last_error,
        "reachable": follow.poll_error is None and follow.last_contact is not None,
        "wire_bytes": follow.wire_bytes,
        "progress": {"received": progress[0], "total": progress[1]} if progress else None,
        "followers": [_follower(each) for each in read_followers(follow.folder, sweep=False)],
        "trust": {
            role: round((expires - time.time()) / _DAY_S, 2)
            for role, expires in (facts.expires.items() if facts else ())
        },
    }


def _follower(report: Any) -> dict[str, Any]:
    names = (
        "id",
        "pid",
        "version",
        "predictions",
        "errors",
        "nonfinite",
        "p50_ms",
        "p99_ms",
        "voter",
        "held",
        "why",
    )
    return {name: getattr(report, name) for name in names}


def _link(follow: Actions, name: LinkName) -> int | None:
    try:
        return follow.folder.read_link(name)
    except DocumentInvalid:
        return None


def _changed_at(follow: Actions) -> float | None:
    try:
        return (follow.folder.path / "current").lstat().st_mtime
    except FileNotFoundError:
        return None
