"""`syncd`: the commands, and the one place where a command's failure becomes words and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import syncd
from syncd.cli import begin, checkpoints, daemon, versions
from syncd.cli.common import INTERRUPTED, Common, options_before, print_error
from syncd.errors import SyncdError, UsageError

# typer carries its own copy of click from 0.24 on; its BadParameter has the same base either way.
_ClickUsageError: Any = typer.BadParameter.__mro__[1]
_ClickError: Any = typer.BadParameter.__mro__[2]


class InternalError(SyncdError):
    """A bug of syncd's own."""

    code = "internal"


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
    for group in (begin, checkpoints, versions, daemon):
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


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status and never raises."""
    as_json = "--json" in arguments
    try:
        status = build_app()(list(arguments), standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SyncdError as error:
        print_error(error, as_json=as_json)
        return error.exit_status
    except _ClickUsageError as error:
        return _usage(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(as_json)
    except BrokenPipeError:  # `syncd … | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the edge: whatever is left is a bug, told as one
        return _bug(error, as_json, verbose="-v" in arguments or "--verbose" in arguments)


def _usage(error: Any, as_json: bool) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    what, _, meant = error.format_message().partition(" Did you mean ")
    name = error.ctx.command_path if error.ctx else "syncd"
    do = f"did you mean {meant} " if meant else ""
    print_error(UsageError(what.strip(), do=f"{do}`{name} --help` lists what there is"), as_json=as_json)
    return UsageError.exit_status


def _interrupted(as_json: bool) -> int:
    class Interrupted(SyncdError):
        code = "interrupted"

    if as_json:
        print_error(
            Interrupted("interrupted; nothing is half-done", do="run it again to go on"), as_json=True
        )
    else:
        print("interrupted: nothing is half-done; run it again to go on", file=sys.stderr)
    return INTERRUPTED


def _bug(error: Exception, as_json: bool, *, verbose: bool) -> int:
    if verbose:
        import traceback

        traceback.print_exc()
    told = InternalError(
        f"{type(error).__name__}: {error}",
        why="a bug in syncd: no command should end like this",
        do="run it again with -v and report what it prints",
    )
    print_error(told, as_json=as_json)
    return told.exit_status


def main() -> None:
    """The entry point of the `syncd` command."""
    sys.exit(run(sys.argv[1:]))
