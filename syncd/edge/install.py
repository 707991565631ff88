"""Makes a finished download a version: tensor digests, finiteness, the head; one rename, and it is installed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from syncd import durable
from syncd.artifact.finite import count_nonfinite
from syncd.artifact.layout import TensorEntry
from syncd.artifact.segment import digest
from syncd.artifact.view import check_model_file
from syncd.crashpoint import reached
from syncd.edge.disk import telling_full
from syncd.edge.face import Documents
from syncd.edge.fetch import Source
from syncd.edge.transitions import WITHIN, Action, crash_point
from syncd.errors import Failed
from syncd.node.links import DIGESTS_FILE, HEAD_FILE, MODEL_FILE, ModelFolder

_PIECE_BYTES: Final = (
    4 << 20
)  # a multiple of every item size; small enough to stay in the cache between two looks


def finish(staged: Path, documents: Documents, stop: threading.Event | None = None) -> str:
    """Write head.json and model.digests beside the files of a download, each durable. Blocks: reads the model once.

    Returns: why the version is unfit to serve, "" if it is fit: the first tensor with a NaN or an infinity.
    """
    unfit = ""
    with telling_full(staged):
        if documents.has_model:
            digests, unfit = look_at_tensors(staged / MODEL_FILE, documents, stop)
            document = {"format": "syncd.tensors/1", "tensors": digests}
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            durable.replace_file(staged / DIGESTS_FILE, text.encode())
        durable.replace_file(staged / HEAD_FILE, documents.head_bytes)
    return unfit


def place(folder: ModelFolder, version: int, staged: Path) -> None:
    """Move the finished folder to `versions/N`: whole the moment its name exists. Blocks for an fsync of each file.

    Raises:
        Failed: another version is installed under that number and in use.
    """
    reached(crash_point(WITHIN, Action.INSTALL))
    with telling_full(folder.path):
        if folder.version_folder(version).exists() and not folder.remove_version(version):
            raise Failed(
                f"another version {version} is installed and in use",
                why="the node followed another store before",
                do="stop what uses it, or give this node another folder",
                model=folder.model,
            )
        folder.place_version(version, staged)
    reached(crash_point(WITHIN, Action.INSTALL))


def installed_head(folder: ModelFolder, version: int) -> str | None:
    """The digest of the head of an installed version, out of its own bytes; None if it is not installed."""
    try:
        return digest((folder.version_folder(version) / HEAD_FILE).read_bytes())
    except FileNotFoundError:
        return None


def look_at_tensors(
    path: Path, documents: Documents, stop: threading.Event | None = None
) -> tuple[dict[str, str], str]:
    """One pass over a model file whose segments are verified.

    Returns: name → `sha256:HEX` of each tensor's bytes in the file; the first tensor that is not finite, with the
    count, or "".
    Raises:
        DocumentInvalid: the file's header is not the layout's.
    """
    digests: dict[str, str] = {}
    unfit, layout = "", documents.layout
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.fstat(file).st_size - layout.model_bytes
        check_model_file(layout, os.pread(file, start, 0))

        def look(tensors: Sequence[TensorEntry]) -> list[tuple[str, int]]:
            return [
                _look_at(
                    file,
                    start + layout.tensor_place(tensor),
                    tensor,
                    _digest_of_its_segment(documents, tensor),
                    stop,
                )
                for tensor in tensors
            ]

        # Reading, hashing and numpy let go of the GIL: every second tensor in a thread beside this one.
        with ThreadPoolExecutor(1, thread_name_prefix="syncd-look") as beside:
            odd = beside.submit(look, layout.tensors[1::2])
            looks = [look(layout.tensors[0::2]), odd.result()]
        for number, tensor in enumerate(layout.tensors):
            digests[tensor.name], wrong = looks[number % 2][number // 2]
            if wrong and not unfit:
                unfit = f"tensor {tensor.name} has {wrong} values that are not finite"
    finally:
        os.close(file)
    return digests, unfit


def _digest_of_its_segment(documents: Documents, tensor: TensorEntry) -> str | None:
    """The signed digest of the tensor's bytes where it is a segment by itself, as most of the weight is."""
    whole = tensor.nbytes and tensor.nbytes == documents.layout.segments[tensor.segment].length
    return documents.table.rows[tensor.segment].digest if whole else None


def _look_at(
    file: int, offset: int, tensor: TensorEntry, known: str | None, stop: threading.Event | None
) -> tuple[str, int]:
    sha = hashlib.sha256()
    wrong, left = 0, tensor.nbytes
    while left:
        if stop is not None and stop.is_set():
            raise Failed("stopped before the version was installed", do="nothing is lost")
        piece = os.pread(file, min(_PIECE_BYTES, left), offset)
        if not piece:
            raise Failed(f"the model file ends within tensor {tensor.name}", do="it is fetched again")
        if known is None:
            sha.update(piece)
        wrong += count_nonfinite(piece, tensor.dtype)
        offset, left = offset + len(piece), left - len(piece)
    return known or f"sha256:{sha.hexdigest()}", wrong


def source_of(path: Path, documents: Documents) -> Source:
    """An installed model file as a source of segments for the next version."""
    layout = documents.layout
    start = path.stat().st_size - layout.model_bytes
    rows = documents.table.rows[: layout.model_segments]
    return Source(path, {row.digest: start + layout.model_starts[number] for number, row in enumerate(rows)})
