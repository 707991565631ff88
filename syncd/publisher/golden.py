"""The golden sample: inputs and the outputs that the published weights give, computed in a child process.

torch is never loaded here. The child gets the model view in a file of its own and a time limit. What it makes says
whether the architecture fits: where it does not, nothing was uploaded yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from syncd.artifact.view import model_file_header, segment_place
from syncd.config import PublishSection
from syncd.durable import make_folder, write_all
from syncd.errors import ArchitectureRefused, CheckpointUnsupported, DiskFull, Failed, UsageError
from syncd.publisher.material import Material

CHILD_WITHIN_S: Final = 120.0
_GRACE_S: Final = 30.0
_LEFT_BEHIND_S: Final = 3600.0
_MAX_ANSWER: Final = 64 * 2**10


@dataclass(frozen=True)
class GoldenSample:
    """path: the file, until its context ends. finite: whether the model's answers are numbers."""

    path: Path
    finite: bool


@asynccontextmanager
async def golden_sample(
    material: Material, section: PublishSection, scratch: Path
) -> AsyncIterator[GoldenSample | None]:
    """The golden sample of `material`, None where the section asks for none; meanwhile segments come from its copy.

    Args:
        scratch: a folder with room for the model view; what a killed process left there goes after an hour.
    Raises:
        ArchitectureRefused: the architecture is not there or does not fit the tensors.
        CheckpointUnsupported: there are no tensors of a model in the checkpoint.
        Failed, DiskFull: no sample within the time, or no room for a copy of the model view.
    """
    if section.golden is None:
        yield None
        return
    if section.architecture is None:
        raise UsageError(
            "a golden sample needs an architecture",
            do="add [publish.architecture] or take [publish.golden] out",
            model=section.model,
        )
    if not material.layout.model_segments:
        raise CheckpointUnsupported(
            "the checkpoint has no model to make a golden sample with",
            do="name the model's part with [publish.weights] key, or take [publish.golden] out",
            path=material.checkpoint.path,
        )
    await asyncio.to_thread(_sweep, scratch)
    with tempfile.TemporaryDirectory(prefix="golden-", dir=scratch) as folder:
        weights, out = Path(folder) / "model.safetensors", Path(folder) / "golden.safetensors"
        with await asyncio.to_thread(_write_view, material, weights) as view:
            answer = await _ask_child(_spec(material, section), weights, out)
            material.use_view(view.as_source())
            try:
                yield GoldenSample(out, bool(answer.get("finite", True)))
            finally:
                material.use_view(None)


def _sweep(scratch: Path) -> None:
    make_folder(scratch, 0o700)
    for left in scratch.glob("golden-*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                shutil.rmtree(left)


@dataclass
class _View:
    """An open copy of the model view; unlinked with its folder, it lives on until it is closed."""

    descriptor: int
    layout: Any
    header_bytes: int

    def as_source(self) -> tuple[int, Any]:
        layout, header = self.layout, self.header_bytes
        return self.descriptor, lambda index: segment_place(layout, index, header)

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _write_view(material: Material, path: Path) -> _View:
    layout = material.layout
    header = model_file_header(layout, {})
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, header)
        for index in range(layout.model_segments):
            data = memoryview(bytearray(material.segments[index].length))
            material.read_segment(index, data)
            write_all(descriptor, data)
    except OSError as error:
        os.close(descriptor)
        raise DiskFull(
            f"no room for a copy of the model view: {error.strerror}",
            do=f"free {layout.model_bytes} bytes there; nothing was published",
            path=path.parent,
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return _View(descriptor, layout, len(header))


def _spec(material: Material, section: PublishSection) -> dict[str, Any]:
    assert section.architecture is not None
    assert section.golden is not None
    spec: dict[str, Any] = {
        "architecture": {"name": section.architecture.name, "args": section.architecture.args},
        "aliases": dict(material.layout.aliases),
        "seconds": CHILD_WITHIN_S,
    }
    if section.golden.file is not None:
        spec["file"] = str(section.golden.file.absolute())
    else:
        spec["shape"] = list(section.golden.shape or ())
    return spec


async def _ask_child(spec: dict[str, Any], weights: Path, out: Path) -> dict[str, Any]:
    """Run the child to its end; it and whatever it started are gone on return, however this ends."""
    words = ("-m", "syncd.model.golden", "--weights", str(weights), "--out", str(out))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(CHILD_WITHIN_S + _GRACE_S):
            answer, talk = await child.communicate(json.dumps(spec).encode())
    except TimeoutError:
        raise Failed(
            f"no golden sample within {CHILD_WITHIN_S:.0f} s", do="give [publish.golden] a smaller shape"
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return _understand(answer[:_MAX_ANSWER], talk, child.returncode or 0)


def _understand(answer: bytes, talk: bytes, status: int) -> dict[str, Any]:
    try:
        result = json.loads(answer)
        error = result.get("error")
    except (ValueError, AttributeError):
        last = talk.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Failed(
            f"the golden sample's process ended with status {status}: {last[0][:500]}",
            why="it ran out of memory, or the architecture's own code crashed",
            do="nothing was published",
        ) from None
    if not error:
        return dict(result)
    kinds = {kind.code: kind for kind in (ArchitectureRefused, UsageError, DiskFull)}
    kind = kinds.get(str(error.get("code")), Failed)
    where = error.get("where") if isinstance(error.get("where"), dict) else {}
    raise kind(
        str(error.get("what")), why=str(error.get("why") or ""), do=str(error.get("do") or ""), **where
    )
