"""A power cut after an accepted refresh: python-tuf alone leaves empty files; here all that was told is there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.trust.updating import CRASH_POINTS
from tests.support.disks import after_power_cut, mounted_image
from tests.support.signed_store import REFRESH, SignedStore, make_signed_store

pytestmark = pytest.mark.root


@pytest.fixture
async def signed(tmp_path: Path) -> SignedStore:
    made = await make_signed_store(tmp_path)
    await made.add_model("m")
    await made.release("m")
    return made


async def test_after_a_power_cut_what_was_accepted_is_there_and_the_store_set_back_is_refused(
    signed: SignedStore, tmp_path: Path
) -> None:
    with mounted_image(tmp_path / "disk", 32 << 20) as mount:
        facts = await signed.trust("m", mount / "node").refresh("latest")
        with after_power_cut(tmp_path / "disk") as cut:
            assert signed.trust("m", cut / "node").accepted("latest") == facts
            empty = [path for path in (cut / "node").rglob("*") if path.is_file() and not path.stat().st_size]
            assert empty == []
            assert await signed.trust("m", cut / "node").refresh("latest") is None


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_power_cut_within_a_refresh_leaves_the_old_or_the_new(
    signed: SignedStore, tmp_path: Path, point: str
) -> None:
    with mounted_image(tmp_path / "disk", 32 << 20) as mount:
        (tmp_path / "node").symlink_to(mount / "node")
        (mount / "node").mkdir(mode=0o700)
        await signed.trust("m", mount / "node").refresh("latest")
        await signed.release("m")
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "SYNCD_CRASH_AT": point}
        killed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", REFRESH, str(tmp_path)],
            env=environ,
            timeout=60,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        with after_power_cut(tmp_path / "disk") as cut:
            trust = signed.trust("m", cut / "node")
            accepted = trust.accepted("latest")
            assert accepted is not None
            assert accepted.version == 1
            newest = await trust.refresh("latest")
            assert newest is not None
            assert newest.version == 2
