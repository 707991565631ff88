"""`syncd versions`, `syncd show`, `syncd diff`, `syncd promote`, `syncd yank`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncd.cli.common import Common, bytes_text, command
from syncd.cli.versions import Fingerprint
from syncd.errors import UsageError

if TYPE_CHECKING:
    from syncd.artifact.index import IndexEntry
    from syncd.edge.face import Documents
    from syncd.publisher.commit import ModelRepository
    from syncd.publisher.promote import Desk
    from syncd.store.base import Store

_DECIMALS = 6


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "versions", example="syncd versions resnet50")(versions)
    command(app, "show", example="syncd show resnet50@42")(show)
    command(app, "diff", example="syncd diff resnet50@41 resnet50@42")(diff)
    command(app, "promote", example="syncd promote resnet50@42 stable", dry_run=True)(promote)
    example = 'syncd yank resnet50@42 --reason "trained on mislabelled data"'
    command(app, "yank", example=example, dry_run=True)(yank)


Version = Annotated[str, typer.Argument(metavar="M@N", help="a version")]
Keys = Annotated[Path | None, typer.Option("--keys", help="in place of [trust] keys", metavar="DIR")]


def versions(
    common: Common,
    what: Annotated[str | None, typer.Argument(metavar="[M]", help="a model; all, if left out")] = None,
    fingerprint: Fingerprint = None,
) -> None:
    """Every kept version: time, bytes, metrics, tags, channels, and who signed."""
    result = run_versions(common, what, fingerprint=fingerprint)
    common.give(result, _versions_lines(result))


def _versions_lines(result: dict[str, Any]) -> Iterator[str]:
    for each in result["versions"]:
        marks = [f"[{name}]" for name in each["channels"]]
        marks += [f"{name}={value:.{_DECIMALS}g}" for name, value in each["metrics"].items()]
        marks += [f"#{tag}" for tag in each["tags"]]
        marks += ["training state"] if each["training_state"] else []
        marks += [each["note"]] if each["note"] else []
        marks += [f"YANKED: {each['yanked']}"] if each["yanked"] else []
        sizes = f"{bytes_text(each['checkpoint_bytes'])} (model {bytes_text(each['model_bytes'])})"
        yield f"{each['model']}@{each['version']}  {each['created_at']}  {sizes}  {'  '.join(marks)}".rstrip()
    for model in result["models"]:
        signed = ", ".join(
            f"{role} by {', '.join(k[:12] for k in keys)}" for role, keys in model["signed_by"].items()
        )
        yield f"{model['model']}: {model['versions']} version{'s' * (model['versions'] != 1)}; {signed}"
    if not result["models"]:
        yield "there is no model in the store"


def show(common: Common, what: Version, fingerprint: Fingerprint = None) -> None:
    """What a version is: its signed head, the channels it is on."""
    result = run_show(common, what, fingerprint=fingerprint)
    common.give(result, _show_lines(result))


def _show_lines(result: dict[str, Any]) -> Iterator[str]:
    channels = ", ".join(result["channels"]) or "on no channel"
    yield f"{result['model']}@{result['version']}  {result['created_at']}  {channels}"
    if result["yanked"]:
        yield f"  YANKED      {result['yanked']}"
    yield f"  checkpoint  {result['checkpoint_kind']}, {bytes_text(result['checkpoint_bytes'])}"
    parts = f"{result['tensors']} tensors, {result['segments']} segments"
    yield f"  model       {bytes_text(result['model_bytes'])} in {parts}"
    for name in ("architecture", "golden", "metrics", "tags", "note", "provenance"):
        if result.get(name):
            yield f"  {name:<11} {_text(result[name])}"
    for file in result["files"]:
        digest = file["digest"].removeprefix("sha256:")
        yield f"  {file['use']:<11} {file['path']}  {bytes_text(file['size'])}  {digest}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def diff(common: Common, a: Version, b: Version, fingerprint: Fingerprint = None) -> None:
    """Tensors that were added, removed, changed from the first version to the second; exact, to the last bit."""
    result = run_diff(common, a, b, fingerprint=fingerprint)
    common.give(result, _diff_lines(result))


def _diff_lines(result: dict[str, Any]) -> Iterator[str]:
    for mark, kind in (("+", "added"), ("-", "removed"), ("~", "changed")):
        for each in result[kind]:
            was = each.get("was")
            before = f"  was {was['dtype']} {_shape(was)}" if was else ""
            yield f"{mark} {each['name']}  {each['dtype']} {_shape(each)}{before}"
    for name, (before, after) in result["metrics"].items():
        yield f"  {name}: {before} → {after}"
    counts = ", ".join(f"{len(result[kind])} {kind}" for kind in ("added", "removed", "changed"))
    yield f"{result['model']}@{result['a']} → @{result['b']}: {counts}, {result['unchanged']} unchanged"


def _shape(tensor: dict[str, Any]) -> str:
    return "×".join(map(str, tensor["shape"])) or "scalar"


def promote(
    common: Common,
    what: Version,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="released here")],
    keys: Keys = None,
) -> None:
    """Release an existing version on a channel, up or down; uploads no weights."""
    result = run_promote(common, what, channel, keys=keys)
    common.give(result, _promote_lines(result, dry_run=common.dry_run))


def _promote_lines(result: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    name = f"{result['model']}@{result['version']}"
    before = f", was {result['previous']}" if result["previous"] is not None else ""
    place = f"{result['channel']} (release {result['release']}{before})"
    if dry_run:
        yield f"{name} would be released on {place}" + (
            "" if result["committed"] else " by a running publisher"
        )
    elif result["committed"]:
        yield f"{name} is released on {place}"
    else:
        yield f"{name} is signed for {place} and waits in the store: a running publisher commits it"


def yank(
    common: Common,
    what: Version,
    reason: Annotated[str, typer.Option("--reason", help="for people, kept with the version", metavar="R")],
    keys: Keys = None,
) -> int:
    """Withdraw a version: nobody installs it any more, nodes that serve it go back to the one before."""
    result = run_yank(common, what, reason, keys=keys)
    common.give(result, _yank_lines(result, dry_run=common.dry_run))
    return 1 if result["unsigned"] else 0


def _yank_lines(result: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    name = f"{result['model']}@{result['version']}"
    yield f"{name} {'would be' if dry_run else 'is'} yanked on {', '.join(result['channels']) or 'no channel'}"
    for channel in result["pending"]:
        yield f"  {channel}: signed; a running publisher commits it"
    for channel in result["unsigned"]:
        yield f"  {channel}: NOT YANKED there, its key is not on this machine: run it where that key is"
    for channel in result["named_by"]:
        yield f"  {channel} still names it: `syncd promote {result['model']}@N {channel}` gives new nodes another"


def run_versions(common: Common, what: str | None, *, fingerprint: str | None = None) -> dict[str, Any]:
    """INTERFACE's object of `versions`."""
    from syncd.cli.session import opened_store, parse_reference, run_async, store_section, trust_root

    model, version, channel = parse_reference(what) if what else (None, None, None)
    if version is not None or channel is not None:
        raise UsageError(f"{what!r} is not a model", do="write M; `syncd show M@N` tells of one version")

    async def work() -> dict[str, Any]:
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            wanted = [model] if model is not None else await _models(common, store)
            found: dict[str, Any] = {"versions": [], "models": []}
            for name in wanted:
                async with _reading(store, name, root) as repository:
                    state = await repository.state()
                    found["versions"] += [_version(repository, each) for each in repository.index.versions]
                    signed = {
                        role: list(keys)
                        for role, keys in state.keys.items()
                        if role not in ("root", "targets")
                    }
                    count = len(repository.index.versions)
                    channels = {name: facts and facts.version for name, facts in repository.channels.items()}
                    found["models"].append(
                        {"model": name, "versions": count, "channels": channels, "signed_by": signed}
                    )
            return found

    return run_async(work())


async def _models(common: Common, store: Store) -> list[str]:
    """The models that the configuration names; where it names none, those that the store holds."""
    from syncd import paths

    if paths.config_file(common.config) is not None:
        config = common.load()
        named = {each.model for each in config.publish} | {each.model for each in config.follow}
        if named:
            return sorted(named)
    if not store.capabilities.list:
        raise UsageError(
            "this store cannot be listed", do="name a model: `syncd versions M`", store=store.url
        )
    return sorted({each.key.split("/")[1] async for each in store.list("models") if each.key.count("/") > 1})


@asynccontextmanager
async def _reading(store: Store, model: str, root: bytes) -> AsyncIterator[ModelRepository]:
    """The model's verified state; nothing is kept."""
    import tempfile

    from syncd.publisher.commit import open_model

    _refuse_no_name(model)
    with tempfile.TemporaryDirectory(prefix="syncd-read-") as aside:
        yield await open_model(store, model, root, None, Path(aside) / "trust")


def _refuse_no_name(model: str) -> None:
    from syncd.trust.names import is_name

    if not is_name(model):
        raise UsageError(f"{model!r} is not a model's name", do="a name matches [a-z0-9][a-z0-9._-]{0,63}")


def _version(repository: ModelRepository, entry: IndexEntry) -> dict[str, Any]:
    return {
        "model": repository.model,
        "version": entry.version,
        "created_at": entry.created_at,
        "checkpoint_bytes": entry.checkpoint_bytes,
        "model_bytes": entry.model_bytes,
        "metrics": dict(entry.metrics),
        "tags": list(entry.tags),
        "note": entry.note,
        "channels": _channels(repository, entry.version),
        "training_state": entry.training_state,
        "yanked": entry.yanked or None,
    }


def _channels(repository: ModelRepository, version: int) -> list[str]:
    return sorted(name for name, facts in repository.channels.items() if facts and facts.version == version)


def _model_version(what: str) -> tuple[str, int]:
    from syncd.cli.session import parse_reference

    model, version, _ = parse_reference(what)
    if version is None:
        raise UsageError(f"{what!r} names no version", do="write M@N; `syncd versions M` lists them")
    _refuse_no_name(model)
    return model, version


async def _documents(store: Store, repository: ModelRepository, entry: IndexEntry, aside: Path) -> Documents:
    from syncd.edge.documents import DocumentCache, read_documents
    from syncd.edge.standing import Target

    target = Target(entry.version, entry.head.digest, entry.head.length)
    return await read_documents(repository.trust, DocumentCache(aside), repository.model, target)


def run_show(common: Common, what: str, *, fingerprint: str | None = None) -> dict[str, Any]:
    """INTERFACE's object of `show`: the head, with the channels that name it."""
    import json
    import tempfile

    from syncd.cli.session import opened_store, run_async, store_section, trust_root

    model, version = _model_version(what)

    async def work() -> dict[str, Any]:
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            async with _reading(store, model, root) as repository:
                entry = repository.entry(version)
                with tempfile.TemporaryDirectory(prefix="syncd-show-") as aside:
                    documents = await _documents(store, repository, entry, Path(aside))
                head: dict[str, Any] = json.loads(documents.head_bytes)
                return {
                    **head,
                    "channels": _channels(repository, version),
                    "head_digest": entry.head.digest,
                    "tensors": len(documents.layout.tensors),
                    "segments": len(documents.layout.segments),
                    "packs": len(documents.table.packs),
                    "yanked": entry.yanked or None,
                }

    return run_async(work())


def run_diff(common: Common, a: str, b: str, *, fingerprint: str | None = None) -> dict[str, Any]:
    """INTERFACE's object of `diff`."""
    import tempfile

    from syncd.cli.compare import compare
    from syncd.cli.session import opened_store, run_async, store_section, trust_root

    (model, first), (other, second) = _model_version(a), _model_version(b)
    if model != other:
        raise UsageError(f"{model} and {other} are two models", do="compare versions of one")

    async def work() -> dict[str, Any]:
        async with opened_store(store_section(common)) as store:
            root = await trust_root(common, store, fingerprint)
            async with _reading(store, model, root) as repository:
                entries = repository.entry(first), repository.entry(second)
                with tempfile.TemporaryDirectory(prefix="syncd-diff-") as aside:
                    old, new = [await _documents(store, repository, each, Path(aside)) for each in entries]
                found = await compare(store, old, new)
            metrics = {
                name: [entries[0].metrics.get(name), entries[1].metrics.get(name)]
                for name in sorted({*entries[0].metrics, *entries[1].metrics})
                if entries[0].metrics.get(name) != entries[1].metrics.get(name)
            }
            return {
                "model": model,
                "a": first,
                "b": second,
                **asdict(found),
                "metrics": metrics,
                "wire_bytes": store.wire_bytes,
            }

    return run_async(work())


def run_promote(common: Common, what: str, channel: str, *, keys: Path | None = None) -> dict[str, Any]:
    """INTERFACE's object of `promote`."""
    from syncd.cli.session import run_async
    from syncd.publisher.promote import promote as promote_version

    model, version = _model_version(what)

    async def work() -> dict[str, Any]:
        async with _desk(common, model, keys) as desk:
            return asdict(await promote_version(desk, version, channel, dry_run=common.dry_run))

    return run_async(work())


def run_yank(common: Common, what: str, reason: str, *, keys: Path | None = None) -> dict[str, Any]:
    """INTERFACE's object of `yank`."""
    from syncd.cli.session import run_async
    from syncd.publisher.promote import yank as yank_version

    model, version = _model_version(what)

    async def work() -> dict[str, Any]:
        async with _desk(common, model, keys) as desk:
            return asdict(await yank_version(desk, version, reason, dry_run=common.dry_run))

    return run_async(work())


@asynccontextmanager
async def _desk(common: Common, model: str, keys: Path | None) -> AsyncIterator[Desk]:
    """Store, keys and folder of a command that signs; the folder is the publisher's of this machine."""
    from syncd.cli.checkpoints import configured_keys
    from syncd.cli.session import node_path, opened_store, store_section, trust_root
    from syncd.durable import make_folder
    from syncd.publisher.promote import Desk

    keys = keys or configured_keys(common)
    folder = node_path(common)
    await asyncio.to_thread(make_folder, folder, 0o750)
    async with opened_store(store_section(common)) as store:
        root = await trust_root(common, store, None)
        yield Desk(store, model, root, keys, folder / "trust" / "publisher" / model / "trust")
