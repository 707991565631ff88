"""Hostile checkpoints are refused, or read without harm: nothing runs, little time, little memory, nothing changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syncd.checkpoint.read import open_checkpoint
from syncd.checkpoint.select import select_model
from syncd.errors import CheckpointHostile, CheckpointIncomplete, CheckpointUnsupported
from tests.attacks.checkpoint import builders

MAX_SECONDS = 20
MAX_MIB = 512
MEASURE = """
import json, resource, sys
from pathlib import Path
from syncd.checkpoint.read import open_checkpoint
from syncd.errors import SyncdError
try:
    with open_checkpoint(Path(sys.argv[1])) as checkpoint:
        outcome = "read"
        what = f"{len(checkpoint.tensors)} tensors"
except SyncdError as error:
    outcome, what = error.code, error.what
used = resource.getrusage(resource.RUSAGE_CHILDREN)
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
result = {"outcome": outcome, "what": what, "cpu_s": used.ru_utime + used.ru_stime}
print(json.dumps({**result, "rss_mib": used.ru_maxrss / 1024, "own_mib": own / 1024}))
"""


def measure(path: Path) -> dict[str, Any]:
    """Outcome, CPU seconds and peak memory of reading `path`, in a process that holds nothing else."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(run.stdout)
    print(path.name, result)
    return result


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(folder)
    )


def open_descriptors() -> set[str]:
    return {entry.name for entry in os.scandir("/proc/self/fd")}


def assert_bounded(result: dict[str, Any]) -> None:
    assert result["cpu_s"] < MAX_SECONDS
    assert result["rss_mib"] < MAX_MIB
    assert result["own_mib"] < MAX_MIB


@pytest.mark.parametrize("bomb", builders.HOSTILE_PICKLES, ids=lambda bomb: bomb.__name__)
def test_a_hostile_pickle_is_refused_within_bounds(bomb: Any, tmp_path: Path) -> None:
    path = builders.torch_zip(tmp_path / "bomb.pt", bomb())
    before = listing(tmp_path)
    result = measure(path)
    assert result["outcome"] == "checkpoint-hostile"
    assert_bounded(result)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("bomb", builders.HARMLESS_PICKLES, ids=lambda bomb: bomb.__name__)
def test_a_bomb_for_other_readers_is_read_within_bounds(bomb: Any, tmp_path: Path) -> None:
    result = measure(builders.torch_zip(tmp_path / "bomb.pt", bomb()))
    assert result["outcome"] == "read"
    assert_bounded(result)


def test_modules_shared_into_2_to_the_40_names_are_refused_within_bounds(tmp_path: Path) -> None:
    result = measure(builders.torch_zip(tmp_path / "bomb.pt", builders.wide_tree_of_shared_modules()))
    assert result["outcome"] == "checkpoint-hostile"
    assert_bounded(result)


def test_a_storage_that_claims_4_terabytes_is_incomplete(tmp_path: Path) -> None:
    result = measure(builders.torch_zip(tmp_path / "bomb.pt", builders.storage_of_4_terabytes()))
    assert result["outcome"] == "checkpoint-incomplete"
    assert "4000000000000" in result["what"]


@pytest.mark.parametrize("name", sorted(builders.calls("true")))
def test_nothing_that_a_pickle_calls_is_executed(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = builders.torch_zip(tmp_path / "evil.pt", builders.calls(f"touch {canary}")[name])
    with open_checkpoint(path) as checkpoint:
        assert not select_model(checkpoint).tensors
    assert not canary.exists()


def test_a_legacy_pickle_that_calls_is_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = builders.calls(f"touch {canary}")["exec"]
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    path = tmp_path / "evil.pt"
    path.write_bytes(
        magic
        + b"\x80\x02M\xe9\x03."
        + b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
        + evil
        + b"\x80\x02]."
    )
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.kind == "torch-legacy"
        assert "builtins.exec" in checkpoint.globals
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(builders.safetensors_abuses()))
def test_an_abused_safetensors_header_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(builders.safetensors_abuses()[name])
    before = listing(tmp_path)
    with pytest.raises(CheckpointHostile):
        open_checkpoint(path)
    assert listing(tmp_path) == before


def test_a_safetensors_header_of_100_mb_is_bounded(tmp_path: Path) -> None:
    entries = b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % index for index in range(1_500_000)
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(builders.safetensors(b"{" + entries + b"}"))
    result = measure(path)
    assert result["outcome"] == "checkpoint-hostile"
    assert_bounded(result)


def test_names_like_paths_stay_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(builders.safetensors({"../../etc/passwd": builders.entry(0, 4, [1], "F32")}, bytes(4)))
    with open_checkpoint(path) as checkpoint:
        assert [tensor.name for tensor in select_model(checkpoint).tensors] == ["../../etc/passwd"]
        assert checkpoint.tensors[0].key == ("../../etc/passwd",)
    assert sorted(entry.name for entry in os.scandir(tmp_path)) == ["model.safetensors"]


def test_an_empty_tensor_of_huge_shape_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(builders.safetensors({"a": builders.entry(0, 0, [2**40, 0], "F32")}))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read_tensor(0) == b""


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (builders.overlapping_records, CheckpointHostile, "overlaps"),
        (builders.duplicate_name, CheckpointHostile, "two records"),
        (builders.directory_of_4_gib, CheckpointIncomplete, "directory ends"),
        (builders.wrong_crc, CheckpointIncomplete, "CRC32"),
        (builders.two_archives_glued, CheckpointIncomplete, "directory ends"),
        (builders.archive_with_comment, CheckpointIncomplete, "end record"),
        (builders.junk_before, CheckpointIncomplete, "directory ends"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_zip_that_does_not_add_up_is_refused(build: Any, error: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(build())
    before = listing(tmp_path)
    with pytest.raises(error, match=text):
        open_checkpoint(path)
    assert listing(tmp_path) == before


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(builders.wrong_crc())
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(CheckpointIncomplete):
            open_checkpoint(path)
    assert open_descriptors() == before


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_file_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(CheckpointUnsupported):
        open_checkpoint(path)
