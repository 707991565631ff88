"""One checkpoint into a real folder store: every byte comes back, nothing goes up twice, refusals leave no trace."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from syncd.artifact.pack import Pack
from syncd.errors import CheckpointChanged
from syncd.publisher.budget import ByteBudget
from syncd.publisher.material import open_material
from syncd.publisher.segments import SegmentStream
from syncd.state.db import Database
from tests.support.publishing import MODEL, Publishing, make_publishing, network, read_back, save_checkpoint
from tests.support.signed_store import disk


@pytest.fixture
async def publishing(tmp_path: Path) -> Publishing:
    return await make_publishing(tmp_path)


async def test_every_byte_comes_back_and_the_model_is_what_torch_loads(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "epoch-1.pt", epoch=1)
    result = await publishing.publish(path, metrics={"accuracy": 0.5}, tags=("t",), note="first")
    assert (result.version, result.new, result.channels) == (1, True, ("latest",))
    assert result.checkpoint_bytes == path.stat().st_size
    assert result.segments["new"] == result.segments["total"]
    found = read_back(publishing.model_folder, 1)
    assert found.files() == {"epoch-1.pt": path.read_bytes()}
    state = torch.load(path, weights_only=True)["model"]
    assert sorted(state) == sorted(each.name for each in found.layout.tensors)
    for name, tensor in state.items():
        assert found.tensor(name) == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), name
    head = found.head
    assert (head.files[0].use, head.training_state, head.model_key) == ("training", True, "model")
    assert head.provenance["scalars"] == {"epoch": 1}
    assert (dict(head.metrics), head.tags, head.note) == ({"accuracy": 0.5}, ("t",), "first")
    assert (await publishing.signed.repository(MODEL)).channels["latest"].version == 1


async def test_a_new_head_uploads_the_head_and_reuses_the_body(publishing: Publishing) -> None:
    torch.save(network(0).state_dict(), publishing.runs / "a.pt")
    first = await publishing.publish(publishing.runs / "a.pt")
    state = torch.load(publishing.runs / "a.pt", weights_only=True)
    state["3.weight"] += 1
    torch.save(state, publishing.runs / "b.pt")
    second = await publishing.publish(publishing.runs / "b.pt")
    assert second.version == 2
    assert second.new
    assert second.uploaded_bytes < 0.2 * first.uploaded_bytes
    assert second.segments["new"] < first.segments["new"]
    assert read_back(publishing.model_folder, 2).files() == {"b.pt": (publishing.runs / "b.pt").read_bytes()}
    assert publishing.head(1).layout == publishing.head(2).layout


async def test_equal_content_is_the_existing_version_under_any_name_and_from_any_machine(
    publishing: Publishing, tmp_path: Path
) -> None:
    path = save_checkpoint(publishing.runs / "epoch-1.pt")
    await publishing.publish(path)
    before = disk(publishing.signed.folder)
    copy = publishing.runs / "best.pt"
    copy.write_bytes(path.read_bytes())
    again = await publishing.publish(path)
    copied = await publishing.publish(copy)
    with Database(tmp_path / "other.db") as other:
        elsewhere = await Publishing(publishing.signed, tmp_path, other).publish(
            copy, folder=tmp_path / "elsewhere"
        )
    for result in (again, copied, elsewhere):
        assert (result.version, result.new, result.uploaded_bytes, result.channels) == (
            1,
            False,
            0,
            ("latest",),
        )
    assert disk(publishing.signed.folder) == before


async def test_equal_content_is_released_on_a_channel_that_is_behind_and_never_moves_one_back(
    publishing: Publishing,
) -> None:
    one = save_checkpoint(publishing.runs / "1.pt", epoch=1)
    two = save_checkpoint(publishing.runs / "2.pt", epoch=2)
    await publishing.publish(one)
    await publishing.publish(two)
    stable = await publishing.publish(two, channel="stable")
    assert (stable.version, stable.new, stable.channels) == (2, False, ("latest", "stable"))
    older = await publishing.publish(one, channel="stable")
    assert (older.version, older.new, older.channels) == (1, False, ())


async def test_a_dry_run_tells_the_bytes_and_changes_nothing(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    before = disk(publishing.signed.folder)
    told = await publishing.publish(path, dry_run=True)
    assert disk(publishing.signed.folder) == before
    done = await publishing.publish(path)
    assert told.version is None
    assert told.new
    assert (told.uploaded_bytes, told.segments) == (done.uploaded_bytes, done.segments)
    assert (await publishing.publish(path, dry_run=True)).version == 1


async def test_views_ties_permutations_and_odd_dtypes_are_served_as_their_values(
    publishing: Publishing,
) -> None:
    base = torch.randn(64, 96)
    model = {
        "plain": base,
        "tied": base,
        "view": base[::2, 3:17],
        "transposed": torch.randn(40, 24).t(),
        "channels_last": torch.randn(8, 3, 5, 7).to(memory_format=torch.channels_last),
        "conj": torch.randn(6, 4, dtype=torch.complex64).conj(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(33).half(),
        "brain": torch.randn(33).bfloat16(),
        "eight": torch.randn(32).to(torch.float8_e4m3fn),
    }
    path = publishing.runs / "odd.pt"
    torch.save({"model": model}, path)
    await publishing.publish(path)
    found = read_back(publishing.model_folder, 1)
    assert found.files()["odd.pt"] == path.read_bytes()
    assert found.layout.aliases == {"tied": "plain"} == dict(found.head.aliases)
    for entry in found.layout.tensors:
        order = entry.permutation or tuple(range(len(entry.shape)))
        expected = model[entry.name].resolve_conj().permute(order).contiguous()
        assert found.tensor(entry.name) == expected.reshape(-1).view(torch.uint8).numpy().tobytes(), (
            entry.name
        )
    assert {each.name for each in found.layout.tensors} == set(model) - {"tied"}


async def test_side_files_and_an_architecture_travel_and_a_changed_architecture_is_a_new_version(
    publishing: Publishing,
) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    (publishing.runs / "labels.txt").write_text("cat\ndog\n")
    wanted = {
        "side_files": ("labels.txt",),
        "architecture": {"name": "torchvision.models:resnet18", "args": {"num_classes": 2}},
    }
    await publishing.publish(path, section=wanted)
    head = publishing.head(1)
    assert [(file.path, file.use) for file in head.files] == [("1.pt", "training"), ("labels.txt", "side")]
    assert read_back(publishing.model_folder, 1).files()["labels.txt"] == b"cat\ndog\n"
    assert head.architecture is not None
    assert head.architecture.args == {"num_classes": 2}
    wanted["architecture"] = {"name": "torchvision.models:resnet18", "args": {"num_classes": 3}}
    again = await publishing.publish(path, section=wanted)
    assert (again.version, again.new, again.segments["new"]) == (2, True, 0)


async def test_a_checkpoint_rotated_while_it_is_read_is_published_whole(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    whole = path.read_bytes()

    def rotate(done: int, total: int, phase: str) -> None:
        if path.exists():
            path.rename(path.with_name("kept.pt"))
            path.with_name("kept.pt").unlink()

    result = await publishing.publish(path, progress=rotate)
    assert not path.exists()
    assert result.new
    assert read_back(publishing.model_folder, 1).files() == {"1.pt": whole}


async def test_a_checkpoint_overwritten_while_it_is_read_is_refused_and_nothing_is_released(
    publishing: Publishing,
) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    before = (publishing.model_folder / "metadata" / "timestamp.json").read_bytes()

    def overwrite(done: int, total: int, phase: str) -> None:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"overwritten")

    with pytest.raises(CheckpointChanged, match=r"1\.pt"):
        await publishing.publish(path, progress=overwrite)
    assert (publishing.model_folder / "metadata" / "timestamp.json").read_bytes() == before
    assert (await publishing.index()).versions == ()


async def test_weights_that_are_not_finite_are_published_and_said(publishing: Publishing) -> None:
    state = network().state_dict()
    state["2.weight"][5, 5] = float("nan")
    torch.save(state, publishing.runs / "bad.pt")
    result = await publishing.publish(publishing.runs / "bad.pt")
    assert result.version == 1
    assert any("2.weight" in note and "not" in note for note in result.notes)


async def test_memory_in_flight_stays_within_the_budget_and_packs_within_16_mib(
    publishing: Publishing,
) -> None:
    torch.manual_seed(1)
    state = {f"layer{n}": torch.randn(5_000_000) for n in range(6)}
    path = publishing.runs / "large.pt"
    torch.save(state, path)
    budget = ByteBudget()
    material = open_material(path, publishing.section())
    packs: list[int] = []

    async def put(pack: Pack) -> None:
        packs.append(len(pack.data))

    with material:
        outcome = await SegmentStream(material, {}, put, lambda *_: None, budget).run()
    assert budget.peak <= 64 * 2**20
    assert budget.lent == 0
    assert max(packs) <= 16 * 2**20 + 2**20
    assert outcome.new == len(material.segments)
    assert outcome.file_digests == (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",)
