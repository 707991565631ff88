"""A refresh killed at any point, a full disk, a new root: what is on disk is the old or the new, and it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.errors import DocumentInvalid, Failed, NotAuthentic
from syncd.trust.founding import put_targets
from syncd.trust.keys import fleet_key_path, generate_key, load_key, model_key_path
from syncd.trust.sign import ModelSigner, SignedRole, Target, sign_model_root
from syncd.trust.updating import CRASH_POINTS
from tests.support.signed_store import REFRESH, SignedStore, disk, make_head, make_signed_store, sha256


@pytest.fixture
async def signed(tmp_path: Path) -> SignedStore:
    made = await make_signed_store(tmp_path)
    await made.add_model("m")
    await made.release("m")
    return made


@pytest.mark.parametrize("point", CRASH_POINTS)
@pytest.mark.parametrize("known", [True, False])
async def test_a_refresh_killed_at_any_point_leaves_the_old_or_the_new_and_the_next_one_goes_on(
    signed: SignedStore, tmp_path: Path, point: str, known: bool
) -> None:
    node = tmp_path / "node"
    if known:
        await signed.trust("m", node).refresh("latest")
        await signed.release("m")
    newest = 2 if known else 1
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "SYNCD_CRASH_AT": point}
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", REFRESH, str(tmp_path)], env=environ, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    accepted = signed.trust("m", node).accepted("latest")
    assert accepted is None if not known else accepted is not None and accepted.version == 1
    trust = signed.trust("m", node)
    facts = await trust.refresh("latest")
    assert facts is not None
    assert facts.version == newest
    await signed.release("m")
    await trust.refresh("latest")
    assert sorted(path.name.partition("-")[0] for path in node.iterdir()) == [
        "metadata",
        "metadata",
        "receipts.json",
    ]


async def test_a_new_root_with_a_new_online_key_is_found_at_the_first_poll_and_the_old_key_counts_no_more(
    signed: SignedStore, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    await signed.trust("m", node).refresh("latest")
    state = await (await signed.repository("m")).load()
    fleet = load_key(fleet_key_path(signed.keys))
    old = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    new = ModelSigner("m", generate_key(tmp_path / "new.key"))
    # a thief of the old key has run every number up
    roles = {
        role: each for role, each in state.files.items() if role not in ("root", "timestamp", "snapshot")
    }
    snapshot = SignedRole(10**6, old.sign_snapshot(10**6, roles))
    signed.path("m", f"metadata/{10**6}.snapshot.json").write_bytes(snapshot.data)
    signed.path("m", "metadata/timestamp.json").write_bytes(old.sign_timestamp(10**6, snapshot, {}))
    await signed.trust("m", node).refresh("latest")
    # the fleet key names a new one, and the numbers go on from where they honestly were
    root = sign_model_root(fleet, new.online.public_key, "m", 3)
    signed.path("m", "metadata/3.root.json").write_bytes(root)
    keys = dict.fromkeys(("versions", "channel-latest", "channel-stable"), new.online.public_key)
    roles["targets"] = await put_targets(signed.store, "m", fleet, roles["targets"], keys)
    head = make_head("m", 1)
    custom = {"version": 1, "release": 2, "time": "2026-01-01T00:00:00Z"}
    target = Target("versions/1/head.json", sha256(head), len(head), custom)
    for role in keys:
        file = new.sign_role(role, 5, target if role == "channel-latest" else None)
        roles[role] = SignedRole(5, file)
        signed.path("m", f"metadata/5.{role}.json").write_bytes(file)
    snapshot = SignedRole(5, new.sign_snapshot(5, roles))
    signed.path("m", "metadata/5.snapshot.json").write_bytes(snapshot.data)
    timestamp = new.sign_timestamp(5, snapshot, {})
    signed.path("m", "metadata/timestamp.json").write_bytes(timestamp)
    trust = signed.trust("m", node)
    facts = await trust.refresh("latest")
    assert facts is not None
    assert facts.release == 2
    before = disk(node)
    signed.path("m", "metadata/timestamp.json").write_bytes(old.sign_timestamp(10**7, snapshot, {}))
    with pytest.raises(NotAuthentic):
        await signed.trust("m", node).refresh("latest")
    assert disk(node) == before
    signed.path("m", "metadata/timestamp.json").write_bytes(timestamp)
    assert await trust.refresh("latest") is None


async def test_a_folder_of_another_model_is_refused(signed: SignedStore, tmp_path: Path) -> None:
    await signed.add_model("n")
    await signed.trust("m", tmp_path / "node").refresh("latest")
    before = disk(tmp_path / "node")
    with pytest.raises(NotAuthentic, match="receipts for model 'm'"):
        await signed.trust("n", tmp_path / "node").refresh("latest")
    assert disk(tmp_path / "node") == before


async def test_a_folder_that_cannot_be_made_is_told_and_leaves_nothing(
    signed: SignedStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Failed, match="cannot be used"):
        await signed.trust("m", tmp_path / "file" / "node").refresh("latest")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": "syncd.receipts/2"}'])
async def test_receipts_that_cannot_be_read_are_never_taken_for_a_first_start(
    signed: SignedStore, tmp_path: Path, damage: bytes
) -> None:
    await signed.trust("m", tmp_path / "node").refresh("latest")
    (tmp_path / "node/receipts.json").write_bytes(damage)
    before = disk(tmp_path / "node")
    with pytest.raises(DocumentInvalid, match="receipts"):
        signed.trust("m", tmp_path / "node").accepted("latest")
    assert disk(tmp_path / "node") == before


async def test_several_trusts_on_one_folder_at_once_end_on_the_newest(
    signed: SignedStore, tmp_path: Path
) -> None:
    trusts = [signed.trust("m", tmp_path / "node") for _ in range(4)]
    await asyncio.gather(*(each.refresh("latest") for each in trusts))
    await signed.release("m")
    facts = await asyncio.gather(*(each.refresh("latest") for each in trusts))
    assert {each.version for each in facts if each is not None} == {2}
