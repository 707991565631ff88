"""How a command is declared: its common options join its own, its help ends with exit statuses and an example."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from syncd.cli.output import Common, bytes_text
from syncd.errors import Interrupted

__all__ = ["Common", "bytes_text", "command", "options_before"]

EXITS = (
    "Exit: 0 done, 1 failed, 2 usage or config, 3 refused as not authentic or corrupt, 4 store unreachable."
)


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, rich_help_panel=None, **more)


_OPTIONS: dict[str, Any] = {
    "config": Annotated[
        Path | None, _option("--config", "-c", help="the configuration file", metavar="FILE")
    ],
    "store": Annotated[str | None, _option("--store", help="in place of [store] url", metavar="URL")],
    "json": Annotated[bool, _option("--json", help="one JSON object on stdout, errors too")],
    "quiet": Annotated[bool, _option("--quiet", "-q", help="no talk on stderr")],
    "verbose": Annotated[bool, _option("--verbose", "-v", help="more talk on stderr")],
    "no_input": Annotated[bool, _option("--no-input", help="never ask")],
    "dry_run": Annotated[bool, _option("--dry-run", help="say what would be done; do nothing")],
}
_DEFAULTS = {field.name: field.default for field in fields(Common)}


def _parameters(*without: str) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=annotation
        )
        for name, annotation in _OPTIONS.items()
        if name not in without
    ]


def _gather(context: typer.Context, given: dict[str, Any]) -> Common:
    """Options may stand before the command or after it; after it wins."""
    common = context.obj if isinstance(context.obj, Common) else Common()
    mine = {name: given.pop(name) for name in _OPTIONS if name in given}
    return replace(common, **{name: value for name, value in mine.items() if value != _DEFAULTS[name]})


def options_before(function: Callable[..., None]) -> Callable[..., None]:
    """Give the app's callback the common options; they are kept for the command."""

    def callback(context: typer.Context, **given: Any) -> None:
        context.obj = _gather(context, given)
        function(context.obj, **given)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    _declare(callback, function, [*own, *_parameters("dry_run")])
    return callback


def command(
    app: typer.Typer, name: str, *, example: str, dry_run: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command: the common options join its own, and its help ends with exit statuses and an example.

    The function's first parameter is the `Common`; it may return an exit status other than 0.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(context: typer.Context, **given: Any) -> None:
            common = _gather(context, given)
            if common.verbose:
                from syncd.daemon.logs import start_logging

                start_logging(verbose=True)
            try:
                status = function(common, **given)
            except KeyboardInterrupt as error:  # before typer sees it: it would exit without a word
                raise Interrupted("nothing is half-done", do="run it again to go on") from error
            if status:
                raise typer.Exit(status)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        _declare(wrapper, function, [*own, *_parameters(*(() if dry_run else ("dry_run",)))])
        app.command(name, epilog=f"{EXITS} Example: {example}")(wrapper)
        return function

    return decorate


def _declare(wrapper: Any, function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    functools.update_wrapper(wrapper, function)
    del wrapper.__wrapped__
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    wrapper.__signature__ = inspect.Signature([context, *parameters])
    wrapper.__annotations__ = {each.name: each.annotation for each in (context, *parameters)}
