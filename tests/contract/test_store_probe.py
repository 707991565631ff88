"""The probe accepts honest stores, refuses dishonest ones by name, and cleans up after itself."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.errors import StoreDenied, StoreDishonest, StoreReadOnly, StoreUnreachable
from syncd.store.folder import FolderStore
from syncd.store.open import open_store
from syncd.store.probe import probe
from tests.support.servers import RcloneS3, SeaweedFS


async def test_a_folder_is_honest_and_left_empty(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store", create=True)
    await probe(store)
    assert [i async for i in store.list("")] == []


async def test_seaweedfs_is_honest_and_left_empty(s3: SeaweedFS) -> None:
    store = open_store(s3.section(f"probe-{secrets.token_hex(4)}"))
    await probe(store)
    assert [i async for i in store.list("")] == []
    await store.aclose()


async def test_a_store_that_ignores_conditions_is_refused_and_every_fault_is_named(
    rclone_s3: RcloneS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(rclone_s3.section())
    with pytest.raises(StoreDishonest, match="conditional puts") as caught:
        await probe(store)
    assert "create-only put replaced" in caught.value.why
    assert "stale ETag" in caught.value.why
    assert "racing" in caught.value.why
    assert not [p for p in (rclone_s3.folder / "data").rglob("*") if p.is_file()], (
        "the probe left objects behind"
    )
    await store.aclose()


async def test_a_reader_is_denied(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDREADER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reader-secret")
    store = open_store(s3.section("probe"))
    with pytest.raises(StoreDenied):
        await probe(store)
    await store.aclose()


async def test_http_is_read_only() -> None:
    with pytest.raises(StoreReadOnly, match="publish to the folder or bucket"):
        await probe(open_store(StoreSection(url="https://models.example.com/fleet")))


async def test_a_missing_folder_is_unreachable_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable):
        await probe(FolderStore(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []
