"""When a candidate is settled: quiet for long enough that reading it now is worth the try.

Settled is not complete: a proof follows when it is opened, and its identity is compared again after reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncd.checkpoint.identity import Identity

UNPROVEN_FACTOR: Final = 2.0
UNPROVEN_LEAST_S: Final = 30.0
SPARSE_FACTOR: Final = 5.0


@dataclass(slots=True)
class _History:
    identity: Identity
    first_change: float  # monotonic seconds
    last_change: float


class Settler:
    """Remembers looks; one for each watched folder. Not for several threads.

    A candidate is settled when its last change is `settle_s` ago: by the clock of its file system, or because it
    looked the same for that long (a server's clock may be wrong, and a file may come from the future). Without a
    proof (a folder of unknown kind) it must be quiet for 30 s and for twice the time that writing was seen to take.
    """

    def __init__(self, settle_s: float) -> None:
        self.settle_s = settle_s
        self._histories: dict[Path, _History] = {}

    def wait_s(
        self,
        path: Path,
        identity: Identity,
        *,
        now: float,
        wall: float,
        proven: bool = True,
        sparse: bool = False,
    ) -> float:
        """Take a look in; 0.0: settled, else the seconds until it would be if nothing changes any more.

        Args:
            now: monotonic seconds. wall: Unix seconds.
            proven: whether its kind can be proven complete when it is read.
            sparse: whether it looks like a file that is still being filled; it must be quiet five times as long.
        """
        history = self._histories.get(path)
        if history is None:
            history = self._histories[path] = _History(identity, now, now)
        elif history.identity != identity:
            history.identity, history.last_change = identity, now
        needed = self.settle_s
        if not proven:
            writing_s = history.last_change - history.first_change
            needed = max(needed, UNPROVEN_LEAST_S, UNPROVEN_FACTOR * writing_s)
        if sparse:
            needed *= SPARSE_FACTOR
        age = wall - identity.changed_at
        return max(0.0, needed - max(age, now - history.last_change))

    def forget_others(self, paths: set[Path]) -> None:
        """Drop what is known of paths that are not there any more."""
        self._histories = {path: history for path, history in self._histories.items() if path in paths}
