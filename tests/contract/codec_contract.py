"""What every plain codec must do. A codec's test inherits this and says its number and the dtypes it takes."""

from __future__ import annotations

import contextlib
import random
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncd.artifact import codecs
from syncd.dtypes import ITEM_BYTES
from syncd.errors import SegmentCorrupt

SPECIAL_F32 = np.array(
    [
        0x00000000,
        0x80000000,
        0x7F800000,
        0xFF800000,
        0x7FC00001,
        0xFFC12345,
        0x7F812345,
        0x00000001,
        0x807FFFFF,
    ],
    np.uint32,
)
"""±0, ±inf, quiet and signalling NaNs with payloads, denormals."""


def smooth(dtype: str | None, count: int, seed: int = 0) -> bytes:
    """`count` elements that look like weights: small normal numbers as fp32 words cut to the dtype's width."""
    rng = np.random.default_rng(seed)
    width = ITEM_BYTES[dtype] if dtype else 1
    words = (rng.standard_normal(max(1, count * max(1, width // 4)) * 2) * 0.02).astype("<f4")
    if width == 2:
        return (words.view("<u4") >> 16).astype("<u2").tobytes()[: 2 * count]
    if width == 1:
        return rng.integers(0, 12, count, np.uint8).tobytes()
    return words.tobytes()[: width * count]


class CodecContract:
    """Inherit, set `number`, `dtypes`, and `encode`."""

    number: ClassVar[int]
    dtypes: ClassVar[tuple[str | None, ...]]

    def encode(self, data: bytes, dtype: str | None) -> bytes:
        """A payload of this codec for `data`, however much larger that may be."""
        raise NotImplementedError

    def decode(self, payload: bytes, length: int, dtype: str | None = None) -> bytes:
        """The segment, with a guard on both sides of the output that no decoder may touch."""
        room = bytearray(b"\xa5" * (length + 32))
        codecs.decode(self.number, payload, memoryview(room)[16 : 16 + length], dtype=dtype)
        assert room[:16] == room[16 + length :] == b"\xa5" * 16
        return bytes(room[16 : 16 + length])

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 1023, 32 * 1024, 32 * 1024 + 1, 40_001])
    def test_any_number_of_elements_of_any_dtype_comes_back_bit_for_bit(self, count: int) -> None:
        for dtype in self.dtypes:
            data = smooth(dtype, count)
            assert self.decode(self.encode(data, dtype), len(data), dtype) == data, dtype

    def test_nan_payloads_signed_zeros_and_denormals_come_back_bit_for_bit(self) -> None:
        for dtype in self.dtypes:
            data = np.tile(SPECIAL_F32, 16).tobytes()
            assert self.decode(self.encode(data, dtype), len(data), dtype) == data, dtype

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_bits_come_back_bit_for_bit(self, data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(self.dtypes))
        width = ITEM_BYTES[dtype] if dtype else 1
        count = data.draw(st.integers(1, 200))
        bits = data.draw(st.binary(min_size=width * count, max_size=width * count))
        assert self.decode(self.encode(bits, dtype), len(bits), dtype) == bits

    def test_a_base_is_refused(self) -> None:
        data = smooth(self.dtypes[0], 64)
        with pytest.raises(SegmentCorrupt, match="takes no base"):
            codecs.decode(self.number, self.encode(data, self.dtypes[0]), bytearray(len(data)), base=data)

    @pytest.mark.parametrize("change", [-16, -1, 1, 16, 1 << 20])
    def test_another_length_than_declared_is_refused(self, change: int) -> None:
        data = smooth(self.dtypes[0], 640)
        with pytest.raises(SegmentCorrupt):
            self.decode(self.encode(data, self.dtypes[0]), len(data) + change)

    def test_a_payload_cut_anywhere_or_followed_by_more_is_refused(self) -> None:
        data = smooth(self.dtypes[0], 640)
        payload = self.encode(data, self.dtypes[0])
        for length in [*range(0, len(payload), max(1, len(payload) // 97)), len(payload) - 1]:
            with pytest.raises(SegmentCorrupt):
                self.decode(payload[:length], len(data))
        with pytest.raises(SegmentCorrupt):
            self.decode(payload + b"\x00", len(data))

    def test_damaged_payloads_are_refused_or_give_other_bits_and_write_nowhere_else(self) -> None:
        data = smooth(self.dtypes[0], 640)
        payload = self.encode(data, self.dtypes[0])
        chance = random.Random(3)
        for _ in range(400):
            damaged = bytearray(payload)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(min(len(damaged), chance.choice([24, len(damaged)])))] = (
                    chance.randrange(256)
                )
            with contextlib.suppress(SegmentCorrupt):
                self.decode(bytes(damaged), len(data))
