"""`syncd`: the one place where a command's failure becomes words and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from syncd.cli.output import print_error
from syncd.cli.status import plain_form, status
from syncd.errors import InternalError, Interrupted, SyncdError


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status and never raises."""
    as_json = "--json" in arguments
    try:
        return _dispatch(arguments)
    except SyncdError as error:
        told: SyncdError = error
    except KeyboardInterrupt:
        told = Interrupted("nothing is half-done", do="run it again to go on")
    except BrokenPipeError:  # `syncd … | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the edge: whatever is left is a bug, told as one
        told = _bug(error, verbose="-v" in arguments or "--verbose" in arguments)
    print_error(told, as_json=as_json)
    return told.exit_status


def _dispatch(arguments: Sequence[str]) -> int:
    common = plain_form(arguments)
    if common is not None:
        status(common)
        return 0
    from syncd.cli.app import run_app

    return run_app(arguments)


def _bug(error: Exception, *, verbose: bool) -> InternalError:
    if verbose:
        import traceback

        traceback.print_exc()
    return InternalError(
        f"{type(error).__name__}: {error}",
        why="a bug in syncd: no command should end like this",
        do="run it again with -v and report what it prints",
    )


def main() -> None:
    """The entry point of the `syncd` command."""
    sys.exit(run(sys.argv[1:]))
