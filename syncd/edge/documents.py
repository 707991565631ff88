"""A version's documents, verified, kept by digest so that a layout equal from version to version is fetched once."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from syncd import durable
from syncd.artifact.head import Head
from syncd.artifact.layout import Layout
from syncd.artifact.segment import digest
from syncd.artifact.table import SegmentTable
from syncd.edge.disk import telling_full
from syncd.edge.face import Documents
from syncd.edge.standing import Target
from syncd.errors import DocumentInvalid, about
from syncd.trust.names import DocumentKind
from syncd.trust.verify import ModelTrust


class DocumentCache:
    """Heads, layouts and tables by digest in one folder; a file that has not its digest is as good as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, document_digest: str) -> bytes | None:
        """The bytes of that digest, if they are here and whole. Blocks."""
        try:
            data = self._path(document_digest).read_bytes()
        except FileNotFoundError:
            return None
        return data if digest(data) == document_digest else None

    def put(self, document_digest: str, data: bytes) -> None:
        """Keep the bytes durably. Blocks. Raises DiskFull."""
        with telling_full(self.folder):
            durable.make_folder(self.folder, 0o700)
            durable.replace_file(self._path(document_digest), data, 0o600)

    def sweep(self, keep: set[str]) -> None:
        """Delete all but the documents of these digests. Blocks."""
        names = {self._path(each).name for each in keep}
        if self.folder.is_dir():
            for each in self.folder.iterdir():
                if each.name not in names:
                    with contextlib.suppress(FileNotFoundError):
                        each.unlink()

    def _path(self, document_digest: str) -> Path:
        return self.folder / document_digest.removeprefix("sha256:")


async def read_documents(trust: ModelTrust, cache: DocumentCache, model: str, target: Target) -> Documents:
    """The verified documents of a version; layout and table side by side, from the cache where they are there.

    Raises:
        NotAuthentic, DocumentInvalid, NeedsNewerSyncd: nothing of the version may be used. StoreErrors. DiskFull.
    """
    with about(model=model, version=target.version):
        data = await asyncio.to_thread(cache.get, target.head_digest)
        if data is None:
            data = await trust.fetch_version_head(target.version, target.head_digest, target.head_length)
            await asyncio.to_thread(cache.put, target.head_digest, data)
        head = Head.parse(data)
        if (head.model, head.version) != (model, target.version):
            raise DocumentInvalid(f"the head is that of {head.model}@{head.version}")
        layout_data, table_data = await asyncio.gather(
            _document(trust, cache, "layouts", head.layout.digest, head.layout.length),
            _document(trust, cache, "tables", head.table.digest, head.table.length),
        )
        return await asyncio.to_thread(parse_documents, head, data, layout_data, table_data)


def parse_documents(head: Head, head_bytes: bytes, layout_data: bytes, table_data: bytes) -> Documents:
    """The documents as values, checked against each other. Blocks for large ones. Raises DocumentInvalid."""
    layout = Layout.parse(layout_data)
    if len(layout.files) != len(head.files):
        raise DocumentInvalid(f"the head names {len(head.files)} files, the layout {len(layout.files)}")
    if layout.model_bytes != head.model_bytes:
        raise DocumentInvalid(
            f"the head says {head.model_bytes} bytes of model, the layout {layout.model_bytes}"
        )
    table = SegmentTable.parse(table_data, len(layout.segments))
    return Documents(head, head_bytes, digest(head_bytes), layout, table)


def cached_documents(cache: DocumentCache, head_digest: str) -> Documents | None:
    """The documents of a version, without the network; None where the cache lacks one. Blocks."""
    head_bytes = cache.get(head_digest)
    if head_bytes is None:
        return None
    head = Head.parse(head_bytes)
    layout_data, table_data = cache.get(head.layout.digest), cache.get(head.table.digest)
    if layout_data is None or table_data is None:
        return None
    return parse_documents(head, head_bytes, layout_data, table_data)


async def _document(
    trust: ModelTrust, cache: DocumentCache, kind: DocumentKind, document_digest: str, length: int
) -> bytes:
    data = await asyncio.to_thread(cache.get, document_digest)
    if data is None:
        data = await trust.fetch_document(kind, document_digest, length)
        await asyncio.to_thread(cache.put, document_digest, data)
    return data
