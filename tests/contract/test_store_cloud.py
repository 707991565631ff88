"""An S3 store keeps the contract against a real SeaweedFS; lost answers, wrong credentials, servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.errors import (
    ConfigInvalid,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreBroken,
    StoreDenied,
    StoreError,
    StoreUnreachable,
)
from syncd.store.base import Create, IfMatch, Replace, Store
from syncd.store.cloud import CloudStore
from syncd.store.open import open_store
from tests.contract.store_contract import StoreContract
from tests.support.faults import AnswerLoser, Fault, FaultServer
from tests.support.servers import Nginx, SeaweedFS


@pytest.fixture
def path() -> str:
    """A path in the bucket that no other test uses."""
    return f"t-{secrets.token_hex(4)}"


class TestSeaweedFS(StoreContract):
    @pytest.fixture
    async def store(self, s3: SeaweedFS, path: str) -> AsyncIterator[Store]:
        store = open_store(s3.section(path))
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, store: Store) -> Store:
        return store


# Lost answers


@pytest.fixture
def loser(s3: SeaweedFS) -> Iterator[AnswerLoser]:
    with AnswerLoser(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def lossy(s3: SeaweedFS, loser: AnswerLoser, path: str) -> AsyncIterator[Store]:
    """A store whose answers the test can lose."""
    store = open_store(s3.section(path, endpoint=loser.endpoint))
    yield store
    await store.aclose()


async def test_a_created_object_whose_answer_is_lost_counts_as_ours(lossy: Store, loser: AnswerLoser) -> None:
    loser.lose_next()
    etag = await lossy.put("claim", b"mine", mode=Create())
    assert loser.puts == 1, "it was sent again although it was there"
    assert etag == (await lossy.head("claim")).etag


async def test_a_set_object_whose_answer_is_lost_counts_as_ours(lossy: Store, loser: AnswerLoser) -> None:
    first = await lossy.put("pointer", b"1", mode=Create())
    loser.lose_next()
    second = await lossy.put("pointer", b"2", mode=IfMatch(first or ""))
    assert loser.puts == 2
    await lossy.put("pointer", b"3", mode=IfMatch(second or ""))
    assert (await lossy.get("pointer", limit=9)).data == b"3"


async def test_a_refusal_whose_answer_is_lost_is_still_a_refusal(lossy: Store, loser: AnswerLoser) -> None:
    first = await lossy.put("claim", b"theirs", mode=Create())
    loser.lose_next()
    with pytest.raises(ObjectExists):
        await lossy.put("claim", b"mine", mode=Create())
    await lossy.put("claim", b"theirs, later", mode=IfMatch(first or ""))
    loser.lose_next()
    with pytest.raises(ObjectChanged):
        await lossy.put("claim", b"mine", mode=IfMatch(first or ""))
    assert (await lossy.get("claim", limit=99)).data == b"theirs, later"


async def test_a_request_that_never_arrived_is_sent_again(lossy: Store, loser: AnswerLoser) -> None:
    loser.lose_next(before=True)
    etag = await lossy.put("claim", b"mine", mode=Create())
    assert loser.puts == 2
    loser.lose_next(before=True, times=2)
    await lossy.put("claim", b"mine too", mode=IfMatch(etag or ""))
    assert (await lossy.get("claim", limit=9)).data == b"mine too"


async def test_a_put_that_never_arrives_is_given_up_and_leaves_nothing(
    lossy: Store, loser: AnswerLoser
) -> None:
    loser.lose_next(before=True, times=99)
    with pytest.raises(StoreUnreachable, match="claim"):
        await lossy.put("claim", b"mine", mode=Create())
    with pytest.raises(ObjectMissing):
        await lossy.head("claim")


async def test_racers_whose_answers_are_lost_agree_on_one_winner(lossy: Store, loser: AnswerLoser) -> None:
    loser.lose_next(times=4)
    tries = [lossy.put("claim", f"racer {i}".encode(), mode=Create()) for i in range(8)]
    ends = await asyncio.gather(*tries, return_exceptions=True)
    won = [i for i, end in enumerate(ends) if not isinstance(end, BaseException)]
    assert all(isinstance(end, ObjectExists) for i, end in enumerate(ends) if i not in won)
    assert len(won) == 1
    assert (await lossy.get("claim", limit=99)).data == f"racer {won[0]}".encode()


# Credentials


async def test_a_wrong_secret_is_denied_and_never_shown(
    s3: SeaweedFS, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show-me")
    store = open_store(s3.section(path))
    with pytest.raises(StoreDenied, match="refused a") as caught:
        await store.put("a", b"1", mode=Create())
    with pytest.raises(StoreDenied):
        await store.get("a", limit=9)
    shown = f"{caught.value}{caught.value!r}{caught.value.as_dict()}{store!r}{store.url}{caplog.text}"
    assert "do-not-show-me" not in shown
    assert caught.value.__cause__ is None


async def test_a_reader_may_read_and_is_denied_to_write(
    s3: SeaweedFS, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_store(s3.section(path))
    await writer.put("a", b"1", mode=Create())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDREADER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reader-secret")
    reader = open_store(s3.section(path))
    assert (await reader.get("a", limit=9)).data == b"1"
    for mode in (Create(), Replace()):
        with pytest.raises(StoreDenied):
            await reader.put("b", b"1", mode=mode)
    with pytest.raises(StoreDenied):
        await reader.delete("a")
    assert (await writer.get("a", limit=9)).data == b"1"


async def test_a_profile_of_the_aws_files_is_used(
    seaweed: SeaweedFS, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text(
        f"[edge]\naws_access_key_id = {seaweed.access_key_id}\n"
        f"aws_secret_access_key = {seaweed.secret_access_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    section = seaweed.section(path)
    store = open_store(section.model_copy(update={"profile": "edge"}))
    await store.put("a", b"1", mode=Create())
    with pytest.raises(StoreDenied, match="no AWS credentials"):
        await open_store(section.model_copy(update={"profile": "none"})).get("a", limit=9)
    with pytest.raises(StoreDenied, match="no AWS credentials"):
        await open_store(section).get("a", limit=9)


async def test_a_profile_without_boto3_says_what_to_install(
    s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    store = open_store(s3.section().model_copy(update={"profile": "edge"}))
    with pytest.raises(ConfigInvalid, match=r"syncd\[aws\]"):
        await store.get("a", limit=9)


# Servers that are not there or misbehave


async def test_a_missing_bucket_is_named(s3: SeaweedFS) -> None:
    with pytest.raises(StoreUnreachable, match="no bucket nowhere"):
        await open_store(StoreSection(url="s3://nowhere/x", endpoint=s3.endpoint)).get("a", limit=9)


@pytest.mark.usefixtures("s3")
async def test_nobody_listening_is_told_within_seconds() -> None:
    store = open_store(StoreSection(url="s3://models", endpoint="http://127.0.0.1:9"))
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match="no answer about a"):
        await store.put("a", b"1", mode=Create())
    with pytest.raises(StoreUnreachable):
        await store.get("a", limit=9)
    assert time.monotonic() - start < 15


@pytest.fixture
def faulty(s3: SeaweedFS, tmp_path: Path) -> Iterator[FaultServer]:
    (tmp_path / "served" / "models").mkdir(parents=True)
    (tmp_path / "served" / "models" / "a").write_bytes(bytes(range(256)) * 40)
    with FaultServer(tmp_path / "served") as server:
        yield server


RANGE_FAULTS = {
    Fault.RESET_HALF_WAY: StoreUnreachable,
    Fault.SHORT_BODY: StoreBroken,
    Fault.WRONG_RANGE: StoreBroken,
    Fault.IGNORES_RANGE: StoreBroken,
    Fault.STALLED: StoreUnreachable,
    Fault.ERROR_500: StoreUnreachable,
    Fault.ENDLESS_BODY: StoreError,
    Fault.CAPTIVE_PORTAL: StoreBroken,
}


@pytest.mark.parametrize("fault", RANGE_FAULTS, ids=lambda fault: fault.name)
async def test_a_range_is_whole_and_right_or_an_error(faulty: FaultServer, fault: Fault) -> None:
    store = CloudStore(StoreSection(url="s3://models", endpoint=faulty.url), read_timeout_s=0.5)
    data = (faulty.folder / "models" / "a").read_bytes()
    assert await store.get_range("a", 100, 5000) == data[100:5100]
    faulty.fault = fault
    async with asyncio.timeout(30):
        with pytest.raises(RANGE_FAULTS[fault], match="a"):
            await store.get_range("a", 100, 5000)
    faulty.fault = None
    assert await store.get_range("a", 100, 5000) == data[100:5100]


@pytest.mark.parametrize("fault", [Fault.STALLED, Fault.ERROR_500, Fault.ENDLESS_BODY, Fault.CAPTIVE_PORTAL])
async def test_a_read_is_whole_or_an_error_and_bounded(faulty: FaultServer, fault: Fault) -> None:
    store = CloudStore(StoreSection(url="s3://models", endpoint=faulty.url), read_timeout_s=0.5)
    faulty.fault = fault
    async with asyncio.timeout(30):
        with pytest.raises(StoreError):
            await store.get("a", limit=20_000)
    assert store.wire_bytes <= 20_000


async def test_a_cut_read_goes_on_where_it_broke(faulty: FaultServer) -> None:
    store = CloudStore(StoreSection(url="s3://models", endpoint=faulty.url))
    faulty.fail_next(Fault.RESET_HALF_WAY)
    assert (await store.get("a", limit=20_000)).data == (faulty.folder / "models" / "a").read_bytes()
    assert len(faulty.requests) == 2
    assert "range" in faulty.requests[1].headers


@pytest.mark.debian("nginx")
@pytest.mark.usefixtures("s3")
async def test_a_private_authority_is_trusted_when_named(nginx: Nginx) -> None:
    (nginx.root / "tls-bucket").mkdir()
    (nginx.root / "tls-bucket" / "a").write_bytes(b"1")
    section = StoreSection(url="s3://tls-bucket", endpoint=nginx.tls_url)
    named = section.model_copy(update={"ca_file": nginx.ca_file})
    assert (await open_store(named).get("a", limit=9)).data == b"1"
    with pytest.raises(StoreUnreachable):
        await open_store(section).get("a", limit=9)


# What cannot be meant


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"url": "s3://AK:SECRET@models/x"}, "s3://bucket/path"),
        ({"url": "s3://"}, "s3://bucket/path"),
        ({"url": "gs://models", "profile": "edge"}, "store.profile"),
        ({"url": "az://models", "client_cert": Path("c"), "client_key": Path("k")}, "store.client_cert"),
    ],
)
def test_what_does_not_belong_to_a_cloud_is_refused_without_showing_secrets(section: dict, told: str) -> None:
    with pytest.raises(ConfigInvalid, match=told) as caught:
        open_store(StoreSection(**section))
    assert "SECRET" not in str(caught.value)


async def test_google_and_azure_stores_are_made_without_asking_anyone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LWtleQ==")
    (tmp_path / "adc.json").write_text(
        '{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "t"}'
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    for url in ("gs://models/fleet", "az://models/fleet"):
        store = open_store(StoreSection(url=url))
        assert isinstance(store, CloudStore)
        assert store.url == url
        await store._client()
        await store.aclose()


def test_a_generation_travels_in_the_etag_of_google_alone() -> None:
    google, amazon = (CloudStore(StoreSection(url=url)) for url in ("gs://m", "s3://m"))
    meta = {"e_tag": '"abc"', "version": "17"}
    assert google._condition(google._token(meta) or "") == {"e_tag": '"abc"', "version": "17"}
    assert amazon._token(meta) == '"abc"'
