"""The kept vectors of format 1: every later syncd reads them, and makes the same cut and the same documents."""

from __future__ import annotations

import base64
import json

import pytest
import zstandard

from syncd.artifact import codecs
from syncd.artifact.cut import ends_group
from syncd.artifact.delta import DeltaDocument
from syncd.artifact.head import Head
from syncd.artifact.index import Index
from syncd.artifact.layout import Layout, cut
from syncd.artifact.pack import parse_pack
from syncd.artifact.segment import digest
from syncd.artifact.table import SegmentTable
from syncd.artifact.view import check_model_file
from tests.support.documents import small, small_delta, small_head, small_index
from tests.support.vectors import kept, layout_json, make, sources

KEPT = kept()


def document(name: str) -> bytes:
    return base64.b64decode(KEPT["documents"][name])


@pytest.mark.parametrize("name", KEPT["cuts"])
def test_the_cut_of_format_1_never_changes(name: str) -> None:
    case = KEPT["cuts"][name]
    layout, _ = cut(*sources(case), case["aliases"])
    assert layout_json(layout) == case["layout"]
    assert Layout.parse(zstandard.compress(json.dumps(case["layout"]).encode())) == layout


def test_groups_end_after_the_same_names() -> None:
    assert {name: ends_group(name) for name in KEPT["group ends after"]} == KEPT["group ends after"]
    assert set(KEPT["group ends after"].values()) == {True, False}


@pytest.mark.parametrize("name", KEPT["codecs"])
def test_every_kept_encoding_decodes_to_its_segment(name: str) -> None:
    vector = KEPT["codecs"][name]
    segment = bytes.fromhex(vector["segment"])
    out = bytearray(len(segment))
    codecs.decode(
        codecs.NUMBERS[vector["codec"]], bytes.fromhex(vector["payload"]), out, dtype=vector["dtype"]
    )
    assert out == segment


def test_the_kept_documents_are_read_as_they_were_meant() -> None:
    assert Head.parse(document("head")) == small_head()
    assert Index.parse(document("index")) == small_index()
    assert Layout.parse(document("layout")) == small().layout
    assert DeltaDocument.parse(document("delta")) == small_delta()
    table = SegmentTable.parse(document("table"), len(small().layout.segments))
    assert [row.digest for row in table.rows] == [digest(each) for each in small().segments]
    data = document("pack")
    assert [data[row.offset : row.offset + row.encoded_length] for row in parse_pack(data)] == [
        b"segment one",
        b"segment two",
    ]
    check_model_file(small().layout, document("model.safetensors header"))


def test_what_holds_no_compression_is_written_with_the_same_bytes() -> None:
    made = make()["documents"]
    for name in ("pack", "model.safetensors header"):
        assert made[name] == KEPT["documents"][name], name
    # Layout, table and what names them by digest hold zstd's bytes, which another release of zstd may write otherwise.
    assert zstandard.decompress(base64.b64decode(made["layout"])) == zstandard.decompress(document("layout"))
    assert zstandard.decompress(base64.b64decode(made["delta"])) == zstandard.decompress(document("delta"))
    assert Head.parse(document("head")).to_bytes() == document("head")
    assert Index.parse(document("index")).to_bytes() == document("index")
    table = SegmentTable.parse(document("table"), len(small().layout.segments))
    assert table.to_bytes() == document("table")
