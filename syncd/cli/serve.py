"""`syncd serve`: predictors with Open Inference V2, in a process of their own."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from syncd.cli.common import Common, command
from syncd.errors import Failed, UsageError

if TYPE_CHECKING:
    from syncd.config import Config
    from syncd.predictor.server import ServeOptions

MOST_THREADS = 4
_SET_PARENT_DEATH_SIGNAL = 1


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    command(app, "serve", example="syncd serve -c /etc/syncd/config.toml")(serve)


def serve(
    common: Common,
    listen: Annotated[
        str | None, typer.Option("--listen", help="in place of [serve] listen", metavar="HOST:PORT")
    ] = None,
) -> int:
    """Answer predictions over HTTP (Open Inference V2) for the models of [serve], until SIGTERM."""
    from syncd.config import load_config
    from syncd.daemon.logs import start_logging
    from syncd.daemon.notify import Notifier
    from syncd.predictor import server

    _end_with_parent()
    start_logging(verbose=common.verbose, quiet=common.quiet)
    config = load_config(common.config, {**common.flags(), "serve.listen": listen})
    return server.serve(options_of(common, config), Notifier())


def _end_with_parent() -> None:
    """A child of `syncd run --with-serve` is told to end when its daemon is gone, however it went."""
    from syncd.daemon.child import PARENT

    parent = os.environ.pop(PARENT, "")
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    if str(os.getppid()) != parent:
        raise Failed("the daemon that this server was started for is gone")


def options_of(common: Common, config: Config) -> ServeOptions:
    """What the configuration says, as the server takes it; UsageError where there is no model to serve."""
    from syncd import paths
    from syncd.config import ServeModelSection, ServeSection
    from syncd.predictor.server import ServeOptions
    from syncd.predictor.v2.app import Limits
    from syncd.predictor.v2.models import ModelOptions

    section = config.serve or ServeSection()
    models = section.models or tuple(ServeModelSection(model=each.model) for each in config.follow)
    if not models:
        raise UsageError("there is no model to serve", do="write a [[serve.models]] for each model")
    return ServeOptions(
        node=paths.node_folder(config.node.folder, config=paths.config_file(common.config)),
        models=tuple(ModelOptions(each.model, each.device, each.inputs, each.outputs) for each in models),
        listen=section.listen,
        architectures=section.architectures,
        limits=Limits(
            max_body=section.max_body,
            within_s=section.request_within,
            threads=section.threads or max(1, min(MOST_THREADS, (os.cpu_count() or 1) // 2)),
            queue=section.queue,
        ),
        shutdown_within_s=config.shutdown_within,
    )
