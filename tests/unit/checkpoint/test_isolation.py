"""The child process that parses: its limits hold, and whatever becomes of it, the parent gets an outcome."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.checkpoint.child import CPU_SECONDS, MEMORY_BYTES
from syncd.checkpoint.isolate import _understand, parse_in_child
from tests.attacks.checkpoint import builders

REPOSITORY = str(Path(__file__).parents[3])


def limited(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program behind the child's own limits."""
    start = "import sys; sys.path.append(sys.argv[1])\nfrom syncd.checkpoint.child import set_limits; set_limits()\n"
    command = [sys.executable, "-I", "-S", "-c", start + program, REPOSITORY]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_memory_beyond_the_limit_is_not_given() -> None:
    run = limited(f"bytearray({MEMORY_BYTES})")
    assert "MemoryError" in run.stderr


def test_files_cannot_be_written(tmp_path: Path) -> None:
    run = limited(f"open({str(tmp_path / 'x')!r}, 'wb', buffering=0).write(b'x')")
    assert run.returncode != 0
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


def test_cpu_time_is_limited() -> None:
    run = limited("import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])")
    assert int(run.stdout) == CPU_SECONDS < 20


def test_the_child_imports_neither_torch_nor_numpy_nor_anything_that_executes_pickles(tmp_path: Path) -> None:
    path = builders.torch_zip(tmp_path / "a.pt", builders.state_dict(w=builders.tensor((1,), (1,))))
    run = limited(
        "import os; from syncd.checkpoint.child import answer\n"
        f"result = answer(os.open({str(path)!r}, 0), {path.stat().st_size}, 'a.pt')\n"
        "assert 'tables' in result, result\n"
        "print(sorted({'torch', 'numpy', 'pickle', '_pickle', 'zipfile', 'mmap', 'pydantic'} & set(sys.modules)))"
    )
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("number", [signal.SIGXCPU, signal.SIGKILL])
def test_a_child_that_its_limits_kill_means_hostile(number: signal.Signals) -> None:
    assert _understand(b"", -number)["outcome"] == "hostile"


def test_a_child_that_fails_otherwise_means_failed() -> None:
    assert _understand(b"", 1)["outcome"] == "failed"


def test_the_child_reads_through_the_descriptor_not_the_path(tmp_path: Path) -> None:
    path = builders.torch_zip(tmp_path / "a.pt", builders.state_dict(w=builders.tensor((1,), (1,))))
    size, descriptor = path.stat().st_size, os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        assert parse_in_child(descriptor, size, "a.pt")["tables"]["kind"] == "torch-zip"
    finally:
        os.close(descriptor)


def test_no_module_of_the_room_imports_what_could_execute_or_map_a_checkpoint() -> None:
    forbidden = {
        "mmap",
        "zipfile",
        "pickle",
        "_pickle",
        "torch",
        "safetensors",
        "shelve",
        "marshal",
        "importlib",
    }
    for path in sorted(Path(REPOSITORY, "syncd", "checkpoint").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & forbidden, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__", "compile"), path
