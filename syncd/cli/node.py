"""`syncd rollback`, `pin`, `unpin`, `approve`, `hold`, `resume`: what people choose for this node."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncd.cli.common import Common, command
from syncd.cli.status import daemon_address
from syncd.errors import DaemonSilent, NotInstalled, UnknownModel, UsageError

if TYPE_CHECKING:
    from syncd.config import Config, FollowSection

Model = Annotated[str, typer.Argument(metavar="M", help="a model that this node follows")]
Version = Annotated[str, typer.Argument(metavar="M@N", help="a version of it")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "rollback", example="syncd rollback resnet50")(rollback)
    command(app, "pin", example="syncd pin resnet50@41")(pin)
    command(app, "unpin", example="syncd unpin resnet50")(unpin)
    command(app, "approve", example="syncd approve resnet50@42")(approve)
    command(app, "hold", example="syncd hold resnet50")(hold)
    command(app, "resume", example="syncd resume resnet50")(resume)


def rollback(common: Common, model: Model) -> None:
    """Go back to the version before; the one that is left is not taken again unless approved."""
    result = run_choice(common, "rollback", model)
    line = (
        f"{result['model']}: version {result['version']} serves, {result['previous']} is in quarantine here"
    )
    common.give(result, [line])


def pin(common: Common, what: Version) -> None:
    """Serve this version and no other, whatever the channel releases; it is fetched if need be."""
    result = run_choice(common, "pin", what)
    held = "; the node is held, so it waits for `syncd resume`" if result["held"] else ""
    common.give(result, [f"{result['model']}: pinned to version {result['version']}{held}"])


def unpin(common: Common, model: Model) -> None:
    """Follow the channel again."""
    result = run_choice(common, "unpin", model)
    was = f"no longer pinned to version {result['previous']}" if result["previous"] else "was not pinned"
    common.give(result, [f"{result['model']}: {was}; the channel names {result['version'] or 'none'}"])


def approve(common: Common, what: Version) -> None:
    """Let a version be fetched and offered: one that waits for approval, or one in quarantine here."""
    result = run_choice(common, "approve", what)
    common.give(result, [f"{result['model']}: version {result['version']} is approved"])


def hold(common: Common, model: Model) -> None:
    """No updates on this node until `syncd resume`; going back from a failing version goes on."""
    result = run_choice(common, "hold", model)
    common.give(result, [f"{result['model']}: held; version {result['version'] or 'none'} serves on"])


def resume(common: Common, model: Model) -> None:
    """End `syncd hold`."""
    result = run_choice(common, "resume", model)
    common.give(result, [f"{result['model']}: updates go on"])


def run_choice(common: Common, name: str, what: str) -> dict[str, Any]:
    """Tell the daemon or, where none runs, keep the choice in its state file under its lock."""
    from syncd.cli.session import parse_reference
    from syncd.state.wishes import WITH_VERSION
    from syncd.status.client import send_command

    model, version, channel = parse_reference(what)
    if channel is not None or (version is None) == (name in WITH_VERSION):
        wanted = "M@N: a model and a version" if name in WITH_VERSION else "M: a model alone"
        raise UsageError(f"{name} {what!r}: it takes {wanted}", do=f"`syncd {name} --help` has an example")
    address, token_file = daemon_address(common)
    try:
        return send_command(address, model, name, version, _token(token_file))
    except DaemonSilent as error:
        if not error.nobody_listens:
            raise
        if not _has_config(common):
            raise
    return _alone(common, name, model, version)


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    from syncd.status.token import read_token

    return read_token(path)


def _has_config(common: Common) -> bool:
    from syncd import paths

    return paths.config_file(common.config) is not None


def _alone(common: Common, name: str, model: str, version: int | None) -> dict[str, Any]:
    """No daemon runs: this process takes its place for a moment."""
    from syncd.cli.session import node_path, opened_store, run_async
    from syncd.daemon.roles import read_root
    from syncd.edge.follow import Follow
    from syncd.node.links import NodeFolder
    from syncd.state.db import Database

    config = common.load()
    section = _section(config, model)
    folder = node_path(common)
    if not (folder / "state.db").is_file():
        raise NotInstalled(
            f"no daemon has ever run on {folder}: there is nothing to choose from",
            do="start `syncd run`",
            model=model,
        )
    node, root = NodeFolder(folder), read_root(config.trust.root)
    by = f"{getpass.getuser()} (uid {os.getuid()})"
    _become_owner(folder)

    async def work() -> dict[str, Any]:
        async with opened_store(config.store) as store:
            with Database(folder / "state.db") as db:
                follow = Follow(section, store=store, trust_root=root, node=node, db=db)
                return await follow.obey_alone(name, version, by)

    with node.daemon_lock():
        return run_async(work())


def _become_owner(folder: Path) -> None:
    """Root works as the folder's owner from here on: the daemon could not use what root leaves there."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([owner.st_gid])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _section(config: Config, model: str) -> FollowSection:
    found = next((each for each in config.follow if each.model == model), None)
    if found is None:
        followed = ", ".join(each.model for each in config.follow) or "none"
        raise UnknownModel(f"this node follows no model {model!r}", do=f"it follows {followed}")
    return found
