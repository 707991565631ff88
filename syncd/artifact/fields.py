"""Reading and writing JSON documents strictly: format, requirements, and every field with its type and bounds.

Everything here raises `DocumentInvalid` (or `NeedsNewerSyncd`) and nothing else, whatever the bytes are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from syncd.errors import DocumentInvalid, NeedsNewerSyncd

MAX_INTEGER: Final = 2**53 - 1
MAX_NAME_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255
MAX_JSON_DEPTH: Final = 16

KNOWN_REQUIREMENTS: Final[frozenset[str]] = frozenset()
"""What a document's `requires` may name; format 1 knows none."""

MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")

_FORMAT: Final = re.compile(r"syncd\.([a-z-]{1,32})/([0-9]{1,9})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

T = TypeVar("T")


def invalid(document: str, what: str) -> DocumentInvalid:
    """The error for a broken document: `what` says which field and shows the value."""
    return DocumentInvalid(
        f"{document}: {what}",
        why="it was written by something that does not follow its format, or damaged before it was signed",
        do="nothing of it was used; publish the checkpoint again with a current syncd",
        document=document,
    )


def shown(value: object) -> str:
    """A value for an error's text, never longer than 80 characters."""
    text = repr(value) if not isinstance(value, list | dict) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "…"


def needs_newer(document: str, what: str, needs: object = None) -> NeedsNewerSyncd:
    """The polite refusal of a later format; `needs` is what the document says of the syncd that can read it."""
    known = isinstance(needs, str) and len(needs) <= 64 and not _CONTROL.search(needs)
    return NeedsNewerSyncd(
        f"{document}: {what}",
        why="a later syncd wrote it",
        do=f"install {needs if known else 'a newer syncd'} here; what serves goes on serving",
        document=document,
    )


def read_json(document: str, data: bytes, limit: int) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded nesting, at most `limit` bytes."""
    if len(data) > limit:
        raise invalid(document, f"{len(data)} bytes, {limit} are allowed")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(items)
        if len(fields) != len(items):
            raise invalid(document, "a field stands in it twice")
        return fields

    def constant(name: str) -> Any:
        raise invalid(document, f"{name} is not a JSON number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise invalid(document, f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise invalid(document, "nested too deeply") from error
    except ValueError as error:
        raise invalid(document, f"not JSON: {str(error)[:80]}") from error


def compress(data: bytes) -> bytes:
    """One zstd frame that declares its content size."""
    import zstandard

    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(data)


def decompress(document: str, data: bytes, limit: int) -> bytes:
    """The content of the one frame that `data` must be; nothing is allocated before its declared size is checked."""
    import zstandard

    try:
        declared = zstandard.frame_content_size(data)
        if not 0 <= declared <= limit:
            raise invalid(document, f"its frame declares {declared} bytes, {limit} are allowed")
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise invalid(document, f"not one zstd frame: {str(error)[:80]}") from error
    if len(content) != declared:
        raise invalid(document, f"its frame holds {len(content)} bytes and declares {declared}")
    return content


def check_header(document: str, fields: Any) -> Fields:
    """Accept `fields` as format 1 of `document`, or refuse: the format first, then its requirements."""
    if not isinstance(fields, dict):
        raise invalid(document, f"a JSON object is needed, not {shown(fields)}")
    name = fields.get("format")
    match = _FORMAT.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[1] != document:
        raise invalid(document, f"format is {shown(name)}, not 'syncd.{document}/1'")
    if match[2] != "1":
        raise needs_newer(document, f"format {shown(name)} is not known here", fields.get("needs"))
    required = fields.get("requires")
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise invalid(document, f"requires is {shown(required)}, not a list of names")
    unknown = [each for each in required if each not in KNOWN_REQUIREMENTS]
    if unknown:
        raise needs_newer(document, f"requires {shown(unknown[0])}", fields.get("needs"))
    return Fields(document, fields)


def read_document(document: str, data: bytes, limit: int) -> Fields:
    """Parse `data` as a JSON document of format `syncd.DOCUMENT/1`."""
    return check_header(document, read_json(document, data, limit))


def write_document(document: str, fields: dict[str, Any], limit: int) -> bytes:
    """Sorted compact UTF-8 JSON with format and requirements added; equal fields give equal bytes."""
    whole = {**fields, "format": f"syncd.{document}/1", "requires": []}
    try:
        text = json.dumps(whole, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        data = text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid(document, f"cannot be written: {str(error)[:80]}") from error
    if len(data) > limit:
        raise invalid(document, f"{len(data)} bytes, {limit} are allowed")
    return data


class Fields:
    """The fields of a JSON object; each reader checks type and bounds. Fields nobody reads are ignored."""

    def __init__(self, document: str, fields: Any, at: str = "", index: int = -1) -> None:
        self.document = document
        self.at, self.index = at, index
        if not isinstance(fields, dict):
            raise invalid(document, f"{self.path or 'it'} is {shown(fields)}, not an object")
        self.fields: dict[str, Any] = fields

    @property
    def path(self) -> str:
        """Where in the document this object stands, as what comes before a field's name."""
        return f"{self.at}[{self.index}]." if self.index >= 0 else f"{self.at}." if self.at else ""

    def wrong(self, name: str, allowed: str) -> DocumentInvalid:
        """The error for field `name`: its value and what is allowed."""
        value = shown(self.fields[name]) if name in self.fields else "missing"
        return invalid(self.document, f"{self.path}{name} is {value}; {allowed}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.fields.get(name) is not None

    def integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """An integer in [low, high]; true, false and 1.0 are none."""
        value = self.fields.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high} is needed")
        return value

    def number(self, name: str, low: float = -math.inf) -> float:
        """A finite number of at least `low`."""
        value = self.fields.get(name)
        if not isinstance(value, int | float) or not is_number(value) or value < low:
            raise self.wrong(name, "a finite number is needed")
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self.fields.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false is needed")
        return value

    def text(self, name: str, limit: int, *, empty: bool = False, lines: bool = False) -> str:
        """Text of at most `limit` bytes of UTF-8; control characters only as line breaks and tabs, and if `lines`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not is_text(value, limit, lines=lines) or not (value or empty):
            raise self.wrong(name, f"text of at most {limit} bytes without control characters is needed")
        return value

    def match(self, name: str, pattern: re.Pattern[str], allowed: str) -> str:
        """Text that matches `pattern` as a whole."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.wrong(name, allowed)
        return value

    def model(self, name: str = "model") -> str:
        """A model's name."""
        return self.match(name, MODEL_NAME, "a model's name is needed")

    def digest(self, name: str) -> str:
        """A digest in the form sha256:HEX."""
        return self.match(name, DIGEST, "sha256: and 64 lower-case hexadecimal digits are needed")

    def digests(self, name: str, limit: int) -> tuple[str, ...]:
        """A list of at most `limit` digests."""
        value = self.list(name, limit)
        if not all(isinstance(each, str) and DIGEST.fullmatch(each) for each in value):
            raise self.wrong(name, "digests in the form sha256:HEX are needed")
        return tuple(value)

    def time(self, name: str) -> str:
        """A time in UTC, as RFC 3339 with Z."""
        return self.match(name, TIME, "a time like 2026-11-24T22:40:54Z is needed")

    def object(self, name: str) -> Fields:
        """A JSON object."""
        return Fields(self.document, self.fields.get(name), f"{self.path}{name}")

    def list(self, name: str, limit: int) -> list[Any]:
        """A list of at most `limit` entries."""
        value = self.fields.get(name)
        if not isinstance(value, list) or len(value) > limit:
            raise self.wrong(name, f"a list of at most {limit} entries is needed")
        return value

    def objects(self, name: str, limit: int, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of objects, each read by `read`."""
        # One object moves along the list: a layout has a hundred thousand entries.
        entry = Fields(self.document, {}, f"{self.path}{name}", 0)
        found = []
        for entry.index, each in enumerate(self.list(name, limit)):
            if not isinstance(each, dict):
                raise invalid(self.document, f"{entry.path} {shown(each)} is not an object")
            entry.fields = each
            found.append(read(entry))
        return tuple(found)

    def plain(self, name: str, limit: int) -> dict[str, Any]:
        """An object of any plain JSON inside: text, finite numbers, booleans, null, lists, objects; bounded."""
        value = self.fields.get(name)
        if not isinstance(value, dict) or not is_plain(value, limit):
            raise self.wrong(name, f"an object of plain values of at most {limit} bytes is needed")
        return value

    def numbers(self, name: str, count: int) -> dict[str, float]:
        """An object of at most `count` named finite numbers."""
        value = self.fields.get(name)
        if not isinstance(value, dict) or len(value) > count or not all(map(is_number, value.values())):
            raise self.wrong(name, f"an object of at most {count} finite numbers is needed")
        if not all(each and is_text(each, 128) for each in value):
            raise self.wrong(name, "names of 1 to 128 bytes without control characters are needed")
        return value


def is_number(value: object) -> bool:
    """A finite JSON number; an integer only within ±(2^53 - 1)."""
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    return type(value) is float and math.isfinite(value)


def is_text(value: str, limit: int, *, lines: bool = False) -> bool:
    """At most `limit` bytes of UTF-8; no lone surrogates, no control characters (`lines`: but line breaks and tabs)."""
    if len(value) > limit or _CONTROL.search(value.replace("\n", "").replace("\t", "") if lines else value):
        return False
    return value.isascii() or len(value.encode("utf-8")) <= limit


def is_plain(value: object, limit: int) -> bool:
    """Whether `value` is plain JSON of at most `MAX_JSON_DEPTH` levels and about `limit` bytes."""
    left = limit
    waiting: list[tuple[object, int]] = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        left -= 2
        if isinstance(each, dict | list) and depth > MAX_JSON_DEPTH:
            return False
        if isinstance(each, dict):
            waiting += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list):
            waiting += [(inner, depth + 1) for inner in each]
        elif isinstance(each, str):
            left -= len(each)
            if not is_text(each, limit, lines=True):
                return False
        elif each is not None and not isinstance(each, bool) and not is_number(each):
            return False
        if left < 0:
            return False
    return True


def is_safe_path(path: str) -> bool:
    """Whether `path` names a file below a folder and nothing else: relative, no `..`, no control character, ≤ 1 KB."""
    if not path or not is_text(path, MAX_NAME_BYTES) or "\\" in path or path.split("/", 1)[0] == ".syncd":
        return False
    parts = path.split("/")
    return all(part not in ("", ".", "..") and len(part.encode("utf-8")) <= MAX_PART_BYTES for part in parts)


def unique(document: str, what: str, values: Iterable[object]) -> None:
    """Refuse a document in which a value that must be unique stands twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise invalid(document, f"{what} {shown(value)} stands in it twice")
        seen.add(value)
