"""Which tensors differ between two versions, told from the signed documents and, for small ones, from their bytes.

A tensor with segments of its own is compared by their digests. Small tensors share a segment with others: where its
digest differs, that segment (at most 1 MiB) of both versions is fetched and the tensors in it are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from syncd.artifact.segment import verify_and_decode
from syncd.store.base import Store
from syncd.trust import names

if TYPE_CHECKING:
    from syncd.edge.face import Documents

_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Difference:
    """Tensors by name: in the second alone, in the first alone, in both with other bytes, dtype, shape or order."""

    added: tuple[dict[str, Any], ...]
    removed: tuple[dict[str, Any], ...]
    changed: tuple[dict[str, Any], ...]
    unchanged: int


async def compare(store: Store, a: Documents, b: Documents) -> Difference:
    """Compare the model views of two versions of one model.

    Raises:
        SegmentCorrupt, StoreErrors: where bytes had to be looked at.
    """
    old = {each.name: each for each in a.layout.tensors}
    new = {each.name: each for each in b.layout.tensors}
    both = [name for name in new if name in old]
    reshaped = {name for name in both if _form(old[name]) != _form(new[name])}
    doubtful = [
        name for name in both if name not in reshaped and not _same_segments(a, b, old[name], new[name])
    ]
    first = await _segments(store, a, (old[name] for name in doubtful if _shares(a, old[name])))
    second = await _segments(store, b, (new[name] for name in doubtful if _shares(b, new[name])))
    changed = {
        name
        for name in doubtful
        if not (_shares(a, old[name]) and _shares(b, new[name]))
        or _bytes(a, old[name], first) != _bytes(b, new[name], second)
    }
    return Difference(
        tuple(_told(new[name]) for name in new if name not in old),
        tuple(_told(old[name]) for name in old if name not in new),
        tuple(
            _told(new[name]) | ({"was": _told(old[name])} if name in reshaped else {})
            for name in both
            if name in changed or name in reshaped
        ),
        len(both) - len(changed) - len(reshaped),
    )


def _form(tensor: Any) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.permutation


def _told(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _places(documents: Documents, tensor: Any) -> list[tuple[str, int, int]]:
    """(digest, offset, length) of the bytes of a tensor."""
    rows = documents.table.rows
    return [(rows[s.segment].digest, s.offset, s.length) for s in documents.layout.tensor_spans(tensor)]


def _same_segments(a: Documents, b: Documents, old: Any, new: Any) -> bool:
    return _places(a, old) == _places(b, new)


def _shares(documents: Documents, tensor: Any) -> bool:
    """Whether the tensor lies in segments with others; then their digests alone do not tell."""
    spans = documents.layout.tensor_spans(tensor)
    return any(s.length != documents.layout.segments[s.segment].length for s in spans)


def _bytes(documents: Documents, tensor: Any, segments: dict[int, bytes]) -> bytes:
    spans = documents.layout.tensor_spans(tensor)
    return b"".join(segments[s.segment][s.offset : s.offset + s.length] for s in spans)


async def _segments(store: Store, documents: Documents, tensors: Iterable[Any]) -> dict[int, bytes]:
    """Segments by number, fetched and verified."""
    wanted = sorted({s.segment for each in tensors for s in documents.layout.tensor_spans(each)})
    gate = asyncio.Semaphore(_AT_ONCE)

    async def fetch(number: int) -> bytes:
        row, entry = documents.table.rows[number], documents.layout.segments[number]
        async with gate:
            key = names.model_key(documents.head.model, names.document("packs", row.pack))
            payload = await store.get_range(key, row.offset, row.encoded_length)
        out = bytearray(entry.length)
        await asyncio.to_thread(verify_and_decode, payload, row, entry.dtype, out)
        return bytes(out)

    return dict(zip(wanted, await asyncio.gather(*map(fetch, wanted)), strict=True))
