"""Loading beside the serving version: the right answers, shared memory, ties, misfits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from syncd.errors import ArchitectureRefused
from syncd.model.architecture import Skeleton, build
from syncd.model.load import LoadedModel, load
from syncd.model.weights import WeightsFile
from syncd.model.yielding import copy_in_steps
from tests.support.versions import write_weights


def loaded_from(
    tmp_path: Path,
    skeleton: Skeleton,
    tensors: dict[str, torch.Tensor],
    *,
    serving: LoadedModel | None = None,
    aliases: dict[str, str] | None = None,
) -> LoadedModel:
    path = tmp_path / "model.safetensors"
    digests = write_weights(path, tensors)
    with WeightsFile(path) as file:
        return load(skeleton, file, digests=digests, serving=serving, aliases=aliases)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("mobilenet_v3_small", 32), ("mnasnet0_5", 32), ("googlenet", 64), ("swin_t", 64)],
)
def test_a_loaded_module_answers_as_the_trained_one(tmp_path: Path, name: str, size: int) -> None:
    args = {"init_weights": False} if name == "googlenet" else {}
    trained = getattr(models, name)(num_classes=5, **args).eval()
    skeleton = build(f"torchvision.models:{name}", {"num_classes": 5})
    images = torch.rand(2, 3, size, size)
    loaded = loaded_from(tmp_path, skeleton, trained.state_dict())
    with torch.no_grad():
        assert torch.allclose(loaded.module(images), trained(images), 1e-5, 1e-5)
    assert not any(tensor.is_meta for tensor in loaded.module.state_dict().values())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not any(module.training for module in loaded.module.modules())


def test_a_channels_last_model_keeps_its_memory_format(tmp_path: Path) -> None:
    trained = models.resnet18(num_classes=5).eval().to(memory_format=torch.channels_last)
    skeleton = build("torchvision.models:resnet18", {"num_classes": 5})
    module = loaded_from(tmp_path, skeleton, trained.state_dict()).module
    assert module.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(module.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)


def test_unchanged_parameters_are_shared_and_buffers_never_are(tmp_path: Path) -> None:
    skeleton = build("torchvision.models:resnet18", {"num_classes": 5})
    trained = models.resnet18(num_classes=5).eval()
    first = loaded_from(tmp_path, skeleton, trained.state_dict())
    with torch.no_grad():
        trained.fc.weight += 1
    second = loaded_from(tmp_path, skeleton, trained.state_dict(), serving=first)
    one, other = first.module.state_dict(), second.module.state_dict()
    parameters = {name for name, _ in trained.named_parameters()}
    for name in one:
        shared = one[name].data_ptr() == other[name].data_ptr()
        assert shared == (name in parameters and name != "fc.weight"), name
    buffer_bytes = sum(buffer.nbytes for buffer in trained.buffers())
    assert second.read_bytes == trained.fc.weight.nbytes + buffer_bytes
    assert second.shared_bytes + second.read_bytes == first.read_bytes
    assert first.module.fc.weight.data_ptr() != second.module.fc.weight.data_ptr()
    # Another dtype, shape or permutation under one digest is another tensor.
    assert loaded_from(tmp_path, skeleton, trained.half().state_dict(), serving=first).shared_bytes == 0


def test_what_happens_to_a_later_version_leaves_the_serving_one_as_it_was(tmp_path: Path) -> None:
    skeleton = build("torchvision.models:resnet18", {"num_classes": 5})
    trained = models.resnet18(num_classes=5).eval()
    images = torch.rand(2, 3, 32, 32)
    first = loaded_from(tmp_path, skeleton, trained.state_dict())
    with torch.no_grad():
        before = first.module(images)
        second = loaded_from(tmp_path, skeleton, trained.state_dict(), serving=first)
        second.module.train()
        second.module(images)
        second.module.to(torch.float64)
        del second
        assert torch.equal(first.module(images), before)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "swin_t", "mobilenet_v3_small", "vit_b_32"])
def test_a_copy_made_in_steps_has_all_that_a_deep_copy_has(name: str) -> None:
    trained = getattr(models, name)(**({"init_weights": False} if name == "googlenet" else {})).eval()
    copied = copy_in_steps(trained, {})
    assert repr(copied) == repr(trained)
    for (path, one), (_, other) in zip(trained.named_modules(), copied.named_modules(), strict=True):
        assert one is not other
        assert vars(one).keys() == vars(other).keys(), path
        mutable = [key for key, value in vars(one).items() if isinstance(value, dict | list | set)]
        assert not [key for key in mutable if vars(one)[key] is vars(other)[key]], path
    state = copied.state_dict()
    for key, tensor in trained.state_dict().items():
        assert torch.equal(tensor, state[key])
        assert tensor.data_ptr() != state[key].data_ptr()


class Tied(nn.Module):
    """An encoder and a decoder of one weight, as language models have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(11, 4)
        self.decoder = nn.Linear(4, 11, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.decoder(self.encoder(words))
        return out


@pytest.mark.parametrize("aliases", [{"decoder.weight": "encoder.weight"}, {}], ids=["told", "not told"])
def test_tied_weights_are_tied_again(tmp_path: Path, aliases: dict[str, str]) -> None:
    trained = Tied().eval()
    loaded = loaded_from(
        tmp_path, Skeleton(Tied), {"encoder.weight": trained.encoder.weight}, aliases=aliases
    )
    module = loaded.module
    assert module.decoder.weight is module.encoder.weight
    assert torch.equal(module(torch.arange(11)), trained(torch.arange(11)).detach())


def test_a_recurrent_module_answers_as_the_trained_one(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.LSTM(3, 5, num_layers=2, batch_first=True)

    trained = make().eval()
    module = loaded_from(tmp_path, Skeleton(make), trained.state_dict()).module
    words = torch.randn(2, 7, 3)
    with torch.no_grad():
        assert torch.equal(module(words)[0], trained(words)[0])


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    skeleton = build("torchvision.models:resnet18", {"num_classes": 5})
    state = dict(models.resnet18(num_classes=5).state_dict())
    del state["fc.bias"], state["bn1.weight"]
    state["module.extra"] = torch.zeros(1)
    with pytest.raises(ArchitectureRefused) as refused:
        loaded_from(tmp_path, skeleton, state)
    assert "missing bn1.weight, fc.bias; unexpected module.extra" in refused.value.what
    with pytest.raises(ArchitectureRefused, match=r"size mismatch for fc\.weight"):
        loaded_from(tmp_path, skeleton, models.resnet18(num_classes=6).state_dict())
    with pytest.raises(ArchitectureRefused, match=r"and \d+ more"):
        loaded_from(tmp_path, skeleton, models.resnet34(num_classes=5).state_dict())
