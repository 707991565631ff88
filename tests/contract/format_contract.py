"""What every format of a checkpoint file must do; its test says only how to write one, and where it can be cut."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from syncd.checkpoint.formats.registry import parse_file
from syncd.checkpoint.read import Checkpoint, open_checkpoint
from syncd.checkpoint.select import select_model
from syncd.checkpoint.source import Source
from syncd.checkpoint.values import Incomplete
from syncd.errors import CheckpointIncomplete


def file_bytes(checkpoint: Checkpoint, file: int = 0) -> bytes:
    """All bytes of one file, through the checkpoint's own reads."""
    data = bytearray(checkpoint.files[file].size)
    checkpoint.pread_into(file, 0, memoryview(data))
    return bytes(data)


def open_descriptors() -> int:
    return len(list(os.scandir("/proc/self/fd")))


class FormatContract:
    """Inherit, and say how to write a checkpoint of the kind."""

    kind: str
    has_checksum: bool

    def write(self, folder: Path) -> tuple[Path, dict[str, bytes]]:
        """A checkpoint with a model of at least two tensors, and each tensor's row-major bytes by name."""
        raise NotImplementedError

    def boundaries(self, path: Path) -> Iterable[int]:
        """The byte positions between two records: where a writer may have stopped."""
        raise NotImplementedError

    def first_data_byte(self, path: Path) -> int:
        """Where tensor data begins: zeros before it are always seen."""
        raise NotImplementedError

    def test_it_is_recognised_and_every_tensor_has_the_bytes_that_were_written(self, tmp_path: Path) -> None:
        path, expected = self.write(tmp_path)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.kind == self.kind
            assert checkpoint.proof
            model = select_model(checkpoint)
            found = {each.name: checkpoint.read_tensor(each.tensor) for each in model.tensors}
            found |= {alias: found[name] for alias, name in model.aliases.items()}
            assert found == expected
            assert checkpoint.check_unchanged()

    def test_the_file_is_given_back_byte_for_byte(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        with open_checkpoint(path) as checkpoint:
            assert file_bytes(checkpoint) == path.read_bytes()
            assert [(file.path, file.size) for file in checkpoint.files] == [(path.name, path.stat().st_size)]

    def test_dense_tensors_lie_where_the_table_says_in_storage_order(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        with open_checkpoint(path) as checkpoint:
            raw = file_bytes(checkpoint)
            for index, record in enumerate(checkpoint.tensors):
                if record.dense and record.permutation is None:
                    assert raw[record.offset : record.offset + record.nbytes] == checkpoint.read_tensor(index)

    def test_cut_at_any_record_boundary_it_is_incomplete_and_unchanged(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        whole, before = path.read_bytes(), open_descriptors()
        boundaries = sorted(set(self.boundaries(path)))
        assert len(boundaries) > 3
        for number, cut in enumerate([*boundaries, *(end - 1 for end in boundaries[1::5])]):
            path.write_bytes(whole[:cut])
            with path.open("rb") as file, pytest.raises(Incomplete):
                parse_file(Source(file.fileno(), cut, path.name))
            if number % 8 == 0:  # the whole way, with its process, for some of them
                with pytest.raises(CheckpointIncomplete):
                    open_checkpoint(path)
            assert path.read_bytes() == whole[:cut]
        assert open_descriptors() == before

    def test_a_zeroed_tail_is_incomplete(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        whole = path.read_bytes()
        starts = [self.first_data_byte(path) - 9, 4, 0]
        if self.has_checksum:
            starts += [len(whole) - 5 - step * len(whole) // 5 for step in range(5)]
        for start in starts:
            path.write_bytes(whole[:start].ljust(len(whole), b"\0"))
            with pytest.raises(CheckpointIncomplete):
                open_checkpoint(path)

    def test_a_hole_where_data_was_never_written_is_incomplete_or_said(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        size, start = path.stat().st_size, self.first_data_byte(path)
        assert size - start > 16384
        with path.open("r+b") as file:
            file.truncate(start)
            file.truncate(size)
        if self.has_checksum:
            with pytest.raises(CheckpointIncomplete):
                open_checkpoint(path)
        else:
            try:
                with open_checkpoint(path) as checkpoint:
                    assert any("hole" in note for note in checkpoint.notes)
            except CheckpointIncomplete:
                assert self.kind == "torch-legacy"  # a count between two storages is gone
