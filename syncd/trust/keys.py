"""Signing keys in files: the fleet's under a passphrase, a model's online key and a channel's own without one.

A key file belongs to this user (or root) and is open to nobody else (0600 or 0400), or it is refused. Ed25519, PEM.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from syncd.durable import fsync_folder, make_folder, write_all
from syncd.errors import KeyUnusable

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

_MAX_KEY_BYTES = 16 * 1024


def fleet_key_path(keys: Path) -> Path:
    """`KEYS/fleet.key`."""
    return keys / "fleet.key"


def model_key_path(keys: Path, model: str) -> Path:
    """`KEYS/models/MODEL.key`: the online key."""
    return keys / "models" / f"{model}.key"


def channel_key_path(keys: Path, model: str, channel: str) -> Path:
    """`KEYS/channels/MODEL/CHANNEL.key`: a channel's own key, where it has one."""
    return keys / "channels" / model / f"{channel}.key"


def generate_key(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Make a new key at `path` (0600, durable before it returns); a file that is there is never replaced.

    Args:
        passphrase: None or empty writes the key unencrypted.
    Raises:
        KeyUnusable: `path` exists, or the disk refuses it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )
    from securesystemslib.signer import CryptoSigner

    private = Ed25519PrivateKey.generate()
    locked: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    _create(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return CryptoSigner(private)


def is_locked(path: Path) -> bool:
    """Whether the key wants a passphrase. Raises KeyUnusable as `load_key`."""
    return b"ENCRYPTED" in _read(path)


def load_key(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Read a key.

    Raises:
        KeyUnusable: missing, open to others, owned by another user, locked, or not an Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = _read(path)
    try:
        private = load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError as error:  # locked and no passphrase, or a passphrase for a key that is not locked
        if passphrase:
            return load_key(path)
        raise KeyUnusable(
            "the key is locked by a passphrase and none was given", do="give its passphrase", path=path
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(
            "the key cannot be read",
            why="a wrong passphrase, or not a PEM file of syncd",
            do="nothing was changed: try again, or restore the file from your backup",
            path=path,
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnusable(
            "the key is not an Ed25519 key", do="use the file that `syncd init` wrote", path=path
        )
    return CryptoSigner(private)


def _create(path: Path, data: bytes) -> None:
    """Write aside and link: the name never holds half a key, and an existing one is never replaced."""
    make_folder(path.parent, 0o700)
    aside = path.parent / f".part-{os.getpid()}-{path.name}"
    try:
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.hardlink_to(aside)
    except FileExistsError as error:
        raise KeyUnusable("there is a key already; it was left alone", path=path) from error
    except OSError as error:
        raise KeyUnusable(f"the key cannot be written: {error.strerror}", path=path) from error
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise KeyUnusable(
            "there is no such key on this machine",
            do="copy it from the machine where `syncd init` ran; nothing was changed",
            path=path,
        ) from error
    except OSError as error:
        raise KeyUnusable(f"the key cannot be opened: {error.strerror}", path=path) from error
    try:
        _refuse_open_to_others(os.fstat(descriptor), path)
        return os.read(descriptor, _MAX_KEY_BYTES)
    finally:
        os.close(descriptor)


def _refuse_open_to_others(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyUnusable("the key is not a regular file", path=path)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise KeyUnusable(
            f"the key file has mode {mode:04o}: others can read or change it",
            do=f"chmod 600 {path}; if others were on this machine, make new keys",
            path=path,
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyUnusable(
            f"the key file belongs to user {status.st_uid}, this is user {os.geteuid()}",
            do=f"chown it to user {os.geteuid()}",
            path=path,
        )
