"""`syncd join` as a function: fetch the fleet root, check it and the models under it, write an edge's configuration."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncd.cli.starting_config import (
    absolute_section,
    config_folder,
    quoted,
    refuse_bad_names,
    store_text,
    trust_text,
)
from syncd.config import StoreSection
from syncd.durable import make_folder, replace_file
from syncd.errors import Expired, NotAuthentic, ObjectMissing, UsageError
from syncd.store.open import open_store
from syncd.trust import names


@dataclass(frozen=True)
class JoinResult:
    """What `join` wrote; `follows` has each model with its channel."""

    store: str
    fingerprint: str
    config: Path
    root: Path
    follows: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """INTERFACE's object."""
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "config": str(self.config),
            "root": str(self.root),
            "follows": [{"model": model, "channel": channel} for model, channel in self.follows],
        }


def run_join(
    store: StoreSection, *, fingerprint: str, models: Sequence[str], config: Path | None = None
) -> JoinResult:
    """Fetch the fleet root, check it, and write an edge's starting configuration. Blocks.

    Args:
        models: `MODEL` or `MODEL:CHANNEL`.
        config: the file to write; one that is there for the same store gets what it does not follow yet.
    Raises:
        NotAuthentic: another root than the fingerprint's, or a model that does not verify under it.
        UsageError, UnknownModel, UnknownChannel, StoreError. After any error nothing was written.
    """
    follows = tuple(_follow(each) for each in models)
    if not follows:
        raise UsageError("no model is named", do="add --model NAME, or --model NAME:CHANNEL")
    wanted = _fingerprint(fingerprint)
    config = (config or config_folder() / "config.toml").absolute()
    return asyncio.run(_join(absolute_section(store), wanted, follows, config))


async def _join(
    section: StoreSection, fingerprint: str, follows: tuple[tuple[str, str], ...], config: Path
) -> JoinResult:
    from syncd.trust.limits import ROOT_BYTES
    from syncd.trust.verify import ModelTrust

    store = await asyncio.to_thread(open_store, section)
    try:
        try:
            root = (await store.get(names.FLEET_ROOT, limit=ROOT_BYTES)).data
        except ObjectMissing as error:
            raise UsageError(
                "there is no fleet at this place", do="check the URL; nothing was written", store=store.url
            ) from error
        found = hashlib.sha256(root).hexdigest()
        if found != fingerprint:
            raise NotAuthentic(
                f"the store's root has fingerprint {found}, not {fingerprint}",
                why="another fleet's store, a mistyped fingerprint, or somebody between you and the store",
                do="compare with what `syncd init` printed; nothing was written",
                store=store.url,
            )
        with tempfile.TemporaryDirectory(prefix="syncd-join-") as folder:
            for model, channel in follows:
                with suppress(Expired):  # the daemon says so, again and again; it may be renewed by then
                    await ModelTrust(store, model, Path(folder) / model, root).refresh(channel)
    finally:
        await store.aclose()
    root_file = config.parent / "root.json"
    await asyncio.to_thread(_write_join, section, root, root_file, config, follows)
    return JoinResult(store.url, found, config, root_file, follows)


def _write_join(
    section: StoreSection, root: bytes, root_file: Path, config: Path, follows: tuple[tuple[str, str], ...]
) -> None:
    with suppress(FileNotFoundError):
        if root_file.read_bytes() != root:
            raise UsageError(
                "the root.json there is another fleet's",
                do="give another -c FILE; nothing was written",
                path=root_file,
            )
    text, followed = _existing(section, config)
    for model, channel in follows:
        if model not in followed:
            text += f"\n[[follow]]\nmodel = {quoted(model)}\nchannel = {quoted(channel)}\n"
            followed[model] = channel
        elif followed[model] != channel:
            raise UsageError(
                f"the configuration follows {model} on {followed[model]!r} already, not on {channel!r}",
                do="change its channel there; nothing was written",
                path=config,
            )
    make_folder(config.parent)
    replace_file(root_file, root)
    if not config.exists():
        text = store_text(section) + trust_text(root_file, None) + text
    replace_file(config, text.encode(), mode=config.stat().st_mode & 0o777 if config.exists() else 0o644)


def _existing(section: StoreSection, config: Path) -> tuple[str, dict[str, str]]:
    """The text of a configuration that is there and the models that it follows; refused if it is for another store."""
    try:
        text = config.read_text()
        document = tomllib.loads(text)
        url = document["store"]["url"]
        followed = {each["model"]: each.get("channel", "latest") for each in document.get("follow", [])}
    except FileNotFoundError:
        return "", {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"there is a file already that is no configuration: {error}",
            do="give another -c FILE",
            path=config,
        ) from error
    if url != section.url:
        raise UsageError(
            f"there is a configuration already, for the store {url}", do="give another -c FILE", path=config
        )
    return text, followed


def _follow(text: str) -> tuple[str, str]:
    model, _, channel = text.partition(":")
    refuse_bad_names([model], [channel or "latest"])
    return model, channel or "latest"


def _fingerprint(text: str) -> str:
    plain = text.strip().lower().removeprefix("sha256:").replace(":", "")
    if len(plain) != 64 or any(letter not in "0123456789abcdef" for letter in plain):
        raise UsageError(
            f"{text!r} is not a fingerprint", do="it has 64 hex digits, as `syncd init` printed it"
        )
    return plain
