"""Our own reader of weights files: every byte of the header is checked, data is read without holding the GIL.

Here and in `finite.py` small steps are numpy's, not torch's: each call of torch gives the GIL away, and between an
application's busy threads getting it back can take milliseconds. A version has hundreds of tensors.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from syncd.dtypes import tensor_bytes
from syncd.errors import DocumentInvalid

MAX_HEADER_BYTES: Final = 100 * 2**20
PERMUTATIONS: Final = "syncd.permutations"
DTYPES: Final = "syncd.dtypes"
ALIGNMENT: Final = 64

# Few large calls: each return into Python may wait 5 ms for the GIL.
_CALL_BYTES: Final = 32 * 2**20
_CALL_BUFFERS: Final = 512

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "C32": torch.complex32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,
}
if hasattr(torch, "float8_e8m0fnu"):
    TORCH_DTYPES["F8_E8M0"] = torch.float8_e8m0fnu


# What numpy lacks is carried as integers of its size.
_NUMPY_DTYPES: Final[dict[str, str]] = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "u2",
    "I16": "i2",
    "F16": "f2",
    "U32": "u4",
    "I32": "i4",
    "F32": "f4",
    "U64": "u8",
    "I64": "i8",
    "F64": "f8",
    "C64": "c8",
    "C128": "c16",
}
_CARRIERS: Final = {1: "u1", 2: "i2", 4: "i4"}

_COMPLEX: Final = ("C32", "C64", "C128")


@dataclass(frozen=True)
class Entry:
    """A tensor of a weights file: `shape` as stored; `permutation` lists the tensor's dims in storage order."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    permutation: tuple[int, ...] | None = None


class WeightsFile:
    """An open safetensors file: everything in its header is checked before a byte of data is used.

    Args:
        path: opened without following a link; below the folder `folder` (a descriptor) where one is given.
    Raises:
        FileNotFoundError: it is not there.
        DocumentInvalid: not a regular file, or the header breaks the format (bounds, gaps, overlaps, sizes, dtypes).
    """

    def __init__(self, path: Path | str, *, folder: int | None = None) -> None:
        self.path = str(path)
        self._descriptor = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
        )
        try:
            found = os.fstat(self._descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DocumentInvalid(f"{self.path} is not a regular file")
            self.size = found.st_size
            self.metadata, self.entries, self._data = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """Read tensors, each into memory of its own that begins on a multiple of 64; permuted ones as they were saved.

        Args:
            names: which; all by default.
        Raises:
            DocumentInvalid: the file ends before its data.
        Cost: the tensors' bytes, once; the GIL is free while the disk is read.
        """
        wanted = self.entries if names is None else {name: self.entries[name] for name in names}
        in_order = sorted(wanted.items(), key=lambda item: item[1].start)
        raw = {name: _aligned(entry.end - entry.start) for name, entry in in_order}
        for run in _runs(in_order):
            self._fill(wanted[run[0]].start, [raw[name].data for name in run])
        return {name: _shaped(raw[name], entry) for name, entry in wanted.items()}

    def _fill(self, start: int, buffers: list[memoryview]) -> None:
        position = self._data + start
        while buffers:
            got = os.preadv(self._descriptor, buffers, position)
            if not got:
                raise DocumentInvalid(f"{self.path} ends at byte {position}, before its data does")
            position += got
            while buffers and got >= len(buffers[0]):
                got -= len(buffers.pop(0))
            if got:
                buffers[0] = buffers[0][got:]

    def _read_header(self) -> tuple[dict[str, str], dict[str, Entry], int]:
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, self.size - 8):
            raise DocumentInvalid(f"{self.path}: a header of {length} bytes in a file of {self.size}")
        try:
            header = json.loads(os.pread(self._descriptor, length, 8))
            metadata = header.pop("__metadata__", {})
            permutations = json.loads(metadata.get(PERMUTATIONS, "{}"))
            dtypes = json.loads(metadata.get(DTYPES, "{}"))
            entries = {
                name: _entry(item, dtypes.get(name), permutations.get(name)) for name, item in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DocumentInvalid(f"{self.path}: its header is not a safetensors header: {error}") from error
        position = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != position:
                raise DocumentInvalid(
                    f"{self.path}: tensor {name!r} begins at {entry.start}, not at {position}"
                )
            position = entry.end
        if 8 + length + position != self.size:
            raise DocumentInvalid(
                f"{self.path} has {self.size} bytes, its header tells of {8 + length + position}"
            )
        return metadata, entries, 8 + length


def _entry(item: dict[str, Any], real_dtype: str | None, permutation: list[int] | None) -> Entry:
    """One tensor of the header; `real_dtype` where plain readers would not know it and the file names another.

    A complex dtype is stored as its real one with a last dimension of 2.
    """
    dtype, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
    if real_dtype is not None:
        if real_dtype in _COMPLEX:
            if shape[-1:] != [2]:
                raise ValueError(f"{real_dtype} with the stored shape {shape!r}")
            shape = shape[:-1]
        dtype = real_dtype
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known")
    if len(shape) > 64 or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"shape {shape!r}")
    if type(start) is not int or type(end) is not int or end - start != tensor_bytes(dtype, shape):
        raise ValueError(f"{dtype} {shape} does not lie in bytes {start} to {end}")
    if permutation is not None and sorted(permutation) != list(range(len(shape))):
        raise ValueError(f"{permutation!r} is not a permutation of {len(shape)} dimensions")
    return Entry(dtype, tuple(shape), start, end, None if permutation is None else tuple(permutation))


def _runs(in_order: Iterable[tuple[str, Entry]]) -> Iterable[list[str]]:
    """Names of adjacent tensors that one call reads."""
    run: list[str] = []
    start = position = 0
    for name, entry in in_order:
        if entry.start == entry.end:
            continue
        if run and (entry.start != position or position - start >= _CALL_BYTES or len(run) >= _CALL_BUFFERS):
            yield run
            run = []
        if not run:
            start = entry.start
        run.append(name)
        position = entry.end
    if run:
        yield run


def _aligned(size: int) -> NDArray[np.uint8]:
    """`size` bytes of fresh memory that begin on a multiple of 64: the last bits of an answer depend on it."""
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    skip = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[skip : skip + size]


def _shaped(raw: NDArray[np.uint8], entry: Entry) -> torch.Tensor:
    dtype = TORCH_DTYPES[entry.dtype]
    carrier = _NUMPY_DTYPES.get(entry.dtype) or _CARRIERS[dtype.itemsize]
    tensor = torch.from_numpy(raw.view(carrier).reshape(entry.shape))
    if entry.dtype not in _NUMPY_DTYPES:
        tensor = tensor.view(dtype)
    if entry.permutation is None:
        return tensor
    # permutation[i] is the dim that lies i-th in storage: its inverse brings the dims back in their own order.
    inverse = sorted(range(len(entry.permutation)), key=entry.permutation.__getitem__)
    return tensor.permute(inverse)
