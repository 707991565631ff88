"""V2's tensors: what a request's JSON and bytes say, as torch tensors, and back. Runs in worker threads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import from_json

from syncd.predictor.v2.refusals import Refusal, bad_request

DATATYPES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
TORCH: Final = {name: dtype for dtype, name in DATATYPES.items()}
MAX_RANK: Final = 16
MAX_TENSORS: Final = 64

# What JSON's numbers are read into; torch makes the rest of them.
_NUMPY: Final[dict[str, Any]] = {
    "FP16": np.float32, "BF16": np.float32, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """What one input or output of a model is called and looks like; -1 is a dimension of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """As metadata shows it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Wanted:
    """One output that a request asks for."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Inference:
    """A request, understood: tensors in the model's order, and what the client wants back (None: every output)."""

    id: str | None
    tensors: tuple[torch.Tensor, ...]
    wanted: tuple[Wanted, ...] | None
    binary: bool


def read_inference(
    pieces: Sequence[bytes], header_length: int | None, inputs: Sequence[TensorSpec] | None
) -> Inference:
    """Understand a request's body.

    Args:
        pieces: the body: JSON, or JSON of `header_length` bytes and then the binary tensors in the order of the inputs.
        inputs: what the model takes; None where nobody knows: then the request's order and dtypes hold.
    Raises:
        Refusal: 400, saying what is wrong.
    """
    total = sum(map(len, pieces))
    if header_length is not None and header_length > total:
        raise bad_request(
            f"Inference-Header-Content-Length says {header_length} bytes of JSON, the body has {total}"
        )
    text, binary = _split(pieces, total if header_length is None else header_length, total)
    request = _object(text)
    given = _list(request, "inputs")
    if not given:
        raise bad_request("the request has no inputs")
    parameters = _parameters(request, "the request")
    tail = _Tail(binary)
    read: dict[str, torch.Tensor] = {}
    for each in given:
        name, tensor = _input(each, inputs, tail)
        if name in read:
            raise bad_request(f"input {name!r} is given twice")
        read[name] = tensor
    tail.must_be_empty()
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise bad_request("id is not a string")
    as_binary = _flag(parameters, "binary_data_output")
    return Inference(identity, _ordered(read, inputs), _wanted(request, as_binary), as_binary)


def _split(pieces: Sequence[bytes], start: int, total: int) -> tuple[bytes, torch.Tensor]:
    """The first `start` bytes, and the others as (total - start,) uint8 in memory of their own.

    That is the one copy of a body: tensors then lie as torch would put them, wherever their request began.
    """
    binary = torch.empty(total - start, dtype=torch.uint8)
    room = binary.numpy().data
    texts, position = [], 0
    for piece in pieces:
        in_text = min(max(start - position, 0), len(piece))
        if in_text:
            texts.append(piece[:in_text])
        if in_text < len(piece):
            at = position + in_text - start
            room[at : at + len(piece) - in_text] = memoryview(piece)[in_text:]
        position += len(piece)
    return b"".join(texts), binary


class _Tail:
    """The binary part of a body, (bytes,) uint8, taken piece by piece; what is taken shares its memory."""

    def __init__(self, binary: torch.Tensor) -> None:
        self._bytes = binary
        self._left = binary.numel()
        self._at = 0

    def take(self, size: int, name: str) -> torch.Tensor:
        """The next `size` bytes, (size,) uint8."""
        if size > self._left:
            raise bad_request(f"input {name!r} says {size} binary bytes, {self._left} are left in the body")
        piece = self._bytes[self._at : self._at + size]
        self._at += size
        self._left -= size
        return piece

    def must_be_empty(self) -> None:
        """Raises Refusal for bytes that no input owns."""
        if self._left:
            raise bad_request(f"{self._left} bytes of the body belong to no input")


def _object(data: bytes) -> dict[str, Any]:
    try:
        # Seven times as fast as json.loads on an image, and the GIL is held all the while.
        found = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        odd = b"NaN" in data or b"Infinity" in data
        hint = "; NaN and infinity are no numbers of JSON: send them as binary data" if odd else ""
        raise bad_request(f"the request is not JSON: {error}{hint}") from error
    if not isinstance(found, dict):
        raise bad_request("the request is not a JSON object")
    return found


def _list(request: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = request.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise bad_request(f"{key} is not an array of objects")
    if len(found) > MAX_TENSORS:
        raise bad_request(f"{key} has {len(found)} entries, more than {MAX_TENSORS}")
    return found


def _name(entry: Mapping[str, Any], kind: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise bad_request(f"an {kind} has no name")
    return name


def _parameters(entry: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise bad_request(f"parameters of {whose} is not an object")
    if any(key.startswith("shared_memory") for key in found):
        raise bad_request(f"{whose} asks for shared memory, which this server does not have")
    return found


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise bad_request(f"parameter {name} is neither true nor false")
    return found


def _input(
    entry: Mapping[str, Any], inputs: Sequence[TensorSpec] | None, tail: _Tail
) -> tuple[str, torch.Tensor]:
    name = _name(entry, "input")
    datatype, shape = entry.get("datatype"), _shape(entry.get("shape"), name)
    spec = _spec(name, inputs)
    if datatype == "BYTES":
        wants = f"wants {spec.datatype}" if spec else "takes numbers"
        raise bad_request(f"input {name!r} is BYTES and this model takes none: it {wants}")
    if not isinstance(datatype, str) or datatype not in TORCH:
        raise bad_request(f"input {name!r} has datatype {datatype!r}, not one of {', '.join(TORCH)}")
    if spec is not None:
        _must_fit(spec, datatype, shape)
    size = _parameters(entry, f"input {name!r}").get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise bad_request(f"input {name!r} has neither data nor binary_data_size")
        return name, _from_json(entry["data"], name, datatype, shape)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise bad_request(f"binary_data_size of input {name!r} is no number of bytes")
    if "data" in entry:
        raise bad_request(f"input {name!r} has both data and binary_data_size")
    return name, _from_bytes(tail.take(size, name), name, datatype, shape)


def _shape(given: Any, name: str) -> tuple[int, ...]:
    good = isinstance(given, list) and len(given) <= MAX_RANK
    if not good or not all(type(each) is int and 0 <= each < 2**48 for each in given):
        raise bad_request(f"shape of input {name!r} is not an array of at most {MAX_RANK} lengths")
    return tuple(given)


def _spec(name: str, inputs: Sequence[TensorSpec] | None) -> TensorSpec | None:
    if inputs is None:
        return None
    for spec in inputs:
        if spec.name == name:
            return spec
    raise bad_request(
        f"the model has no input {name[:64]!r}; it has {', '.join(spec.name for spec in inputs)}"
    )


def _must_fit(spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    if datatype != spec.datatype:
        raise bad_request(f"input {spec.name!r} is {datatype}, the model takes {spec.datatype}")
    fits = len(shape) == len(spec.shape) and all(
        length == allowed or (allowed < 0 < length) for length, allowed in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise bad_request(
            f"input {spec.name!r} has shape {list(shape)}, the model takes {list(spec.shape)} (-1: 1 or more)"
        )


def _from_bytes(data: torch.Tensor, name: str, datatype: str, shape: tuple[int, ...]) -> torch.Tensor:
    dtype = TORCH[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if data.numel() != expected:
        raise bad_request(
            f"input {name!r} has {data.numel()} bytes, {datatype} of shape {list(shape)} takes {expected}"
        )
    if dtype == torch.bool:
        return (data != 0).reshape(shape)
    if data.storage_offset() % dtype.itemsize:  # behind a tensor of odd length
        data = data.clone()
    return data.view(dtype).reshape(shape)


def _from_json(data: Any, name: str, datatype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers flat or nested; nothing is rounded to fit an integer, wrapped or taken from a string."""
    if not isinstance(data, list):
        raise bad_request(f"data of input {name!r} is not an array")
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise bad_request(f"data of input {name!r} is ragged") from error
    count = math.prod(shape)
    if array.size != count:
        raise bad_request(
            f"data of input {name!r} has {array.size} values, shape {list(shape)} takes {count}"
        )
    if array.ndim > 1 and array.shape != shape:
        raise bad_request(
            f"data of input {name!r} is nested as {list(array.shape)}, shape says {list(shape)}"
        )
    numbers = _converted(array, name, datatype)
    return torch.from_numpy(numbers.reshape(shape)).to(TORCH[datatype])


def _converted(array: NDArray[Any], name: str, datatype: str) -> NDArray[Any]:
    target = np.dtype(_NUMPY[datatype])
    kinds = {"f": "fiu", "b": "b"}.get(target.kind, "iu")
    if array.size == 0:
        return array.astype(target)
    if array.dtype.kind not in kinds:
        raise bad_request(f"data of input {name!r} holds something that is no {datatype}")
    with np.errstate(all="ignore"):
        numbers = array.astype(target)
    whole = np.isfinite(numbers).all() if target.kind == "f" else bool((numbers == array).all())
    if not whole:
        raise bad_request(f"data of input {name!r} has a number that {datatype} cannot hold")
    return numbers


def _ordered(
    read: Mapping[str, torch.Tensor], inputs: Sequence[TensorSpec] | None
) -> tuple[torch.Tensor, ...]:
    if inputs is None:
        return tuple(read.values())
    missing = [spec.name for spec in inputs if spec.name not in read]
    if missing:
        raise bad_request(f"input {missing[0]!r} is missing")
    return tuple(read[spec.name] for spec in inputs)


def _wanted(request: Mapping[str, Any], binary: bool) -> tuple[Wanted, ...] | None:
    entries = _list(request, "outputs")
    wanted = []
    for each in entries:
        name = _name(each, "output")
        parameters = _parameters(each, f"output {name!r}")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise bad_request(f"classification of output {name!r} is no number of classes")
        wanted.append(Wanted(name, _flag(parameters, "binary_data", binary), classes))
    return tuple(wanted) or None


def write_answer(
    head: dict[str, Any], request: Inference, names: Sequence[str], outputs: Sequence[torch.Tensor]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where binary tensors follow it.

    Raises:
        Refusal: 400 for an output that is not there; 500 for one that the protocol or JSON cannot hold.
    """
    by_name = dict(zip(names, outputs, strict=True))
    wanted = request.wanted or tuple(Wanted(name, request.binary) for name in names)
    entries, tails = [], []
    for each in wanted:
        if each.name not in by_name:
            raise bad_request(f"the model has no output {each.name[:64]!r}; it has {', '.join(names)}")
        entry, tail = _output(each, by_name[each.name])
        entries.append(entry)
        if tail is not None:
            tails.append(tail)
    text = json.dumps({**head, "outputs": entries}, allow_nan=False).encode()
    return (b"".join((text, *tails)), len(text)) if tails else (text, None)


def _output(wanted: Wanted, tensor: torch.Tensor) -> tuple[dict[str, Any], Any]:
    if wanted.classes:
        return _classified(wanted, tensor)
    datatype = DATATYPES.get(tensor.dtype)
    if datatype is None:
        raise Refusal(
            500, "failed", f"output {wanted.name!r} is {tensor.dtype}, which the protocol cannot hold"
        )
    entry = {"name": wanted.name, "datatype": datatype, "shape": list(tensor.shape)}
    if wanted.binary:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return {**entry, "parameters": {"binary_data_size": data.nbytes}}, data.data
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise Refusal(
            500,
            "failed",
            f"output {wanted.name!r} has NaN or infinity, which JSON cannot hold: ask for binary data",
        )
    return {**entry, "data": tensor.reshape(-1).tolist()}, None


def _classified(wanted: Wanted, tensor: torch.Tensor) -> tuple[dict[str, Any], Any]:
    """The `classes` largest values of each row as "VALUE:INDEX", the first dimension being the batch."""
    if tensor.dim() == 0 or not (tensor.is_floating_point() or DATATYPES.get(tensor.dtype, "BOOL") != "BOOL"):
        raise bad_request(f"output {wanted.name!r} cannot be told as classes")
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
    values, places = torch.topk(rows.to(torch.float64), min(wanted.classes, rows.shape[1]))
    texts = [
        f"{value:f}:{place}"
        for row, at in zip(values.tolist(), places.tolist(), strict=True)
        for value, place in zip(row, at, strict=True)
    ]
    shape = [*tensor.shape[:1], values.shape[1]] if tensor.dim() > 1 else [values.shape[1]]
    entry = {"name": wanted.name, "datatype": "BYTES", "shape": shape}
    if not wanted.binary:
        return {**entry, "data": texts}, None
    data = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    return {**entry, "parameters": {"binary_data_size": len(data)}}, data
