"""What to prefetch: the names that a timestamp hints at, before anything is verified; they decide nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping

from syncd.trust import names
from syncd.trust.facts import MAX_HEAD_BYTES, MAX_INDEX_BYTES
from syncd.trust.limits import ROLE_BYTES, ROOT_BYTES, SNAPSHOT_BYTES
from syncd.trust.receipts import Receipts
from syncd.trust.sign import NEXT_FIELD


def read_hints(timestamp: bytes) -> dict[str, list[str]]:
    """The names to prefetch by role, out of bytes not verified yet: bounded, and of known kinds only."""
    try:
        hints = json.loads(timestamp)["signed"][NEXT_FIELD]
        return {
            role: [name for name in wanted[:4] if names.is_hint(name)]
            for role, wanted in list(hints.items())[:256]
            if isinstance(wanted, list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def worth_fetching(
    hints: Mapping[str, list[str]], receipts: Receipts, roles: tuple[str, ...] | None
) -> list[str]:
    """Of the hints those for the wanted roles whose number is not the accepted one."""
    wanted = []
    for role, listed in hints.items():
        needed = roles is None or role in ("snapshot", "targets", *roles)
        accepted = receipts.roles.get(role)
        numbers = [parsed[0] for parsed in map(names.parse_metadata, listed) if parsed is not None]
        if needed and not (accepted is not None and accepted.number in numbers):
            wanted += listed if roles is not None else [name for name in listed if names.parse_metadata(name)]
    return list(dict.fromkeys(wanted))


def limit_of(name: str) -> int:
    """The most bytes that a name may have."""
    numbered = names.parse_metadata(name)
    if numbered is None:
        return MAX_INDEX_BYTES if names.index_number(name) is not None else MAX_HEAD_BYTES
    return {"root": ROOT_BYTES, "snapshot": SNAPSHOT_BYTES}.get(numbered[1], ROLE_BYTES)
