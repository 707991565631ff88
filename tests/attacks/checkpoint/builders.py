"""Hostile checkpoints, each built by a function whose name says what is wrong with it; torch is not needed."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

P2 = b"\x80\x02"
FLOAT = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """LONG1."""
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    elements: int = 1,
    offset: int = 0,
    key: str = "0",
    kind: bytes = FLOAT,
) -> bytes:
    """A tensor as torch pickles it, in a storage of `elements`."""
    storage = b"(" + text("storage") + kind + text(key) + text("cpu") + number(elements) + b"tQ"
    rest = number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + ORDERED + b")R"
    return REBUILD + b"(" + storage + rest + b"tR"


def state_dict(**tensors: bytes) -> bytes:
    """A whole data.pkl: a dictionary of tensors."""
    return P2 + b"}(" + b"".join(text(name) + value for name, value in tensors.items()) + b"u."


def torch_zip(
    path: Path,
    pickled: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    root: str = "archive",
    order: str = "little",
) -> Path:
    """Write a zip as torch.save does: data.pkl first, stored records, the directory last."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", order)
        for key, data in (storages if storages is not None else {"0": bytes(4)}).items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", "3\n")
    return path


def long_binput_of_2_to_the_31() -> bytes:
    return P2 + b"}r\xff\xff\xff\x7f."


def long_binput_of_2_to_the_28() -> bytes:
    return P2 + b"}r\x00\x00\x00\x10."


def unicode_of_length_2_to_the_62() -> bytes:
    return b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x."


def bytearray_of_length_2_to_the_31() -> bytes:
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 31) + b"x."


def nested_tuple_key_of_2_to_the_40_steps() -> bytes:
    return P2 + b"}(N\x85" + b"2\x86" * 40 + b"Nu."


def memo_tuple_key_of_2_to_the_40_steps() -> bytes:
    return P2 + b"}(N\x85q\x00" + b"h\x00\x86q\x00" * 40 + b"Nu."


def wide_tuple_keys() -> bytes:
    """A tuple of 64 tuples of 64 values as a key, 100,000 times."""
    inner = b"(" + b"N" * 64 + b"tq\x000"
    outer = b"(" + b"h\x00" * 64 + b"tq\x010"
    return P2 + b"}" + inner + outer + b"(" + b"h\x01N" * 100_000 + b"u."


def billion_laughs() -> bytes:
    return P2 + b"]" + b"q\x00](h\x00h\x00e" * 30 + b"."


def list_within_itself() -> bytes:
    return P2 + b"]q\x00h\x00a."


def encode_20_000_times_a_megabyte() -> bytes:
    names = b"c_codecs\nencode\nq\x010" + text("x" * 1_000_000) + b"q\x020" + text("latin1") + b"q\x030"
    return P2 + b"]" + names + b"(" + b"h\x01h\x02h\x03\x86R" * 20_000 + b"e."


def ordered_dict_20_000_times_20_000() -> bytes:
    pairs = b"".join(text(f"k{index}") + b"N\x86" for index in range(20_000))
    return P2 + b"](" + ORDERED + b"q\x01](" + pairs + b"eq\x02" + b"h\x01h\x02\x85R" * 20_000 + b"e."


def colliding_integer_keys() -> bytes:
    prime = (1 << 61) - 1
    keys = b"".join(
        b"\x8a\x0c" + (prime * index).to_bytes(12, "little", signed=True) + b"N" for index in range(1, 60_000)
    )
    return P2 + b"}(" + keys + b"u."


def five_million_opcodes() -> bytes:
    return P2 + b"N0" * 2_600_000 + b"N."


def fifty_million_opcodes() -> bytes:
    return P2 + b"N0" * 25_000_000 + b"N."


def two_million_nested_lists() -> bytes:
    return P2 + b"]" * 2_000_000 + b"a" * 1_999_999 + b"."


def two_million_nested_tuples() -> bytes:
    return P2 + b")" + b"\x85" * 2_000_000 + b"."


def two_million_marks() -> bytes:
    return P2 + b"(" * 2_000_000 + b"."


def integer_of_100_000_bytes() -> bytes:
    return P2 + b"\x8b" + struct.pack("<i", 100_000) + bytes(99_999) + b"\x01."


def integer_of_100_000_digits() -> bytes:
    return b"L" + b"9" * 60_000 + b"L\n."


def a_million_globals() -> bytes:
    return P2 + b"".join(b"cm\nn%d\n0" % index for index in range(200_000)) + b"N."


def wide_tree_of_shared_modules() -> bytes:
    """2^40 names: each module has the one before it twice."""
    record = b"ctorch.nn.modules.container\nSequential\n)\x81"
    tree = (
        record
        + b"}("
        + text("_parameters")
        + b"}"
        + text("w")
        + tensor((1,), (1,))
        + b"s"
        + text("_modules")
        + b"}ub"
    )
    for _ in range(40):
        tree += b"q\x64" + record + b"}(" + text("_parameters") + b"}" + text("_modules")
        tree += b"}(" + text("a") + b"h\x64" + text("b") + b"h\x64" + b"uub"
    return P2 + tree + b"."


def expanded_to_10_to_the_18() -> bytes:
    return state_dict(w=tensor((10**9, 10**9), (0, 0)))


def tensor_outside_its_storage() -> bytes:
    return state_dict(w=tensor((8192,), (1,)))


def tensor_before_its_storage() -> bytes:
    return state_dict(w=tensor((1,), (1,), offset=-1))


def negative_strides() -> bytes:
    return state_dict(w=tensor((2,), (-1,), elements=1))


def negative_sizes() -> bytes:
    return state_dict(w=tensor((-1, -1), (1, 1)))


def product_that_overflows() -> bytes:
    return state_dict(w=tensor((2**40, 2**40), (1, 1)))


def sixty_five_dimensions() -> bytes:
    return state_dict(w=tensor((1,) * 65, (1,) * 65))


def storage_of_4_terabytes() -> bytes:
    return state_dict(w=tensor((8192,), (1,), elements=10**12))


def storage_of_two_lengths() -> bytes:
    return state_dict(a=tensor((1,), (1,)), b=tensor((1,), (1,), elements=2))


def unknown_opcode() -> bytes:
    return P2 + b"\xff."


def protocol_6() -> bytes:
    return b"\x80\x06N."


def empty_stack() -> bytes:
    return P2 + b"R."


def list_as_key() -> bytes:
    return P2 + b"}]Ns."


def calls(command: str) -> dict[str, bytes]:
    """Pickles that would run `command` (Python for exec, and the shell's) in any reader that executes what it reads."""
    python = text(f"import os; os.system({command!r})")
    return {
        "reduce": P2 + b"cposix\nsystem\n" + text(command) + b"\x85R.",
        "exec": P2 + b"cbuiltins\nexec\n" + python + b"\x85R.",
        "newobj": P2 + b"cbuiltins\nexec\n" + python + b"\x85\x81.",
        "newobj_ex": b"\x80\x04cbuiltins\nexec\n" + python + b"\x85}\x92.",
        "inst": b"(" + text(command) + b"iposix\nsystem\n.",
        "obj": b"(cposix\nsystem\n" + text(command) + b"o.",
        "build": P2
        + b"ctypes\nSimpleNamespace\n)R}"
        + text("__setstate__")
        + b"cposix\nsystem\nsb"
        + text(command)
        + b"b.",
        "stack_global": b"\x80\x04" + text("posix") + text("system") + b"\x93" + text(command) + b"\x85R.",
        "persistent": P2 + b"(cposix\nsystem\n" + text(command) + b"tQ.",
        "type_v2": P2
        + b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n"
        + text(command)
        + b"\x85NtR.",
    }


HOSTILE_PICKLES = (
    nested_tuple_key_of_2_to_the_40_steps,
    memo_tuple_key_of_2_to_the_40_steps,
    wide_tuple_keys,
    ordered_dict_20_000_times_20_000,
    colliding_integer_keys,
    five_million_opcodes,
    fifty_million_opcodes,
    two_million_marks,
    integer_of_100_000_bytes,
    integer_of_100_000_digits,
    a_million_globals,
    expanded_to_10_to_the_18,
    tensor_outside_its_storage,
    tensor_before_its_storage,
    negative_strides,
    negative_sizes,
    product_that_overflows,
    sixty_five_dimensions,
    storage_of_two_lengths,
    unknown_opcode,
    protocol_6,
    empty_stack,
    list_as_key,
    unicode_of_length_2_to_the_62,
    bytearray_of_length_2_to_the_31,
)
HARMLESS_PICKLES = (
    long_binput_of_2_to_the_31,
    long_binput_of_2_to_the_28,
    billion_laughs,
    list_within_itself,
    encode_20_000_times_a_megabyte,
    two_million_nested_lists,
    two_million_nested_tuples,
)


# safetensors


def safetensors(header: bytes | dict[str, object], data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header, however wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(first: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - first] if shape is None else shape, "data_offsets": [first, end]}


def safetensors_abuses() -> dict[str, bytes]:
    """Every abuse of a header that the format's own list names, and some more; all are hostile."""
    deep = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    return {
        "header_of_2_to_the_62": safetensors(b"{}", length=1 << 62),
        "header_of_101_mb": safetensors(b"{}", length=101_000_000),
        "overlapping_offsets": safetensors({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
        "same_bytes_twice": safetensors({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
        "gap_before_a_tensor": safetensors({"a": entry(0, 4), "b": entry(5, 6)}, bytes(6)),
        "gap_at_the_start": safetensors({"a": entry(1, 4)}, bytes(4)),
        "trailing_bytes": safetensors({"a": entry(0, 4)}, bytes(9)),
        "duplicate_key": safetensors(
            b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4)
        ),
        "duplicate_field": safetensors(
            b'{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)
        ),
        "deep_json": safetensors(deep),
        "shape_that_overflows": safetensors({"a": entry(0, 4, [2**32, 2**32])}, bytes(4)),
        "shape_of_wrong_size": safetensors({"a": entry(0, 4, [5])}, bytes(4)),
        "negative_shape": safetensors({"a": entry(0, 4, [-2, -2])}, bytes(4)),
        "float_shape": safetensors(b'{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', bytes(4)),
        "bool_shape": safetensors(b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', bytes(1)),
        "infinite_shape": safetensors(
            b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,1]}}', bytes(1)
        ),
        "offsets_backwards": safetensors(
            {"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, bytes(4)
        ),
        "offsets_missing": safetensors({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
        "not_an_object": safetensors(b"{", bytes(4)),
        "tensor_is_a_number": safetensors(b'{"a":4}', bytes(4)),
        "metadata_of_numbers": safetensors({"__metadata__": {"a": 1}, "b": entry(0, 4)}, bytes(4)),
        "invalid_utf8": safetensors(b'{"\xff\xfe":1}', bytes(4)),
        "number_of_a_million_digits": safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
    }


# zip


def plain_archive() -> bytes:
    """A good checkpoint of one tensor, as a base for what follows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict(w=tensor((4,), (1,), elements=4)))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return buffer.getvalue()


def end_record(raw: bytes) -> int:
    return raw.rindex(b"PK\5\6")


def overlapping_records() -> bytes:
    """Two directory entries for the bytes of one record: a little file that claims much."""
    raw = plain_archive()
    at = end_record(raw)
    count, size, offset = struct.unpack_from("<HII", raw, at + 10)
    directory = raw[offset : offset + size]
    last = directory[directory.rindex(b"PK\1\2") :].replace(b"data/0", b"data/1")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count + 1, count + 1, size + len(last), offset, 0)
    return raw[:offset] + directory + last + end


def duplicate_name() -> bytes:
    buffer = io.BytesIO(plain_archive())
    with zipfile.ZipFile(buffer, "a") as archive:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("archive/data.pkl", b"\x80\x02N.")
    return buffer.getvalue()


def directory_of_4_gib() -> bytes:
    raw = bytearray(plain_archive())
    at = end_record(bytes(raw))
    struct.pack_into("<I", raw, at + 12, 0xFFFFFFF0)
    return bytes(raw)


def wrong_crc() -> bytes:
    """One flipped bit in a storage: the structure is whole."""
    raw = bytearray(plain_archive())
    place = bytes(raw).index(struct.pack("<4f", 1, 2, 3, 4))
    raw[place] ^= 1
    return bytes(raw)


def two_archives_glued() -> bytes:
    """What a distributed checkpoint's piece looks like; a lenient reader finds only the last one."""
    return plain_archive() + plain_archive()


def archive_with_comment() -> bytes:
    raw = bytearray(plain_archive())
    struct.pack_into("<H", raw, end_record(bytes(raw)) + 20, 4)
    return bytes(raw) + b"junk"


def junk_before() -> bytes:
    return b"PK\3\4junk" + plain_archive()


def crc_of(data: bytes) -> int:
    return zlib.crc32(data)
