"""Reading an installed version's weights without holding the GIL, and loading them beside the version that serves."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn

from syncd.dtypes import tensor_bytes
from syncd.errors import ArchitectureRefused, DocumentInvalid
from syncd.model.architecture import Skeleton

MAX_HEADER_BYTES: Final = 100 * 2**20
MAX_DIGESTS_BYTES: Final = 64 * 2**20
PERMUTATIONS: Final = "syncd.permutations"
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
        raw = {name: torch.empty(entry.end - entry.start, dtype=torch.uint8) for name, entry in in_order}
        for run in _runs(in_order):
            self._fill(wanted[run[0]].start, [raw[name].numpy().data for name in run])
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
            entries = {name: _entry(item, permutations.get(name)) for name, item in header.items()}
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


def _entry(item: dict[str, Any], permutation: list[int] | None) -> Entry:
    dtype, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
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


def _shaped(raw: torch.Tensor, entry: Entry) -> torch.Tensor:
    tensor = raw.view(TORCH_DTYPES[entry.dtype]).view(entry.shape)
    if entry.permutation is None:
        return tensor
    # permutation[i] is the dim that lies i-th in storage: its inverse brings the dims back in their own order.
    inverse = sorted(range(len(entry.permutation)), key=entry.permutation.__getitem__)
    return tensor.permute(inverse)


def read_digests(folder: int) -> dict[str, str]:
    """`model.digests` below the version's folder (a descriptor): name → digest; empty where it is missing or newer."""
    try:
        descriptor = os.open("model.digests", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_DIGESTS_BYTES)
    try:
        tensors = json.loads(data)["tensors"]
        return {str(name): str(digest) for name, digest in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # only sharing depends on it


@dataclass(frozen=True)
class LoadedModel:
    """A module with its weights, in eval mode, and what a later version needs to share them.

    `identities`: parameter's name → what makes it equal to another version's (entry, digest, device); `fresh`: the
    tensors that were read for this version, by name, the others are shared.
    """

    module: nn.Module
    parameters: Mapping[str, torch.Tensor]
    identities: Mapping[str, tuple[Any, ...]]
    fresh: Mapping[str, torch.Tensor]
    read_bytes: int
    shared_bytes: int
    notes: tuple[str, ...] = field(default=())


def load(
    skeleton: Skeleton,
    weights: WeightsFile,
    *,
    aliases: Mapping[str, str] | None = None,
    digests: Mapping[str, str] | None = None,
    serving: LoadedModel | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a version into a new module; nothing that serves is touched.

    Args:
        aliases: tied name → its name in the file.
        digests: the file's `model.digests`; without them nothing is shared.
        serving: the version whose equal parameters are shared; buffers never are, since forward may change them.
    Raises:
        ArchitectureRefused: names or shapes do not fit the architecture; all kinds of misfit are listed.
        DocumentInvalid: the file is cut off.
    """
    device = torch.device(device)
    identities = _identities(weights, digests or {}, device)
    tensors: dict[str, torch.Tensor] = {}
    if serving is not None:
        for name in skeleton.parameter_names & identities.keys():
            if serving.identities.get(name) == identities[name]:
                tensors[name] = serving.parameters[name]
    fresh = {
        name: tensor.to(device)
        for name, tensor in weights.read(weights.entries.keys() - tensors.keys()).items()
    }
    shared_bytes = sum(tensor.nbytes for tensor in tensors.values())
    tensors.update(fresh)
    module = _assembled(skeleton, tensors, aliases or {})
    return LoadedModel(
        module=module.to(device),
        parameters={name: tensor for name, tensor in tensors.items() if name in skeleton.parameter_names},
        identities=identities,
        fresh=fresh,
        read_bytes=sum(tensor.nbytes for tensor in fresh.values()),
        shared_bytes=shared_bytes,
    )


def _identities(
    weights: WeightsFile, digests: Mapping[str, str], device: torch.device
) -> dict[str, tuple[Any, ...]]:
    return {
        name: (entry.dtype, entry.shape, entry.permutation, digests[name], device)
        for name, entry in weights.entries.items()
        if name in digests
    }


def _assembled(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> nn.Module:
    module = skeleton.instance()
    state: Any = _state_dict(skeleton, tensors, aliases)
    if skeleton.metadata is not None:
        state._metadata = skeleton.metadata
    try:
        result = module.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ArchitectureRefused(
            f"the tensors do not fit {skeleton.name}: {_one_line(str(error))}", architecture=skeleton.name
        ) from error
    misfits = [
        f"{kind} {_listed(names)}"
        for kind, names in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
        if names
    ]
    if misfits:
        raise ArchitectureRefused(
            f"the tensors do not fit {skeleton.name}: {'; '.join(misfits)}",
            why="the checkpoint was made by another architecture, or under a prefix",
            do="mend [publish.architecture] or [publish.weights]; the version that serves goes on serving",
            architecture=skeleton.name,
        )
    return module.requires_grad_(False).eval()


class _State(dict[str, torch.Tensor]):
    """A state dict that can carry `_metadata`, as torch's own does."""


def _state_dict(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> _State:
    """Tensors under every name, tied ones as one and the same parameter: assigning would untie them otherwise."""
    state = _State()
    for name, tensor in tensors.items():
        state[name] = (
            nn.Parameter(tensor.detach(), requires_grad=False) if name in skeleton.parameter_names else tensor
        )
    for alias, name in aliases.items():
        if name in state:
            state.setdefault(alias, state[name])
    for tied in skeleton.ties:
        present = [name for name in tied if name in state]
        # The last one wins, as it does when torch copies a state dict into tied parameters.
        state.update(dict.fromkeys(tied, state[present[-1]]) if present else {})
    return state


def _listed(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _one_line(text: str, most: int = 800) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; true for integers. A sum costs no memory and settles nearly all cases."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # float8 knows few operations
        tensor = tensor.to(torch.float32)
    with contextlib.suppress(NotImplementedError):
        total = tensor.sum()
        if not total.is_complex() and math.isfinite(total.item()):
            return True
    return bool(torch.isfinite(tensor).all())
