"""A store behind a real nginx keeps the contract, read-only; a folder store writes what it shows."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from syncd.config import StoreSection
from syncd.store.base import Store
from syncd.store.folder import FolderStore
from syncd.store.open import open_store
from tests.contract.store_contract import StoreContract
from tests.support.servers import Nginx


@pytest.mark.debian("nginx")
class TestNginx(StoreContract):
    @pytest.fixture
    def name(self) -> str:
        return secrets.token_hex(4)

    @pytest.fixture
    async def store(self, nginx: Nginx, name: str) -> AsyncIterator[Store]:
        store = open_store(StoreSection(url=f"{nginx.url}/{name}"))
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, nginx: Nginx, name: str) -> Store:
        return FolderStore(nginx.root / name, create=True)
