"""`syncd pull`, `syncd restore`, `syncd verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from syncd.cli.common import Common, bytes_text, command
from syncd.cli.progress import Progress
from syncd.errors import UsageError

To = Annotated[Path, typer.Option("--to", help="the folder to write into", metavar="DIR")]
Fingerprint = Annotated[
    str | None,
    typer.Option("--fingerprint", help="of the fleet root, in place of [trust] root", metavar="F"),
]

AcceptExpired = Annotated[
    bool, typer.Option("--accept-expired", help="signed metadata may have passed its expiry")
]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "pull", example="syncd pull resnet50:stable --to model", dry_run=True)(pull)
    command(app, "restore", example="syncd restore resnet50 --to runs/8", dry_run=True)(restore)
    command(app, "verify", example="syncd verify resnet50@42 --remote")(verify)


def pull(
    common: Common,
    what: Annotated[str, typer.Argument(metavar="M[@N|:CHANNEL]", help="a model, a version, or a channel")],
    to: To,
    fingerprint: Fingerprint = None,
    accept_expired: AcceptExpired = False,
) -> None:
    """A version's model view, without a daemon; uses what DIR already holds."""
    result = run_pull(common, what, to, fingerprint=fingerprint, accept_expired=accept_expired)
    common.give(result, _pull_lines(result, dry_run=common.dry_run))


def _pull_lines(result: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    plan = result["plan"]
    parts = ", ".join(f"{bytes_text(count or 0)} {name}" for name, count in plan.items())
    verb = "would be pulled" if dry_run else f"is in {result['path']}"
    yield f"{result['model']}@{result['version']} {verb}: {bytes_text(result['model_bytes'])} ({parts})"
    yield (
        f"{bytes_text(result['wire_bytes'])} received in {result['requests']} requests, {result['seconds']:.1f} s"
    )


def restore(
    common: Common,
    what: Annotated[
        str, typer.Argument(metavar="M[@N]", help="a model (its newest training state) or a version")
    ],
    to: To,
    fingerprint: Fingerprint = None,
    if_any: Annotated[bool, typer.Option("--if-any", help="exit 0 where nothing was published yet")] = False,
    accept_expired: AcceptExpired = False,
) -> None:
    """Every file of a version, byte for byte, so that training resumes."""
    result = run_restore(
        common, what, to, fingerprint=fingerprint, if_any=if_any, accept_expired=accept_expired
    )
    common.give(result, _restore_lines(result, dry_run=common.dry_run))


def _restore_lines(result: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    if result["version"] is None:
        yield f"{result['model']}: nothing was published yet, nothing to restore"
        return
    verb = "would be restored" if dry_run else "restored"
    yield f"{result['model']}@{result['version']} {verb}: {bytes_text(result['wire_bytes'])} received"
    for file in result["files"]:
        yield f"  {file['path']}  {bytes_text(file['bytes'])}  {file['sha256']}"


def verify(
    common: Common,
    what: Annotated[str | None, typer.Argument(metavar="[M[@N]]", help="all installed, if left out")] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="look at the store, not at the node folder")
    ] = False,
    fingerprint: Fingerprint = None,
) -> int:
    """Every byte of what is installed (or stored) against the signed documents."""
    result = run_verify(common, what, remote=remote, fingerprint=fingerprint)
    common.give(result, _verify_lines(result))
    return 0 if result["ok"] else 3


def _verify_lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{'intact' if result['ok'] else 'NOT INTACT'}: {bytes_text(result['checked_bytes'])} checked"
    for bad in result["bad"]:
        yield f"  bad  {bad if isinstance(bad, str) else ', '.join(f'{k}={v}' for k, v in bad.items())}"


def plain(result: Any) -> dict[str, Any]:
    """A room's result object as a dictionary for JSON."""
    if is_dataclass(result) and not isinstance(result, type):
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(result).items()
        }
    return dict(result)


def run_pull(
    common: Common, what: str, to: Path, *, fingerprint: str | None = None, accept_expired: bool = False
) -> dict[str, Any]:
    """INTERFACE's object of `pull`."""
    from syncd.cli.session import opened_store, parse_reference, run_async, store_section, trust_root
    from syncd.edge.pull import pull as pull_version

    model, version, channel = parse_reference(what)

    async def work() -> dict[str, Any]:
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            with Progress(common, f"pull {model}") as progress:
                result = await pull_version(
                    store,
                    root,
                    model,
                    version=version,
                    channel=channel or "latest",
                    to=to,
                    progress=progress,
                    dry_run=common.dry_run,
                    accept_expired=accept_expired,
                )
            return plain(result)

    return run_async(work())


def run_restore(
    common: Common,
    what: str,
    to: Path,
    *,
    fingerprint: str | None = None,
    if_any: bool = False,
    accept_expired: bool = False,
) -> dict[str, Any]:
    """INTERFACE's object of `restore`."""
    from syncd.cli.session import opened_store, parse_reference, run_async, store_section, trust_root
    from syncd.edge.restore import restore as restore_version

    model, version, channel = parse_reference(what)
    if channel is not None:
        raise UsageError(f"{what!r} names a channel", do="restore M (the newest training state) or M@N")

    async def work() -> dict[str, Any]:
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            with Progress(common, f"restore {model}") as progress:
                result = await restore_version(
                    store,
                    root,
                    model,
                    version=version,
                    to=to,
                    if_any=if_any,
                    progress=progress,
                    dry_run=common.dry_run,
                    accept_expired=accept_expired,
                )
            return plain(result)

    return run_async(work())


def run_verify(
    common: Common, what: str | None, *, remote: bool = False, fingerprint: str | None = None
) -> dict[str, Any]:
    """INTERFACE's object of `verify`."""
    from syncd.cli.session import (
        node_path,
        opened_store,
        parse_reference,
        run_async,
        store_section,
        trust_root,
    )
    from syncd.edge.verify import verify_node, verify_store
    from syncd.node.links import NodeFolder

    model, version, channel = parse_reference(what) if what else (None, None, None)
    if channel is not None or (remote and (model is None or version is None)):
        raise UsageError(
            f"{what or 'everything'} cannot be verified" + (" in the store" if remote else ""),
            do="write M or M@N for this node, M@N --remote for the store",
        )

    async def work() -> dict[str, Any]:
        if not remote:
            return plain(await verify_node(NodeFolder(node_path(common)), model, version))
        assert model is not None  # checked above
        assert version is not None
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            return plain(await verify_store(store, root, model, version))

    return run_async(work())
