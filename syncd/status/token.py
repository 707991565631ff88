"""The token that changes over TCP must bring: read from a file that others cannot read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from syncd.errors import UsageError

MAX_TOKEN_BYTES: Final = 4096
LEAST_TOKEN: Final = 16


def read_token(path: Path) -> str:
    """The token in `path`: one line of at least 16 printable letters without blanks.

    Raises:
        UsageError: it cannot be read, everybody can read it, or it is no token.
    """
    do = "make one: `(umask 077; openssl rand -hex 32 > FILE)`, its owner the user that runs the daemon"
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as problem:
        raise UsageError(f"the token file cannot be read: {problem.strerror}", do=do, path=path) from problem
    if mode & 0o027:
        raise UsageError(
            f"the token file has mode {mode:04o}: others can read or change it",
            do=f"chmod 600 {path}",
            path=path,
        )
    token = data.decode("ascii", "replace").strip()
    if (
        not LEAST_TOKEN <= len(token) <= MAX_TOKEN_BYTES
        or not token.isprintable()
        or " " in token
        or not token.isascii()
    ):
        raise UsageError(
            f"the token file holds no token: one line of {LEAST_TOKEN} letters or more", do=do, path=path
        )
    return token
