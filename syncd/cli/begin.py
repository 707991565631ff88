"""`syncd init`, `syncd join`, `syncd check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from syncd.cli.common import Common, command


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "check", example="syncd check -c /etc/syncd/config.toml")(check)


def check(common: Common) -> int:
    """Prove a configuration before it is trusted: keys, permissions, store, clock, folders, room."""
    from syncd.cli.check import run_check

    result = run_check(common)
    status: int = result.pop("exit_status")
    common.give(result, _check_lines(result))
    return status


def _check_lines(result: dict[str, Any]) -> Iterator[str]:
    for each in result["checks"]:
        yield f"{'ok  ' if each['ok'] else 'FAIL'}  {each['name']}: {each['detail']}"
        if each["fix"]:
            yield f"      do: {each['fix']}"
    failed = sum(not each["ok"] for each in result["checks"])
    yield "everything that was tried works" if not failed else f"{failed} of {len(result['checks'])} failed"
