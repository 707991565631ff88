"""A checkpoint held open: proven complete, its tensors located, read with pread, identity checked before and after."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

from syncd.checkpoint.identity import Identity
from syncd.checkpoint.isolate import parse_in_child
from syncd.checkpoint.refusals import changed, refuse, refuse_os_error
from syncd.dtypes import tensor_bytes
from syncd.errors import CheckpointHostile, CheckpointIncomplete, CheckpointUnsupported

CHUNK_BYTES: Final = 4 << 20
READABLE_KINDS: Final = frozenset({"strided", "conj", "neg", "conj+neg"})
_CLOCK_STEP_S: Final = 0.02

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: relative posix path, bytes, and a descriptor that its checkpoint closes."""

    path: str
    size: int
    fd: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where a tensor lies. Strides in elements; offset (of element 0) and storage (first, bytes) in bytes of `file`.

    `kind`: strided, conj, neg and conj+neg can be read as tensors; sparse, quantized, wrapper, meta, expanded and
    unknown-dtype travel only as bytes of their file.
    """

    key: KeyPath
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: int
    offset: int
    storage: tuple[int, int, int]
    kind: str = "strided"

    @property
    def readable(self) -> bool:
        """Whether `Checkpoint.read_tensor` can give its values."""
        return self.kind in READABLE_KINDS

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's own elements, each once for every place in the shape; 0 if it cannot be read."""
        return tensor_bytes(self.dtype, self.shape) if self.readable else 0

    @property
    def dense(self) -> bool:
        """Whether the `nbytes` from `offset` on are exactly its elements, in row-major order of `permutation`."""
        return self.kind == "strided" and (
            0 in self.shape or storage_order(self.shape, self.strides) is not None
        )

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """Of a dense tensor: its dimensions in the order of the bytes, slowest first; None for row-major order."""
        order = None if 0 in self.shape else storage_order(self.shape, self.strides)
        return None if order is None or order == tuple(range(len(order))) else order


def storage_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions, slowest first, if the elements lie without gap or overlap; else None.

    Dimensions of size 1 have no say: where the others are in order, so is the whole; else they come first.
    """
    real = sorted((dim for dim in range(len(shape)) if shape[dim] > 1), key=lambda dim: -strides[dim])
    expected = 1
    for dim in reversed(real):
        if strides[dim] != expected:
            return None
        expected *= shape[dim]
    if real == sorted(real):
        return tuple(range(len(shape)))
    return (*(dim for dim in range(len(shape)) if shape[dim] == 1), *real)


@dataclass(frozen=True)
class Group:
    """Tensors that stand beside each other under one key: a state dict, or a pickled module."""

    key: KeyPath
    names: tuple[str, ...]
    tensors: tuple[int, ...]  # one for each name; a tied tensor stands here more than once
    module: bool = False
    strings: bool = True  # every tensor's key is a string

    @property
    def aliases(self) -> dict[str, str]:
        """Later names of a tensor → its first name."""
        first: dict[int, str] = {}
        found = {}
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if first.setdefault(tensor, name) != name:
                found[name] = first[tensor]
        return found


@dataclass
class Checkpoint:
    """Open files of one proven checkpoint; a context manager. All methods block, and any thread may call them."""

    kind: str
    path: Path
    proof: str
    files: tuple[CheckpointFile, ...]
    tensors: tuple[TensorRecord, ...]
    groups: tuple[Group, ...]
    scalars: dict[str, int | float | str | bool]
    globals: tuple[str, ...]
    notes: tuple[str, ...]
    identities: tuple[Identity, ...]
    _open: bool = field(default=True, repr=False)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; again is harmless."""
        if self._open:
            self._open = False
            for file in self.files:
                os.close(file.fd)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def pread_into(self, file: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of a file; the GIL is free meanwhile.

        Raises:
            CheckpointChanged: the file has become shorter.
            CheckpointUnreadable: the disk or the network failed.
        """
        left = buffer.cast("B")
        held = self.files[file]
        while left:
            try:
                count = os.preadv(held.fd, [left], offset)
            except OSError as error:
                refuse_os_error(self.path, error)
            if not count:
                raise changed(self.path, f"it was cut to {offset} of {held.size} bytes")
            offset += count
            left = left[count:]

    def read_tensor(self, index: int) -> bytes:
        """The tensor's values as row-major little-endian bytes, views gathered, conj and neg bits resolved.

        Memory: the tensor's bytes, for a view also the part of its storage that it spans.
        Raises:
            CheckpointUnsupported: a tensor that is not `readable`.
            CheckpointChanged, CheckpointUnreadable: as `pread_into`.
        """
        record = self.tensors[index]
        if not record.readable:
            raise CheckpointUnsupported(
                f"tensor {key_text(record.key)} is {record.kind}: only its file's bytes travel",
                path=self.path,
            )
        if record.dense and record.permutation is None:
            data = bytearray(record.nbytes)
            self.pread_into(record.file, record.offset, memoryview(data))
            return bytes(data)
        from syncd.checkpoint.gather import gather, span_bytes

        data = bytearray(span_bytes(record))
        self.pread_into(record.file, record.offset, memoryview(data))
        return gather(record, data)

    def check_unchanged(self) -> bool:
        """True: nothing changed since opening. False: only a ctime did (rotation), so read the bytes a second time.

        Raises:
            CheckpointChanged: the content may be another one; what was read must be dropped.
        """
        same = True
        for file, before in zip(self.files, self.identities, strict=True):
            now = Identity.of(os.fstat(file.fd))
            if now.content != before.content:
                raise changed(self.path, f"{file.path} was {before.text}, now {now.text}")
            same = same and now == before
        return same


def key_text(key: KeyPath) -> str:
    """A key path as people write it in the configuration: `ema/model`; the root is `/`."""
    return "/".join(str(part) for part in key) or "/"


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, prove it complete and locate its tensors; nothing in it is executed.

    The pickle or header is parsed in a child process with limits; here every CRC32 that the file has is checked,
    which reads it once. Whatever fails, no descriptor is left open.
    Raises:
        CheckpointVanished: there is no such file (any more).
        CheckpointUnreadable: this user may not read it, or the disk fails.
        CheckpointUnsupported: another kind of file; the message names it.
        CheckpointIncomplete: it is not written to its end.
        CheckpointHostile: it breaks a bound that no honest checkpoint breaks.
        CheckpointChanged: training wrote to it meanwhile.
    """
    descriptor = _open_file(path)
    try:
        before = _settled_identity(descriptor)
        try:
            answer = parse_in_child(descriptor, before.size, path.name)
            checkpoint = _understand(path, answer, descriptor, before)
        except (CheckpointIncomplete, CheckpointHostile, CheckpointUnsupported):
            _refuse_if_changed(path, descriptor, before)
            raise
        _check_sums(checkpoint, answer["tables"]["checks"])
        _refuse_if_changed(path, descriptor, before)
    except BaseException:
        os.close(descriptor)
        raise
    return checkpoint


def _open_file(path: Path) -> int:
    """A descriptor of a regular file; FIFOs and devices are never waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        refuse_os_error(path, error)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    try:
        _refuse_other(path, descriptor, mode)
    finally:
        os.close(descriptor)


def _refuse_other(path: Path, descriptor: int, mode: int) -> NoReturn:
    if stat.S_ISDIR(mode):
        from syncd.checkpoint.formats.refused import name_folder

        kind = name_folder(set(os.listdir(descriptor)))
        raise CheckpointUnsupported(
            f"{path.name} is {kind}, which this syncd does not read",
            do="publish a file written by torch.save or safetensors; nothing was changed",
            path=path,
        )
    raise CheckpointUnsupported(f"{path.name} is not a regular file", path=path)


def _settled_identity(descriptor: int) -> Identity:
    """The identity before reading, taken when a later write must give the file another mtime.

    The kernel's clock for mtime steps by up to 10 ms: two writes within a step leave the same mtime.
    """
    identity = Identity.of(os.fstat(descriptor))
    if 0 <= time.time() - identity.mtime_ns / 1e9 < _CLOCK_STEP_S:
        time.sleep(_CLOCK_STEP_S)
        identity = Identity.of(os.fstat(descriptor))
    return identity


def _understand(path: Path, answer: dict[str, Any], descriptor: int, identity: Identity) -> Checkpoint:
    """The checkpoint out of the child's tables, or the error that its outcome means."""
    tables = answer.get("tables")
    if tables is None:
        refuse(path, answer)
    tensors = tuple(
        TensorRecord(tuple(key), dtype, tuple(shape), tuple(strides), 0, offset, (0, first, length), kind)
        for key, dtype, shape, strides, offset, first, length, kind in tables["tensors"]
    )
    groups = tuple(
        Group(tuple(key), tuple(names), tuple(indices), module, strings)
        for key, names, indices, module, strings in tables["groups"]
    )
    return Checkpoint(
        kind=tables["kind"],
        path=path,
        proof=tables["proof"],
        files=(CheckpointFile(path.name, identity.size, descriptor),),
        tensors=tensors,
        groups=groups,
        scalars=tables["scalars"],
        globals=tuple(tables["globals"]),
        notes=(*tables["notes"], *_hole_note(descriptor, identity.size)),
        identities=(identity,),
    )


def _hole_note(descriptor: int, size: int) -> Iterator[str]:
    if has_hole(descriptor, size):
        yield "the file has a hole: bytes that were never written (or zeros that a copy left out)"


def has_hole(descriptor: int, size: int) -> bool:
    """Whether the file system knows of bytes that were never written; False where it cannot tell."""
    with contextlib.suppress(OSError):
        return 0 <= os.lseek(descriptor, 0, os.SEEK_HOLE) < size
    return False


def _check_sums(checkpoint: Checkpoint, checks: list[list[int]]) -> None:
    """Stream every record that has a CRC32 and compare it; the GIL is free in both reading and checking.

    Raises:
        CheckpointIncomplete: a record has other bytes than were written: torn, or zeros from a crash.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    held_from = held_to = 0
    for first, length, expected in sorted(checks):
        found, position, end = 0, first, first + length
        while position < end:
            if not held_from <= position < held_to:
                held_from, held_to = position, min(position + CHUNK_BYTES, checkpoint.size)
                checkpoint.pread_into(0, held_from, buffer[: held_to - held_from])
            upto = min(end, held_to)
            found = zlib.crc32(buffer[position - held_from : upto - held_from], found)
            position = upto
        if found != expected:
            _refuse_if_changed(checkpoint.path, checkpoint.files[0].fd, checkpoint.identities[0])
            raise CheckpointIncomplete(
                f"bytes {first} to {end} have the CRC32 {found:08x}, the file says {expected:08x}",
                why="the file was torn while it was written, or damaged later",
                do="nothing was published; the next complete checkpoint will be",
                path=checkpoint.path,
            )


def _refuse_if_changed(path: Path, descriptor: int, before: Identity) -> None:
    now = Identity.of(os.fstat(descriptor))
    if now.content != before.content:
        raise changed(path, f"it was {before.text}, now {now.text}") from None
