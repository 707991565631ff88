"""`syncd run`, `syncd status`, `syncd demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from syncd.cli.common import Common, command
from syncd.cli.status import status


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "run", example="syncd run -c /etc/syncd/config.toml")(run)
    command(app, "status", example="syncd status --json")(status)
    command(app, "demo", example="syncd demo --keep /tmp/demo")(demo)


def run(
    common: Common,
    with_serve: Annotated[
        bool, typer.Option("--with-serve", help="`syncd serve` as a child: for laptops and containers")
    ] = False,
) -> int:
    """The daemon: publish what training writes, follow what is released, until SIGTERM. SIGHUP reloads."""
    from syncd import paths
    from syncd.daemon.logs import start_logging
    from syncd.daemon.run import run_daemon

    start_logging(verbose=common.verbose, quiet=common.quiet)
    return run_daemon(
        common.load,
        config_file=paths.config_file(common.config),
        serve_words=common.words() if with_serve else None,
    )


def demo(
    common: Common,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="keep everything in this new folder", metavar="DIR")
    ] = None,
) -> None:
    """The whole line, live, on this machine: training, publishing, following, predicting, a kill, a restore."""
    result = run_demo(common, keep)
    common.give(result, _demo_lines(result))


def run_demo(common: Common, keep: Path | None) -> dict[str, Any]:
    """INTERFACE's object; on a terminal the picture is drawn while it happens, elsewhere each phase is a line."""
    import sys

    from syncd.demo.run import Story
    from syncd.demo.run import run as tell

    if common.quiet or not sys.stderr.isatty():
        said: set[str] = set()

        def say(story: Story) -> None:
            if story.phase not in said:
                said.add(story.phase)
                common.say(story.phase)

        return tell(say, keep=keep)

    from rich.console import Console
    from rich.live import Live

    from syncd.demo.picture import draw

    with Live(console=Console(stderr=True), refresh_per_second=5) as live:
        return tell(lambda story: live.update(draw(story)), keep=keep)


def _demo_lines(result: dict[str, Any]) -> Iterator[str]:
    predictions = result["predictions"]
    for each in result["versions"]:
        yield f"version {each['version']}: " + ", ".join(
            f"{k} {v}" for k, v in each.items() if k != "version"
        )
    yield "predictions: " + ", ".join(f"{name} {value}" for name, value in predictions.items())
    for each in result["refused"]:
        yield f"refused {each['version']} at the {each['stage']}: {each['reason']}"
    yield "restore: " + ", ".join(f"{name} {value}" for name, value in result["restore"].items())
