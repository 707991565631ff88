"""`syncd init`, `syncd join`, `syncd check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncd.cli.common import Common, command
from syncd.errors import UsageError

if TYPE_CHECKING:
    from syncd.config import StoreSection

MAX_PASSPHRASE_BYTES = 4096


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "init", example="syncd init file:///srv/models --model resnet50")(init)
    command(
        app, "join", example="syncd join https://models.example.com/fleet --fingerprint F --model resnet50"
    )(join)
    command(app, "check", example="syncd check -c /etc/syncd/config.toml")(check)


Models = Annotated[list[str] | None, typer.Option("--model", help="may be repeated", metavar="M")]


def init(
    common: Common,
    place: Annotated[
        str | None, typer.Argument(metavar="[STORE]", help="a folder or URL; else [store] of -c")
    ] = None,
    model: Models = None,
    channel: Annotated[
        list[str] | None,
        typer.Option("--channel", help="besides latest and stable; may be repeated", metavar="C"),
    ] = None,
    own_key: Annotated[
        list[str] | None, typer.Option("--own-key", help="a channel that gets a key of its own", metavar="C")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="where the keys go", metavar="DIR")] = None,
    edge_url: Annotated[
        str | None, typer.Option("--edge-url", help="the store as edges reach it", metavar="URL")
    ] = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="leave the fleet key unlocked (try-outs)")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="the fleet key's passphrase", metavar="FILE")
    ] = None,
) -> None:
    """Found a fleet in a store: keys, first signed metadata, a starting configuration. Again: add models, channels."""
    from syncd.cli.setup import run_init

    def passphrase(new: bool) -> str | None:
        return None if no_passphrase else ask_passphrase(common, passphrase_file, new=new)

    made = run_init(
        given_store(common, place),
        models=model or [],
        channels=channel or [],
        own_key=own_key or [],
        keys=keys,
        passphrase=passphrase,
        edge_url=edge_url,
        config=common.config,
    ).as_json()
    common.give(made, _init_lines(made))


def ask_passphrase(common: Common, file: Path | None, *, new: bool) -> str:
    """The fleet key's passphrase: from its file, else asked on the terminal, twice for a new key.

    Raises:
        UsageError: it cannot be read or asked, is empty, or was typed differently.
    """
    import getpass
    import sys

    if file is not None:
        try:
            typed = file.read_text()[:MAX_PASSPHRASE_BYTES].strip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the passphrase cannot be read: {error}", path=file) from error
    elif common.no_input or not sys.stdin.isatty():
        raise UsageError(
            "the fleet key's passphrase would have to be asked",
            do="add --passphrase-file FILE, or --no-passphrase for a try-out; nothing was changed",
        )
    else:
        typed = getpass.getpass("passphrase of the fleet key: ")
        if new and typed != getpass.getpass("once more: "):
            raise UsageError("the two were different", do="try again; nothing was changed")
    if not typed:
        raise UsageError("the passphrase is empty", do="type one, or add --no-passphrase for a try-out")
    return typed


def given_store(common: Common, store: str | None) -> StoreSection:
    """The store of a command that may name it first; else `--store`, else the configuration's."""
    from dataclasses import replace

    from syncd.cli.session import store_section

    if store is None and common.store is None:
        return store_section(common)
    alone = replace(common, store=store or common.store, config=None)
    return store_section(alone, alone=True)


def _init_lines(made: dict[str, Any]) -> Iterator[str]:
    yield f"store        {made['store']}"
    yield f"fingerprint  {made['fingerprint']}"
    for each in made["models"]:
        news = (
            "new"
            if each["new"]
            else f"added {', '.join(each['added_channels'])}"
            if each["added_channels"]
            else "kept"
        )
        yield f"model        {each['model']} ({news}): channels {', '.join(each['channels'])}"
    yield f"config       {made['config']}" + ("" if made["config_new"] else " (was there; left alone)")
    for each in made["copy"]:
        yield f"copy         {each['what']}  →  {each['to']}"
    yield f"on an edge   {made['join']}"


def join(
    common: Common,
    place: Annotated[str, typer.Argument(metavar="STORE", help="a folder or URL")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="as `syncd init` printed it", metavar="F")
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="may be repeated", metavar="M[:CHANNEL]")
    ] = None,
) -> None:
    """Make this machine an edge: fetch the fleet root, check it, write a starting configuration."""
    from syncd.cli.setup import run_join

    made = run_join(
        given_store(common, place), fingerprint=fingerprint, models=model or [], config=common.config
    ).as_json()
    common.give(made, _join_lines(made))


def _join_lines(made: dict[str, Any]) -> Iterator[str]:
    yield f"store        {made['store']}"
    yield f"fingerprint  {made['fingerprint']}, as expected"
    for each in made["follows"]:
        yield f"follows      {each['model']}:{each['channel']}"
    yield f"config       {made['config']}: `syncd check -c {made['config']}`, then `syncd run -c {made['config']}`"


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
