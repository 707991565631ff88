"""A running publisher keeps its model's metadata from expiring: signed again at half of its life, content unchanged."""

from __future__ import annotations

import time
from typing import Final

from syncd.publisher.commit import ModelRepository
from syncd.trust.sign import ONLINE_LIFE_S

CHECK_EVERY_S: Final = 6 * 3600.0
"""How often a publisher looks; a missed look costs nothing for half a year."""


async def renew_if_due(repository: ModelRepository, now: float | None = None) -> tuple[str, ...]:
    """Renew what has less than half of its life left; → the signing roles that were renewed, mostly none.

    Raises:
        LostRace: another publisher committed meanwhile: look again later.
    """
    now = time.time() if now is None else now
    await repository.load()
    return await repository.renew(now + ONLINE_LIFE_S / 2)
