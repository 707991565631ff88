"""The blocking front of publishing, pulling and restoring, for training scripts and notebooks.

What a call does not say comes from the configuration, found as the commands find it: `config=`, /etc/syncd/config.toml,
then the user's own. The command line does the same with the same rooms; this adds no behaviour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from syncd.config import Config, PublishSection
    from syncd.edge.pull import PullResult
    from syncd.edge.restore import RestoreResult
    from syncd.publisher.publish import PublishResult
    from syncd.store.base import Store

T = TypeVar("T")


def publish(
    path: str | Path,
    *,
    model: str,
    channel: str | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    config: str | Path | None = None,
) -> PublishResult:
    """Publish one checkpoint, now; returns when version and release can be read.

    Equal content again gives the existing version, with `new` False. The `[[publish]]` section of the model says what
    is not an argument; without one the defaults hold.
    Raises:
        errors.SyncdError: with code, what, why and do; for publishing `syncd.publisher.publish.publish` lists them.
    """
    from syncd.config import load_config
    from syncd.daemon.roles import read_root
    from syncd.durable import make_folder
    from syncd.paths import config_file, node_folder
    from syncd.publisher.publish import publish as publish_checkpoint
    from syncd.state.db import Database

    settings = load_config(config)
    checkpoint = Path(path).absolute()
    section = _section(settings, model, checkpoint)
    given = Path(config) if config is not None else None
    folder = node_folder(settings.node.folder, config=config_file(given))
    make_folder(folder, 0o750)

    async def work(store: Store) -> PublishResult:
        root = await asyncio.to_thread(read_root, settings.trust.root)
        with Database(folder / "state.db") as db:
            return await publish_checkpoint(
                checkpoint,
                section=section,
                store=store,
                trust_root=root,
                keys=settings.trust.keys,
                db=db,
                channel=channel,
                metrics=metrics,
                tags=tags,
                note=note,
            )

    return _with_store(settings, work)


def pull(
    model: str,
    *,
    to: str | Path,
    version: int | None = None,
    channel: str = "latest",
    config: str | Path | None = None,
) -> PullResult:
    """Bring a version's model view to the folder `to`: model.safetensors, head.json, side files.

    Uses what the folder holds already; `syncd.edge.pull.pull` lists what it raises.
    """
    from syncd.config import load_config
    from syncd.daemon.roles import read_root
    from syncd.edge.pull import pull as pull_version

    settings = load_config(config)

    async def work(store: Store) -> PullResult:
        root = await asyncio.to_thread(read_root, settings.trust.root)
        return await pull_version(store, root, model, version=version, channel=channel, to=Path(to))

    return _with_store(settings, work)


def restore(
    model: str,
    *,
    to: str | Path,
    version: int | None = None,
    if_any: bool = False,
    config: str | Path | None = None,
) -> RestoreResult:
    """Bring every file of a version back, byte for byte; by default of the newest version with training state.

    Args:
        if_any: where nothing was published yet, do nothing: for the first run of a training script.
    `syncd.edge.restore.restore` lists what it raises.
    """
    from syncd.config import load_config
    from syncd.daemon.roles import read_root
    from syncd.edge.restore import restore as restore_version

    settings = load_config(config)

    async def work(store: Store) -> RestoreResult:
        root = await asyncio.to_thread(read_root, settings.trust.root)
        return await restore_version(store, root, model, version=version, to=Path(to), if_any=if_any)

    return _with_store(settings, work)


def _section(settings: Config, model: str, checkpoint: Path) -> PublishSection:
    """The model's section, of several the one that watches the checkpoint's folder; else one with the defaults."""
    from pydantic import ValidationError

    from syncd.config import MODEL_NAME, PublishSection
    from syncd.errors import UsageError

    found = [section for section in settings.publish if section.model == model]
    found.sort(key=lambda section: section.watch.resolve() not in checkpoint.resolve().parents)
    if found:
        return found[0]
    try:
        return PublishSection(model=model, watch=checkpoint.parent)
    except ValidationError as error:
        raise UsageError(f"{model!r} is not a model's name", do=f"a name matches {MODEL_NAME}") from error


def _with_store(settings: Config, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        from syncd.store.open import open_store

        store = await asyncio.to_thread(open_store, settings.store)
        try:
            return await work(store)
        finally:
            await store.aclose()

    return _run(run)


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end on a loop of its own; from inside a running loop (a notebook) in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1, thread_name_prefix="syncd-api") as thread:
        return thread.submit(lambda: asyncio.run(work())).result()
