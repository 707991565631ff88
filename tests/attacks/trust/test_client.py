"""What somebody who serves, or sits before, the store can do to a client: refused, disk unchanged, and it heals.

Every test ends the same way: the folder is byte for byte, inode for inode as it was, and the honest store is accepted.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from syncd.artifact.index import Index
from syncd.errors import (
    DocumentInvalid,
    Expired,
    NeedsNewerSyncd,
    NotAuthentic,
    Refused,
    RolledBack,
    SegmentCorrupt,
    StoreBroken,
)
from syncd.trust.keys import generate_key, load_key, model_key_path
from syncd.trust.sign import ONLINE_LIFE_S, ModelSigner, SignedRole, Target, sign_fleet_root, sign_model_root
from syncd.trust.verify import ModelTrust
from tests.support.signed_store import (
    SignedStore,
    WatchedStore,
    disk,
    make_head,
    make_signed_store,
    open_folder,
    rewrite,
    sha256,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SignedStore:
    """Two models; `m` has version 1 on latest. Made once, copied for every test."""

    async def make() -> SignedStore:
        signed = await make_signed_store(tmp_path_factory.mktemp("made"))
        for model in ("m", "other"):
            await signed.add_model(model)
            await signed.release(model)
        return signed

    return asyncio.run(make())


@pytest.fixture
def signed(made: SignedStore, tmp_path: Path) -> SignedStore:
    for name in ("store", "keys", "publisher"):
        shutil.copytree(made.folder.parent / name, tmp_path / name, symlinks=True)
    return SignedStore(tmp_path / "store", tmp_path / "keys", open_folder(tmp_path / "store"), made.root)


@asynccontextmanager
async def refused(
    signed: SignedStore, node: Path, error: type[Exception], words: str, *, newer: bool = True
) -> AsyncIterator[None]:
    """The body is refused with `error`; the node's folder is untouched; then the honest store is accepted."""
    before = disk(node)
    with pytest.raises(error, match=words):
        yield
    assert disk(node) == before
    if newer:
        release = await signed.release("m")
        facts = await signed.trust("m", node).refresh("latest")
        assert facts is not None
        assert facts.version == release.version


async def known(signed: SignedStore, node: Path) -> ModelTrust:
    trust = signed.trust("m", node)
    await trust.refresh("latest")
    return trust


def at(signed: SignedStore, node: Path, folder: Path) -> ModelTrust:
    return signed.trust("m", node, store=open_folder(folder))


# ---- rollback


async def test_rollback_to_an_older_store_is_refused_by_a_known_node(
    signed: SignedStore, tmp_path: Path
) -> None:
    old = signed.copy("old")
    await signed.release("m")
    await known(signed, tmp_path / "node")
    async with refused(signed, tmp_path / "node", RolledBack, "older|has accepted"):
        await at(signed, tmp_path / "node", old).refresh("latest")


async def test_rollback_is_refused_even_when_the_metadata_folder_is_gone_and_only_receipts_are_left(
    signed: SignedStore, tmp_path: Path
) -> None:
    old = signed.copy("old")
    await signed.release("m")
    node = tmp_path / "node"
    await known(signed, node)
    shutil.rmtree((node / "metadata").resolve())
    (node / "metadata").unlink()
    async with refused(signed, node, RolledBack, "has accepted"):
        await at(signed, node, old).refresh("latest")


async def test_rollback_of_another_channels_role_is_seen_too(signed: SignedStore, tmp_path: Path) -> None:
    await signed.release("m", "stable")
    old = signed.copy("old")
    await signed.release("m", "stable")
    node = tmp_path / "node"
    trust = await known(signed, node)
    await trust.refresh("stable")
    shutil.rmtree((node / "metadata").resolve())
    async with refused(signed, node, RolledBack, "has accepted"):
        await at(signed, node, old).refresh("latest")


async def test_a_store_set_back_and_written_to_again_is_two_contents_for_one_number(
    signed: SignedStore, tmp_path: Path
) -> None:
    old = signed.copy("old")
    await signed.release("m")
    node = tmp_path / "node"
    await known(signed, node)
    fork = SignedStore(old, signed.keys, open_folder(old), signed.root)
    shutil.rmtree(tmp_path / "publisher")
    await fork.release("m", "stable")
    shutil.rmtree(tmp_path / "publisher")
    async with refused(signed, node, NotAuthentic, "two contents"):
        await at(signed, node, old).refresh("latest")


async def test_a_damaged_receipt_is_not_taken_for_a_first_start(signed: SignedStore, tmp_path: Path) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    good = (node / "receipts.json").read_bytes()
    (node / "receipts.json").write_bytes(good[: len(good) // 2])
    before = disk(node)
    with pytest.raises(DocumentInvalid, match="receipts"):
        await signed.trust("m", node).refresh("latest")
    assert disk(node) == before


# ---- freeze


async def test_a_frozen_store_is_refused_once_its_timestamp_has_expired(
    signed: SignedStore, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    frozen = signed.copy("frozen")
    later = time.time() + ONLINE_LIFE_S + 60
    trust = signed.trust("m", node, store=open_folder(frozen), clock=lambda: later)
    async with refused(signed, node, Expired, "timestamp expired"):
        await trust.refresh("latest")


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_clock_set_back_does_not_thaw_a_store_that_newer_signatures_have_outdated(
    signed: SignedStore, tmp_path: Path, is_known: bool
) -> None:
    """Time is the later of the clock and the newest signed time seen."""
    repository = await signed.repository("m")
    signer = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    state = await repository.load()
    roles = {
        role: each for role, each in state.files.items() if role not in ("root", "timestamp", "snapshot")
    }
    # the channel's role expired a day before the timestamp over it was signed
    now = time.time()
    facts = state.channels["latest"]
    assert facts is not None
    target = Target("versions/1/head.json", facts.head_digest, facts.head_length, facts.custom())
    roles["channel-latest"] = SignedRole(
        90, signer.sign_role("channel-latest", 90, target, now - ONLINE_LIFE_S - 86400)
    )
    snapshot = SignedRole(90, signer.sign_snapshot(90, roles))
    timestamp = signer.sign_timestamp(90, snapshot, {})
    evil = signed.copy("evil")
    for name, data in (
        ("90.channel-latest", roles["channel-latest"].data),
        ("90.snapshot", snapshot.data),
        ("timestamp", timestamp),
    ):
        (evil / f"models/m/metadata/{name}.json").write_bytes(data)
    node = tmp_path / "node"
    if is_known:
        await known(signed, node)
    else:
        node.mkdir(mode=0o700)
    trust = signed.trust("m", node, store=open_folder(evil), clock=lambda: now - 3 * ONLINE_LIFE_S)
    async with refused(signed, node, Expired, "channel-latest"):
        await trust.refresh("latest")


# ---- mix and match


@pytest.mark.parametrize("name", ["snapshot", "channel-latest"])
async def test_documents_of_two_commits_mixed_are_refused(
    signed: SignedStore, tmp_path: Path, name: str
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    await signed.release("m")
    await signed.release("m")
    mixed = signed.copy("mixed")
    folder = mixed / "models/m/metadata"
    numbers = sorted(int(path.name.split(".")[0]) for path in folder.glob(f"*.{name}.json"))
    shutil.copy(folder / f"{numbers[-2]}.{name}.json", folder / f"{numbers[-1]}.{name}.json")
    async with refused(signed, node, NotAuthentic, "does not verify|mixed"):
        await at(signed, node, mixed).refresh("latest")


async def test_a_document_that_the_store_leaves_out_is_no_lasting_harm(
    signed: SignedStore, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    await signed.release("m")
    short = signed.copy("short")
    for path in (short / "models/m/metadata").glob("*.snapshot.json"):
        path.unlink()
    async with refused(signed, node, StoreBroken, "not there"):
        await at(signed, node, short).refresh("latest")


async def test_a_beaten_publishers_timestamp_seen_once_heals_at_the_same_number(
    signed: SignedStore, tmp_path: Path
) -> None:
    """A node that saw number N of a publisher that lost the race takes the winner's N, with no N+1 needed."""
    node = tmp_path / "node"
    await known(signed, node)
    torn = signed.copy("torn")
    fork = SignedStore(torn, signed.keys, open_folder(torn), signed.root)
    await fork.release("m")
    for path in (torn / "models/m/metadata").glob("*.snapshot.json"):
        path.unlink()
    shutil.rmtree(tmp_path / "publisher")  # the winner is another machine
    await signed.release("m", None)
    before = disk(node)
    with pytest.raises(StoreBroken):
        await at(signed, node, torn).refresh("latest")
    assert disk(node) == before
    trust = signed.trust("m", node)
    await trust.refresh("latest")
    assert [each.version for each in Index.parse(await trust.index()).versions] == [1, 2]


# ---- wrong keys


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "channel-latest", "versions"])
async def test_a_role_signed_by_a_strangers_key_is_refused(
    signed: SignedStore, tmp_path: Path, role: str
) -> None:
    """All below the wrong key is consistent: only the signature is not by whom it must be."""
    node = tmp_path / "node"
    await known(signed, node)
    await signed.release("m")
    evil = signed.copy("evil")
    state = await (await signed.repository("m")).load()
    honest = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    stranger = ModelSigner("m", generate_key(tmp_path / "stranger.key"))
    by = {
        each: stranger if each == role else honest
        for each in ("timestamp", "snapshot", "channel-latest", "versions")
    }
    facts = state.channels["latest"]
    assert facts is not None
    target = Target("versions/2/head.json", facts.head_digest, facts.head_length, facts.custom())
    roles = {
        name: each for name, each in state.files.items() if name not in ("root", "timestamp", "snapshot")
    }
    roles["channel-latest"] = SignedRole(50, by["channel-latest"].sign_role("channel-latest", 50, target))
    ref = state.receipts.index
    assert ref is not None
    index = Target(ref.name, ref.digest, ref.length)
    roles["versions"] = SignedRole(50, by["versions"].sign_role("versions", 50, index))
    snapshot = SignedRole(50, by["snapshot"].sign_snapshot(50, roles))
    timestamp = by["timestamp"].sign_timestamp(50, snapshot, {})
    folder = evil / "models/m/metadata"
    (folder / "timestamp.json").write_bytes(timestamp)
    (folder / "50.snapshot.json").write_bytes(snapshot.data)
    for name in ("channel-latest", "versions"):
        (folder / f"50.{name}.json").write_bytes(roles[name].data)
    async with refused(signed, node, NotAuthentic, "does not verify"):
        trust = at(signed, node, evil)
        await (trust.index() if role == "versions" else trust.refresh("latest"))


async def test_a_root_signed_by_a_strangers_key_is_refused_by_known_and_fresh_nodes(
    signed: SignedStore, tmp_path: Path
) -> None:
    await known(signed, tmp_path / "node")
    stranger = generate_key(tmp_path / "stranger.key")
    evil = signed.copy("evil")
    for number in (2, 3):
        root = sign_model_root(stranger, stranger.public_key, "m", number)
        (evil / f"models/m/metadata/{number}.root.json").write_bytes(root)
    async with refused(signed, tmp_path / "node", NotAuthentic, "does not verify"):
        await at(signed, tmp_path / "node", evil).refresh("latest")
    (tmp_path / "fresh").mkdir(mode=0o700)
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "does not verify"):
        await at(signed, tmp_path / "fresh", evil).refresh("latest")


async def test_another_fleets_root_in_hand_refuses_this_store_and_this_folder(
    signed: SignedStore, tmp_path: Path
) -> None:
    other = sign_fleet_root(generate_key(tmp_path / "other.key"))
    (tmp_path / "fresh").mkdir(mode=0o700)
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "does not verify"):
        await ModelTrust(signed.store, "m", tmp_path / "fresh", other).refresh("latest")
    node = tmp_path / "node"
    await known(signed, node)
    async with refused(signed, node, NotAuthentic, "receipts for model"):
        await ModelTrust(signed.store, "m", node, other).refresh("latest")


async def test_hiding_the_models_root_leaves_nothing_that_a_fresh_node_accepts(
    signed: SignedStore, tmp_path: Path
) -> None:
    evil = signed.copy("evil")
    (evil / "models/m/metadata/2.root.json").unlink()
    (tmp_path / "fresh").mkdir(mode=0o700)
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "does not verify"):
        await at(signed, tmp_path / "fresh", evil).refresh("latest")


# ---- endless data


@pytest.mark.parametrize("name", ["timestamp", "3.root", "2.snapshot", "2.channel-latest"])
async def test_endless_data_is_cut_off_at_the_limit(signed: SignedStore, tmp_path: Path, name: str) -> None:
    node = tmp_path / "node"
    if name != "timestamp":
        (node).mkdir(mode=0o700)
    else:
        await known(signed, node)
    evil = signed.copy("evil")
    with (evil / f"models/m/metadata/{name}.json").open("ab") as file:
        file.truncate(64 << 20)
    store = open_folder(evil)
    async with refused(signed, node, NotAuthentic, "more than the|does not verify"):
        await signed.trust("m", node, store=store).refresh("latest")
    assert store.wire_bytes < 1 << 20


async def test_an_endless_head_is_cut_off_at_its_signed_length(signed: SignedStore, tmp_path: Path) -> None:
    node = tmp_path / "node"
    trust = await known(signed, node)
    facts = trust.accepted("latest")
    assert facts is not None
    evil = signed.copy("evil")
    with (evil / "models/m/versions/1/head.json").open("ab") as file:
        file.truncate(64 << 20)
    store = open_folder(evil)
    async with refused(signed, node, NotAuthentic, "more than the"):
        await signed.trust("m", node, store=store).fetch_head(facts)
    assert store.wire_bytes <= facts.head_length + 1


# ---- another model's metadata


async def test_another_models_root_is_refused_before_it_is_stored_and_the_right_one_is_accepted_after(
    signed: SignedStore, tmp_path: Path
) -> None:
    """python-tuf alone would keep it, signed by the same fleet key, and refuse the right one for ever."""
    evil = signed.copy("evil")
    shutil.rmtree(evil / "models/m")
    shutil.copytree(evil / "models/other", evil / "models/m")
    (tmp_path / "fresh").mkdir(mode=0o700)
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "for model 'other'"):
        await at(signed, tmp_path / "fresh", evil).refresh("latest")


async def test_a_root_that_names_no_model_is_refused(signed: SignedStore, tmp_path: Path) -> None:
    evil = signed.copy("evil")
    rewrite(evil / "models/m/metadata/2.root.json", lambda data: data["signed"].pop("x-syncd-model"))
    (tmp_path / "fresh").mkdir(mode=0o700)
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "for model None"):
        await at(signed, tmp_path / "fresh", evil).refresh("latest")


async def test_another_models_delegations_under_this_models_snapshot_are_refused(
    signed: SignedStore, tmp_path: Path
) -> None:
    """Both `targets` are signed by the fleet key: who has both online keys could put one in the other's place."""
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    folder = evil / "models/m/metadata"
    mine = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    theirs = ModelSigner("m", load_key(model_key_path(signed.keys, "other")))
    foreign = (evil / "models/other/metadata/1.targets.json").read_bytes()
    head = make_head("m", 3)
    target = Target("versions/3/head.json", sha256(head), len(head), custom(3, 3))
    roles = {"targets": SignedRole(1, foreign)}
    for role in ("channel-latest", "channel-stable", "versions"):
        wanted = target if role == "channel-latest" else None
        roles[role] = SignedRole(70, theirs.sign_role(role, 70, wanted))
        (folder / f"70.{role}.json").write_bytes(roles[role].data)
    snapshot = SignedRole(70, mine.sign_snapshot(70, roles))
    (folder / "1.targets.json").write_bytes(foreign)
    (folder / "70.snapshot.json").write_bytes(snapshot.data)
    (folder / "timestamp.json").write_bytes(mine.sign_timestamp(70, snapshot, {}))
    shutil.rmtree((node / "metadata").resolve())  # a known node would keep its own targets of the same number
    (node / "receipts.json").unlink()
    (node / "metadata").unlink()
    async with refused(signed, node, NotAuthentic, "targets is not for model 'm'"):
        await at(signed, node, evil).refresh("latest")


# ---- a replayed channel


async def forge(signed: SignedStore, evil: Path, custom: dict[str, Any], *, version: int) -> None:
    """Sign a channel's role with the stolen online key, everything else consistent and newer."""
    state = await (await signed.repository("m")).load()
    signer = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    head = make_head("m", version)
    target = Target(f"versions/{version}/head.json", sha256(head), len(head), custom)
    roles = {
        role: each for role, each in state.files.items() if role not in ("root", "timestamp", "snapshot")
    }
    roles["channel-latest"] = SignedRole(60, signer.sign_role("channel-latest", 60, target))
    snapshot = SignedRole(60, signer.sign_snapshot(60, roles))
    folder = evil / "models/m/metadata"
    (folder / "60.channel-latest.json").write_bytes(roles["channel-latest"].data)
    (folder / "60.snapshot.json").write_bytes(snapshot.data)
    (folder / "timestamp.json").write_bytes(signer.sign_timestamp(60, snapshot, {}))


def custom(version: int, release: int, **more: Any) -> dict[str, Any]:
    return {"version": version, "release": release, "time": "2026-01-01T00:00:00Z", **more}


async def test_the_same_forgery_with_honest_values_is_accepted(signed: SignedStore, tmp_path: Path) -> None:
    """The control: what refuses the others is what they say, not how they were made."""
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    await forge(signed, evil, custom(3, 3), version=3)
    facts = await at(signed, node, evil).refresh("latest")
    assert facts is not None
    assert (facts.version, facts.release) == (3, 3)


async def test_a_replayed_release_with_newer_metadata_numbers_is_refused(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    await forge(signed, evil, custom(1, 1), version=1)
    async with refused(signed, node, RolledBack, "release 1 of the channel, this node has accepted 2"):
        await at(signed, node, evil).refresh("latest")


async def test_one_release_with_two_contents_is_refused(signed: SignedStore, tmp_path: Path) -> None:
    await signed.release("m")
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    await forge(signed, evil, custom(1, 2), version=1)
    async with refused(signed, node, NotAuthentic, "release 2 of the channel is version 1"):
        await at(signed, node, evil).refresh("latest")


@pytest.mark.parametrize(
    ("crooked", "error"),
    [
        (custom(3, 3, requires=["teleport"]), NeedsNewerSyncd),
        (custom(3, 3, format="syncd.channel/2"), NeedsNewerSyncd),
        (custom(4, 3), DocumentInvalid),
        (custom(True, 3), DocumentInvalid),
        (custom(3, 0), DocumentInvalid),
        (custom(3, 3, yanked=["x"]), DocumentInvalid),
        (custom(3, 3, deltas=[{"from": 1}]), DocumentInvalid),
        ({"version": 3}, DocumentInvalid),
    ],
)
async def test_a_crooked_or_later_channel_is_refused_by_name(
    signed: SignedStore, tmp_path: Path, crooked: dict[str, Any], error: type[Exception]
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    await forge(signed, evil, crooked, version=3)
    async with refused(signed, node, error, "channel"):
        await at(signed, node, evil).refresh("latest")


# ---- tampered and hostile documents


@pytest.mark.parametrize("name", ["timestamp", "2.root", "1.targets", "2.channel-latest", "2.snapshot"])
async def test_a_flipped_bit_anywhere_is_refused(signed: SignedStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "fresh").mkdir(mode=0o700)
    path = Path("models/m/metadata") / f"{name}.json"
    data = (signed.folder / path).read_bytes()
    for place in range(len(data) // 40, len(data), len(data) // 6):
        evil = signed.copy(f"evil-{place}")
        (evil / path).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        before = disk(tmp_path / "fresh")
        with pytest.raises(Refused):
            await at(signed, tmp_path / "fresh", evil).refresh("latest")
        assert disk(tmp_path / "fresh") == before
    async with refused(signed, tmp_path / "fresh", NotAuthentic, "model"):
        await at(signed, tmp_path / "fresh", evil).refresh("latest")


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"null",
        b"[" * 16000,
        b'{"signed": 1}',
        b'{"signed": {"_type": "timestamp"}, "signatures": []}',
        b'{"signed": {"version": ' + b"9" * 8000 + b"}}",
        b"\xff\xfe",
        b'{"signed": {"x-syncd-next": {"snapshot": ["../../../etc/passwd", "metadata/9.root.json"]}}}',
    ],
)
async def test_a_timestamp_that_is_no_metadata_is_refused(
    signed: SignedStore, tmp_path: Path, hostile: bytes
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    watched = WatchedStore(signed.store, {"models/m/metadata/timestamp.json": hostile})
    async with refused(signed, node, NotAuthentic, "model|metadata"):
        await signed.trust("m", node, store=watched).refresh("latest")
    assert not any("passwd" in key for key in watched.asked)


@pytest.mark.parametrize("kind", ["layouts", "tables", "packs"])
async def test_a_tampered_document_is_refused_by_its_digest(
    signed: SignedStore, tmp_path: Path, kind: Any
) -> None:
    node = tmp_path / "node"
    await known(signed, node)
    evil = signed.copy("evil")
    digest = sha256(b"pack")
    path = evil / "models/m" / kind / digest.removeprefix("sha256:")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pacc")
    async with refused(signed, node, SegmentCorrupt if kind == "packs" else NotAuthentic, "signed is"):
        await at(signed, node, evil).fetch_document(kind, digest, 4)


async def test_a_tampered_index_is_refused(signed: SignedStore, tmp_path: Path) -> None:
    node = tmp_path / "node"
    trust = signed.trust("m", node)
    await trust.index()
    evil = signed.copy("evil")
    name = max((evil / "models/m/index").iterdir())
    name.write_bytes(name.read_bytes().replace(b"syncd.index", b"syncd.indeX"))
    async with refused(signed, node, NotAuthentic, "signed is"):
        await at(signed, node, evil).index()


async def test_hints_that_lie_cost_requests_and_nothing_else(signed: SignedStore, tmp_path: Path) -> None:
    """Names are prefetched before anything is verified: they decide nothing."""
    state = await (await signed.repository("m")).load()
    signer = ModelSigner("m", load_key(model_key_path(signed.keys, "m")))
    lies = {
        "snapshot": ["metadata/99.snapshot.json"],
        "channel-latest": ["metadata/1.channel-latest.json", "versions/9/head.json"],
    }
    number = state.files["timestamp"].number + 1
    timestamp = signer.sign_timestamp(number, state.files["snapshot"], lies)
    (signed.path("m", "metadata/timestamp.json")).write_bytes(timestamp)
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    assert facts is not None
    assert facts.version == 1
    assert json.loads(timestamp)["signed"]["x-syncd-next"] == lies
