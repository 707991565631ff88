"""Where the status endpoint may listen, and what happens to a name that is taken."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from syncd.errors import PortBusy, UsageError
from syncd.status.server import Listener


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:80", "[::]:80", "example.com:80"])
def test_an_address_that_others_reach_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="which others can reach"):
        Listener(address)


def test_the_socket_is_0660_from_its_first_moment_and_goes_at_the_end(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "deep/status.sock"))
    path = tmp_path / "deep/status.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [each.name for each in path.parent.iterdir()] == ["status.sock"]
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_a_socket_that_answers_is_busy_and_stays(tmp_path: Path) -> None:
    first = Listener(str(tmp_path / "s"))
    inode = (tmp_path / "s").stat().st_ino
    with pytest.raises(PortBusy):
        Listener(str(tmp_path / "s"))
    assert (tmp_path / "s").stat().st_ino == inode
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
    first.close()


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    listener = Listener(str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    listener.close()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("somebody's notes")
    with pytest.raises(UsageError, match="not a socket"):
        Listener(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "somebody's notes"


def test_the_name_of_another_daemons_socket_is_not_removed(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"))
    (tmp_path / "s").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        listener.close()
        assert (tmp_path / "s").exists()
