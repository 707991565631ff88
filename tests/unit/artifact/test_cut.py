"""The cut and group rule, ownership of overlapping ranges, and files as recipes over the same segments."""

from __future__ import annotations

import gc
import hashlib
import itertools
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.artifact.cut import ends_group
from syncd.artifact.layout import FileSource, Layout, TensorEntry, TensorSource, cut
from syncd.dtypes import ITEM_BYTES, tensor_bytes
from syncd.errors import DocumentInvalid
from tests.support.documents import gather

MIB = 1024 * 1024


def no_end(count: int) -> list[str]:
    """Names after which no group ends."""
    names = (f"t{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if not ends_group(name)), count))


def one_end() -> str:
    return next(name for name in (f"e{number}" for number in itertools.count()) if ends_group(name))


def lying(*parts: tuple[str, str, int], model: bool = True) -> tuple[list[TensorSource], list[FileSource]]:
    """Tensors (name, dtype, elements) that lie one after the other in one file."""
    tensors, at = [], 0
    for name, dtype, count in parts:
        tensors.append(TensorSource(name, dtype, (count,), None, model, (0, at)))
        at += ITEM_BYTES[dtype] * count
    return tensors, [FileSource(at)]


def lengths(layout: Layout) -> list[tuple[str | None, int]]:
    return [(each.dtype, each.length) for each in layout.segments]


@pytest.mark.parametrize(
    ("dtype", "elements", "expected"),
    [
        ("F32", 4 * MIB, [16 * MIB]),
        ("F32", 4 * MIB + 1, [16 * MIB, 4]),
        ("BF16", 9 * MIB, [8 * MIB, 8 * MIB, 2 * MIB]),
        ("U8", 5 * MIB, [4 * MIB, MIB]),
        ("F64", 4 * MIB, [16 * MIB, 16 * MIB]),
        ("C128", 2 * MIB + 1, [16 * MIB, 16 * MIB, 16]),
    ],
)
def test_a_large_tensor_is_cut_at_16_mib_or_4_mi_elements(
    dtype: str, elements: int, expected: list[int]
) -> None:
    layout, _ = cut(*lying(("w", dtype, elements)), {})
    assert lengths(layout) == [(dtype, length) for length in expected]


def test_a_tensor_of_1_mib_shares_its_segment_with_no_other() -> None:
    a, b, c = no_end(3)
    layout, _ = cut(*lying((a, "F32", 10), (b, "F32", MIB // 4), (c, "F32", 10)), {})
    assert lengths(layout) == [("F32", 40), ("F32", MIB), ("F32", 40)]


def test_a_group_ends_before_it_would_pass_1_mib_and_may_reach_it() -> None:
    a, b, c = no_end(3)
    layout, _ = cut(*lying((a, "F32", MIB // 8), (b, "F32", MIB // 8), (c, "F32", 1)), {})
    assert lengths(layout) == [("F32", MIB), ("F32", 4)]


def test_a_group_ends_after_a_name_whose_digest_says_so() -> None:
    a, b = no_end(2)
    name = one_end()
    assert hashlib.sha256(name.encode()).digest()[0] % 32 == 0
    layout, _ = cut(*lying((a, "F32", 3), (name, "F32", 4), (b, "F32", 5)), {})
    assert lengths(layout) == [("F32", 28), ("F32", 20)]


def test_dtypes_are_grouped_wide_first_and_the_model_comes_before_all_else() -> None:
    a, b, c, d = no_end(4)
    tensors, files = lying((a, "BF16", 2), (b, "F32", 3), (c, "F16", 4), (d, "F32", 5))
    tensors[1] = TensorSource(b, "F32", (3,), None, False, tensors[1].where)
    layout, _ = cut(tensors, [FileSource(files[0].size + 7)], {})
    assert lengths(layout) == [("F32", 20), ("BF16", 4), ("F16", 8), ("F32", 12), (None, 7)]
    assert layout.model_segments == 3
    assert [each.name for each in layout.tensors] == [d, a, c]


def test_an_inserted_tensor_moves_one_group_and_not_all_that_follow() -> None:
    parts = [(f"layers.{number}.weight", "F32", 1000 + number) for number in range(400)]
    before, _ = cut(*lying(*parts), {})
    after, _ = cut(*lying(*parts[:100], ("inserted", "F32", 77), *parts[100:]), {})
    members = [_members(before), _members(after)]
    assert len(members[0] - members[1]) <= 2 < len(members[0]) - 8


def _members(layout: Layout) -> set[tuple[str, ...]]:
    """The groups as tuples of names."""
    groups: dict[int, list[str]] = {}
    for each in layout.tensors:
        groups.setdefault(each.segment, []).append(each.name)
    return {tuple(names) for names in groups.values()}


def test_opaque_bytes_are_cut_at_16_mib_each_file_for_itself() -> None:
    layout, cuts = cut([], [FileSource(16 * MIB + 5), FileSource(0), FileSource(3)], {})
    assert lengths(layout) == [(None, 16 * MIB), (None, 5), (None, 3)]
    assert [len(each.spans) for each in layout.files] == [2, 0, 1]
    assert [each.pieces[0].file for each in cuts] == [0, 0, 2]


def test_of_two_overlapping_tensors_the_first_owns_the_file_and_the_other_gets_bytes_of_its_own() -> None:
    data = bytes(range(200))
    tensors = [
        TensorSource("a", "U8", (100,), None, True, (0, 10)),
        TensorSource("b", "U8", (100,), None, True, (0, 60)),
        TensorSource("optimizer", "U8", (20,), None, False, (0, 100)),
        TensorSource("same as a", "U8", (100,), None, True, (0, 10)),
    ]
    layout, cuts = cut(tensors, [FileSource(len(data))], {})
    found = gather(cuts, [data], {})
    assert _file(layout, found, 0) == data
    assert [_tensor(layout, found, each) for each in layout.tensors] == [
        data[10:110],
        data[60:160],
        data[10:110],
    ]
    assert sum(each.length for each in layout.segments) == 300 + 100


def test_a_tensor_outside_its_file_is_refused() -> None:
    with pytest.raises(ValueError, match="'w'"):
        cut([TensorSource("w", "F32", (10,), None, True, (0, 4))], [FileSource(40)], {})


@pytest.mark.parametrize("name", ["", "a\0b", "line\nbreak", "\ud800", "x" * 1025, "__metadata__"])
def test_names_that_no_document_may_hold_are_refused(name: str) -> None:
    with pytest.raises(DocumentInvalid, match="name"):
        cut([TensorSource(name, "F32", (1,), None, True, None)], [], {})


def test_one_name_twice_and_dangling_aliases_are_refused() -> None:
    tensors = [TensorSource("a", "F32", (1,), None, True, None)]
    with pytest.raises(DocumentInvalid, match="'a' stands in it twice"):
        cut(tensors * 2, [], {})
    for aliases in ({"b": "c"}, {"a": "a"}, {"": "a"}):
        with pytest.raises(DocumentInvalid, match="alias"):
            cut(tensors, [], aliases)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[list[TensorSource], list[bytes], dict[int, bytes]]:
    """Files of random bytes and tensors anywhere in them, overlapping or not, some with bytes of their own."""
    files = [draw(st.binary(max_size=300)) for _ in range(draw(st.integers(0, 3)))]
    tensors: list[TensorSource] = []
    own: dict[int, bytes] = {}
    for number in range(draw(st.integers(0, 12))):
        dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = tensor_bytes(dtype, shape)
        where = None
        fitting = [index for index, each in enumerate(files) if len(each) >= size]
        if fitting and draw(st.booleans()):
            file = draw(st.sampled_from(fitting))
            where = (file, draw(st.integers(0, len(files[file]) - size)))
        permutation = tuple(draw(st.permutations(range(len(shape))))) if draw(st.booleans()) else None
        model = draw(st.booleans())
        tensors.append(TensorSource(f"t{number}", dtype, shape, permutation, model, where))
        if where is None:
            own[number] = draw(st.binary(min_size=size, max_size=size))
    return tensors, files, own


@settings(max_examples=80, deadline=None)
@given(checkpoints())
def test_every_file_and_every_tensor_comes_back_from_the_segments(
    checkpoint: tuple[list[TensorSource], list[bytes], dict[int, bytes]],
) -> None:
    tensors, files, own = checkpoint
    layout, cuts = cut(tensors, [FileSource(len(each)) for each in files], {})
    assert Layout.parse(layout.to_bytes()) == layout
    found = gather(cuts, files, own)
    assert [len(each) for each in found] == [each.length for each in layout.segments]
    assert [_file(layout, found, number) for number in range(len(files))] == files
    sources = {each.name: (number, each) for number, each in enumerate(tensors) if each.model}
    assert {each.name for each in layout.tensors} == set(sources)
    for entry in layout.tensors:
        number, source = sources[entry.name]
        size = tensor_bytes(source.dtype, source.shape)
        expected = own[number] if source.where is None else files[source.where[0]][source.where[1] :][:size]
        assert _tensor(layout, found, entry) == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tensors_of_any_size_are_cut_within_all_limits(data: st.DataObject) -> None:
    sizes = st.one_of(
        st.integers(0, 3000), st.integers(1, 40).map(lambda n: n * MIB // 4), st.integers(0, 40 * MIB)
    )
    parts = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), sizes, st.booleans()), max_size=12)
    )
    tensors, at = [], data.draw(st.integers(0, 40 * MIB))
    for number, (dtype, count, model) in enumerate(parts):
        tensors.append(TensorSource(f"t{number}", dtype, (count,), None, model, (0, at)))
        at += ITEM_BYTES[dtype] * count + data.draw(st.sampled_from([0, 64, 17 * MIB]))
    layout, cuts = cut(tensors, [FileSource(at)], {})
    assert Layout.parse(layout.to_bytes()) == layout
    assert (
        sum(each.length for each in layout.segments)
        == at
        == sum(each.length for each in layout.files[0].spans)
    )
    covered = sorted((piece.offset, piece.length) for each in cuts for piece in each.pieces)
    ends = [0, *itertools.accumulate(length for _offset, length in covered)]
    assert [offset for offset, _length in covered] == ends[:-1]
    holders: dict[int, list[int]] = {}
    for entry in layout.tensors:
        for span in layout.tensor_spans(entry):
            holders.setdefault(span.segment, []).append(entry.nbytes)
    for held in holders.values():
        assert len(held) == 1 or sum(held) <= MIB


def test_names_outside_the_model_view_may_be_anything() -> None:
    names = ["", "a\0b", "\ud800", "x" * 5000, "twice", "twice", "__metadata__"]
    tensors = [TensorSource(name, "U8", (3,), None, False, (0, 3 * at)) for at, name in enumerate(names)]
    layout, _ = cut(tensors, [FileSource(30)], {})
    assert layout.tensors == ()
    assert sum(each.length for each in layout.segments) == 30


def _file(layout: Layout, segments: list[bytes], number: int) -> bytes:
    return b"".join(
        segments[each.segment][each.offset :][: each.length] for each in layout.files[number].spans
    )


def _tensor(layout: Layout, segments: list[bytes], entry: TensorEntry) -> bytes:
    return b"".join(
        segments[each.segment][each.offset :][: each.length] for each in layout.tensor_spans(entry)
    )


def test_equal_sizes_give_an_equal_layout_whatever_the_bytes_are() -> None:
    first, _ = cut(*lying(("a", "F32", 10), ("b", "F32", 20)), {})
    second, _ = cut(*lying(("a", "F32", 10), ("b", "F32", 20)), {})
    assert first.to_bytes() == second.to_bytes()


def test_a_hundred_thousand_tensors_are_cut_in_two_seconds_of_cpu() -> None:
    tensors, at = [], 128
    for number in range(100_000):
        tensors.append(
            TensorSource(f"layers.{number}.weight", "F32", (number % 3000 + 1,), None, True, (0, at))
        )
        at += 4 * (number % 3000 + 1) + 64
    start = time.process_time()
    layout, _ = cut(tensors, [FileSource(at)], {})
    assert time.process_time() - start < 2
    assert len(layout.tensors) == 100_000


def test_the_collector_is_on_again_after_a_cut_that_failed() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="not in its file"):
        cut([TensorSource("w", "F32", (10,), None, True, (0, 4))], [FileSource(40)], {})
    assert gc.isenabled()


def test_reading_a_room_of_documents_needs_neither_numpy_nor_zstd() -> None:
    """`syncd status` pays for no more than it uses."""
    code = (
        "import sys, syncd.artifact.plan, syncd.artifact.head, syncd.artifact.index, syncd.artifact.view\n"
        "print([each for each in ('numpy', 'zstandard', 'torch') if each in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "[]\n"
