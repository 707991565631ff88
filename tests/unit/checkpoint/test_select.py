"""Which part of a checkpoint becomes the model: what people expect of each library, a question where it is open."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncd.checkpoint.read import open_checkpoint
from syncd.checkpoint.select import Selection, select_model
from syncd.errors import ModelAmbiguous

FIXTURES = Path(__file__).parents[2] / "fixtures" / "checkpoints"
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}}}


def weights(**more: Any) -> dict[str, Any]:
    return {"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4), **more}


def select(folder: Path, value: Any, **options: Any) -> Selection:
    torch.save(value, folder / "model.pt")
    with open_checkpoint(folder / "model.pt") as checkpoint:
        return select_model(checkpoint, **options)


def names(selection: Selection) -> list[str]:
    return [each.name for each in selection.tensors]


def test_a_plain_state_dict_is_the_model(tmp_path: Path) -> None:
    selection = select(tmp_path, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict())
    assert selection.key == ()
    assert names(selection) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "model_state", "net", "module", "anything"]
)
def test_the_state_dict_is_found_beside_an_optimizer(key: str, tmp_path: Path) -> None:
    selection = select(
        tmp_path, {"epoch": 3, key: weights(), "optimizer": OPTIMIZER, "best": torch.tensor(0.5)}
    )
    assert selection.key == (key,)
    assert names(selection) == ["fc.weight", "fc.bias"]


def test_a_real_optimizer_and_scheduler_are_not_the_model(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    for optimizer in (
        torch.optim.AdamW(model.parameters()),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.optim.RMSprop(model.parameters()),
        torch.optim.Adagrad(model.parameters()),
        torch.optim.Adadelta(model.parameters()),
    ):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        # Under a name that does not say so.
        selection = select(tmp_path, {"net": model.state_dict(), "o": optimizer.state_dict()})
        assert (selection.key, names(selection)) == (("net",), ["weight", "bias"])
        assert select(tmp_path, optimizer.state_dict()).tensors == ()


def test_ema_weights_are_preferred_and_a_key_overrides_that(tmp_path: Path) -> None:
    value = {"state_dict": weights(), "state_dict_ema": weights(), "optimizer": OPTIMIZER}
    assert select(tmp_path, value).key == ("state_dict_ema",)
    assert select(tmp_path, value, key="state_dict").key == ("state_dict",)


def test_what_is_called_ema_and_is_far_smaller_is_not_the_model(tmp_path: Path) -> None:
    value = {"model": {f"w{index}": torch.ones(2) for index in range(9)}, "ema": {"losses": torch.ones(100)}}
    assert select(tmp_path, value).key == ("model",)


def test_state_dict_wins_over_model_and_both_over_other_names(tmp_path: Path) -> None:
    assert select(tmp_path, {"model": weights(), "state_dict": weights()}).key == ("state_dict",)
    assert select(tmp_path, {"teacher": weights(), "model": weights()}).key == ("model",)


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    value = {"model": {"state_dict": weights(), "model_args": {"dim": 4}}, "optimizer": OPTIMIZER}
    assert select(tmp_path, value).key == ("model", "state_dict")
    assert names(select(tmp_path, value, key="model/state_dict")) == ["fc.weight", "fc.bias"]


def test_two_parts_of_equal_rank_are_asked_about_with_the_line_to_write(tmp_path: Path) -> None:
    value = {"generator": weights(), "discriminator": weights(), "optimizer": OPTIMIZER}
    with pytest.raises(ModelAmbiguous) as caught:
        select(tmp_path, value)
    assert "generator (2 tensors), discriminator (2 tensors)" in caught.value.what
    assert 'key = "generator"' in caught.value.do
    assert caught.value.exit_status == 2
    assert select(tmp_path, value, key="discriminator").key == ("discriminator",)


def test_a_key_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    with pytest.raises(ModelAmbiguous) as caught:
        select(tmp_path, {"model": weights()}, key="modle")
    assert "'modle'" in caught.value.what
    assert "model (2 tensors)" in caught.value.why


def test_a_key_above_several_tables_joins_their_names(tmp_path: Path) -> None:
    value = {"params": {"enc": {"w": torch.ones(2)}, "dec": {"w": torch.ones(3)}}}
    selection = select(tmp_path, value, key="params")
    assert (selection.key, names(selection)) == (("params",), ["enc.w", "dec.w"])


def test_a_table_within_the_models_table_is_not_missed_in_silence(tmp_path: Path) -> None:
    value = {
        "model": {"head.weight": torch.ones(2), "encoder": {"w": torch.ones(2, 2)}},
        "optimizer": OPTIMIZER,
    }
    selection = select(tmp_path, value)
    assert names(selection) == ["head.weight"]
    assert selection.left_out == (
        ("model/encoder", "a table within the model's, with 1 tensors that are not served"),
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_go_by_themselves_if_all_names_have_them(prefix: str, tmp_path: Path) -> None:
    value = {prefix + name: tensor for name, tensor in weights().items()}
    assert names(select(tmp_path, {"model": value})) == ["fc.weight", "fc.bias"]


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    value = {"module.a": torch.ones(2), "b": torch.ones(3)}
    assert names(select(tmp_path, value)) == ["module.a", "b"]


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    selection = select(tmp_path, averaged.state_dict())
    assert names(selection) == ["weight", "bias"]
    assert [name for name, _ in selection.left_out] == ["n_averaged"]


def test_a_configured_prefix_wins_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    value = {"net.a": torch.ones(2), "net.b": torch.ones(2), "loss.weight": torch.ones(2)}
    selection = select(tmp_path, {"state_dict": value}, strip_prefix="net.")
    assert names(selection) == ["a", "b"]
    assert selection.left_out == (("loss.weight", "its name does not begin with 'net.'"),)
    kept = select(tmp_path, {"module.a": torch.ones(2)}, strip_prefix="")
    assert names(kept) == ["module.a"]


def test_a_configured_prefix_that_nothing_has_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ModelAmbiguous, match=r"no tensor's name begins with 'nett\.'"):
        select(tmp_path, {"net.a": torch.ones(2)}, strip_prefix="nett.")


def test_without_a_model_the_selection_is_empty(tmp_path: Path) -> None:
    for value in ({"epoch": 3}, {"rng": {"cpu": torch.get_rng_state()}}, [torch.ones(2)], torch.ones(2), {}):
        assert select(tmp_path, value) == Selection((), (), {}, ())


def test_tensors_that_cannot_be_served_are_left_out_by_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (4,))
    selection = select(tmp_path, weights(q=quantized, s=sparse, big=torch.ones(1).expand(2**26)))
    assert names(selection) == ["fc.weight", "fc.bias"]
    assert {name: why.split()[0] for name, why in selection.left_out} == {
        "q": "quantized",
        "s": "sparse",
        "big": "expanded",
    }


@pytest.mark.parametrize(
    ("fixture", "key", "first"),
    [
        ("lightning/epoch=2-val_loss=2.027.ckpt", ("state_dict",), "net.0.weight"),
        ("deepspeed/mp_rank_00_model_states.pt", ("module",), "0.weight"),
        ("special/dp.pt", (), "0.weight"),
        ("accelerate/model.safetensors", (), "0.bias"),
    ],
)
def test_the_model_of_a_real_library_is_found(fixture: str, key: tuple[str, ...], first: str) -> None:
    with open_checkpoint(FIXTURES / fixture) as checkpoint:
        selection = select_model(checkpoint)
    assert (selection.key, selection.tensors[0].name) == (key, first)


def test_states_of_random_number_generators_are_no_model() -> None:
    with open_checkpoint(FIXTURES / "accelerate" / "random_states_0.pkl") as checkpoint:
        assert select_model(checkpoint).tensors == ()
