"""`syncd run`, `syncd status`, `syncd demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from syncd.cli.common import Common, bytes_text, command


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "run", example="syncd run -c /etc/syncd/config.toml")(run)
    command(app, "status", example="syncd status --json")(status)
    command(app, "demo", example="syncd demo --keep /tmp/demo")(demo)


def run(common: Common) -> int:
    """The daemon: publish what training writes, follow what is released, until SIGTERM. SIGHUP reloads."""
    from syncd import paths
    from syncd.daemon.logs import start_logging
    from syncd.daemon.run import run_daemon

    start_logging(verbose=common.verbose, quiet=common.quiet)
    return run_daemon(common.load, config_file=paths.config_file(common.config))


def status(common: Common) -> None:
    """What the daemon of this machine is doing."""
    document = run_status(common)
    common.give(document, _status_lines(document))


def run_status(common: Common) -> dict[str, Any]:
    """Ask the daemon; reads no more of the configuration than its address: this command is light."""
    from syncd import paths
    from syncd.configfile import read_sources
    from syncd.errors import UsageError
    from syncd.status.client import fetch_status

    file = paths.config_file(common.config)
    section = read_sources(file).document.get("status")
    listen = section.get("listen") if isinstance(section, dict) else None
    address = paths.status_address(listen if isinstance(listen, str) else None, config=file)
    try:
        paths.parse_address(address)
    except ValueError as error:
        raise UsageError(
            f"[status] listen is {address!r}: {error}", do="`syncd check` says what is allowed"
        ) from error
    return fetch_status(address)


def _status_lines(document: dict[str, Any]) -> Iterator[str]:
    store = document.get("store") or {}
    reachable = {True: "reachable", False: "unreachable", None: "not asked yet"}[store.get("reachable")]
    yield f"{document.get('node')}  syncd {document.get('version')}, since {document.get('started_at')}"
    skew = store.get("clock_skew_s")
    late = f", its clock is {skew:+.0f} s from ours" if skew is not None and abs(skew) >= 5 else ""
    yield f"store  {store.get('url')}: {reachable}, last answer {store.get('last_contact') or 'never'}{late}"
    for each in document.get("published") or []:
        yield (
            f"publish  {each['model']}: {each['state'] or '-'}, last version {each['last_version'] or 'none'}, "
            f"{each['pending'] or 0} waiting"
        )
        if each.get("last_error"):
            yield f"  last error: {_text(each['last_error'])}"
        for ignored in (each.get("ignored") or [])[:10]:
            yield f"  ignored {ignored['path']}: {ignored['why']}"
    for each in document.get("models") or []:
        yield from _model_lines(each)
    for name, code in (document.get("failing") or {}).items():
        yield f"failing  {name}: {code}"


def _text(error: Any) -> str:
    return f"{error.get('code')}: {error.get('what')}" if isinstance(error, dict) else str(error)


def _model_lines(each: dict[str, Any]) -> Iterator[str]:
    yield (
        f"follow  {each['model']}:{each['channel']}: {each['state'] or '-'}, serving {each['serving'] or 'none'}, "
        f"available {each['available'] or 'none'}, previous {each['previous'] or 'none'}, "
        f"{bytes_text(each['wire_bytes'] or 0)} received"
    )
    if each.get("probation_until"):
        yield f"  on probation until {each['probation_until']}"
    for refused in each.get("quarantined") or []:
        yield f"  quarantined {refused['version']}: {refused['reason']}"
    for one in each.get("followers") or []:
        latency = (
            f", p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms"
            if one.get("p50_ms") is not None
            else ""
        )
        yield (
            f"  follower {one['id']}: version {one['version'] or '-'}, {one['predictions'] or 0} predictions, "
            f"{one['errors'] or 0} errors{latency}"
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
