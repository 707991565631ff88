"""The typer app with every command, and how its usage errors are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

import syncd
from syncd.cli import begin, checkpoints, daemon, node, releases, serve, versions
from syncd.cli.common import Common, options_before
from syncd.errors import UsageError

# typer carries its own copy of click in newer releases; its BadParameter has the same base either way.
_ClickUsageError: Any = typer.BadParameter.__mro__[1]


def build_app() -> typer.Typer:
    """The app with every command."""
    app = typer.Typer(
        name="syncd",
        help="Carry the newest good checkpoint from training to every predictor: signed, verified, without a pause.",
        no_args_is_help=True,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    app.callback()(options_before(_start))
    for group in (begin, checkpoints, versions, releases, node, daemon, serve):
        group.register(app)
    return app


def _start(
    common: Common,
    version: Annotated[
        bool, typer.Option("--version", help="say which syncd this is", is_eager=True)
    ] = False,
) -> None:
    """Carry the newest good checkpoint from training to every predictor: signed, verified, without a pause."""
    if version:
        common.give({"version": syncd.__version__}, [f"syncd {syncd.__version__}"])
        raise typer.Exit(0)


def run_app(arguments: Sequence[str]) -> int:
    """Run one command line; usage errors become UsageError, all else is raised as it is."""
    try:
        status = build_app()(list(arguments), prog_name="syncd", standalone_mode=False)
    except _ClickUsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return UsageError.exit_status
        raise _usage(error) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    return status if isinstance(status, int) else 0


def _usage(error: Any) -> UsageError:
    what, _, meant = error.format_message().partition(" Did you mean ")
    if not meant:
        what, _, meant = what.partition(" (Possible options: ")
    name = error.ctx.command_path if error.ctx else "syncd"
    do = f"did you mean {meant.rstrip(')?')}? " if meant else ""
    return UsageError(what.strip(), do=f"{do}`{name} --help` lists what there is")
