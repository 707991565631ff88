"""`pull`: a version's model view in a person's folder: old or new, never mixed; from the fewest bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from syncd.edge.pull import CRASH_POINTS, pull
from syncd.edge.verify import verify_store
from syncd.errors import Failed, NotAuthentic, RolledBack, SegmentCorrupt, UnknownModel, UnknownVersion
from tests.support.published import Content, fresh_tensors, published_store, tensors
from tests.support.signed_store import open_folder

SIDE = {"labels.txt": b"a\nb\n"}


@pytest.fixture
async def published(tmp_path):
    store = await published_store(tmp_path / "pub")
    yield store
    await store.signed.store.aclose()


async def pull_from(published, to, **keys):
    store = open_folder(keys.pop("store", published.url))
    try:
        return await pull(store, published.signed.root, keys.pop("model", "m"), to=to, **keys)
    finally:
        await store.aclose()


def assert_shows(to: Path, seed: int, make=tensors, side: dict[str, bytes] = SIDE) -> None:
    found = load_file(to / "model.safetensors")
    assert {name: each.tobytes() for name, each in found.items()} == {
        name: each.tobytes() for name, each in make(seed).items()
    }
    visible = {each.name for each in to.iterdir() if each.name != ".syncd"}
    assert visible == {"model.safetensors", "head.json", *side}
    for name, data in side.items():
        assert (to / name).read_bytes() == data


def contents(folder: Path) -> dict[Path, bytes | str]:
    """Every file's bytes and every link's target."""
    found = {path: str(path.readlink()) for path in folder.rglob("*") if path.is_symlink()}
    return found | {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_the_model_view_is_there_and_the_counts_are_right(published, tmp_path):
    await published.publish(Content(tensors(1), b"optimizer" * 100_000, SIDE))
    result = await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 1)
    head = json.loads((tmp_path / "model/head.json").read_bytes())
    assert (result.model, result.version, head["version"]) == ("m", 1, 1)
    assert result.path == tmp_path / "model"
    assert result.model_bytes == sum(each.nbytes for each in tensors(1).values())
    assert result.plan["reused"] == 0
    assert result.plan["plain"] == result.model_bytes + len(SIDE["labels.txt"])
    assert result.model_bytes * 0.7 < result.wire_bytes < result.model_bytes + 50_000
    assert result.requests > 5


async def test_a_second_pull_moves_nothing_and_an_update_moves_what_has_changed(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    again = await pull_from(published, tmp_path / "model")
    assert again.plan == {"reused": again.model_bytes, "delta": 0, "plain": 0}
    assert again.wire_bytes < 10_000
    await published.publish(Content(tensors(2), b"", SIDE))
    planned = await pull_from(published, tmp_path / "model", dry_run=True)
    assert_shows(tmp_path / "model", 1)
    update = await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 2)
    assert update.plan["reused"] >= 3 * 2**20
    assert update.wire_bytes < 64 * 1024 * 4 + 30_000
    assert planned.plan["plain"] == pytest.approx(update.wire_bytes, abs=30_000)
    assert [each.name for each in (tmp_path / "model/.syncd/versions").iterdir()] == ["2"]


async def test_a_dry_run_changes_nothing_not_even_makes_the_folder(published, tmp_path):
    await published.publish(Content(tensors(1)))
    result = await pull_from(published, tmp_path / "model", dry_run=True)
    assert result.version == 1
    assert result.plan["plain"] > 2**20
    assert not (tmp_path / "model").exists()


async def test_a_version_and_a_channel_can_be_named(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    await published.publish(Content(tensors(2), b"", SIDE))
    await pull_from(published, tmp_path / "model", version=1)
    assert_shows(tmp_path / "model", 1)
    with pytest.raises(UnknownVersion, match="channel stable of m has no release"):
        await pull_from(published, tmp_path / "model", channel="stable")
    with pytest.raises(UnknownVersion, match="no version 9"):
        await pull_from(published, tmp_path / "model", version=9)
    with pytest.raises(UnknownModel):
        await pull_from(published, tmp_path / "other", model="other")
    assert_shows(tmp_path / "model", 1)


async def test_a_known_folder_refuses_an_older_validly_signed_store_and_is_unchanged(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    old = published.signed.copy("old")
    await published.publish(Content(tensors(2), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(RolledBack):
        await pull_from(published, tmp_path / "model", store=old)
    assert contents(tmp_path / "model") == before
    assert_shows(tmp_path / "model", 2)


async def test_changed_bytes_in_the_folder_are_mended_by_the_next_pull(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    path = (tmp_path / "model/model.safetensors").resolve()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 1)
    assert 0 < result.plan["plain"] < result.model_bytes


async def test_flipped_bits_in_the_store_are_refused_and_the_old_version_stays(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    known = set(published.packs())
    await published.publish(Content(fresh_tensors(2), b"", SIDE))
    [pack] = set(published.packs()) - known
    good = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(good[:5000] + bytes([good[5000] ^ 4]) + good[5001:])
    with pytest.raises(SegmentCorrupt) as caught:
        await pull_from(published, tmp_path / "model")
    assert caught.value.where["version"] == 2
    assert_shows(tmp_path / "model", 1)
    store = open_folder(published.url)
    found = await verify_store(store, published.signed.root, "m", 2)
    assert not found.ok
    assert pack.name in found.bad[0]["what"]
    assert (await verify_store(store, published.signed.root, "m", 1)).ok
    await store.aclose()
    pack.write_bytes(good)
    await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 2, fresh_tensors)


async def test_a_tampered_layout_is_not_authentic_and_nothing_appears(published, tmp_path):
    await published.publish(Content(tensors(1)))
    [layout] = (published.url / "models/m/layouts").iterdir()
    layout.chmod(0o644)
    layout.write_bytes(bytes([layout.read_bytes()[0] ^ 1]) + layout.read_bytes()[1:])
    with pytest.raises(NotAuthentic, match="layouts/"):
        await pull_from(published, tmp_path / "model")
    assert [each.name for each in (tmp_path / "model").iterdir()] == [".syncd"]


async def test_files_that_are_not_from_a_pull_are_never_written_over(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"mine")
    with pytest.raises(Failed, match=r"has model\.safetensors already"):
        await pull_from(published, tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == b"mine"


async def test_a_side_file_that_the_new_version_lacks_goes(published, tmp_path):
    await published.publish(Content(tensors(1), b"", {"labels.txt": b"x", "tokenizer.json": b"{}"}))
    await pull_from(published, tmp_path / "model")
    await published.publish(Content(tensors(2), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 2)


async def test_a_version_without_a_model_view_is_pulled_as_its_files(published, tmp_path):
    content = Content({}, b"\x08onnx" * 10_000, SIDE, name="net/model.onnx")
    await published.publish(content)
    await pull_from(published, tmp_path / "model")
    assert (tmp_path / "model/net/model.onnx").read_bytes() == content.file
    assert (tmp_path / "model/labels.txt").read_bytes() == SIDE["labels.txt"]


PULL = """
import asyncio, sys
from pathlib import Path
from syncd.config import StoreSection
from syncd.edge.pull import pull
from syncd.store.open import open_store
async def main():
    store = open_store(StoreSection(url=sys.argv[1]))
    await pull(store, Path(sys.argv[2]).read_bytes(), "m", to=Path(sys.argv[3]))
asyncio.run(main())
"""


def run_pull(published, to, crash_at=""):
    environment = {**os.environ, "SYNCD_CRASH_AT": crash_at}
    command = [sys.executable, "-c", PULL, published.url, published.root_file, to]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


@pytest.mark.parametrize("point", [*CRASH_POINTS, "edge.fetch.segment:2"])
async def test_killed_anywhere_the_folder_shows_the_old_version_or_the_new_and_the_next_pull_ends_it(
    published, tmp_path, point
):
    old = {"labels.txt": b"old", "old.txt": b"old"}
    await published.publish(Content(tensors(1), b"", old))
    await pull_from(published, tmp_path / "model")
    await published.publish(Content(tensors(2), b"", {"labels.txt": b"new", "new.txt": b"new"}))
    assert run_pull(published, tmp_path / "model", point) == -signal.SIGKILL
    shown = json.loads((tmp_path / "model/head.json").read_bytes())["version"]
    found = load_file(tmp_path / "model/model.safetensors")
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in tensors(shown).items()}
    assert (tmp_path / "model/labels.txt").read_bytes() == (b"old" if shown == 1 else b"new")
    assert shown == (2 if point == "pull.after-switch" else 1)
    result = await pull_from(published, tmp_path / "model")
    assert_shows(tmp_path / "model", 2, side={"labels.txt": b"new", "new.txt": b"new"})
    assert result.wire_bytes < 300_000
    assert not (tmp_path / "model/.syncd/incoming").exists() or not any(
        (tmp_path / "model/.syncd/incoming").iterdir()
    )


async def test_a_copied_folder_works_on(published, tmp_path):
    await published.publish(Content(tensors(1), b"", SIDE))
    await pull_from(published, tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "copy", symlinks=True)
    shutil.rmtree(tmp_path / "model")
    assert_shows(tmp_path / "copy", 1)
