"""Plans: which segments of a version are there already, and what to fetch for the rest in the fewest bytes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from syncd.artifact import codecs
from syncd.artifact.delta import DeltaDocument
from syncd.artifact.fields import invalid
from syncd.artifact.layout import Layout
from syncd.artifact.segment import Row
from syncd.artifact.table import MAX_CHAIN, SegmentTable
from syncd.errors import NeedsNewerSyncd

MAX_FETCH: Final = 8 * 1024 * 1024

Face = Literal["model", "files"]


class Planned(NamedTuple):
    """One encoding to fetch: the numbers of the layout's segments that it makes, and what lies there.

    `segments` is empty for what is fetched only as a base (of the same decoded length) or as a parameter blob.
    """

    segments: tuple[int, ...]
    row: Row


@dataclass(frozen=True, slots=True)
class Fetch:
    """One range of one pack, and the encodings in it, back to back from `start` on."""

    pack: str
    start: int
    length: int
    segments: tuple[Planned, ...]


@dataclass(frozen=True)
class Plan:
    """What to do for one face of a version.

    `reuse`: numbers of segments whose digest is there already. `fetch`: ranges of packs, the packs in the order
    of the segments that need them. `plain`, `delta`: numbers of segments that are made each way.
    """

    reuse: tuple[int, ...]
    plain: tuple[int, ...]
    delta: tuple[int, ...]
    fetch: tuple[Fetch, ...]
    wire_bytes: int

    @property
    def planned(self) -> Iterator[Planned]:
        """Everything that is fetched, in order."""
        return itertools.chain.from_iterable(each.segments for each in self.fetch)


def wanted_segments(layout: Layout, face: Face, files: Collection[int] = ()) -> tuple[int, ...]:
    """The segments of a face: `model` is the model view and `files` (the side files); `files` these, or all."""
    if face == "model":
        return tuple(sorted({*range(layout.model_segments), *layout.file_segments(tuple(files))}))
    return tuple(sorted(layout.file_segments(tuple(files) or range(len(layout.files)))))


def plan(
    layout: Layout,
    table: SegmentTable,
    have: Collection[str],
    deltas: Iterable[DeltaDocument] = (),
    faces: Face = "model",
    files: Collection[int] = (),
    *,
    bound: int = MAX_FETCH,
    readable: Collection[int] = codecs.READABLE,
) -> Plan:
    """`plan_segments` for all segments of a face (`wanted_segments`)."""
    wanted = wanted_segments(layout, faces, files)
    return plan_segments(layout, table, wanted, deltas, have, bound=bound, readable=readable)


def plan_segments(
    layout: Layout,
    table: SegmentTable,
    wanted: Iterable[int],
    deltas: Iterable[DeltaDocument] = (),
    have: Collection[str] = frozenset(),
    *,
    bound: int = MAX_FETCH,
    readable: Collection[int] = codecs.READABLE,
) -> Plan:
    """Choose for each segment the cheapest of reuse, a chain of at most 8 deltas, and plain.

    Args:
        wanted: numbers of segments.
        deltas: documents that may help, of any versions of the model.
        have: digests of decoded segments (or of base bytes) that are there and verified; a set.
        bound: ranges of neighbours in one pack are joined up to this many bytes.
        readable: numbers of the codecs that can be decoded here.
    Raises:
        NeedsNewerSyncd: a segment has only encodings that are not known here.
    Cost: linear in the rows of table and documents.
    """
    chooser = _Chooser(table, deltas, have, readable)
    needed = _by_digest(layout, table, wanted)
    reuse = sorted(number for digest in needed if digest in have for number in needed[digest])
    rows: dict[Row, tuple[int, ...]] = {}
    plain: list[int] = []
    delta: list[int] = []
    for digest, numbers in needed.items():
        if digest in have:
            continue
        chosen = chooser.rows(digest, layout.segments[numbers[0]].length)
        for row in chosen:
            rows.setdefault(row, ())
        rows[chosen[0]] = tuple(numbers)
        (delta if chosen[0].bases else plain).extend(numbers)
    fetches = tuple(_join([Planned(made, row) for row, made in rows.items()], bound))
    return Plan(tuple(reuse), tuple(plain), tuple(delta), fetches, sum(each.length for each in fetches))


def _by_digest(layout: Layout, table: SegmentTable, wanted: Iterable[int]) -> dict[str, list[int]]:
    """The wanted segments by digest; DocumentInvalid where equal digests are to have different lengths."""
    found: dict[str, list[int]] = {}
    for number in wanted:
        numbers = found.setdefault(table.rows[number].digest, [])
        if numbers and layout.segments[numbers[0]].length != layout.segments[number].length:
            raise invalid(
                "table", f"segments {numbers[0]} and {number} have one digest and different lengths"
            )
        numbers.append(number)
    return found


class _Choice(NamedTuple):
    cost: float
    row: Row | None


class _Chooser:
    """The cheapest way to each digest, remembered; a delta's cost is its own and that of its bases and blobs."""

    def __init__(
        self,
        table: SegmentTable,
        deltas: Iterable[DeltaDocument],
        have: Collection[str],
        readable: Collection[int],
    ) -> None:
        self.have, self.readable = have, readable
        self.encodings: dict[str, list[Row]] = {key: list(rows) for key, rows in table.by_digest.items()}
        self.lengths: dict[Row, int] = {}
        self.blobs: dict[str, Row] = {}
        self.shares: dict[str, int] = {}
        for document in deltas:
            self.blobs.update({each.row.digest: each.row for each in document.parameters})
            for each in document.rows:
                self.encodings.setdefault(each.row.digest, []).append(each.row)
                self.lengths[each.row] = each.decoded_length
                for blob in each.row.parameters:
                    self.shares[blob] = self.shares.get(blob, 0) + 1
        self.known: dict[tuple[str, int], _Choice | None] = {}

    def best(self, digest: str, depth: int = MAX_CHAIN) -> _Choice | None:
        """The cheapest choice for a digest with at most `depth` bases behind it; None: there is none."""
        if digest in self.have:
            return _Choice(0, None)
        if (digest, depth) not in self.known:
            self.known[digest, depth] = None
            choices = [self._cost(row, depth) for row in self.encodings.get(digest, ())]
            found = [each for each in choices if each is not None]
            self.known[digest, depth] = min(found, key=lambda each: each.cost) if found else None
        return self.known[digest, depth]

    def _cost(self, row: Row, depth: int) -> _Choice | None:
        if row.codec not in self.readable or (row.bases and not depth):
            return None
        cost = float(row.encoded_length)
        for base in row.bases:
            choice = self.best(base, depth - 1)
            if choice is None:
                return None
            cost += choice.cost
        for blob in row.parameters:
            if blob not in self.blobs or self.blobs[blob].codec not in self.readable:
                return None
            cost += self.blobs[blob].encoded_length / self.shares[blob]
        return _Choice(cost, row)

    def rows(self, digest: str, length: int, depth: int = MAX_CHAIN) -> list[Row]:
        """The row that makes `digest`, of `length` decoded bytes, then what it needs."""
        choice = self.best(digest, depth)
        if choice is None:
            raise self._missing(digest)
        if choice.row is None:
            return []
        if self.lengths.get(choice.row, length) != length:
            raise invalid(
                "delta", f"a row decodes to {self.lengths[choice.row]} bytes, the segment has {length}"
            )
        found = [choice.row]
        found += [self.blobs[blob] for blob in choice.row.parameters if blob not in self.have]
        for base in choice.row.bases:
            found += self.rows(base, length, depth - 1)
        return found

    def _missing(self, digest: str) -> NeedsNewerSyncd:
        names = sorted({codecs.name_of(row.codec) for row in self.encodings.get(digest, ())})
        return NeedsNewerSyncd(
            f"segment {digest.removeprefix('sha256:')[:8]} is offered only as {', '.join(names) or 'nothing'}",
            why="a later syncd wrote it",
            do="install a newer syncd here; what serves goes on serving",
        )


def _join(planned: Sequence[Planned], bound: int) -> Iterator[Fetch]:
    """Ranges of one pack that touch, up to `bound` bytes together; packs in the order in which they are needed."""
    packs: dict[str, list[Planned]] = {}
    for each in planned:
        packs.setdefault(each.row.pack, []).append(each)
    for pack, members in packs.items():
        run: list[Planned] = []
        start = end = 0
        for each in sorted(members, key=lambda each: each.row.offset):
            first, length = each.row.offset, each.row.encoded_length
            if run and (first != end or end + length - start > bound):
                yield Fetch(pack, start, end - start, tuple(run))
                run = []
            start = first if not run else start
            run.append(each)
            end = first + length
        yield Fetch(pack, start, end - start, tuple(run))


def places(layout: Layout, files: Mapping[int, int]) -> Mapping[int, tuple[tuple[int, int, int, int], ...]]:
    """For each segment of these files (number → caller's handle) its copies: handle, offset in file, offset, length."""
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for number, handle in files.items():
        at = 0
        for segment, offset, length in layout.files[number].spans:
            found.setdefault(segment, []).append((handle, at, offset, length))
            at += length
    return {segment: tuple(copies) for segment, copies in found.items()}
