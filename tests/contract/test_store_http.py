"""A store behind a real nginx keeps the contract, read-only; TLS, proxies, and servers that misbehave."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from syncd.config import StoreSection
from syncd.errors import (
    ConfigInvalid,
    ObjectMissing,
    ObjectTooLarge,
    StoreBroken,
    StoreDenied,
    StoreUnreachable,
)
from syncd.store.base import Create, Replace, Store
from syncd.store.folder import FolderStore
from syncd.store.http import HttpStore
from syncd.store.open import open_store
from tests.contract.store_contract import StoreContract
from tests.support.faults import Fault, FaultServer
from tests.support.servers import Nginx


@pytest.fixture
def name() -> str:
    """A folder below the server's root that no other test uses."""
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture
def behind(nginx: Nginx, name: str) -> FolderStore:
    """The folder store that nginx shows."""
    return FolderStore(nginx.root / name, create=True)


@pytest.mark.debian("nginx")
class TestNginx(StoreContract):
    @pytest.fixture
    async def store(self, nginx: Nginx, name: str) -> AsyncIterator[Store]:
        store = open_store(StoreSection(url=f"{nginx.url}/{name}"))
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, behind: FolderStore) -> Store:
        return behind


async def _read(section: StoreSection, key: str = "a") -> bytes:
    store = open_store(section)
    try:
        return (await store.get(key, limit=1 << 20)).data
    finally:
        await store.aclose()


# nginx


async def _raw_etag(url: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.head(url)).headers["ETag"]


@pytest.mark.debian("nginx")
async def test_a_change_within_nginxs_second_is_not_missed(
    nginx: Nginx, name: str, behind: FolderStore
) -> None:
    store = open_store(StoreSection(url=f"{nginx.url}/{name}"))
    file = nginx.root / name / "timestamp.json"
    second = int(time.time()) + 2
    await behind.put("timestamp.json", b"version 41", mode=Create())
    os.utime(file, (second, second))
    seen = await store.get("timestamp.json", limit=99)
    raw = await _raw_etag(f"{nginx.url}/{name}/timestamp.json")
    await behind.put("timestamp.json", b"version 42", mode=Replace())
    os.utime(file, (second, second))
    same = await _raw_etag(f"{nginx.url}/{name}/timestamp.json")
    assert same == raw, "this nginx has better ETags"
    assert seen.etag is None, "an ETag that hides a change must not be remembered"
    assert seen.server_date is not None
    assert abs(seen.server_date - time.time()) < 5
    changed = await store.get_if_changed("timestamp.json", seen.etag, limit=99)
    assert changed is not None
    assert changed.data == b"version 42"
    await store.aclose()


@pytest.mark.debian("nginx")
async def test_an_old_files_etag_is_remembered_at_once(nginx: Nginx, name: str, behind: FolderStore) -> None:
    await behind.put("a", b"1", mode=Create())
    os.utime(nginx.root / name / "a", (time.time() - 60,) * 2)
    store = open_store(StoreSection(url=f"{nginx.url}/{name}"))
    etag = (await store.get("a", limit=9)).etag
    assert etag is not None
    assert await store.get_if_changed("a", etag, limit=9) is None
    await store.aclose()


@pytest.mark.debian("nginx")
async def test_a_forbidden_object_is_denied(nginx: Nginx) -> None:
    with pytest.raises(StoreDenied, match="403"):
        await _read(StoreSection(url=nginx.url), "private/a")


# TLS


@pytest.mark.debian("nginx")
async def test_a_private_authority_is_trusted_when_named_and_alone(
    nginx: Nginx, name: str, behind: FolderStore
) -> None:
    await behind.put("a", b"1", mode=Create())
    url = f"{nginx.tls_url}/{name}"
    assert await _read(StoreSection(url=url, ca_file=nginx.ca_file)) == b"1"
    for ca_file in (None, nginx.foreign_ca_file):
        with pytest.raises(StoreUnreachable, match=r"certificate is not trusted.*ca_file"):
            await _read(StoreSection(url=url, ca_file=ca_file))


@pytest.mark.debian("nginx")
async def test_a_client_certificate_opens_what_is_closed_without(
    nginx: Nginx, name: str, behind: FolderStore
) -> None:
    await behind.put("a", b"1", mode=Create())
    url = f"{nginx.mutual_url}/{name}"
    section = StoreSection(
        url=url, ca_file=nginx.ca_file, client_cert=nginx.client_cert, client_key=nginx.client_key
    )
    assert await _read(section) == b"1"
    with pytest.raises(StoreDenied, match=r"store\.client_cert"):
        await _read(StoreSection(url=url, ca_file=nginx.ca_file))


@pytest.mark.debian("nginx")
async def test_certificates_that_do_not_fit_are_a_mistake_in_the_config(nginx: Nginx, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    wrong = (
        {"ca_file": tmp_path / "none.pem"},
        {"ca_file": tmp_path / "junk.pem"},
        {"ca_file": nginx.ca_file, "client_cert": nginx.client_cert, "client_key": nginx.server_key},
    )
    for files in wrong:
        with pytest.raises(ConfigInvalid, match="certificates of"):
            await _read(StoreSection(url=nginx.tls_url, **files))


# Proxies


@pytest.mark.debian("nginx")
async def test_a_proxy_is_used_when_named(nginx: Nginx, name: str, behind: FolderStore) -> None:
    await behind.put("a", b"1", mode=Create())
    assert await _read(StoreSection(url=f"{nginx.url}/{name}", proxy=nginx.proxy_url)) == b"1"
    assert f"/{name}/a" in (nginx.folder / "proxy.log").read_text()
    dead = StoreSection(url=f"{nginx.url}/{name}", proxy="http://user:proxy-secret@127.0.0.1:9")
    with pytest.raises(StoreUnreachable) as caught:
        await _read(dead)
    assert "proxy-secret" not in str(caught.value)


async def test_a_password_in_the_url_is_sent_and_never_shown(faulty: FaultServer) -> None:
    store = open_store(StoreSection(url=faulty.url.replace("//", "//edge:let-me-in@") + "/fleet?sig=hidden"))
    with pytest.raises(ObjectMissing) as caught:
        await store.get("none", limit=9)
    assert faulty.requests[0].headers["authorization"].startswith("Basic ")
    shown = f"{caught.value}{caught.value.as_dict()}{store!r}{store.url}"
    assert "let-me-in" not in shown
    assert "hidden" not in shown
    await store.aclose()


# Servers that misbehave


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultServer]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a").write_bytes(bytes(range(256)) * 40)
    with FaultServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
async def fragile(faulty: FaultServer) -> AsyncIterator[HttpStore]:
    store = HttpStore(StoreSection(url=faulty.url), read_timeout_s=0.5)
    yield store
    await store.aclose()


RANGE_FAULTS = {
    Fault.RESET_HALF_WAY: (StoreUnreachable, "no whole answer"),
    Fault.SHORT_BODY: (StoreBroken, "2500 bytes came where 5000 from 100"),
    Fault.WRONG_RANGE: (StoreBroken, "bytes 100-5099 were asked for, bytes 99-5098"),
    Fault.IGNORES_RANGE: (StoreBroken, "ignores Range"),
    Fault.STALLED: (StoreUnreachable, "nothing came in time"),
    Fault.ERROR_500: (StoreUnreachable, "answered 500"),
    Fault.ENDLESS_BODY: (StoreBroken, "ignores Range"),
    Fault.CAPTIVE_PORTAL: (StoreUnreachable, "a web page"),
}


@pytest.mark.parametrize("fault", RANGE_FAULTS, ids=lambda fault: fault.name)
async def test_a_range_is_whole_and_right_or_an_error(
    faulty: FaultServer, fragile: HttpStore, fault: Fault
) -> None:
    data = (faulty.folder / "a").read_bytes()
    error, told = RANGE_FAULTS[fault]
    faulty.fault = fault
    with pytest.raises(error, match=told):
        await fragile.get_range("a", 100, 5000)
    assert fragile.wire_bytes <= 5000
    faulty.fault = None
    assert await fragile.get_range("a", 100, 5000) == data[100:5100]


READ_FAULTS = {
    Fault.RESET_HALF_WAY: (StoreUnreachable, "no whole answer"),
    Fault.STALLED: (StoreUnreachable, "nothing came in time"),
    Fault.ERROR_500: (StoreUnreachable, "answered 500"),
    Fault.ENDLESS_BODY: (ObjectTooLarge, "20000"),
    Fault.CAPTIVE_PORTAL: (StoreUnreachable, "captive portal"),
}


@pytest.mark.parametrize("fault", READ_FAULTS, ids=lambda fault: fault.name)
async def test_a_read_is_whole_or_an_error_and_bounded(
    faulty: FaultServer, fragile: HttpStore, fault: Fault
) -> None:
    error, told = READ_FAULTS[fault]
    faulty.fault = fault
    with pytest.raises(error, match=told):
        await fragile.get("a", limit=20_000)
    assert fragile.wire_bytes <= 20_000 + (1 << 17), "a body without end was read on"
    faulty.fault = None
    assert len((await fragile.get("a", limit=20_000)).data) == 10_240


async def test_what_arrived_before_a_fault_is_counted(faulty: FaultServer, fragile: HttpStore) -> None:
    faulty.fail_next(Fault.STALLED)
    with pytest.raises(StoreUnreachable):
        await fragile.get("a", limit=20_000)
    assert fragile.wire_bytes == 5120
    faulty.fail_next(Fault.SHORT_BODY)
    assert len((await fragile.get("a", limit=20_000)).data) == 5120, "only a digest can tell a short object"
    assert fragile.wire_bytes == 10_240


async def test_an_old_snapshot_is_passed_on_as_it_is(faulty: FaultServer, fragile: HttpStore) -> None:
    faulty.remember()
    (faulty.folder / "a").write_bytes(b"new")
    assert (await fragile.get("a", limit=20_000)).data == b"new"
    faulty.fault = Fault.OLD_SNAPSHOT
    assert len((await fragile.get("a", limit=20_000)).data) == 10_240, (
        "only a signature can tell an old object"
    )


async def test_an_answer_that_trickles_is_given_up(
    faulty: FaultServer, fragile: HttpStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncd.store.http._patience_s", lambda length: 1.0)
    faulty.fail_next(Fault.TRICKLING)
    with pytest.raises(StoreUnreachable, match="trickled"):
        await fragile.get("a", limit=20_000)
    assert len((await fragile.get("a", limit=20_000)).data) == 10_240


async def test_sixteen_ranges_are_in_flight_at_once(faulty: FaultServer, fragile: HttpStore) -> None:
    faulty.fault = Fault.STALLED
    start = time.monotonic()
    ends = await asyncio.gather(*(fragile.get_range("a", i, 99) for i in range(16)), return_exceptions=True)
    assert all(isinstance(end, StoreUnreachable) for end in ends)
    assert time.monotonic() - start < 8, "stalled reads waited for one another"


async def test_nobody_listening_is_told() -> None:
    with pytest.raises(StoreUnreachable, match="no connection"):
        await _read(StoreSection(url="http://127.0.0.1:9"))
    with pytest.raises(StoreUnreachable, match="no connection"):
        await _read(StoreSection(url="http://no-such-host.invalid/"))
