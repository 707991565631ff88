"""The test vectors of FORMATS.md as this code makes them; `python -m tests.support.vectors` prints them.

The kept file is never made anew: bytes of format 1 stay readable for ever. Vectors may be added.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from syncd.artifact import codecs
from syncd.artifact.cut import ends_group
from syncd.artifact.layout import FileSource, Layout, TensorSource, cut
from syncd.artifact.pack import PackWriter
from syncd.artifact.segment import digest
from syncd.artifact.view import model_file_header
from tests.support.documents import small, small_delta, small_head, small_index

KEPT: Final = Path(codecs.__file__).parents[1] / "vectors" / "format-1.json"
MIB: Final = 1024 * 1024

# name, dtype, shape, permutation, model, where; files; aliases
CASES: Final[dict[str, Any]] = {
    "worked example": {
        "tensors": [
            ["layer1.weight", "F32", [600, 600], None, True, [0, 64]],
            ["layer1.bias", "F32", [600], None, True, [0, 1440064]],
            ["e170", "F32", [24], None, True, [0, 1442496]],
            ["bn.num_batches_tracked", "I64", [], None, True, [0, 1442624]],
            ["layer2.weight", "F32", [256, 256], None, True, [0, 1442688]],
            ["layer2.bias", "F32", [256], None, True, [0, 1704832]],
            ["half", "BF16", [8, 3, 2, 2], [0, 2, 3, 1], True, [0, 1705856]],
            ["optimizer/exp_avg", "F32", [600, 600], None, False, [0, 1706112]],
        ],
        "files": [3146176, 21],
        "aliases": {"head.bias": "layer1.bias"},
    },
    "large tensors": {
        "tensors": [
            ["w", "F32", [4 * MIB + 1], None, True, [0, 0]],
            ["b", "BF16", [4 * MIB + 1], None, True, [1, 2]],
        ],
        "files": [16 * MIB + 4, 8 * MIB + 4, 33 * MIB],
        "aliases": {},
    },
    "overlaps, views and empty tensors": {
        "tensors": [
            ["a", "U8", [100], None, True, [0, 10]],
            ["b", "U8", [100], None, True, [0, 60]],
            ["state", "U8", [20], None, False, [0, 100]],
            ["view", "F16", [5], None, True, None],
            ["nothing", "F64", [0, 4], None, True, [0, 0]],
        ],
        "files": [200, 0],
        "aliases": {},
    },
}


def sources(case: Mapping[str, Any]) -> tuple[list[TensorSource], list[FileSource]]:
    tensors = [
        TensorSource(
            name, dtype, tuple(shape), tuple(order) if order else None, model, tuple(where) if where else None
        )
        for name, dtype, shape, order, model, where in case["tensors"]
    ]
    return tensors, [FileSource(size) for size in case["files"]]


def layout_json(layout: Layout) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(zstandard.decompress(layout.to_bytes()))
    return fields


def segments() -> dict[str, tuple[str | None, bytes]]:
    """Segments for the codecs, by name."""
    ramp = np.linspace(-1.5, 2.0, 64, dtype="<f4")
    special = np.array([0x0, 0x80000000, 0x7F800000, 0xFFC12345, 0x7F812345, 0x807FFFFF], "<u4")
    return {
        "F32 ramp": ("F32", ramp.tobytes()),
        "F32 special values": ("F32", np.tile(special, 8).tobytes()),
        "BF16": ("BF16", (ramp.view("<u4") >> 16).astype("<u2").tobytes()),
        "F64": ("F64", np.repeat(ramp, 4).astype("<f8").tobytes()),
        "I64 counters": ("I64", np.arange(1000, 1200, dtype="<i8").tobytes()),
        "opaque text": (None, b"the quick brown fox jumps over the lazy dog. " * 4),
        "opaque noise": (None, bytes(range(256))),
    }


def make() -> dict[str, Any]:
    """All vectors."""
    stored = small()
    writer = PackWriter()
    writer.add(digest(b"segment one"), codecs.RAW, b"segment one", 11)
    writer.add(digest(b"segment two"), codecs.RAW, b"segment two", 11)
    pack = writer.finish()
    assert pack is not None
    documents = {
        "head": small_head().to_bytes(),
        "index": small_index().to_bytes(),
        "layout": stored.layout.to_bytes(),
        "table": stored.table.to_bytes(),
        "delta": small_delta().to_bytes(),
        "pack": pack.data,
        "model.safetensors header": model_file_header(stored.layout),
    }
    encoded = {
        name: (dtype, data, *codecs.encode_plain(data, dtype)) for name, (dtype, data) in segments().items()
    }
    return {
        "group ends after": {
            name: ends_group(name)
            for name in ["layer1.weight", "layer1.bias", "e170", "e173", "fc.weight", "ünïcode"]
        },
        "cuts": {
            name: {**case, "layout": layout_json(cut(*sources(case), case["aliases"])[0])}
            for name, case in CASES.items()
        },
        "documents": {name: base64.b64encode(data).decode() for name, data in documents.items()},
        "codecs": {
            name: {
                "dtype": dtype,
                "segment": data.hex(),
                "codec": codecs.NAMES[number],
                "payload": payload.hex(),
            }
            for name, (dtype, data, number, payload) in encoded.items()
        },
    }


def kept() -> dict[str, Any]:
    vectors_of_format_1: dict[str, Any] = json.loads(KEPT.read_text())
    return vectors_of_format_1


if __name__ == "__main__":
    print(json.dumps(make(), indent=1, ensure_ascii=False, sort_keys=True))
