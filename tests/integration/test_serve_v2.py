"""Open Inference V2 over HTTP, judged by tritonclient, sync and async: every call that it has."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.nets import Pair, Slow
from tests.support.serving import ask, error_of, free_port, install_net, line, serving, write_config

ml_dtypes = pytest.importorskip("ml_dtypes")
triton = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
refusal = pytest.importorskip("tritonclient.utils").InferenceServerException

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
VALUES = np.array([[1.0, -2.0, 3.5, 0.25], [0.0, 4.0, -1.0, 2.0]], np.float32)
MODELS = ("line", "half", "brain", "pair", "bare", "later")
Call = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server of six models: float32, float16, bfloat16, several tensors, no golden sample, and one not installed."""
    node = tmp_path_factory.mktemp("serve") / "node"
    install_net(node, "line", 7, line(1), [torch.ones(2, 4)])
    install_net(
        node, "half", 1, line(1, "float16"), [torch.ones(2, 4, dtype=torch.float16)], {"dtype": "float16"}
    )
    install_net(
        node, "brain", 1, line(1, "bfloat16"), [torch.ones(2, 4, dtype=torch.bfloat16)], {"dtype": "bfloat16"}
    )
    install_net(
        node, "pair", 3, Pair().eval(), [torch.ones(2, 2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)]
    )
    install_net(node, "bare", 2, Slow().eval(), [torch.ones(1, 4)], golden=False)
    found = free_port()
    with serving(write_config(node, found, MODELS)):
        yield found


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, port: int) -> AsyncIterator[Call]:
    """`await call("infer", …)` on tritonclient's blocking client or on its asyncio one."""
    if request.param == "sync":
        client = triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)

        async def blocking(name: str, *args: Any, **keywords: Any) -> Any:
            return getattr(client, name)(*args, **keywords)

        yield blocking
        client.close()
        return
    async with aio.InferenceServerClient(f"127.0.0.1:{port}") as other:

        async def waiting(name: str, *args: Any, **keywords: Any) -> Any:
            return await getattr(other, name)(*args, **keywords)

        yield waiting
    # The client leaves the answers that it only takes the status of to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def tensor(name: str, values: Any, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def answer_of(values: Any, dtype: str = "float32") -> Any:
    with torch.no_grad():
        return line(1, dtype)(torch.from_numpy(values).to(getattr(torch, dtype))).float().numpy()


async def test_health_and_metadata_tell_what_serves(call: Call) -> None:
    assert await call("is_server_live")
    assert not await call("is_server_ready")  # one of the models is not installed
    assert await call("is_model_ready", "line")
    assert await call("is_model_ready", "line", "7")
    assert not await call("is_model_ready", "line", "6")
    assert not await call("is_model_ready", "later")
    assert not await call("is_model_ready", "nobody")
    server = await call("get_server_metadata")
    assert server["name"] == "syncd"
    assert "binary_tensor_data" in server["extensions"]
    assert await call("get_model_metadata", "line", "7") == {
        "name": "line",
        "versions": ["7"],
        "platform": "syncd_pytorch",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
    }
    pair = await call("get_model_metadata", "pair")
    assert [(each["name"], each["datatype"], each["shape"]) for each in pair["inputs"] + pair["outputs"]] == [
        ("input.0", "INT64", [-1, 2]),
        ("input.1", "BOOL", [-1]),
        ("output.0", "INT64", [-1]),
        ("output.1", "FP32", [-1]),
    ]
    config = await call("get_model_config", "brain")
    assert config["input"] == [{"name": "input", "data_type": "TYPE_BF16", "dims": [-1, 4]}]
    index = {each["name"]: each for each in await call("get_model_repository_index")}
    assert set(index) == set(MODELS)
    assert (index["line"]["state"], index["line"]["version"]) == ("READY", "7")
    assert index["later"]["state"] == "UNAVAILABLE"
    assert index["later"]["reason"]
    with pytest.raises(refusal, match="no version is installed"):
        await call("get_model_metadata", "later")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("request_by", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_by", [None, "gzip", "deflate"])
async def test_tensors_go_both_ways_binary_and_json_plain_and_compressed(
    call: Call, binary: bool, request_by: str | None, answer_by: str | None
) -> None:
    answered = await call(
        "infer",
        "line",
        [tensor("input", VALUES, "FP32", binary=binary)],
        outputs=[triton.InferRequestedOutput("output", binary_data=binary)],
        request_id="mine",
        request_compression_algorithm=request_by,
        response_compression_algorithm=answer_by,
    )
    assert np.allclose(answered.as_numpy("output"), answer_of(VALUES), 1e-5, 1e-6)
    told = answered.get_response()
    assert (told["model_name"], told["model_version"], told["id"]) == ("line", "7", "mine")
    assert ("parameters" in answered.get_output("output")) is binary


@pytest.mark.parametrize(
    ("model", "datatype", "dtype"), [("half", "FP16", "float16"), ("brain", "BF16", "bfloat16")]
)
async def test_half_precision_comes_and_goes_binary(
    call: Call, model: str, datatype: str, dtype: str
) -> None:
    values = VALUES.astype(np.float16 if datatype == "FP16" else ml_dtypes.bfloat16)
    answered = await call("infer", model, [tensor("input", values, datatype)])
    assert answered.get_output("output")["datatype"] == datatype
    assert np.array_equal(answered.as_numpy("output").astype(np.float32), answer_of(VALUES, dtype))
    as_json = await call(
        "infer",
        model,
        [tensor("input", values, datatype)],
        outputs=[triton.InferRequestedOutput("output", binary_data=False)],
    )
    assert np.array_equal(as_json.as_numpy("output").astype(np.float32), answer_of(VALUES, dtype))


@pytest.mark.parametrize("binary", [True, False])
async def test_several_inputs_in_any_order_and_one_output_of_two(call: Call, binary: bool) -> None:
    numbers, truths = np.array([[1, 2], [3, 4], [5, 6]]), np.array([True, False, True])
    answered = await call(
        "infer",
        "pair",
        [
            tensor("input.1", truths, "BOOL", binary=binary),
            tensor("input.0", numbers, "INT64", binary=binary),
        ],
        outputs=[triton.InferRequestedOutput("output.0", binary_data=binary)],
    )
    assert answered.as_numpy("output.0").tolist() == [4, 7, 12]
    assert answered.as_numpy("output.1") is None


async def test_a_version_may_be_demanded_and_another_is_not_given(call: Call) -> None:
    inputs = [tensor("input", VALUES, "FP32")]
    assert (await call("infer", "line", inputs, model_version="7")).get_response()["model_version"] == "7"
    for version in ("6", "../7", "07"):
        with pytest.raises(refusal) as told:
            await call("infer", "line", inputs, model_version=version)
        assert told.value.status() == "404"
    with pytest.raises(refusal, match="no model 'nobody'"):
        await call("infer", "nobody", inputs)
    with pytest.raises(refusal, match="not ready") as told:
        await call("infer", "later", inputs)
    assert told.value.status() == "503"


@pytest.mark.parametrize("binary", [True, False])
async def test_classes_are_told_as_value_and_index(call: Call, binary: bool) -> None:
    answered = await call(
        "infer",
        "line",
        [tensor("input", VALUES, "FP32")],
        outputs=[triton.InferRequestedOutput("output", binary_data=binary, class_count=2)],
    )
    expected = answer_of(VALUES)
    told = answered.as_numpy("output")
    assert told.shape == (2, 2)
    first = told[0][0].decode() if binary else told[0][0]
    value, place = (first.decode() if isinstance(first, bytes) else first).split(":")
    assert int(place) == int(expected[0].argmax())
    assert float(value) == pytest.approx(float(expected[0].max()), abs=1e-5)


async def test_statistics_count_what_was_asked(call: Call) -> None:
    async def counted() -> tuple[int, int, int]:
        (entry,) = (await call("get_inference_statistics", "line", "7"))["model_stats"]
        stats = entry["inference_stats"]
        return entry["inference_count"], stats["success"]["count"], stats["fail"]["count"]

    before = await counted()
    await call("infer", "line", [tensor("input", VALUES, "FP32")])
    with pytest.raises(refusal):
        await call("infer", "line", [tensor("input", VALUES[:, :2], "FP32")])
    after = await counted()
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1, 1]
    everything = (await call("get_inference_statistics"))["model_stats"]
    assert {each["name"] for each in everything} == set(MODELS) - {"later"}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("load_model", ["line"]),
        ("unload_model", ["line"]),
        ("get_trace_settings", []),
        ("get_trace_settings", ["line"]),
        ("update_trace_settings", ["line", {"trace_rate": "1"}]),
        ("get_log_settings", []),
        ("update_log_settings", [{"log_info": True}]),
        ("get_system_shared_memory_status", []),
        ("register_system_shared_memory", ["mine", "/mine", 64]),
        ("unregister_system_shared_memory", []),
        ("unregister_system_shared_memory", ["mine"]),
        ("get_cuda_shared_memory_status", []),
        ("register_cuda_shared_memory", ["mine", b"handle", 0, 64]),
        ("unregister_cuda_shared_memory", ["mine"]),
    ],
)
async def test_what_this_server_has_not_is_said_so(call: Call, name: str, args: list[Any]) -> None:
    with pytest.raises(refusal, match="not supported") as told:
        await call(name, *args)
    assert told.value.status() == "400"
    assert await call("is_model_ready", "line")


async def test_tensors_in_shared_memory_are_refused(call: Call) -> None:
    there = triton.InferInput("input", [2, 4], "FP32")
    there.set_shared_memory("mine", 32)
    with pytest.raises(refusal, match="shared memory"):
        await call("infer", "line", [there])


async def test_bytes_are_refused_by_a_model_that_takes_numbers(call: Call) -> None:
    words = np.array([b"a", b"bc"], dtype=np.object_)
    for model in ("line", "bare"):
        for binary in (True, False):
            with pytest.raises(refusal, match="is BYTES and this model takes none"):
                await call("infer", model, [tensor("input", words, "BYTES", binary=binary)])


async def test_parameters_of_other_servers_do_no_harm(call: Call) -> None:
    answered = await call(
        "infer",
        "line",
        [tensor("input", VALUES, "FP32")],
        sequence_id=5,
        sequence_start=True,
        priority=1,
        timeout=1_000_000,
        parameters={"mine": "x"},
        query_params={"a": "b"},
        headers={"x-mine": "y"},
    )
    assert answered.as_numpy("output").shape == (2, 3)


def test_the_blocking_client_asks_many_at_once_and_bodies_can_be_made_by_hand(port: int) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4) as client:
        asked = [client.async_infer("line", [tensor("input", VALUES + n, "FP32")]) for n in range(16)]
        for n, each in enumerate(asked):
            assert np.allclose(each.get_result().as_numpy("output"), answer_of(VALUES + n), 1e-4, 1e-5)
        body, length = client.generate_request_body([tensor("input", VALUES, "FP32")])
    status, headers, data = ask(
        port, "POST", "/v2/models/line/infer", body, {"Inference-Header-Content-Length": str(length)}
    )
    assert status == 200
    parsed = triton.InferenceServerClient.parse_response_body(
        data, header_length=int(headers["inference-header-content-length"])
    )
    assert np.allclose(parsed.as_numpy("output"), answer_of(VALUES), 1e-5, 1e-6)


async def test_a_model_without_a_golden_sample_takes_tensors_in_the_order_that_they_come(call: Call) -> None:
    assert (await call("get_model_metadata", "bare"))["inputs"] == []
    answered = await call("infer", "bare", [tensor("anything", VALUES, "FP32")])
    assert answered.as_numpy("output").shape == (2, 3)


def test_nested_json_and_plain_curl_work(port: int) -> None:
    body = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": VALUES.tolist()}]}
    status, headers, data = ask(port, "POST", "/v2/models/line/infer", body)
    told = json.loads(data)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert np.allclose(np.array(told["outputs"][0]["data"]).reshape(2, 3), answer_of(VALUES), 1e-5, 1e-6)
    assert ask(port, "GET", "/livez")[0] == 200
    assert ask(port, "GET", "/readyz")[0] == 503


def test_the_index_can_be_asked_for_what_is_ready(port: int) -> None:
    told = json.loads(ask(port, "POST", "/v2/repository/index", {"ready": True})[2])
    assert {each["name"] for each in told} == set(MODELS) - {"later"}


METRIC = re.compile(r"^syncd_serve_[a-z_]+(\{[^}]*\})? \S+$")


def test_metrics_count_requests_by_outcome_and_names_of_strangers_are_no_labels(port: int) -> None:
    ask(port, "POST", "/v2/models/line/infer", {"inputs": []})
    ask(port, "POST", "/v2/models/stranger/infer", {"inputs": []})
    status, _, body = ask(port, "GET", "/metrics")
    lines = [each for each in body.decode().splitlines() if not each.startswith("#")]
    assert status == 200
    assert [each for each in lines if not METRIC.match(each)] == []
    assert any(
        each.startswith('syncd_serve_requests_total{model="line",outcome="bad-request"}') for each in lines
    )
    assert any(
        each.startswith('syncd_serve_requests_total{model="unknown",outcome="unknown"}') for each in lines
    )
    assert "stranger" not in body.decode()
    assert 'syncd_serve_version_number{model="line"} 7.0' in lines
    assert 'syncd_serve_ready_ratio{model="later"} 0.0' in lines


async def test_many_async_requests_at_once_are_each_answered_rightly(port: int) -> None:
    async with aio.InferenceServerClient(f"127.0.0.1:{port}", conn_limit=8) as client:

        async def one(n: int) -> bool:
            answered = await client.infer("line", [tensor("input", VALUES * n, "FP32")])
            return bool(np.allclose(answered.as_numpy("output"), answer_of(VALUES * n), 1e-4, 1e-5))

        assert all(await asyncio.gather(*(one(n) for n in range(40))))


def test_a_route_or_method_that_is_not_there_is_told_as_json(port: int) -> None:
    assert error_of(ask(port, "GET", "/v2/nothing"))[0] == 404
    assert error_of(ask(port, "GET", "/v2/models/line/infer"))[0] == 405
