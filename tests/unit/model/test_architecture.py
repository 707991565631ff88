"""Architectures by name: what is allowed, what is built, what a skeleton costs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from syncd.errors import ArchitectureRefused
from syncd.model.architecture import Skeleton, build, find_builder


def test_a_skeleton_holds_no_weights_and_its_instances_are_apart() -> None:
    skeleton = build("torchvision.models:resnet18", {"num_classes": 7})
    one, other = skeleton.instance(), skeleton.instance()
    assert one is not other
    assert one.fc is not other.fc
    assert not one.training
    assert one.fc.out_features == 7
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in one.parameters())
    one.fc = nn.Identity()
    assert isinstance(skeleton.instance().fc, nn.Linear)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "torchvision.models.resnet18",
        "torchvision.models:",
        ":resnet18",
        "torchvision.models:resnet18()",
        "torchvision..models:resnet18",
        "os:system",
        "torchvision.models:resnet18;os",
        "torchvision.models.detection:fasterrcnn_resnet50_fpn",
    ],
)
def test_a_name_that_is_not_allowed_is_refused_before_anything_is_imported(name: str) -> None:
    with pytest.raises(ArchitectureRefused, match=r"is not allowed here|is not package\.module:callable"):
        find_builder(name, {})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("torchvision.models:resnet9000", ["torchvision.models:*"]),
        ("not_installed_here:Net", ["not_installed_here:*"]),
    ],
)
def test_an_architecture_that_does_not_exist_is_refused(name: str, allowed: list[str]) -> None:
    with pytest.raises(ArchitectureRefused, match=f"architecture {name} does not exist"):
        find_builder(name, {}, allowed)


@pytest.mark.parametrize("name", ["get_model", "get_weight", "list_models", "ResNet18_Weights", "resnet"])
def test_what_is_no_model_of_torchvision_is_refused_though_the_pattern_allows_it(name: str) -> None:
    with pytest.raises(ArchitectureRefused, match=r"does not build a model|not a public function or class"):
        find_builder(f"torchvision.models:{name}", {})


@pytest.mark.parametrize("argument", ["weights", "weights_backbone", "pretrained", "pretrained_backbone"])
def test_arguments_that_would_download_weights_are_refused(argument: str) -> None:
    with pytest.raises(ArchitectureRefused, match=f"argument {argument} would fetch other weights"):
        find_builder("torchvision.models:resnet18", {argument: "DEFAULT"})


def test_a_builder_that_downloads_a_backbone_by_default_is_told_not_to() -> None:
    builder = find_builder(
        "torchvision.models.segmentation:fcn_resnet50", {}, ["torchvision.models.segmentation:*"]
    )
    assert builder.keywords == {"weights": None, "weights_backbone": None}  # type: ignore[attr-defined]


@pytest.mark.parametrize("args", [{"num_classes": "ten"}, {"no_such_argument": 1}])
def test_arguments_that_the_builder_does_not_take_are_refused_with_its_words(args: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureRefused, match="did not build: TypeError"):
        build("torchvision.models:resnet18", args)


@pytest.mark.parametrize("args", [{"not a name": 1}, {"big": "x" * 20_000}, {"object": object()}])
def test_arguments_that_are_no_small_json_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureRefused, match="arguments are not"):
        find_builder("torchvision.models:resnet18", args)


def test_a_builder_that_returns_no_module_is_refused() -> None:
    with pytest.raises(ArchitectureRefused, match=r"returned int, not an nn\.Module"):
        Skeleton(lambda: 7)  # type: ignore[arg-type, return-value]


def test_initialisers_are_skipped_in_the_building_thread_alone_and_restored() -> None:
    before = nn.init.normal_
    filled: list[float] = []

    def fill_elsewhere() -> None:
        filled.append(nn.init.normal_(torch.zeros(1000)).abs().sum().item())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10))
            nn.init.normal_(self.weight)
            self.skipped = not bool(self.weight.any())
            thread = threading.Thread(target=fill_elsewhere)
            thread.start()
            thread.join()

    assert Skeleton(Net, without_init=True).instance().skipped is True
    assert filled[0] > 100
    assert nn.init.normal_ is before
    assert Skeleton(Net).instance().skipped is False


def test_a_module_that_keeps_parameters_elsewhere_is_built_anew_each_time() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.listed = [self.weight]

    instance = Skeleton(Net).instance()
    assert not instance.weight.is_meta
    assert instance.listed[0] is instance.weight


def test_buffers_that_no_checkpoint_has_are_kept_as_built() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.arange(5), persistent=False)
            self.register_buffer("mean", torch.zeros(5))

    instance = Skeleton(Net).instance()
    assert instance.positions.tolist() == [0, 1, 2, 3, 4]
    assert instance.mean.is_meta


@pytest.mark.parametrize(
    "name", ["googlenet", "inception_v3", "regnet_y_400mf", "vit_b_16", "mnasnet0_5", "swin_t"]
)
def test_the_odd_ones_of_torchvision_build_without_a_warning(name: str) -> None:
    assert isinstance(build(f"torchvision.models:{name}", {}).instance(), nn.Module)
