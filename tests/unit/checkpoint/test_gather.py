"""Strides into row-major bytes, for any layout: the same as numpy's own copy."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.checkpoint.gather import gather, span_bytes
from syncd.checkpoint.read import TensorRecord, storage_order

DTYPES = {"U8": 1, "F16": 2, "F32": 4, "F64": 8, "C128": 16}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A dtype and a view of a random array of its size: permuted, sliced, perhaps with expanded dimensions."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    item = DTYPES[dtype]
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(
        0, 256, int(np.prod(shape)) * item, dtype=np.uint8
    )
    view = raw.view(f"V{item}").reshape(shape).transpose(draw(st.permutations(range(len(shape)))))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    view = view[tuple(slice(None, None, step) for step in steps)]
    if draw(st.booleans()) and view.size:
        view = np.broadcast_to(view[None], (3, *view.shape))
    return dtype, view


def record_of(dtype: str, view: np.ndarray) -> tuple[TensorRecord, bytearray]:
    """The view as a record, and the bytes of its base from element 0 on."""
    item = DTYPES[dtype]
    strides = tuple(stride // item for stride in view.strides)
    record = TensorRecord(("x",), dtype, view.shape, strides, 0, 0, (0, 0, 1 << 20))
    start = view.__array_interface__["data"][0]
    base: np.ndarray = view
    while base.base is not None:
        base = base.base
    offset = start - base.__array_interface__["data"][0]
    return record, bytearray(base.tobytes()[offset : offset + span_bytes(record)])


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_any_view_is_gathered_as_numpy_would(layout: tuple[str, np.ndarray]) -> None:
    dtype, view = layout
    record, span = record_of(dtype, view)
    assert gather(record, span) == np.ascontiguousarray(view).tobytes()


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_a_dense_tensor_is_its_bytes_in_the_order_of_its_permutation(layout: tuple[str, np.ndarray]) -> None:
    dtype, view = layout
    record, span = record_of(dtype, view)
    if record.dense:
        order = record.permutation or tuple(range(view.ndim))
        assert np.ascontiguousarray(view.transpose(order)).tobytes() == bytes(span)
        assert record.nbytes == len(span)


def test_permutations_are_canonical_whatever_the_strides_of_single_dimensions() -> None:
    assert storage_order((7, 1, 3, 3), (9, 1, 3, 1)) == (0, 1, 2, 3)
    assert storage_order((7, 1, 3, 3), (9, 999, 3, 1)) == (0, 1, 2, 3)
    assert storage_order((1, 3, 4, 5), (60, 1, 15, 3)) == (0, 2, 3, 1)
    assert storage_order((), ()) == ()
    assert storage_order((2, 2), (2, 2)) is None
    assert storage_order((2, 2), (0, 1)) is None
    assert storage_order((4,), (2,)) is None
