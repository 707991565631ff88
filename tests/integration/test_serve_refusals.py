"""What a server does with bad requests, bad clients and too many of them: a clear error, and the next one is served."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.commands import syncd, wait_until
from tests.support.nets import Slow
from tests.support.serving import ask, error_of, free_port, install_net, line, serving, write_config

INFER = "/v2/models/line/infer"
GOOD: dict[str, Any] = {
    "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]
}
MAX_BODY = 1 << 20
LIMITS = 'max_body = "1MiB"\nrequest_within = "2s"\nthreads = 1\nqueue = 2\n'


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with small limits: 1 MiB, 2 s, one thread, two that wait."""
    node = tmp_path_factory.mktemp("serve") / "node"
    install_net(node, "line", 7, line(1), [torch.ones(2, 4)])
    install_net(node, "slow", 1, Slow().eval(), [torch.ones(2, 4)])
    found = free_port()
    with serving(write_config(node, found, ["line", "slow"], LIMITS)):
        yield found


@pytest.fixture(autouse=True)
def serves_on(port: int) -> Iterator[None]:
    """After whatever was done to it the server answers a good request rightly."""
    yield
    answers = ask(port, "POST", INFER, GOOD)
    assert answers[0] == 200, answers
    with torch.no_grad():
        expected = line(1)(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[0].tolist()
    assert json.loads(answers[2])["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)


def changed(**fields: Any) -> dict[str, Any]:
    """The good request with other fields in its input; None takes one away."""
    entry = {**GOOD["inputs"][0], **fields}
    return {"inputs": [{name: value for name, value in entry.items() if value is not None}]}


def asking(**parameters: Any) -> dict[str, Any]:
    """The good request with parameters of its output."""
    return {**GOOD, "outputs": [{"name": "output", "parameters": parameters}]}


BAD: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[1]", "not a JSON object"),
    "deep": ("[" * 100_000, "not JSON"),
    "not UTF-8": (b"\xff\xfe{}", "not JSON"),
    "empty": (b"", "not JSON"),
    "no inputs": ({}, "no inputs"),
    "inputs no array": ({"inputs": {"name": "input"}}, "not an array of objects"),
    "input no object": ({"inputs": [1]}, "not an array of objects"),
    "too many inputs": ({"inputs": [GOOD["inputs"][0]] * 65}, "65 entries"),
    "input twice": ({"inputs": GOOD["inputs"] * 2}, "given twice"),
    "nameless": (changed(name=None), "no name"),
    "unknown input": (changed(name="image"), "no input 'image'; it has input"),
    "unknown dtype": (changed(datatype="FP8"), "datatype 'FP8'"),
    "other dtype": (changed(datatype="FP64"), "is FP64, the model takes FP32"),
    "no dtype": (changed(datatype=None), "datatype None"),
    "other rank": (changed(shape=[4]), "the model takes [-1, 4]"),
    "other length": (changed(shape=[2, 2]), "the model takes [-1, 4]"),
    "nothing in the batch": (changed(shape=[0, 4], data=[]), "the model takes [-1, 4]"),
    "negative length": (changed(shape=[-1, 4]), "not an array of at most 16 lengths"),
    "huge shape": (changed(shape=[2**50, 4]), "not an array of at most 16 lengths"),
    "product that overflows": (changed(shape=[2**47, 4]), "takes 562949953421312"),
    "shape of text": (changed(shape=["1", 4]), "not an array of at most 16 lengths"),
    "no shape": (changed(shape=None), "not an array of at most 16 lengths"),
    "too few values": (changed(data=[1.0]), "has 1 values"),
    "ragged": (changed(data=[[1.0, 2.0], [3.0]]), "ragged"),
    "nested otherwise": (changed(data=[[1.0], [2.0], [3.0], [4.0]]), "nested as [4, 1]"),
    "text for numbers": (changed(data=["1", "2", "3", "4"]), "no FP32"),
    "null": (changed(data=[1.0, None, 3.0, 4.0]), "no FP32"),
    "truth for numbers": (changed(data=[True, False, True, True]), "no FP32"),
    "number for an array": (changed(data=1.0), "not an array"),
    "beyond float32": (changed(data=[1e39, 0, 0, 0]), "FP32 cannot hold"),
    "beyond float64": (json.dumps(GOOD).replace("1.0", "1e999"), "FP32 cannot hold"),
    "NaN in JSON": (json.dumps(GOOD).replace("1.0", "NaN"), "NaN and infinity are no numbers of JSON"),
    "infinity in JSON": (json.dumps(GOOD).replace("1.0", "-Infinity"), "NaN and infinity are no numbers of JSON"),
    "no data": (changed(data=None), "neither data nor binary_data_size"),
    "binary size without bytes": (changed(data=None, parameters={"binary_data_size": 16}), "0 are left"),
    "binary size negative": (changed(data=None, parameters={"binary_data_size": -1}), "no number of bytes"),
    "binary size of text": (changed(data=None, parameters={"binary_data_size": "16"}), "no number of bytes"),
    "parameters no object": (changed(parameters=[1]), "not an object"),
    "unknown output": ({**GOOD, "outputs": [{"name": "logits"}]}, "no output 'logits'; it has output"),
    "output nameless": ({**GOOD, "outputs": [{}]}, "no name"),
    "binary_data no truth": (asking(binary_data=1), "neither true nor false"),
    "classes negative": (asking(classification=-2), "no number of classes"),
    "id no text": ({**GOOD, "id": 5}, "id is not a string"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_is_wrong_is_told_what_is_wrong(port: int, name: str) -> None:
    body, expected = BAD[name]
    status, text = error_of(ask(port, "POST", INFER, body))
    assert status == 400
    assert expected in text


HEAD = json.dumps(changed(data=None, parameters={"binary_data_size": 16})).encode()
FLOATS = struct.pack("<4f", 1, 2, 3, 4)
BAD_BINARY: dict[str, tuple[str, bytes, str]] = {
    "longer than the body": ("99999", HEAD + FLOATS, "99999 bytes of JSON"),
    "negative": ("-5", HEAD + FLOATS, "not a number of bytes"),
    "no number": ("many", HEAD + FLOATS, "not a number of bytes"),
    "very long number": ("9" * 400, HEAD + FLOATS, "not a number of bytes"),
    "cuts the JSON": (str(len(HEAD) - 3), HEAD + FLOATS, "not JSON"),
    "takes a byte too many": (str(len(HEAD) + 1), HEAD + FLOATS, "not JSON"),
    "too few bytes": (str(len(HEAD)), HEAD + FLOATS[:-1], "15 are left"),
    "bytes nobody owns": (str(len(HEAD)), HEAD + FLOATS + b"more", "4 bytes of the body belong to no input"),
    "zero": ("0", HEAD + FLOATS, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BINARY)
def test_a_malformed_binary_body_is_told_what_is_wrong(port: int, name: str) -> None:
    length, body, expected = BAD_BINARY[name]
    status, text = error_of(ask(port, "POST", INFER, body, {"Inference-Header-Content-Length": length}))
    assert status == 400
    assert expected in text


def test_bytes_that_do_not_fill_the_shape_are_refused(port: int) -> None:
    head = json.dumps(changed(data=None, parameters={"binary_data_size": 15})).encode()
    answer = ask(port, "POST", INFER, head + FLOATS[:15], {"Inference-Header-Content-Length": str(len(head))})
    assert error_of(answer) == (400, "input 'input' has 15 bytes, FP32 of shape [1, 4] takes 16")


def test_nan_in_binary_is_the_clients_own_and_json_cannot_carry_the_answer(port: int) -> None:
    head = json.dumps(changed(data=None, parameters={"binary_data_size": 16})).encode()
    body = head + struct.pack("<4f", float("nan"), 2, 3, 4)
    status, text = error_of(
        ask(port, "POST", INFER, body, {"Inference-Header-Content-Length": str(len(head))})
    )
    assert status == 500
    assert "NaN or infinity, which JSON cannot hold" in text


ENCODED: dict[str, tuple[str, Callable[[bytes], bytes], int, str]] = {
    "unknown": ("br", lambda data: data, 415, "'br' is not understood"),
    "two at once": ("gzip, deflate", gzip.compress, 415, "not understood"),
    "not gzip": ("gzip", lambda data: data, 400, "not gzip"),
    "not deflate": ("deflate", lambda data: b"\xff" + data, 400, "not deflate"),
    "gzip cut off": ("gzip", lambda data: gzip.compress(data)[:-9], 400, "cut off"),
    "gzip spoilt": ("gzip", lambda data: gzip.compress(data)[:-8] + b"12345678", 400, "not gzip"),
    "rest after deflate": ("deflate", lambda data: zlib.compress(data) + b"more", 400, "4 bytes follow"),
    "said plain and is gzip": ("", gzip.compress, 400, "not JSON"),
    "bomb": ("gzip", lambda _: gzip.compress(bytes(1 << 26), 9), 413, "more than 1048576 bytes"),
    "bomb of deflate": ("deflate", lambda _: zlib.compress(bytes(1 << 26), 9), 413, "more than 1048576"),
    "bomb in members": ("gzip", lambda _: gzip.compress(bytes(1 << 19)) * 400, 413, "more than 1048576"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
def test_a_body_under_a_wrong_encoding_or_too_large_beneath_it_is_refused(port: int, name: str) -> None:
    encoding, encode, expected, words = ENCODED[name]
    headers = {"Content-Encoding": encoding} if encoding else {}
    status, text = error_of(ask(port, "POST", INFER, encode(json.dumps(GOOD).encode()), headers))
    assert status == expected
    assert words in text


@pytest.mark.parametrize("encode", [zlib.compress, lambda data: zlib.compress(data, wbits=-15)])
def test_deflate_is_taken_with_and_without_its_wrapping(port: int, encode: Callable[[bytes], bytes]) -> None:
    data = encode(json.dumps(GOOD).encode())
    assert ask(port, "POST", INFER, data, {"Content-Encoding": "deflate"})[0] == 200


def test_a_body_longer_than_the_limit_is_refused_by_its_length_and_without_one(port: int) -> None:
    status, text = error_of(ask(port, "POST", INFER, bytes(MAX_BODY + 1)))
    assert status == 413
    assert f"takes {MAX_BODY}" in text
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(
            f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
            + b"100001\r\n"
            + bytes(0x100001)
            + b"\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def raw_answer(port: int, data: bytes, within_s: float = 20.0) -> bytes:
    """What comes back for `data` until the server closes."""
    with socket.create_connection(("127.0.0.1", port), within_s) as raw:
        raw.settimeout(within_s)
        raw.sendall(data)
        found = b""
        while piece := raw.recv(65536):
            found += piece
    return found


def test_a_client_that_hangs_within_its_body_is_told_and_let_go(port: int) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert 1.5 < time.monotonic() - began < 8


def test_a_client_that_never_ends_its_head_is_told_and_let_go(port: int) -> None:
    found = raw_answer(port, b"POST /v2/models/line/infer HTTP/1.1\r\nhost: x\r\n")
    assert found.startswith(b"HTTP/1.1 408 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]


def test_a_client_that_goes_away_within_its_body_harms_nobody(port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())


def test_what_is_no_http_is_answered_as_json(port: int) -> None:
    found = raw_answer(port, b"\x16\x03\x01\x02\x00\x01hello\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]


def test_a_head_without_end_is_refused(port: int) -> None:
    try:
        found = raw_answer(port, b"GET /v2 HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 300_000)
    except ConnectionError:  # it closes before it has read all
        return
    assert found.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/passwd",
        "/v2/models/%2e%2e%2fline/infer",
        "/v2/models/line%00/infer",
        "/v2/models/" + "a" * 5000,
        "/v2/models/line/versions/%0a/infer",
    ],
)
def test_odd_names_in_the_path_are_unknown(port: int, path: str) -> None:
    assert error_of(ask(port, "POST", path, GOOD))[0] in (404, 405)


def slow(milliseconds: float) -> Mapping[str, Any]:
    return {
        "inputs": [
            {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [float(milliseconds), 0, 0, 0]}
        ]
    }


def test_a_model_that_raises_is_told_and_answers_the_next(port: int) -> None:
    status, text = error_of(ask(port, "POST", "/v2/models/slow/infer", dict(slow(-2000))))
    assert status == 500
    assert "RuntimeError: first value is below -1000" in text
    assert ask(port, "POST", "/v2/models/slow/infer", dict(slow(1)))[0] == 200


def test_a_prediction_that_takes_too_long_is_answered_503_in_time(port: int) -> None:
    began = time.monotonic()
    answer = ask(port, "POST", "/v2/models/slow/infer", dict(slow(4000)))
    assert error_of(answer) == (503, "no answer within 2.0 s")
    assert int(answer[1]["retry-after"]) >= 1
    assert time.monotonic() - began < 3.5
    wait_until(lambda: waiting(port) == 0, "the thread is free again")


def waiting(port: int) -> float:
    lines = ask(port, "GET", "/metrics")[2].decode().splitlines()
    return next(float(each.split()[1]) for each in lines if each.startswith("syncd_serve_waiting_requests "))


def test_more_requests_than_may_wait_are_told_to_come_again(port: int) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(ask(port, "POST", "/v2/models/slow/infer", dict(slow(1000))))
        )
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert ask(port, "GET", "/v2/health/live")[0] == 200
    assert time.monotonic() - began < 1.0
    for thread in threads:
        thread.join()
    refused = [each for each in answers if each[0] == 429]
    assert len(refused) >= 9  # one in the thread, two wait
    assert all(int(each[1]["retry-after"]) >= 1 for each in refused)
    assert {each[0] for each in answers} <= {200, 429, 503}
    assert any(each[0] == 200 for each in answers)
    wait_until(lambda: waiting(port) == 0, "the thread is free again")


def test_one_connection_too_many_is_told_so(port: int) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(512):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        more = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        assert more.recv(65536).startswith(b"HTTP/1.1 503 ")
    wait_until(lambda: _answers(port), "there is room again")


def _answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/livez")[0] == 200
    except OSError:
        return False


def test_a_body_in_many_small_chunks_is_put_together(port: int) -> None:
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4) / 4000
    head = json.dumps(changed(data=None, shape=[1000, 4], parameters={"binary_data_size": values.nbytes}))
    body = head.encode() + values.tobytes()
    chunks = b"".join(
        f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        for piece in (body[at : at + 61] for at in range(0, len(body), 61))
    )
    start = (
        f"POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
        f"inference-header-content-length: {len(head)}\r\n\r\n"
    )
    found = raw_answer(port, start.encode() + chunks + b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["outputs"][0]["shape"] == [1000, 3]


def test_an_address_that_is_taken_or_a_config_without_models_is_refused(port: int, tmp_path: Any) -> None:
    config = write_config(tmp_path / "node", port, ["line"])
    taken = syncd("serve", "-c", config, "--json")
    assert (taken.status, taken.json["error"]["code"]) == (1, "port-busy")
    assert not (tmp_path / "node").exists()
    nothing = syncd("serve", "-c", write_config(tmp_path / "node", port, []), "--json")
    assert nothing.status == 2
    assert "serve.models" in nothing.out
