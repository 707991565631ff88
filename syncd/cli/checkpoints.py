"""`syncd inspect`, `syncd publish`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from syncd.cli.common import Common, bytes_text, command
from syncd.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    command(app, "inspect", example="syncd inspect runs/7/epoch-3.pt")(inspect)
    example = "syncd publish runs/7/epoch-3.pt --model resnet50 --metric accuracy=0.94"
    command(app, "publish", example=example, dry_run=True)(publish)


PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="a checkpoint, file or directory")]


def inspect(
    common: Common,
    path: PathArgument,
    model: Annotated[
        str | None, typer.Option("--model", help="with the [publish.weights] of this model", metavar="M")
    ] = None,
) -> int:
    """A checkpoint: its kind, whether it is complete, which part is the model, what will not be served and why."""
    weights = publish_section(common, model).weights if model else None
    result = run_inspect(
        path, key=weights.key if weights else None, strip_prefix=weights.strip_prefix if weights else None
    )
    common.give(result, _inspect_lines(result, all_tensors=common.verbose))
    return 0 if result["complete"] else 3


def run_inspect(path: Path, *, key: str | None = None, strip_prefix: str | None = None) -> dict[str, Any]:
    """INTERFACE's object; an incomplete checkpoint is a result too, with `why`; other failures raise."""
    from syncd.checkpoint.read import key_text, open_checkpoint
    from syncd.checkpoint.select import select_model
    from syncd.errors import CheckpointIncomplete, ModelAmbiguous

    result: dict[str, Any] = {"path": str(path), "kind": None, "complete": False, "proof": None, "why": None}
    result |= {
        "bytes": None,
        "groups": [],
        "model": None,
        "tensors": [],
        "scalars": {},
        "left_out": [],
        "notes": [],
    }
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointIncomplete as error:
        return {**result, "why": error.what}
    with checkpoint:
        result |= {
            "kind": checkpoint.kind,
            "complete": True,
            "proof": checkpoint.proof,
            "bytes": checkpoint.size,
        }
        result["scalars"], result["notes"] = checkpoint.scalars, list(checkpoint.notes)
        result["groups"] = [
            {"key": key_text(group.key), "tensors": len(group.tensors), "aliases": group.aliases}
            for group in checkpoint.groups
        ]
        result["tensors"] = [
            {"key": key_text(each.key), "dtype": each.dtype, "shape": list(each.shape), "kind": each.kind}
            for each in checkpoint.tensors
        ]
        try:
            chosen = select_model(checkpoint, key=key, strip_prefix=strip_prefix)
        except ModelAmbiguous as error:
            return {**result, "why": error.what, "do": error.do}
        result["left_out"] = [{"key": name, "why": why} for name, why in chosen.left_out]
        if chosen.tensors:
            served = [checkpoint.tensors[each.tensor] for each in chosen.tensors]
            result["model"] = {
                "key": key_text(chosen.key),
                "tensors": len(served),
                "bytes": sum(each.nbytes for each in served),
                "names": [each.name for each in chosen.tensors],
                "aliases": chosen.aliases,
            }
    return result


def _inspect_lines(result: dict[str, Any], *, all_tensors: bool) -> Iterator[str]:
    if not result["complete"]:
        yield f"{result['path']}: not complete: {result['why']}"
        return
    yield f"{result['path']}: {result['kind']}, {bytes_text(result['bytes'])}, complete: {result['proof']}"
    for group in result["groups"]:
        yield f"group  {group['key']}: {group['tensors']} tensors"
    model = result["model"]
    if model:
        yield f"model  {model['key']}: {model['tensors']} tensors, {bytes_text(model['bytes'])}"
    else:
        yield f"model  none: {result['why'] or 'no group of tensors looks like one'}" + (
            f"\n  {result['do']}" if result.get("do") else ""
        )
    shown = result["tensors"] if all_tensors else result["tensors"][:20]
    for each in shown:
        shape = "×".join(map(str, each["shape"])) or "scalar"
        kind = "" if each["kind"] == "strided" else f"  {each['kind']}"
        yield f"  {each['key']}  {each['dtype']}  {shape}{kind}"
    if len(shown) < len(result["tensors"]):
        yield f"  … and {len(result['tensors']) - len(shown)} more (-v shows all)"
    for each in result["left_out"]:
        yield f"not served  {each['key']}: {each['why']}"
    for note in result["notes"]:
        yield f"note  {note}"


def publish(
    common: Common,
    path: PathArgument,
    model: Annotated[str, typer.Option("--model", help="the model it becomes a version of", metavar="M")],
    channel: Annotated[str | None, typer.Option("--channel", help="released here", metavar="C")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="may be repeated", metavar="K=V")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="may be repeated", metavar="T")] = None,
    note: Annotated[str, typer.Option("--note", help="a line for people", metavar="N")] = "",
    keys: Annotated[
        Path | None, typer.Option("--keys", help="in place of [trust] keys", metavar="DIR")
    ] = None,
) -> None:
    """Publish one checkpoint, now; returns when it is released. Equal content again: the existing version."""
    metrics = parse_metrics(metric or [])
    result = run_publish(
        common, path, model, channel=channel, metrics=metrics, tags=tag or [], note=note, keys=keys
    )
    common.give(result, _publish_lines(result, dry_run=common.dry_run))


def parse_metrics(pairs: list[str]) -> dict[str, float]:
    """`["accuracy=0.94"]` → `{"accuracy": 0.94}`; UsageError names the one that is wrong."""
    import math

    metrics: dict[str, float] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or not equals or not math.isfinite(number):
            raise UsageError(f"--metric {pair!r} is not NAME=NUMBER", do="write --metric accuracy=0.94")
        metrics[name] = number
    return metrics


def publish_section(common: Common, model: str, watch: Path | None = None) -> Any:
    """The `[[publish]]` of a model; one with the defaults where the configuration has none.

    Raises:
        UsageError: `model` is not a model's name.
    """
    from pydantic import ValidationError

    from syncd import paths
    from syncd.config import MODEL_NAME, PublishSection

    if paths.config_file(common.config) is not None:
        found = [section for section in common.load().publish if section.model == model]
        if watch is not None and len(found) > 1:
            found.sort(key=lambda section: section.watch.resolve() not in watch.resolve().parents)
        if found:
            return found[0]
    try:
        return PublishSection(model=model, watch=watch or Path())
    except ValidationError as error:
        raise UsageError(f"{model!r} is not a model's name", do=f"a name matches {MODEL_NAME}") from error


def run_publish(
    common: Common,
    path: Path,
    model: str,
    *,
    channel: str | None = None,
    metrics: dict[str, float] | None = None,
    tags: list[str] | None = None,
    note: str = "",
    keys: Path | None = None,
) -> dict[str, Any]:
    """INTERFACE's object of `publish`."""
    from syncd.cli.progress import Progress
    from syncd.cli.session import node_path, opened_store, run_async, store_section, trust_root
    from syncd.cli.versions import plain
    from syncd.durable import make_folder
    from syncd.publisher.publish import publish as publish_checkpoint
    from syncd.state.db import Database

    section = publish_section(common, model, path.absolute().parent)
    keys_folder = keys or configured_keys(common)
    folder = node_path(common)
    make_folder(folder, 0o750)

    async def work() -> dict[str, Any]:
        with Database(folder / "state.db") as db:
            async with opened_store(store_section(common)) as store:
                root = await trust_root(common, store, None)
                with Progress(common, f"publish {path.name}") as progress:
                    result = await publish_checkpoint(
                        path,
                        section=section,
                        store=store,
                        trust_root=root,
                        keys=keys_folder,
                        db=db,
                        channel=channel,
                        metrics=metrics or {},
                        tags=tags or [],
                        note=note,
                        progress=progress,
                        dry_run=common.dry_run,
                    )
                return plain(result)

    return run_async(work())


def configured_keys(common: Common) -> Path:
    """`[trust] keys`; UsageError where it is not set."""
    keys = common.load().trust.keys
    if keys is None:
        raise UsageError("no keys to sign with", why="[trust] keys is not set", do="add --keys DIR or set it")
    return keys


def _publish_lines(result: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    name = f"{result['model']}@{result['version'] or 'new'}"
    channels = ", ".join(result["channels"]) or "no channel"
    if not result["new"]:
        yield f"{name} has this content already: on {channels}, nothing uploaded"
    else:
        verb = "would be published" if dry_run else f"released on {channels}"
        segments = result["segments"]
        yield f"{name} {verb}: {bytes_text(result['checkpoint_bytes'])}"
        yield (
            f"  {bytes_text(result['uploaded_bytes'])} uploaded in {segments['new']} of {segments['total']} segments, "
            f"{result['seconds']:.1f} s"
        )
    for note in result.get("notes") or []:
        yield f"  note  {note}"
