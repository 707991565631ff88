"""Small valid documents of every kind, and a checkpoint in memory that is cut, encoded and packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from syncd.artifact import codecs
from syncd.artifact.delta import DeltaDocument, DeltaRow, ParameterBlob
from syncd.artifact.head import Architecture, DocumentRef, FileEntry, Golden, Head
from syncd.artifact.index import Index, IndexEntry, RetiredEntry
from syncd.artifact.layout import FileSource, Layout, SegmentCut, TensorSource, cut
from syncd.artifact.pack import Pack, PackWriter
from syncd.artifact.segment import Row, digest, verify_and_decode
from syncd.artifact.table import SegmentTable

TIME = "2026-11-24T22:40:54Z"


def ref(data: bytes) -> DocumentRef:
    return DocumentRef(digest(data), len(data))


@dataclass
class Stored:
    """A version as a store holds it."""

    layout: Layout
    cuts: tuple[SegmentCut, ...]
    table: SegmentTable
    packs: dict[str, Pack]
    segments: list[bytes]

    def decode(self, row: Row, number: int) -> bytes:
        """Segment `number` from the range that `row` names."""
        payload = self.packs[row.pack].data[row.offset : row.offset + row.encoded_length]
        segment = self.layout.segments[number]
        out = bytearray(segment.length)
        verify_and_decode(payload, row, segment.dtype, out)
        return bytes(out)


def gather(cuts: Sequence[SegmentCut], files: Sequence[bytes], own: Mapping[int, bytes]) -> list[bytes]:
    """The bytes of each segment from its pieces."""
    found = []
    for each in cuts:
        parts = []
        for piece in each.pieces:
            source = (
                files[piece.file]
                if piece.file is not None
                else own[piece.tensor if piece.tensor is not None else -1]
            )
            parts.append(source[piece.offset : piece.offset + piece.length])
        found.append(b"".join(parts))
    return found


def store(
    tensors: Sequence[TensorSource],
    files: Sequence[bytes],
    own: Mapping[int, bytes] | None = None,
    aliases: Mapping[str, str] | None = None,
    pack_limit: int = 16 << 20,
) -> Stored:
    """Cut, encode and pack a checkpoint."""
    layout, cuts = cut(tensors, [FileSource(len(each)) for each in files], aliases or {})
    segments = gather(cuts, files, own or {})
    writer = PackWriter(pack_limit)
    packs: list[Pack | None] = []
    seen: set[str] = set()
    for each, data in zip(cuts, segments, strict=True):
        name = digest(data)
        if name not in seen:
            seen.add(name)
            packs.append(writer.add(name, *codecs.encode_plain(data, each.dtype), len(data)))
    packs.append(writer.finish())
    finished = [each for each in packs if each is not None]
    rows = {row.digest: row for pack in finished for row in pack.rows}
    table = SegmentTable(tuple(rows[digest(data)] for data in segments), len(segments))
    return Stored(layout, cuts, table, {pack.digest: pack for pack in finished}, segments)


def small() -> Stored:
    """Two model tensors, one permuted, an optimizer's tensor, a tied name, opaque bytes, a side file."""
    checkpoint = b"HEAD" + bytes(range(240)) * 4 + b"TAIL"
    tensors = [
        TensorSource("conv.weight", "F32", (2, 3, 2, 2), (0, 2, 3, 1), True, (0, 4)),
        TensorSource("conv.count", "I64", (), None, True, (0, 100)),
        TensorSource("empty", "BF16", (0, 3), None, True, (0, 4)),
        TensorSource("optimizer/exp_avg", "F32", (24,), None, False, (0, 200)),
    ]
    return store(tensors, [checkpoint, b"cat\ndog\n"], aliases={"tied.weight": "conv.weight"})


def small_head(stored: Stored | None = None, **changes: object) -> Head:
    stored = stored or small()
    fields: dict[str, object] = {
        "model": "resnet50",
        "version": 42,
        "created_at": TIME,
        "checkpoint_kind": "torch-zip",
        "checkpoint_bytes": 968,
        "model_bytes": stored.layout.model_bytes,
        "training_state": True,
        "files": (
            FileEntry("epoch-7.pt", "training", 968, digest(b"epoch")),
            FileEntry("labels.txt", "side", 8, digest(b"cat\ndog\n")),
        ),
        "layout": ref(stored.layout.to_bytes()),
        "table": ref(stored.table.to_bytes()),
        "architecture": Architecture("torchvision.models:resnet50", {"num_classes": 10}),
        "golden": Golden("labels.txt", 1e-3, 1e-4),
        "aliases": {"tied.weight": "conv.weight"},
        "model_key": "model",
        "metrics": {"accuracy": 0.94, "epoch": 7},
        "tags": ("nightly",),
        "note": "first\nsecond",
        "provenance": {"git": "c159156", "run": {"id": 7}},
    }
    return Head(**{**fields, **changes})  # type: ignore[arg-type]


def small_index() -> Index:
    head = small_head()
    entry = IndexEntry.of(head, ref(head.to_bytes()))
    return Index("resnet50", (entry,), (RetiredEntry(41, ref(b"old"), TIME),))


def delta_row(target: str, base: str | None, length: int = 100, **changes: object) -> Row:
    fields: dict[str, object] = {
        "digest": target,
        "codec": codecs.EXPDIFF_PCO_1,
        "pack": digest(b"delta pack"),
        "offset": 16,
        "encoded_length": length,
        "encoded_digest": digest(b"encoded"),
        "bases": (base,) if base else (),
    }
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def small_delta() -> DeltaDocument:
    blob = delta_row(digest(b"factors"), None, codec=codecs.ZSTD_1, offset=116)
    row = delta_row(digest(b"B"), digest(b"A"), parameters=(blob.digest,))
    return DeltaDocument("resnet50", 41, 42, (DeltaRow(row, 4096, (41,)),), (ParameterBlob(blob, 640),))
