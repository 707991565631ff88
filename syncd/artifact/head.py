"""The head: what a version is, signed; names, values and digests, and by digest the layout and the segment table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from syncd.artifact.fields import (
    MAX_INTEGER,
    MAX_NAME_BYTES,
    Fields,
    invalid,
    is_safe_path,
    is_text,
    read_document,
    shown,
    unique,
    write_document,
)

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_DOCUMENT_BYTES: Final = 1024 * 1024 * 1024
MAX_FILES_IN_HEAD: Final = 1024
MAX_METRICS: Final = 64
MAX_TAGS: Final = 64
MAX_NOTE_BYTES: Final = 4096
RESERVED_NAMES: Final = frozenset({"model.safetensors", "model.digests", "head.json", "files", ".syncd"})
"""Names in a version's folder that no side file may have."""
GOLDEN_FILE: Final = "golden.safetensors"

Use = Literal["model", "training", "side"]
USES: Final[tuple[Use, ...]] = ("model", "training", "side")


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document by the digest and the length of its bytes as they are stored."""

    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the version; its number in `Head.files` is that of its recipe in the layout.

    `use`: `model` (a file of the checkpoint that holds the model view and nothing beyond), `training` (any other file
    of the checkpoint), `side` (travels with the model and lies beside it on a node). `path` is relative to where a
    restore puts it; side files are known by their base name.
    """

    path: str
    use: Use
    size: int
    digest: str

    @property
    def sha256(self) -> str:
        """The 64 hexadecimal digits of the digest."""
        return self.digest.removeprefix("sha256:")

    @property
    def name(self) -> str:
        """The base name, under which a side file lies beside the model."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build the module: `package.module:callable` and its keyword arguments, plain JSON."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden sample: a side file (FORMATS.md) and how far a predictor's outputs may be from it."""

    file: str = GOLDEN_FILE
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True)
class Head:
    """A version. Times are UTC like 2026-11-24T22:40:54Z; `files` is ordered as the layout's recipes are."""

    model: str
    version: int
    created_at: str
    checkpoint_kind: str
    checkpoint_bytes: int
    model_bytes: int
    training_state: bool
    files: tuple[FileEntry, ...]
    layout: DocumentRef
    table: DocumentRef
    architecture: Architecture | None = None
    golden: Golden | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    model_key: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The document; DocumentInvalid where a field breaks the format or the whole passes 64 KiB."""
        data = write_document("head", _fields(self), MAX_HEAD_BYTES)
        Head.parse(data)
        return data

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Read and check the document; DocumentInvalid or NeedsNewerSyncd."""
        fields = read_document("head", data, MAX_HEAD_BYTES)
        head = cls(
            model=fields.model(),
            version=fields.integer("version", 1),
            created_at=fields.time("created_at"),
            checkpoint_kind=fields.text("checkpoint_kind", 64),
            checkpoint_bytes=fields.integer("checkpoint_bytes"),
            model_bytes=fields.integer("model_bytes"),
            training_state=fields.boolean("training_state"),
            files=fields.objects("files", MAX_FILES_IN_HEAD, _read_file),
            layout=read_reference(fields.object("layout")),
            table=read_reference(fields.object("table")),
            architecture=_read_architecture(fields.object("architecture"))
            if fields.has("architecture")
            else None,
            golden=_read_golden(fields.object("golden")) if fields.has("golden") else None,
            aliases=_read_aliases(fields) if fields.has("aliases") else {},
            model_key=fields.text("model_key", MAX_NAME_BYTES, empty=True) if fields.has("model_key") else "",
            provenance=fields.plain("provenance", 16 * 1024) if fields.has("provenance") else {},
            **read_labels(fields),
        )
        _check_files(head)
        return head

    def side_files(self) -> tuple[int, ...]:
        """The numbers of the side files."""
        return tuple(number for number, each in enumerate(self.files) if each.use == "side")

    def content_digest(self) -> str:
        """What makes this version itself: files, layout, architecture, and whether it has a golden sample, not which.

        Two publishes with equal content digests are one version. The name of a checkpoint that is a single file is
        left out: a copy under another name is the same checkpoint.
        """
        alone = sum(each.use != "side" for each in self.files) == 1
        golden = self.golden.file if self.golden else None
        files = [
            ["" if alone and each.use != "side" else each.path, each.use, each.size, each.digest]
            for each in self.files
            if not (each.use == "side" and each.name == golden)
        ]
        architecture = [self.architecture.name, self.architecture.args] if self.architecture else None
        content = {
            "architecture": architecture,
            "files": sorted(files),
            "golden": self.golden is not None,
            "layout": self.layout.digest,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}"


def read_reference(fields: Fields) -> DocumentRef:
    """A document by digest and length."""
    return DocumentRef(fields.digest("digest"), fields.integer("length", 1, MAX_DOCUMENT_BYTES))


def reference_fields(reference: DocumentRef) -> dict[str, Any]:
    """The inverse of `read_reference`."""
    return {"digest": reference.digest, "length": reference.length}


def read_labels(fields: Fields) -> dict[str, Any]:
    """Metrics, tags and note, which head and index have alike."""
    tags = fields.list("tags", MAX_TAGS)
    if not all(isinstance(tag, str) and tag and is_text(tag, 128) for tag in tags) or len(set(tags)) != len(
        tags
    ):
        raise fields.wrong("tags", "different texts of 1 to 128 bytes are needed")
    return {
        "metrics": fields.numbers("metrics", MAX_METRICS),
        "tags": tuple(tags),
        "note": fields.text("note", MAX_NOTE_BYTES, empty=True, lines=True),
    }


def label_fields(metrics: Mapping[str, float], tags: Sequence[str], note: str) -> dict[str, Any]:
    """The inverse of `read_labels`."""
    return {"metrics": dict(metrics), "tags": list(tags), "note": note}


def _fields(head: Head) -> dict[str, Any]:
    architecture, golden = head.architecture, head.golden
    return {
        "model": head.model,
        "version": head.version,
        "created_at": head.created_at,
        "checkpoint_kind": head.checkpoint_kind,
        "checkpoint_bytes": head.checkpoint_bytes,
        "model_bytes": head.model_bytes,
        "training_state": head.training_state,
        "files": [
            {"path": each.path, "use": each.use, "size": each.size, "digest": each.digest}
            for each in head.files
        ],
        "layout": reference_fields(head.layout),
        "table": reference_fields(head.table),
        "architecture": {"name": architecture.name, "args": dict(architecture.args)}
        if architecture
        else None,
        "golden": {"file": golden.file, "rtol": golden.rtol, "atol": golden.atol} if golden else None,
        "aliases": dict(head.aliases),
        "model_key": head.model_key,
        "provenance": dict(head.provenance),
        **label_fields(head.metrics, head.tags, head.note),
    }


def _read_file(fields: Fields) -> FileEntry:
    path = fields.text("path", MAX_NAME_BYTES)
    if not is_safe_path(path):
        raise fields.wrong("path", "a relative path without '..', '\\' or '.syncd' in front is needed")
    use = fields.text("use", 16)
    for known in USES:
        if use == known:
            return FileEntry(path, known, fields.integer("size"), fields.digest("digest"))
    raise fields.wrong("use", f"one of {', '.join(USES)} is needed")


def _check_files(head: Head) -> None:
    unique("head", "path", (each.path for each in head.files))
    folders = {"/".join(parts[:depth]) for parts in _parts(head) for depth in range(1, len(parts))}
    for each in head.files:
        if each.path in folders:
            raise invalid("head", f"{shown(each.path)} is a file and a folder")
    side = [each.name for each in head.files if each.use == "side"]
    unique("head", "side file", side)
    for name in side:
        if name in RESERVED_NAMES:
            raise invalid("head", f"a side file may not be named {shown(name)}")
    if head.golden is not None and head.golden.file not in side:
        raise invalid("head", f"the golden sample {shown(head.golden.file)} is no side file")
    if sum(each.size for each in head.files) > MAX_INTEGER:
        raise invalid("head", "its files are too large")


def _parts(head: Head) -> list[list[str]]:
    return [each.path.split("/") for each in head.files]


def _read_architecture(fields: Fields) -> Architecture:
    return Architecture(fields.text("name", 256), fields.plain("args", 16 * 1024))


def _read_golden(fields: Fields) -> Golden:
    return Golden(fields.text("file", 255), fields.number("rtol", 0.0), fields.number("atol", 0.0))


def _read_aliases(fields: Fields) -> dict[str, str]:
    aliases = fields.object("aliases").fields
    for alias, name in aliases.items():
        if not alias or not isinstance(name, str) or not name:
            raise fields.wrong("aliases", "an object of alias to name is needed")
        if not is_text(alias, MAX_NAME_BYTES) or not is_text(name, MAX_NAME_BYTES):
            raise fields.wrong("aliases", "names without control characters are needed")
    return aliases
