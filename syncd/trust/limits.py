"""How large signed metadata may be, in bytes: nothing beyond is read."""

from __future__ import annotations

from typing import Final

ROOT_BYTES: Final = 256 * 1024
TIMESTAMP_BYTES: Final = 16 * 1024
SNAPSHOT_BYTES: Final = 512 * 1024
ROLE_BYTES: Final = 1024 * 1024
