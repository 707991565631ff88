"""The codec contract for `raw`, `zstd.1` and `planes-zstd.1`, and what `encode_plain` chooses."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard

from syncd.artifact import codecs
from syncd.artifact.codecs import planes
from syncd.dtypes import ITEM_BYTES
from syncd.errors import NeedsNewerSyncd, SegmentCorrupt
from tests.contract.codec_contract import CodecContract, smooth

ALL: tuple[str | None, ...] = (None, *ITEM_BYTES)


class TestRaw(CodecContract):
    number = codecs.RAW
    dtypes = ALL

    def encode(self, data: bytes, dtype: str | None) -> bytes:
        return data


class TestZstd(CodecContract):
    number = codecs.ZSTD_1
    dtypes = ALL

    def encode(self, data: bytes, dtype: str | None) -> bytes:
        return zstandard.ZstdCompressor(level=1).compress(data)

    def test_a_frame_without_a_declared_size_is_refused(self) -> None:
        data = bytes(1000)
        payload = zstandard.ZstdCompressor(write_content_size=False).compress(data)
        with pytest.raises(SegmentCorrupt, match="declares no size"):
            self.decode(payload, 1000)

    def test_a_frame_that_declares_a_terabyte_is_refused_before_anything_is_allocated(self) -> None:
        payload = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\x01\x00\x00"
        with pytest.raises(SegmentCorrupt, match="declares 1099511627776 bytes where 1000"):
            self.decode(payload, 1000)


class TestPlanes(CodecContract):
    number = codecs.PLANES_ZSTD_1
    dtypes = tuple(planes.WIDTHS)

    def encode(self, data: bytes, dtype: str | None) -> bytes:
        """As FORMATS.md words it, element by element; `planes.encode` is compared with it below."""
        width, rotated = planes.WIDTHS[dtype or ""]
        words = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
        if rotated:
            top = 8 * width - 1
            words = [(word << 1) % (1 << 8 * width) | word >> top for word in words]
        bodies = [bytes(word >> 8 * plane & 255 for word in words) for plane in range(width)]
        kinds = [plane % 2 for plane in range(width)]
        bodies = [
            zstandard.compress(body, 1) if kind else body for kind, body in zip(kinds, bodies, strict=True)
        ]
        head = b"".join(struct.pack("<BI", kind, len(body)) for kind, body in zip(kinds, bodies, strict=True))
        return bytes([width, int(rotated)]) + head + b"".join(bodies)

    def test_the_encoder_makes_the_planes_that_the_text_describes(self) -> None:
        for dtype in self.dtypes:
            data = smooth(dtype, 5000)
            payload = planes.encode(memoryview(data), dtype or "")
            assert payload is not None, dtype
            assert self.decode(payload, len(data)) == data, dtype

    @pytest.mark.parametrize("header", [b"\x03\x00", b"\x00\x00", b"\x10\x01", b"\x04\x02", b"\x04\x81"])
    def test_unknown_widths_and_flags_are_refused(self, header: bytes) -> None:
        data = smooth("F32", 64)
        payload = header + self.encode(data, "F32")[2:]
        with pytest.raises(SegmentCorrupt):
            self.decode(payload, len(data))


@pytest.mark.parametrize("dtype", ALL)
def test_the_chosen_encoding_is_never_larger_than_raw_and_comes_back(dtype: str | None) -> None:
    item = ITEM_BYTES[dtype] if dtype else 1
    rng = np.random.default_rng(1)
    for data in (
        b"",
        bytes(item),
        rng.bytes(item),
        rng.bytes(item * 4097),
        smooth(dtype, 9001),
        bytes(1 << 20),
    ):
        number, payload = codecs.encode_plain(data, dtype)
        assert number in codecs.PLAIN
        assert len(payload) <= len(data)
        out = bytearray(len(data))
        codecs.decode(number, payload, out, dtype=dtype)
        assert out == data


@pytest.mark.parametrize(("dtype", "at_most"), [("F32", 0.86), ("BF16", 0.70), ("F16", 0.90), ("I64", 0.2)])
def test_weights_shrink_as_far_as_their_exponents_allow(dtype: str, at_most: float) -> None:
    rng = np.random.default_rng(2)
    weights = (rng.standard_normal(1 << 20) * 0.02).astype("<f4")
    data = {
        "F32": weights.tobytes(),
        "BF16": (weights.view("<u4") >> 16).astype("<u2").tobytes(),
        "F16": weights.astype("<f2").tobytes(),
        "I64": rng.integers(0, 1000, 1 << 17).astype("<i8").tobytes(),
    }[dtype]
    number, payload = codecs.encode_plain(data, dtype)
    assert number == codecs.PLANES_ZSTD_1
    assert len(payload) <= at_most * len(data)


def test_a_codec_of_a_later_syncd_is_refused_politely() -> None:
    with pytest.raises(NeedsNewerSyncd, match="codec 77"):
        codecs.decode(77, b"whatever", bytearray(8))
    with pytest.raises(NeedsNewerSyncd, match=r"expdiff-pco\.1"):
        codecs.decode(codecs.EXPDIFF_PCO_1, b"whatever", bytearray(8), base=bytes(8))
