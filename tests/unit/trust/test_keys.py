"""Key files: private, durable, never replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from syncd.errors import KeyUnusable
from syncd.trust.keys import generate_key, load_key


def test_a_new_key_is_private_and_reads_back_with_its_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "fleet.key"
    made = generate_key(path, "correct horse")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert load_key(path, "correct horse").public_key.keyid == made.public_key.keyid
    assert [each.name for each in path.parent.iterdir()] == ["fleet.key"]


@pytest.mark.parametrize("passphrase", [None, "wrong"])
def test_a_locked_key_without_its_passphrase_is_refused_and_left_alone(
    tmp_path: Path, passphrase: str | None
) -> None:
    path = tmp_path / "fleet.key"
    generate_key(path, "correct horse")
    before = path.read_bytes()
    with pytest.raises(KeyUnusable, match=r"passphrase|cannot be read"):
        load_key(path, passphrase)
    assert path.read_bytes() == before


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.key"
    generate_key(path)
    before = path.read_bytes()
    with pytest.raises(KeyUnusable, match="left alone"):
        generate_key(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_open_is_refused_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "m.key"
    generate_key(path)
    path.chmod(mode)
    with pytest.raises(KeyUnusable, match=f"{mode:04o}"):
        load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.root
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.key"
    generate_key(path)
    os.chown(path, 4711, 4711)
    with pytest.raises(KeyUnusable, match="belongs to user 4711"):
        load_key(path)


def test_a_missing_key_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable) as caught:
        load_key(tmp_path / "no.key")
    assert "copy it" in caught.value.do
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\0" * 99]
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyUnusable):
        load_key(path)
