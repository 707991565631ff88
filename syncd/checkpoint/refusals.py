"""From what went wrong with a checkpoint to the error that people read: what, why, what to do, what is not lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

from syncd.errors import (
    CheckpointChanged,
    CheckpointHostile,
    CheckpointIncomplete,
    CheckpointUnreadable,
    CheckpointUnsupported,
    CheckpointVanished,
    Failed,
)


def changed(path: Path, what: str) -> CheckpointChanged:
    return CheckpointChanged(
        f"{path.name} changed while it was read: {what}",
        why="training is writing to it",
        do="nothing was published; it is looked at again when it is quiet",
        path=path,
    )


def refuse(path: Path, answer: dict[str, Any]) -> NoReturn:
    outcome, what = answer.get("outcome"), str(answer.get("what", ""))[:1000]
    if outcome == "incomplete":
        raise CheckpointIncomplete(
            f"{path.name} is not complete: {what}",
            why="training has not finished writing it, or died while it did",
            do="nothing was published; it is looked at again when it changes",
            path=path,
        )
    if outcome == "hostile":
        raise CheckpointHostile(
            f"{path.name} is refused: {what}",
            why="no training library writes this; nothing in the file was executed",
            do="find out who wrote it; other checkpoints are not affected",
            path=path,
        )
    if outcome == "unsupported":
        raise CheckpointUnsupported(
            f"{path.name} is not read by this syncd: {what}",
            do="publish a file written by torch.save or safetensors; nothing was changed",
            path=path,
        )
    if outcome == "unreadable":
        raise CheckpointUnreadable(f"{path.name} could not be read: {what}", path=path)
    raise Failed(f"{path.name} could not be read: {what}", do="try again; nothing was changed", path=path)


def refuse_os_error(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        raise CheckpointVanished(
            f"{path} is not there", why="training has rotated it away, or the path is wrong", path=path
        ) from None
    if error.errno in (errno.EACCES, errno.EPERM):
        raise CheckpointUnreadable(
            f"{path.name} is not readable for user {os.geteuid()}",
            why="training libraries write files that only their own user may read (mode 0600)",
            do="run the publisher as the user who trains: syncd-publish@USER.service; nothing is lost",
            path=path,
        ) from None
    raise CheckpointUnreadable(
        f"{path.name} could not be read: {os.strerror(error.errno or 0)}", path=path
    ) from None
