"""Where a checkpoint comes from is read from git's files, and nothing is run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import syncd
from syncd.publisher.provenance import git_commit, provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")


def git(folder: Path, *words: str) -> str:
    settings = (
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "init.defaultBranch=main",
    )
    done = subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("pass\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_the_commit_of_a_folder_below_the_repository_is_what_git_says(repository: Path) -> None:
    runs = repository / "runs" / "7"
    runs.mkdir(parents=True)
    assert git_commit(runs) == git(repository, "rev-parse", "HEAD")


def test_packed_references_detached_heads_and_linked_work_trees_are_understood(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    assert git_commit(repository) == commit
    git(repository, "worktree", "add", "-q", "../linked", "-b", "other")
    assert git_commit(repository.parent / "linked") == commit
    git(repository, "checkout", "-q", commit)
    assert git_commit(repository) == commit


def test_outside_a_repository_and_with_a_head_that_leads_elsewhere_there_is_no_commit(
    tmp_path: Path, repository: Path
) -> None:
    assert git_commit(tmp_path) is None
    assert git_commit(tmp_path / "missing") is None
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/../../../../etc/passwd\n")
    assert git_commit(repository) is None


def test_provenance_holds_version_commit_and_scalars_and_not_the_host(repository: Path) -> None:
    found = provenance(repository, {"epoch": 3})
    assert found == {
        "syncd": syncd.__version__,
        "git_commit": git(repository, "rev-parse", "HEAD"),
        "scalars": {"epoch": 3},
    }
