"""The two faces of a version as files to write: for each segment, where its bytes go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from syncd.artifact.head import Head
from syncd.artifact.layout import Layout
from syncd.artifact.table import SegmentTable
from syncd.artifact.view import model_file_header
from syncd.errors import DocumentInvalid
from syncd.node.links import FILES_FOLDER, MODEL_FILE


@dataclass(frozen=True)
class Documents:
    """A version's verified documents; `head_bytes` are the exact bytes that were signed."""

    head: Head
    head_bytes: bytes
    head_digest: str
    layout: Layout
    table: SegmentTable

    @property
    def has_model(self) -> bool:
        """Whether there is a model view: tensors that a predictor can load."""
        return bool(self.layout.tensors)


@dataclass(frozen=True)
class OutFile:
    """A file to write: its name below the folder, its bytes, its signed digest, and what it begins with."""

    name: str
    size: int
    digest: str | None = None
    start: bytes = b""


@dataclass(frozen=True, slots=True)
class Place:
    """`length` bytes of a segment from `start` on go to `offset` of file number `file`."""

    file: int
    offset: int
    start: int
    length: int


@dataclass
class Face:
    """Files to write and, by segment number, the places of its bytes; `kind` and `numbers` as `plan` takes them."""

    kind: Literal["model", "files"]
    numbers: tuple[int, ...] = ()
    files: list[OutFile] = field(default_factory=list)
    places: dict[int, list[Place]] = field(default_factory=dict)

    def add_recipe(self, documents: Documents, number: int, name: str) -> None:
        """Add the head's file `number` under `name`."""
        entry, recipe = documents.head.files[number], documents.layout.files[number]
        if entry.size != recipe.size:
            raise DocumentInvalid(
                f"{entry.path} has {entry.size} bytes in the head and {recipe.size} in the layout",
                version=documents.head.version,
            )
        offset = 0
        for span in recipe.spans:
            place = Place(len(self.files), offset, span.offset, span.length)
            self.places.setdefault(span.segment, []).append(place)
            offset += span.length
        self.files.append(OutFile(name, entry.size, entry.digest))


def node_face(documents: Documents) -> Face:
    """What a node installs: model.safetensors and side files; all files, under files/, where there is no model view.

    Raises:
        DocumentInvalid: head and layout disagree.
    """
    if not documents.has_model:
        return files_face(documents, below=f"{FILES_FOLDER}/")
    layout = documents.layout
    header = model_file_header(layout, {})
    face = Face("model", documents.head.side_files())
    face.files.append(OutFile(MODEL_FILE, len(header) + layout.model_bytes, start=header))
    for number in range(layout.model_segments):
        length = layout.segments[number].length
        face.places[number] = [Place(0, len(header) + layout.model_starts[number], 0, length)]
    for number in documents.head.side_files():  # the head vouches that their names differ and are free
        face.add_recipe(documents, number, documents.head.files[number].name)
    return face


def files_face(documents: Documents, below: str = "", numbers: Sequence[int] = ()) -> Face:
    """These files of the version (none named: all), byte for byte, under their own paths."""
    face = Face("files", tuple(numbers))
    for number in numbers or range(len(documents.head.files)):
        face.add_recipe(documents, number, below + documents.head.files[number].path)
    return face
