"""From a checkpoint's tensor table to the sources of the cut: which tensors are named, and where their bytes lie.

A tensor that lies densely in its file is named where it lies; a view of the model that does not gets bytes of its own;
any other travels as bytes of its file and is not named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from syncd.artifact.layout import TensorSource
from syncd.checkpoint.read import TensorRecord
from syncd.checkpoint.select import Selection
from syncd.dtypes import ITEM_BYTES


@dataclass(frozen=True)
class NamedTensors:
    """sources: for the cut, in the order of the checkpoint's table. indices: the checkpoint's number of each source.

    aliases: names of tied weights and the name that the model view keeps. left_out: names that it lacks, and why.
    """

    sources: tuple[TensorSource, ...]
    indices: tuple[int, ...]
    aliases: dict[str, str]
    left_out: tuple[tuple[str, str], ...]


def name_tensors(records: Sequence[TensorRecord], selection: Selection) -> NamedTensors:
    """Decide for each of the checkpoint's `records` whether it is named, and where its bytes come from."""
    chosen = {each.tensor: each.name for each in selection.tensors}
    left_out = list(selection.left_out)
    sources: list[TensorSource] = []
    indices: list[int] = []
    for index, record in enumerate(records):
        name = chosen.get(index)
        readable = record.readable and record.dtype in ITEM_BYTES
        dense = readable and record.dense
        if name is not None and not readable:
            left_out.append((name, f"{record.kind} tensors of dtype {record.dtype} are not served"))
        elif dense or (name is not None and readable):
            sources.append(_source(record, name, dense))
            indices.append(index)
    served = {each.name for each in sources if each.model}
    aliases = {alias: name for alias, name in selection.aliases.items() if name in served}
    return NamedTensors(tuple(sources), tuple(indices), aliases, tuple(left_out))


def _source(record: TensorRecord, name: str | None, dense: bool) -> TensorSource:
    return TensorSource(
        name=name if name is not None else "/".join(map(str, record.key)) or "tensor",
        dtype=record.dtype,
        shape=record.shape,
        permutation=record.permutation if dense else None,
        model=name is not None,
        where=(record.file, record.offset) if dense else None,
    )
