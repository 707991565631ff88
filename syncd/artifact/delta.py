"""The delta document: encodings of version B's segments against version A's tensors; never part of a version.

Format 1 of syncd reads it and plans with it; a codec that needs a base comes later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from syncd.artifact import codecs
from syncd.artifact.fields import (
    Fields,
    compress,
    decompress,
    invalid,
    read_document,
    unique,
    write_document,
)
from syncd.artifact.pack import HEADER, MAX_BASES, MAX_CODEC, MAX_PACK_PAYLOAD, MAX_PARAMETERS
from syncd.artifact.segment import MAX_SEGMENT_BYTES, Row

MAX_DELTA_BYTES: Final = 256 * 1024 * 1024
MAX_DELTA_ROWS: Final = 2**20
MAX_BLOBS: Final = 2**16


@dataclass(frozen=True, slots=True)
class DeltaRow:
    """One segment of B: where its delta lies, its decoded length, and of which versions `row.bases` are bytes."""

    row: Row
    decoded_length: int
    base_versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterBlob:
    """A blob that rows of the document share; `row` says where it lies, encoded with a plain codec."""

    row: Row
    decoded_length: int


@dataclass(frozen=True)
class DeltaDocument:
    """Deltas from version `base` (A) to version `version` (B) of one model, for segments of the model view."""

    model: str
    base: int
    version: int
    rows: tuple[DeltaRow, ...]
    parameters: tuple[ParameterBlob, ...] = ()

    def to_bytes(self) -> bytes:
        """The document: JSON in one zstd frame that declares its size."""
        rows = [*(each.row for each in self.parameters), *(each.row for each in self.rows)]
        packs = {pack: number for number, pack in enumerate(dict.fromkeys(row.pack for row in rows))}
        blobs = {each.row.digest: number for number, each in enumerate(self.parameters)}
        fields = {
            "model": self.model,
            "from": self.base,
            "to": self.version,
            "packs": list(packs),
            "parameters": [_place_fields(each.row, each.decoded_length, packs) for each in self.parameters],
            "segments": [
                {
                    **_place_fields(each.row, each.decoded_length, packs),
                    "bases": [
                        {"digest": digest, "version": version}
                        for digest, version in zip(each.row.bases, each.base_versions, strict=True)
                    ],
                    "parameters": [blobs[digest] for digest in each.row.parameters],
                }
                for each in self.rows
            ],
        }
        data = compress(write_document("delta", fields, MAX_DELTA_BYTES))
        DeltaDocument.parse(data)
        return data

    @classmethod
    def parse(cls, data: bytes) -> DeltaDocument:
        """Read and check the document; DocumentInvalid or NeedsNewerSyncd. A codec that is not known is no error."""
        fields = read_document("delta", decompress("delta", data, MAX_DELTA_BYTES), MAX_DELTA_BYTES)
        base, version = fields.integer("from", 1), fields.integer("to", 1)
        if base == version:
            raise fields.wrong("to", "another version than the base is needed")
        packs = fields.digests("packs", MAX_DELTA_ROWS)
        blobs = fields.objects(
            "parameters", MAX_BLOBS, lambda each: ParameterBlob(*_read_place(each, packs, (), ()))
        )
        unique("delta", "parameter blob", (each.row.digest for each in blobs))
        for blob in blobs:
            if blob.row.codec == codecs.EXPDIFF_PCO_1:
                raise invalid("delta", "a parameter blob has a codec that needs a base")
        rows = fields.objects("segments", MAX_DELTA_ROWS, lambda each: _read_row(each, packs, blobs))
        return cls(fields.model(), base, version, rows, blobs)


def _place_fields(row: Row, decoded_length: int, packs: dict[str, int]) -> dict[str, Any]:
    return {
        "digest": row.digest,
        "codec": row.codec,
        "pack": packs[row.pack],
        "offset": row.offset,
        "length": row.encoded_length,
        "encoded": row.encoded_digest,
        "decoded": decoded_length,
    }


def _read_place(
    fields: Fields, packs: tuple[str, ...], bases: tuple[str, ...], parameters: tuple[str, ...]
) -> tuple[Row, int]:
    row = Row(
        digest=fields.digest("digest"),
        codec=fields.integer("codec", 0, MAX_CODEC),
        pack=packs[fields.integer("pack", 0, len(packs) - 1)],
        offset=fields.integer("offset", HEADER.size, HEADER.size + MAX_PACK_PAYLOAD),
        encoded_length=fields.integer("length", 1, MAX_SEGMENT_BYTES),
        encoded_digest=fields.digest("encoded"),
        bases=bases,
        parameters=parameters,
    )
    return row, fields.integer("decoded", 1, MAX_SEGMENT_BYTES)


def _read_row(fields: Fields, packs: tuple[str, ...], blobs: tuple[ParameterBlob, ...]) -> DeltaRow:
    bases = fields.objects(
        "bases", MAX_BASES, lambda each: (each.digest("digest"), each.integer("version", 1))
    )
    numbers = fields.list("parameters", MAX_PARAMETERS)
    if not all(type(number) is int and 0 <= number < len(blobs) for number in numbers):
        raise fields.wrong("parameters", f"numbers of the document's {len(blobs)} blobs are needed")
    parameters = tuple(blobs[number].row.digest for number in numbers)
    row, decoded = _read_place(fields, packs, tuple(digest for digest, _version in bases), parameters)
    if bases and row.codec in codecs.PLAIN:
        raise fields.wrong("bases", f"{codecs.name_of(row.codec)} takes none")
    return DeltaRow(row, decoded, tuple(version for _digest, version in bases))
