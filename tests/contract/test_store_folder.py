"""The folder store keeps the contract, and what only a folder can get wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncd.store.base import Store
from syncd.store.folder import FolderStore
from tests.contract.store_contract import StoreContract


class TestFolder(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = FolderStore(tmp_path / "store", create=True)
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, store: Store) -> Store:
        return store
