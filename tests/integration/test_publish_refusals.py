"""What a publisher refuses: each with its error, with nothing uploaded, nothing released, nothing lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from syncd.config import StoreSection
from syncd.errors import (
    ArchitectureRefused,
    CheckpointIncomplete,
    CheckpointUnsupported,
    CheckpointVanished,
    Failed,
    ModelAmbiguous,
    NotAuthentic,
    StoreUnreachable,
    SyncdError,
    UnknownChannel,
    UnknownModel,
    UsageError,
)
from syncd.publisher.publish import publish
from syncd.store.open import open_store
from tests.support.publishing import MODEL, Publishing, make_publishing, network, read_back, save_checkpoint
from tests.support.signed_store import disk, make_signed_store

FITTING = {
    "architecture": {"name": "torchvision.models:mobilenet_v3_small", "args": {"num_classes": 3}},
    "golden": {"shape": [1, 3, 32, 32]},
}


@pytest.fixture
async def publishing(tmp_path: Path) -> Publishing:
    return await make_publishing(tmp_path)


@pytest.fixture
def mobilenet(publishing: Publishing) -> Path:
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    path = publishing.runs / "net.pt"
    torch.save(mobilenet_v3_small(num_classes=3).state_dict(), path)
    return path


async def refused(
    publishing: Publishing, path: Path, kind: type[SyncdError], match: str, **more: Any
) -> SyncdError:
    """Publishing raises `kind`, and the store is bit for bit what it was."""
    before = disk(publishing.signed.folder)
    with pytest.raises(kind, match=match) as caught:
        await publishing.publish(path, **more)
    assert disk(publishing.signed.folder) == before
    assert caught.value.do or caught.value.why
    return caught.value


async def test_a_truncated_checkpoint_is_incomplete_with_exit_status_3(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    os.truncate(path, path.stat().st_size - 100)
    error = await refused(publishing, path, CheckpointIncomplete, r"1\.pt")
    assert error.exit_status == 3
    assert error.where["model"] == MODEL


async def test_a_missing_an_unknown_and_an_ambiguous_checkpoint_are_told_apart(
    publishing: Publishing,
) -> None:
    await refused(publishing, publishing.runs / "gone.pt", CheckpointVanished, "gone")
    (publishing.runs / "notes.pt").write_text("not a checkpoint at all\n" * 100)
    await refused(publishing, publishing.runs / "notes.pt", CheckpointUnsupported, r"notes\.pt")
    gan = {"generator": network(1).state_dict(), "critic": network(2).state_dict()}
    torch.save(gan, publishing.runs / "gan.pt")
    error = await refused(publishing, publishing.runs / "gan.pt", ModelAmbiguous, "generator")
    assert 'key = "' in error.do
    result = await publishing.publish(publishing.runs / "gan.pt", section={"weights": {"key": "generator"}})
    assert result.version == 1


async def test_an_unknown_channel_and_an_unknown_model_are_usage_errors(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    error = await refused(publishing, path, UnknownChannel, "canary", channel="canary")
    assert "latest" in error.why
    other = publishing.section(model="other")
    with pytest.raises(UnknownModel, match="other"):
        await publish(
            path,
            section=other,
            store=publishing.signed.store,
            trust_root=publishing.signed.root,
            keys=publishing.signed.keys,
            db=publishing.db,
        )


async def test_labels_that_no_version_may_have_are_refused_before_anything_is_uploaded(
    publishing: Publishing,
) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    await refused(publishing, path, UsageError, "metrics", metrics={"loss": float("nan")})
    await refused(publishing, path, UsageError, "tags", tags=("same", "same"))
    await refused(publishing, path, UsageError, "note", note="x" * 5000)


async def test_a_missing_side_file_is_named_and_nothing_is_published(publishing: Publishing) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    await refused(publishing, path, Failed, r"labels\.txt", section={"side_files": ("labels.txt",)})


async def test_another_fleets_root_and_an_absent_store_are_refused(
    publishing: Publishing, tmp_path: Path
) -> None:
    path = save_checkpoint(publishing.runs / "1.pt")
    stranger = await make_signed_store(tmp_path / "stranger")
    before = disk(publishing.signed.folder)
    more = {"section": publishing.section(), "keys": publishing.signed.keys, "db": publishing.db}
    with pytest.raises(NotAuthentic):
        await publish(path, store=publishing.signed.store, trust_root=stranger.root, **more)
    assert disk(publishing.signed.folder) == before
    section = StoreSection(url="s3://nothing/there", endpoint="http://127.0.0.1:9", region="us-east-1")
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "x")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "x")
    absent = open_store(section)
    with pytest.raises(StoreUnreachable) as caught:
        await publish(path, store=absent, trust_root=publishing.signed.root, **more)
    assert caught.value.exit_status == 4
    await absent.aclose()


async def test_a_golden_sample_travels_and_its_outputs_are_those_of_the_weights(
    publishing: Publishing, mobilenet: Path, tmp_path: Path
) -> None:
    result = await publishing.publish(mobilenet, section=FITTING)
    assert result.version == 1
    head = publishing.head(1)
    assert head.golden is not None
    assert [file.path for file in head.files] == ["net.pt", "golden.safetensors"]
    (tmp_path / "golden.safetensors").write_bytes(
        read_back(publishing.model_folder, 1).files()["golden.safetensors"]
    )
    golden = load_file(tmp_path / "golden.safetensors")
    from torchvision.models import mobilenet_v3_small

    net = mobilenet_v3_small(num_classes=3).eval()
    net.load_state_dict(torch.load(mobilenet, weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(net(golden["input.0"]), golden["output.0"], rtol=1e-3, atol=1e-3)
    assert not list((publishing.db.path.parent).rglob("golden-*"))
    assert (await publishing.publish(mobilenet, section=FITTING)).new is False


async def test_an_architecture_that_does_not_fit_is_refused_before_anything_is_uploaded(
    publishing: Publishing, mobilenet: Path
) -> None:
    wrong = {**FITTING, "architecture": {"name": "torchvision.models:resnet18", "args": {}}}
    await refused(publishing, mobilenet, ArchitectureRefused, "resnet18|fit|tensor", section=wrong)
    absent = {**FITTING, "architecture": {"name": "torchvision.models:resnet9000", "args": {}}}
    await refused(publishing, mobilenet, ArchitectureRefused, "resnet9000", section=absent)
    alone = {"golden": FITTING["golden"]}
    await refused(publishing, mobilenet, UsageError, "architecture", section=alone)


async def test_a_poisoned_version_with_a_golden_sample_is_published_for_the_gate_to_refuse(
    publishing: Publishing, mobilenet: Path
) -> None:
    state = torch.load(mobilenet, weights_only=True)
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, mobilenet)
    result = await publishing.publish(mobilenet, section=FITTING)
    assert result.version == 1
    assert any("golden" in note for note in result.notes)
