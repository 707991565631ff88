"""The node folder's links, locks and versions, as both sides use them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.errors import DocumentInvalid, NodeBusy, NotInstalled, UnknownModel
from syncd.node.links import MAX_VERSION, ModelFolder, NodeFolder, Offer
from tests.support.tree import tree_of


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    node = NodeFolder(tmp_path / "node")
    node.make()
    made = node.model_folder("resnet50")
    made.make()
    return made


def install(folder: ModelFolder, *versions: int) -> None:
    for version in versions:
        staged = folder.incoming / f"staged-{version}"
        (staged / "files" / "sub").mkdir(parents=True)
        (staged / "head.json").write_text(f'{{"version":{version}}}')
        (staged / "files" / "sub" / "model.onnx").write_bytes(b"\0" * 10)
        folder.place_version(version, staged)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_folders_and_installed_files_have_the_modes_of_the_contract(folder: ModelFolder) -> None:
    install(folder, 42)
    node = folder.path.parent.parent
    assert {path: mode(node / path) for path in (".", "models", "models/resnet50")} == {
        ".": 0o750,
        "models": 0o755,
        "models/resnet50": 0o755,
    }
    assert mode(folder.followers) == 0o3770
    assert mode(folder.incoming) == 0o700
    version = folder.version_folder(42)
    assert mode(version) == mode(version / "files") == mode(version / "files/sub") == 0o755
    assert mode(version / "head.json") == mode(version / "files/sub/model.onnx") == 0o444


def test_a_version_is_there_only_when_it_is_whole_and_never_replaced(folder: ModelFolder) -> None:
    staged = folder.incoming / "7"
    staged.mkdir()
    (staged / "head.json").write_text("{}")
    assert folder.versions() == []
    folder.place_version(7, staged)
    assert folder.versions() == [7]
    assert not staged.exists()
    staged.mkdir()
    (staged / "head.json").write_text('{"other":1}')
    with pytest.raises(FileExistsError):
        folder.place_version(7, staged)
    assert (folder.version_folder(7) / "head.json").read_text() == "{}"


def test_versions_are_sorted_as_numbers_and_other_names_are_left_alone(folder: ModelFolder) -> None:
    install(folder, 9, 10, 100)
    for name in ("007", ".retired-3", "0", "x", "1" * 17):
        (folder.path / "versions" / name).mkdir()
    assert folder.versions() == [9, 10, 100]


def test_links_are_relative_and_never_dangle(folder: ModelFolder) -> None:
    install(folder, 1)
    assert folder.read_link("current") is None
    folder.set_link("current", 1)
    assert os.readlink(folder.path / "current") == "versions/1"  # noqa: PTH115 - as it is
    before = tree_of(folder.path)
    with pytest.raises(NotInstalled, match="version 2 is not installed"):
        folder.set_link("current", 2)
    assert tree_of(folder.path) == before
    folder.set_link("current", None)
    assert folder.read_link("current") is None
    folder.set_link("current", None)


@pytest.mark.parametrize(
    "target", ["../../etc", "versions/", "versions/01", "versions/1/", f"versions/{MAX_VERSION + 1}"]
)
def test_a_link_to_anything_else_is_refused_by_name(folder: ModelFolder, target: str) -> None:
    (folder.path / "current").symlink_to(target)
    with pytest.raises(DocumentInvalid, match=f"current should be a link to versions/N and is '{target}'"):
        folder.read_link("current")


def test_a_file_in_the_place_of_a_link_is_refused(folder: ModelFolder) -> None:
    (folder.path / "next").write_text("versions/1")
    with pytest.raises(DocumentInvalid, match="not a link"):
        folder.look("next")


def test_activation_keeps_the_way_back_and_may_be_repeated_after_a_kill_at_any_step(
    folder: ModelFolder,
) -> None:
    install(folder, 1, 2)
    steps = [
        lambda: folder.set_link("previous", 1),
        lambda: folder.set_link("current", 2),
        lambda: folder.set_link("next", None),
    ]
    for done in range(len(steps) + 1):
        folder.set_link("current", 1)
        folder.set_link("previous", None)
        folder.offer(2, attempt=1, gate_within_s=60.0)
        for step in steps[:done]:
            step()
        folder.activate(2)
        assert [folder.read_link(name) for name in ("previous", "current", "next")] == [1, 2, None]


def test_a_second_offer_of_the_same_version_has_another_identity(folder: ModelFolder) -> None:
    install(folder, 3)
    folder.offer(3, attempt=1, gate_within_s=60.0)
    first = folder.look("next")
    assert folder.look("next") == first
    assert folder.read_offer() == Offer(3, 1, 60.0)
    folder.offer(3, attempt=2, gate_within_s=0.5)
    second = folder.look("next")
    assert second.version == first.version == 3
    assert second.identity != first.identity
    assert folder.read_offer() == Offer(3, 2, 0.5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"syncd.offer/2","version":1}', "{" * 5000])
def test_an_offer_that_this_syncd_does_not_know_is_refused(folder: ModelFolder, text: str) -> None:
    assert folder.read_offer() is None
    (folder.path / "offer.json").write_text(text)
    with pytest.raises(DocumentInvalid, match="is not an offer"):
        folder.read_offer()


def test_a_locked_version_is_in_use_and_survives_its_deletion(folder: ModelFolder) -> None:
    install(folder, 1, 2)
    with folder.lock_version(1) as lock, folder.lock_version(1):
        assert lock.version == 1
        assert folder.version_in_use(1)
        assert not folder.version_in_use(2)
        before = tree_of(folder.path)
        assert folder.remove_version(1) is False
        assert tree_of(folder.path) == before
    assert not folder.version_in_use(1)
    assert folder.remove_version(1) is True
    assert folder.versions() == [2]
    assert folder.remove_version(1) is True
    with pytest.raises(NotInstalled):
        folder.lock_version(1)


@pytest.mark.parametrize("name", ["next", "current", "previous"])
def test_a_linked_version_is_in_use_and_not_deleted(folder: ModelFolder, name: str) -> None:
    install(folder, 1)
    folder.set_link(name, 1)  # type: ignore[arg-type]
    assert folder.version_in_use(1)
    assert folder.remove_version(1) is False
    assert folder.versions() == [1]


def test_a_lock_taken_by_a_process_that_is_killed_is_free_again(folder: ModelFolder) -> None:
    install(folder, 1)
    program = (
        "import sys; from syncd.node.links import NodeFolder\n"
        "lock = NodeFolder(sys.argv[1]).model_folder('resnet50').lock_version(1)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    node = str(folder.path.parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, node], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        assert folder.version_in_use(1)
        child.kill()
    assert not folder.version_in_use(1)


def test_following_a_link_locks_the_version_that_it_points_at(folder: ModelFolder) -> None:
    install(folder, 1, 2)
    assert folder.lock_linked("current") is None
    folder.set_link("current", 2)
    lock = folder.lock_linked("current")
    assert lock is not None
    with lock:
        assert lock.version == 2
        assert os.read(os.open("head.json", os.O_RDONLY, dir_fd=lock.descriptor), 99) == b'{"version":2}'


def test_a_deletion_that_was_cut_off_is_finished_at_the_next_start(folder: ModelFolder) -> None:
    install(folder, 1, 2)
    folder.version_folder(1).rename(folder.path / "versions" / ".retired-1")
    assert folder.versions() == [2]
    folder.sweep()
    assert [path.name for path in (folder.path / "versions").iterdir()] == ["2"]


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    node = NodeFolder(tmp_path / "node")
    with node.daemon_lock():
        with pytest.raises(NodeBusy, match=f"another daemon \\(pid {os.getpid()}\\) holds"):
            node.daemon_lock()
        assert mode(node.path / "daemon.lock") == 0o600
    node.daemon_lock().close()


def test_names_that_no_model_can_have_are_refused(tmp_path: Path) -> None:
    node = NodeFolder(tmp_path)
    assert node.models() == []
    for name in ("", "..", "a/b", "A", ".x", "x" * 65):
        with pytest.raises(UnknownModel):
            node.model_folder(name)
    node.make()
    node.model_folder("b").make()
    node.model_folder("a-1.2_x").make()
    (tmp_path / "models" / "..lost").mkdir()
    assert node.models() == ["a-1.2_x", "b"]
