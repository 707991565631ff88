"""open_predictor: a model in the application's own process that swaps to each new version by itself."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn

from syncd.errors import Failed, NotInstalled
from syncd.model.architecture import DEFAULT_ALLOWED
from syncd.node.links import NodeFolder
from syncd.paths import default_node_folder
from syncd.predictor.follow import Follower, Place
from syncd.predictor.versions import CLOSED, Serving, Unusable, VersionLoader

_NOT_YET: Final = Unusable("no version serves yet", "wait for the first with open_predictor(…, wait=…)")


class Pinned:
    """One version for a block of calls, whatever is swapped meanwhile."""

    __slots__ = ("_serving",)

    def __init__(self, serving: Serving | Unusable) -> None:
        self._serving = serving

    @property
    def version(self) -> int:
        """The version that answers in this block."""
        return self._serving.version

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """As `Predictor.__call__`, on this version."""
        return self._serving.predict(args, keywords)


class Predictor:
    """A model that answers from any number of threads, each answer by one whole version.

    Made by `open_predictor`. A context manager; `close` ends it, and so does the end of the process.
    """

    def __init__(self, follower: Follower, place: Place) -> None:
        self._follower = follower
        self._place = place
        self._end = weakref.finalize(self, _end, follower, place)
        _followers.add(follower)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """The answer of the version that serves when the call begins: `module(*args, **keywords)`, no gradients.

        Tensors among the arguments are moved to the predictor's device; the answer stays there.

        Raises: whatever forward raises, counted; Failed after `close` and in a forked child.
        """
        return (self._place.serving or _NOT_YET).predict(args, keywords)

    @property
    def version(self) -> int:
        """The version that serves now; a call made next may already meet another (see `pinned`)."""
        return (self._place.serving or _NOT_YET).version

    @contextmanager
    def pinned(self) -> Iterator[Pinned]:
        """Keep a block of calls on one version: `with predictor.pinned() as model: model(a), model(b)`."""
        yield Pinned(self._place.serving or _NOT_YET)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No swap, no loading in this process within the block; it accepts what is offered and swaps at the end."""
        self._place.hold(1)
        self._follower.wake()
        try:
            yield
        finally:
            self._place.hold(-1)
            self._follower.wake()

    def report_failed(self, version: int, reason: str) -> None:
        """Tell that `version` answers badly: this process goes back to `previous` at once, if there is one, and votes
        `failed`; in probation the daemon then takes the version back everywhere on this node."""
        self._follower.complain(version, reason)

    def close(self) -> None:
        """Stop following and answering; calls in flight finish. A second call does nothing."""
        self._end()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_predictor(
    model: str,
    *,
    node: Path | str | None = None,
    build: Callable[[], nn.Module] | None = None,
    vote: bool = True,
    wait: str | float | None = None,
    device: torch.device | str = "cpu",
    architectures: Sequence[str] = DEFAULT_ALLOWED,
) -> Predictor:
    """Load the version of `model` that serves on this machine, and follow it from then on.

    Args:
        node: the node folder; else `$SYNCD_NODE_FOLDER`, /var/lib/syncd if it exists or one is root, else XDG's.
        build: makes your own module; without it the version's head names an architecture, of `architectures` alone.
        vote: False only follows: the daemon never waits for this process.
        wait: how long to wait for a first version: "60s", or seconds; None: not at all.
        device: where the weights and the answers lie.
    Raises:
        NotInstalled: no version serves on this machine (within `wait`).
        Failed: this user may not read the node folder.
        ArchitectureRefused: the architecture is not allowed or does not fit.
        GateRefused: the version does not pass the gate here, and there is no `previous` that does.
    """
    folder = NodeFolder(node or os.environ.get("SYNCD_NODE_FOLDER") or default_node_folder()).model_folder(
        model
    )
    place = Place()
    follower = Follower(folder, VersionLoader(build, architectures, device), place, voter=vote)
    predictor = Predictor(follower, place)
    try:
        _first_version(follower, place, model, folder.path, _seconds(wait))
    except BaseException as error:
        predictor.close()
        if isinstance(error, PermissionError):
            raise Failed(
                f"user {os.geteuid()} may not read {folder.path}",
                do="let it join the group of the node folder (syncd)",
                path=folder.path,
            ) from error
        raise
    return predictor


def _first_version(follower: Follower, place: Place, model: str, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    follower.start()
    follower.wait_for_first_look()
    if place.filled.wait(max(0.0, deadline - time.monotonic())):
        return
    if follower.error is not None:
        raise follower.error
    raise NotInstalled(
        f"no version of {model} serves on this machine" + (f" after {wait_s:g} s" if wait_s else ""),
        why="the daemon has not installed one yet, or it follows into another node folder",
        do='see `syncd status`; wait="60s" waits for the first; node= names another folder',
        path=path,
    )


def _seconds(wait: str | float | None) -> float:
    if wait is None:
        return 0.0
    if isinstance(wait, str):
        from syncd.config import parse_duration

        return parse_duration(wait)
    return float(wait)


def _end(follower: Follower, place: Place) -> None:
    if isinstance(place.serving, Unusable):  # ended before, or a forked child's copy
        return
    place.end(CLOSED)
    follower.stop()


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for follower in list(_followers):
        follower.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
