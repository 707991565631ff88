"""An S3 store keeps the contract against a real SeaweedFS."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from syncd.store.base import Store
from syncd.store.open import open_store
from tests.contract.store_contract import StoreContract
from tests.support.servers import SeaweedFS


class TestSeaweedFS(StoreContract):
    @pytest.fixture
    async def store(self, s3: SeaweedFS) -> AsyncIterator[Store]:
        store = open_store(s3.section(f"contract/{secrets.token_hex(4)}"))
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, store: Store) -> Store:
        return store
