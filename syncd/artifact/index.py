"""The index: every kept version of a model with its head's digest; signed by the role `versions`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from syncd.artifact.fields import Fields, invalid, read_document, write_document
from syncd.artifact.head import DocumentRef, Head, label_fields, read_labels, read_reference, reference_fields

MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_VERSIONS: Final = 2**16
MAX_REASON: Final = 1024


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A kept version. `content` is `Head.content_digest`: by it a publisher knows what it has published already.

    yanked: why nobody may install it any more; empty for all others.
    """

    version: int
    head: DocumentRef
    created_at: str
    checkpoint_bytes: int
    model_bytes: int
    training_state: bool
    content: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""
    yanked: str = ""

    @classmethod
    def of(cls, head: Head, reference: DocumentRef) -> IndexEntry:
        """The entry of a version from its head."""
        return cls(
            version=head.version,
            head=reference,
            created_at=head.created_at,
            checkpoint_bytes=head.checkpoint_bytes,
            model_bytes=head.model_bytes,
            training_state=head.training_state,
            content=head.content_digest(),
            metrics=head.metrics,
            tags=head.tags,
            note=head.note,
        )


@dataclass(frozen=True, slots=True)
class RetiredEntry:
    """A version that a commit has retired at `retired_at`; its objects are deleted a day later, unless still in use."""

    version: int
    head: DocumentRef
    retired_at: str


@dataclass(frozen=True)
class Index:
    """Kept versions by rising number, and retired ones whose objects may still be there."""

    model: str
    versions: tuple[IndexEntry, ...] = ()
    retired: tuple[RetiredEntry, ...] = ()

    def find(self, version: int) -> IndexEntry | None:
        """The entry of a kept version, or None."""
        return next((each for each in self.versions if each.version == version), None)

    def to_bytes(self) -> bytes:
        """The document; DocumentInvalid where a field breaks the format."""
        fields = {
            "model": self.model,
            "versions": [_entry_fields(each) for each in self.versions],
            "retired": [
                {"version": each.version, "head": reference_fields(each.head), "retired_at": each.retired_at}
                for each in self.retired
            ],
        }
        data = write_document("index", fields, MAX_INDEX_BYTES)
        Index.parse(data)
        return data

    @classmethod
    def parse(cls, data: bytes) -> Index:
        """Read and check the document; DocumentInvalid or NeedsNewerSyncd."""
        fields = read_document("index", data, MAX_INDEX_BYTES)
        versions = fields.objects("versions", MAX_VERSIONS, _read_entry)
        retired = fields.objects("retired", MAX_VERSIONS, _read_retired) if fields.has("retired") else ()
        for numbers in ([each.version for each in versions], [each.version for each in retired]):
            if any(first >= second for first, second in itertools.pairwise(numbers)):
                raise invalid("index", "its versions do not rise")
        kept = {each.version for each in versions}
        for each in retired:
            if each.version in kept:
                raise invalid("index", f"version {each.version} is kept and retired")
        return cls(fields.model(), versions, retired)


def _entry_fields(entry: IndexEntry) -> dict[str, Any]:
    return {
        "version": entry.version,
        "head": reference_fields(entry.head),
        "created_at": entry.created_at,
        "checkpoint_bytes": entry.checkpoint_bytes,
        "model_bytes": entry.model_bytes,
        "training_state": entry.training_state,
        "content": entry.content,
        **label_fields(entry.metrics, entry.tags, entry.note),
        **({"yanked": entry.yanked} if entry.yanked else {}),
    }


def _read_entry(fields: Fields) -> IndexEntry:
    return IndexEntry(
        version=fields.integer("version", 1),
        head=read_reference(fields.object("head")),
        created_at=fields.time("created_at"),
        checkpoint_bytes=fields.integer("checkpoint_bytes"),
        model_bytes=fields.integer("model_bytes"),
        training_state=fields.boolean("training_state"),
        content=fields.digest("content"),
        yanked=fields.text("yanked", MAX_REASON) if fields.has("yanked") else "",
        **read_labels(fields),
    )


def _read_retired(fields: Fields) -> RetiredEntry:
    return RetiredEntry(
        fields.integer("version", 1), read_reference(fields.object("head")), fields.time("retired_at")
    )
