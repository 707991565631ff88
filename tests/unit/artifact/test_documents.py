"""Documents: round trips, bounds, later formats refused politely, damaged ones refused and nothing else."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.artifact.delta import DeltaDocument
from syncd.artifact.fields import is_safe_path
from syncd.artifact.head import MAX_HEAD_BYTES, RESERVED_NAMES, FileEntry, Head
from syncd.artifact.index import Index
from syncd.artifact.layout import Layout
from syncd.artifact.pack import parse_pack
from syncd.artifact.segment import digest
from syncd.artifact.table import SegmentTable
from syncd.artifact.view import ModelFile, model_file_header, parse_model_file
from syncd.errors import DocumentInvalid, NeedsNewerSyncd, SyncdError
from tests.support.documents import small, small_delta, small_head, small_index

SMALL = small()


def _plain(data: bytes) -> bytes:
    return data


def _frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _parse_table(data: bytes) -> SegmentTable:
    return SegmentTable.parse(data, len(SMALL.layout.segments))


Wrap = Callable[[bytes], bytes]
JSON_DOCUMENTS: dict[str, tuple[bytes, Callable[[bytes], Any], Wrap, Wrap]] = {
    "head": (small_head().to_bytes(), Head.parse, _plain, _plain),
    "index": (small_index().to_bytes(), Index.parse, _plain, _plain),
    "layout": (SMALL.layout.to_bytes(), Layout.parse, zstandard.decompress, _frame),
    "delta": (small_delta().to_bytes(), DeltaDocument.parse, zstandard.decompress, _frame),
}
PARSERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    **{name: (data, parse) for name, (data, parse, _u, _w) in JSON_DOCUMENTS.items()},
    "table": (SMALL.table.to_bytes(), _parse_table),
    "pack": (next(iter(SMALL.packs.values())).data, parse_pack),
    "model file": (model_file_header(SMALL.layout), parse_model_file),
}


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The small document of this kind with its JSON changed."""
    data, _parse, unwrap, wrap = JSON_DOCUMENTS[name]
    fields = json.loads(unwrap(data))
    change(fields)
    return wrap(json.dumps(fields).encode())


def parse(name: str, data: bytes) -> Any:
    return JSON_DOCUMENTS[name][1](data)


def test_every_document_is_read_as_it_was_written() -> None:
    assert Head.parse(small_head().to_bytes()) == small_head()
    assert Index.parse(small_index().to_bytes()) == small_index()
    assert Layout.parse(SMALL.layout.to_bytes()) == SMALL.layout
    assert DeltaDocument.parse(small_delta().to_bytes()) == small_delta()
    assert _parse_table(SMALL.table.to_bytes()) == SMALL.table


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
def test_an_unknown_field_is_ignored_wherever_it_stands(name: str) -> None:
    def add_everywhere(value: Any) -> None:
        if isinstance(value, dict):
            for each in list(value.values()):
                add_everywhere(each)
            if "digest" in value or "format" in value or "path" in value or "dtype" in value:
                value["from-a-later-syncd"] = {"deep": [1, None, "x"]}
        if isinstance(value, list):
            for each in value:
                add_everywhere(each)

    assert parse(name, changed(name, add_everywhere)) == parse(name, JSON_DOCUMENTS[name][0])


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
def test_a_later_format_or_requirement_asks_for_a_newer_syncd_by_name(name: str) -> None:
    later = {"format": f"syncd.{name}/2", "needs": "syncd 0.9", "anything": True}
    _data, _parse, _unwrap, wrap = JSON_DOCUMENTS[name]
    with pytest.raises(NeedsNewerSyncd, match=r"syncd 0\.9") as caught:
        parse(name, wrap(json.dumps(later).encode()))
    assert caught.value.exit_status == 3
    required = changed(name, lambda fields: fields.update(requires=["sparse-tensors"]))
    with pytest.raises(NeedsNewerSyncd, match="sparse-tensors"):
        parse(name, required)


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"format":1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"NaN",
        b"1" * 9000,
    ],
)
def test_what_is_no_document_is_refused(name: str, wrong: bytes) -> None:
    with pytest.raises(DocumentInvalid):
        parse(name, JSON_DOCUMENTS[name][3](wrong))


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
def test_a_document_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(DocumentInvalid, match="format"):
        parse(name, changed(name, lambda fields: fields.update(format="syncd.other/1")))
    with pytest.raises(DocumentInvalid, match="requires"):
        parse(name, changed(name, lambda fields: fields.pop("requires")))


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
def test_a_field_that_stands_twice_is_refused(name: str) -> None:
    data, _parse, unwrap, wrap = JSON_DOCUMENTS[name]
    text = unwrap(data).replace(b'"requires":[]', b'"requires":[],"requires":[]')
    with pytest.raises(DocumentInvalid, match="twice"):
        parse(name, wrap(text))


HEAD_MISTAKES: list[tuple[str, Any]] = [
    ("version", 0),
    ("version", True),
    ("version", 1.0),
    ("version", 2**53),
    ("model", "../etc"),
    ("model", "A"),
    ("created_at", "yesterday"),
    ("training_state", 1),
    ("metrics", {"loss": float("1e400")}),
    ("metrics", {"loss": "0.1"}),
    ("metrics", {"a\0": 1}),
    ("metrics", {f"m{number}": 1 for number in range(65)}),
    ("tags", ["a", "a"]),
    ("tags", [1]),
    ("note", "\x1b[31m"),
    ("note", "x" * 4097),
    ("provenance", {"a": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}),
    ("provenance", {"a": "\x07"}),
    ("layout", {"digest": "sha256:" + "0" * 63, "length": 1}),
    ("layout", {"digest": "sha256:" + "0" * 64, "length": -1}),
    ("files", [{"path": "a", "use": "other", "size": 1, "digest": digest(b"")}]),
    ("golden", {"file": "missing.safetensors", "rtol": 0, "atol": 0}),
    ("golden", {"file": "labels.txt", "rtol": -1, "atol": 0}),
    ("architecture", {"name": "x", "args": {"a": float("1e999")}}),
    ("aliases", {"a": 1}),
    ("checkpoint_kind", ""),
]


@pytest.mark.parametrize(("field", "value"), HEAD_MISTAKES)
def test_a_head_with_a_wrong_field_is_refused_and_the_field_is_named(field: str, value: Any) -> None:
    text = changed("head", lambda fields: fields.update({field: value}))
    text = text.replace(b"Infinity", b"1e400")
    with pytest.raises(DocumentInvalid, match=field):
        Head.parse(text)


UNSAFE = [
    "",
    "/etc/passwd",
    "..",
    "a/../b",
    "a//b",
    "./a",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    ".syncd/x",
    ".syncd",
]


@pytest.mark.parametrize("path", [*UNSAFE, "x" * 256, "/".join(["abcdefghij"] * 100)])
def test_a_path_that_could_leave_its_folder_is_refused(path: str) -> None:
    assert not is_safe_path(path)
    with pytest.raises(DocumentInvalid, match="path"):
        small_head(files=(FileEntry(path, "model", 1, digest(b"")),), golden=None).to_bytes()


@pytest.mark.parametrize(
    "path", ["a", "a/b.pt", "..a", "a..", "ünïcode/模型.pt", "with space", "-rf", "x" * 255]
)
def test_a_path_below_its_folder_is_accepted(path: str) -> None:
    head = small_head(files=(FileEntry(path, "model", 1, digest(b"")),), golden=None)
    assert Head.parse(head.to_bytes()) == head


@pytest.mark.parametrize(
    "paths",
    [
        *[[("dir/" + name, "side")] for name in sorted(RESERVED_NAMES)],
        [("a/labels.txt", "side"), ("b/labels.txt", "side")],
        [("a", "model"), ("a", "training")],
        [("a", "model"), ("a/b", "training")],
        [("a/b", "model"), ("a", "side")],
    ],
)
def test_files_that_would_lie_on_each_other_are_refused(paths: list[tuple[str, Any]]) -> None:
    files = tuple(FileEntry(path, use, 1, digest(b"")) for path, use in paths)
    with pytest.raises(DocumentInvalid):
        small_head(files=files, golden=None).to_bytes()


def test_a_head_above_64_kib_is_neither_written_nor_read() -> None:
    files = tuple(FileEntry(f"shard-{number:05}.bin", "training", 1, digest(b"")) for number in range(600))
    with pytest.raises(DocumentInvalid, match="65536 are allowed"):
        small_head(files=files, golden=None).to_bytes()
    with pytest.raises(DocumentInvalid, match="65536 are allowed"):
        Head.parse(small_head().to_bytes() + b" " * MAX_HEAD_BYTES)


def test_content_is_the_same_under_another_name_and_differs_by_bytes_side_files_and_architecture() -> None:
    head = small_head()
    checkpoint, labels = head.files
    renamed = FileEntry("best.pt", checkpoint.use, checkpoint.size, checkpoint.digest)
    assert small_head(files=(renamed, labels), version=43, note="").content_digest() == head.content_digest()
    other = FileEntry(checkpoint.path, checkpoint.use, checkpoint.size, digest(b"other"))
    more = FileEntry("more.txt", "side", 1, digest(b"x"))
    for changes in (
        {"files": (other, labels)},
        {"files": (checkpoint, labels, more)},
        {"architecture": None},
        {"golden": None},
    ):
        assert small_head(**changes).content_digest() != head.content_digest()


LAYOUT_MISTAKES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("gap", lambda fields: fields["tensors"][1].update(offset=1)),
    ("unfilled", lambda fields: fields["tensors"].pop(1)),
    ("overlap", lambda fields: fields["tensors"].append({**fields["tensors"][0], "name": "again"})),
    ("twice", lambda fields: fields["tensors"].append(fields["tensors"][0])),
    ("too many model segments", lambda fields: fields.update(model_segments=99)),
    ("opaque model segment", lambda fields: fields["segments"][0].update(dtype=None)),
    ("segment too long", lambda fields: fields["segments"][0].update(length=16 * 2**20 + 8)),
    ("odd segment", lambda fields: fields["segments"][0].update(length=7)),
    ("empty segment", lambda fields: fields["segments"][-1].update(length=0)),
    ("segment of bool", lambda fields: fields["segments"][-1].update(length=True)),
    ("negative shape", lambda fields: fields["tensors"][0].update(shape=[-1, -8])),
    ("huge shape", lambda fields: fields["tensors"][0].update(shape=[2**52] * 60)),
    ("65 dimensions", lambda fields: fields["tensors"][0].update(shape=[1] * 65)),
    ("float shape", lambda fields: fields["tensors"][0].update(shape=[1.0])),
    ("permutation", lambda fields: fields["tensors"][1].update(permutation=[0, 0, 1, 2])),
    ("permutation of text", lambda fields: fields["tensors"][1].update(permutation=["0", 0, 1, 2])),
    ("dtype", lambda fields: fields["tensors"][0].update(dtype="f32")),
    ("name", lambda fields: fields["tensors"][0].update(name="a\0")),
    ("surrogate", lambda fields: fields["tensors"][0].update(name="\ud800")),
    ("alias of nothing", lambda fields: fields.update(aliases={"a": "nothing"})),
    ("alias of a list", lambda fields: fields.update(aliases={"a": []})),
    ("alias over a tensor", lambda fields: fields.update(aliases={"conv.count": "conv.weight"})),
    ("spans by twos", lambda fields: fields["files"][0]["spans"].pop()),
    ("span outside", lambda fields: fields["files"][0]["spans"].__setitem__(0, 99)),
    ("span too long", lambda fields: fields["files"][0]["spans"].__setitem__(2, 5000)),
    ("negative span", lambda fields: fields["files"][0]["spans"].__setitem__(1, -1)),
    ("size", lambda fields: fields["files"][0].update(size=1)),
    ("files", lambda fields: fields.update(files={})),
]


@pytest.mark.parametrize(
    "change", [change for _name, change in LAYOUT_MISTAKES], ids=[n for n, _c in LAYOUT_MISTAKES]
)
def test_a_layout_that_does_not_add_up_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DocumentInvalid):
        Layout.parse(changed("layout", change))


def test_a_dtype_of_a_later_syncd_asks_for_a_newer_one() -> None:
    with pytest.raises(NeedsNewerSyncd, match="F4_E2M1"):
        Layout.parse(changed("layout", lambda fields: fields["segments"][0].update(dtype="F4_E2M1")))


def test_a_layout_that_declares_more_than_its_limit_is_refused_before_it_is_unpacked() -> None:
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(DocumentInvalid, match="declares 1099511627776 bytes"):
        Layout.parse(frame)
    with pytest.raises(DocumentInvalid):
        Layout.parse(SMALL.layout.to_bytes() + b"\0")
    with pytest.raises(DocumentInvalid, match="declares -1"):
        Layout.parse(zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"))


DELTA_MISTAKES: list[Callable[[dict[str, Any]], object]] = [
    lambda fields: fields.update(to=41),
    lambda fields: fields["segments"][0].update(pack=1),
    lambda fields: fields["segments"][0].update(parameters=[1]),
    lambda fields: fields["segments"][0].update(parameters=[True]),
    lambda fields: fields["segments"][0].update(codec=1),
    lambda fields: fields["segments"][0].update(codec=70000),
    lambda fields: fields["segments"][0].update(decoded=2**24 + 1),
    lambda fields: fields["segments"][0].update(length=0),
    lambda fields: fields["segments"][0].update(bases=[{"digest": digest(b""), "version": 1}] * 9),
    lambda fields: fields["parameters"].append(fields["parameters"][0]),
    lambda fields: fields["parameters"][0].update(codec=3),
    lambda fields: fields.update(packs=["x"]),
]


@pytest.mark.parametrize("change", DELTA_MISTAKES)
def test_a_delta_document_that_does_not_add_up_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DocumentInvalid):
        DeltaDocument.parse(changed("delta", change))


def test_a_delta_of_an_unknown_codec_is_read_and_is_no_error() -> None:
    document = DeltaDocument.parse(changed("delta", lambda fields: fields["segments"][0].update(codec=900)))
    assert document.rows[0].row.codec == 900


def test_an_index_whose_versions_do_not_rise_or_are_kept_and_retired_is_refused() -> None:
    for change in (
        lambda fields: fields["versions"].append(fields["versions"][0]),
        lambda fields: fields["retired"][0].update(version=42),
        lambda fields: fields["versions"][0].update(content="x"),
    ):
        with pytest.raises(DocumentInvalid):
            Index.parse(changed("index", change))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, removed, doubled, or the end cut off."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(result) + 1)
        match chance.randrange(5):
            case 0:
                result[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del result[at : at + chance.choice([1, 8, 200])]
            case 2:
                result[at:at] = result[at : at + chance.choice([1, 20])]
            case 3:
                result[at : at + 1] = chance.choice(
                    [b"9", b"-", b'"', b"[", b"}", b"null", b"1e999", b"\\ud800"]
                )
            case 4:
                del result[at:]
    return bytes(result)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_the_bytes_only_syncd_errors_come_out(name: str, seed: int) -> None:
    data, parser = PARSERS[name]
    chance = random.Random(seed)
    wrap = unwrap = _plain
    if name in JSON_DOCUMENTS and chance.random() < 0.8:
        _data, _parse, unwrap, wrap = JSON_DOCUMENTS[name]
    try:
        parser(wrap(mutated(unwrap(data), chance)))
    except SyncdError as error:
        assert type(error) in (DocumentInvalid, NeedsNewerSyncd)  # noqa: PT017 - most mutations fail, not all do


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", JSON_DOCUMENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_field_only_syncd_errors_come_out(name: str, data: st.DataObject) -> None:
    def replace_one(fields: dict[str, Any]) -> None:
        spots: list[tuple[Any, Any]] = []
        waiting: list[Any] = [fields]
        while waiting:
            each = waiting.pop()
            keys = each.keys() if isinstance(each, dict) else range(len(each))
            spots += [(each, key) for key in keys]
            waiting += [each[key] for key in keys if isinstance(each[key], dict | list)]
        container, key = data.draw(st.sampled_from(spots))
        container[key] = data.draw(json_values)

    try:
        parse(name, changed(name, replace_one))
    except SyncdError as error:
        assert type(error) in (DocumentInvalid, NeedsNewerSyncd)  # noqa: PT017 - a value may happen to be valid


def test_a_table_of_another_number_of_segments_is_refused() -> None:
    with pytest.raises(DocumentInvalid, match="segments"):
        SegmentTable.parse(SMALL.table.to_bytes(), len(SMALL.layout.segments) + 1)


def test_documents_are_sorted_compact_json_so_equal_content_has_equal_bytes() -> None:
    for name, (data, _parse, unwrap, _wrap) in JSON_DOCUMENTS.items():
        text = unwrap(data)
        again = json.dumps(
            json.loads(text), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        ).encode()
        assert text == again, name


def test_every_parser_reads_the_document_it_is_tested_with() -> None:
    for (_name, (data, parser)), _ in zip(PARSERS.items(), itertools.count(), strict=False):
        assert parser(data) is not None
    assert isinstance(parse_model_file(model_file_header(SMALL.layout)), ModelFile)
