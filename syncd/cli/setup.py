"""`syncd init` as a function (and `join` beside it): it proves first, then writes, and replaces nothing that is there.

init: keys on disk → fleet root → each model's first metadata → root.json and a starting configuration. Killed anywhere
and run again it goes on where it was; a model exists once its timestamp does.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from syncd.cli.joining import JoinResult, run_join
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
from syncd.errors import KeyUnusable, LostRace, UsageError
from syncd.store.base import Store
from syncd.store.open import open_store
from syncd.trust import names

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

__all__ = ["InitResult", "JoinResult", "ModelInit", "run_init", "run_join"]

_TRIES: Final = 8
Passphrase = Callable[[bool], str | None]
"""Called once, if it is needed: with True for a new key (ask twice), False to open one; None: no passphrase."""


@dataclass(frozen=True)
class ModelInit:
    """A model after `init`: its channels, its online key on this machine (None: kept elsewhere), what was added."""

    model: str
    channels: tuple[str, ...]
    key: Path | None
    new: bool
    added_channels: tuple[str, ...]


@dataclass(frozen=True)
class InitResult:
    """What `init` made or found; `join` is the line to type on an edge, `copy` (what, where to) in words."""

    store: str
    fingerprint: str
    keys: Path
    fleet_key: Path
    models: tuple[ModelInit, ...]
    join: str
    config: Path
    config_new: bool
    root: Path
    copy: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """INTERFACE's object."""
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "keys": str(self.keys),
            "fleet_key": str(self.fleet_key),
            "models": [
                {
                    "model": each.model,
                    "channels": list(each.channels),
                    "key": None if each.key is None else str(each.key),
                    "new": each.new,
                    "added_channels": list(each.added_channels),
                }
                for each in self.models
            ],
            "join": self.join,
            "config": str(self.config),
            "config_new": self.config_new,
            "root": str(self.root),
            "copy": [{"what": what, "to": to} for what, to in self.copy],
        }


def run_init(
    store: StoreSection,
    *,
    models: Sequence[str],
    channels: Sequence[str] = (),
    keys: Path | None = None,
    passphrase: Passphrase = lambda new: None,
    edge_url: str | None = None,
    config: Path | None = None,
    own_key: Sequence[str] = (),
) -> InitResult:
    """Found a fleet in a store, or add models and channels to the one that is there. Blocks.

    Args:
        channels: besides `latest` and `stable`.
        keys: folder of the keys; default: `keys` beside the configuration.
        edge_url: the store as edges reach it, for the line to type there.
        config: the file to write if there is none; default: beside `keys`, else the machine's or the user's own.
        own_key: channels that get a key of their own (KEYS/channels/MODEL/CHANNEL.key) when they are made.
    Raises:
        UsageError, KeyUnusable, StoreDishonest and other StoreErrors. What was there is as it was.
    """
    refuse_bad_names(models, (*channels, *own_key))
    config = (config or (keys.absolute().parent if keys else config_folder()) / "config.toml").absolute()
    keys = (keys or config.parent / "keys").absolute()
    wanted = tuple(dict.fromkeys((*names.DEFAULT_CHANNELS, *channels, *own_key)))
    section = absolute_section(store)
    setup = _Setup(
        section, keys, config, passphrase, tuple(dict.fromkeys(models)), wanted, frozenset(own_key)
    )
    return asyncio.run(setup.init(edge_url))


class _Setup:
    """One `init`. The fleet key is asked for once, and only if it is needed."""

    def __init__(
        self,
        section: StoreSection,
        keys: Path,
        config: Path,
        passphrase: Passphrase,
        models: tuple[str, ...],
        channels: tuple[str, ...],
        own_key: frozenset[str],
    ) -> None:
        self._section = section
        self._keys = keys
        self._config = config
        self._root_file = config.parent / "root.json"
        self._passphrase = passphrase
        self._models = models
        self._channels = channels
        self._own_key = own_key

    async def init(self, edge_url: str | None) -> InitResult:
        from syncd.store.probe import probe
        from syncd.trust.founding import found_fleet, read_fleet_root
        from syncd.trust.keys import fleet_key_path

        store = await asyncio.to_thread(open_store, self._section, create=True)
        try:
            await probe(store)
            before = await read_fleet_root(store)
            self._refuse_other_root(before)
            fleet = await asyncio.to_thread(self._fleet_key, before is None)
            root = await found_fleet(store, fleet)
            models = [await self._model(store, model, root, fleet) for model in self._models]
        finally:
            await store.aclose()
        config_new = await asyncio.to_thread(self._write, root)
        fingerprint = hashlib.sha256(root).hexdigest()
        url = edge_url or self._section.url
        followed = " ".join(f"--model {model}" for model in self._models)
        return InitResult(
            store=store.url,
            fingerprint=fingerprint,
            keys=self._keys,
            fleet_key=fleet_key_path(self._keys),
            models=tuple(models),
            join=f"syncd join {url} --fingerprint {fingerprint} {followed}",
            config=self._config,
            config_new=config_new,
            root=self._root_file,
            copy=self._copies(models),
        )

    def _refuse_other_root(self, root: bytes | None) -> None:
        """Before anything is written: root.json beside the configuration must be this store's."""
        with suppress(FileNotFoundError):
            if self._root_file.read_bytes() != root:
                raise UsageError(
                    "the root.json beside the configuration is not this store's fleet root",
                    why="it belongs to another fleet, or the store was emptied",
                    do="give another -c FILE or --keys DIR, or move the old files away; nothing was changed",
                    path=self._root_file,
                    store=self._section.url,
                )

    def _fleet_key(self, new: bool) -> CryptoSigner:
        from syncd.trust.keys import fleet_key_path, generate_key, is_locked, load_key

        path = fleet_key_path(self._keys)
        if new and not path.exists():
            make_folder(
                self._keys.parent
            )  # only `keys` and below are 0700: services read what lies beside them
            return generate_key(path, self._passphrase(True))
        return load_key(path, self._passphrase(False) if is_locked(path) else None)

    async def _model(self, store: Store, model: str, root: bytes, fleet: CryptoSigner) -> ModelInit:
        from syncd.trust.founding import found_model, model_exists
        from syncd.trust.keys import model_key_path
        from syncd.trust.sign import ModelSigner

        path = model_key_path(self._keys, model)
        if not await model_exists(store, model):
            online = await asyncio.to_thread(_load_or_generate, path)
            own = await asyncio.to_thread(self._own_keys, model, self._channels)
            if await found_model(store, model, root, fleet, ModelSigner(model, online, own), self._channels):
                return ModelInit(model, self._channels, path, True, self._channels)
        for _ in range(_TRIES):
            with suppress(LostRace):
                return await self._add_channels(store, model, root, fleet)
        raise LostRace(
            f"publishers of {model} keep committing", do="run it again; nothing is lost", model=model
        )

    async def _add_channels(self, store: Store, model: str, root: bytes, fleet: CryptoSigner) -> ModelInit:
        from syncd.trust.founding import put_targets
        from syncd.trust.keys import load_key, model_key_path
        from syncd.trust.sign import ModelSigner
        from syncd.trust.signing import sign_next
        from syncd.trust.verify import ModelTrust

        path = model_key_path(self._keys, model)
        with tempfile.TemporaryDirectory(prefix="syncd-init-") as folder:
            state = await ModelTrust(store, model, Path(folder) / "trust", root).state()
        added = tuple(channel for channel in self._channels if channel not in state.channels)
        if added:
            online = await asyncio.to_thread(load_key, path)
            if online.public_key.keyid not in state.keys["timestamp"]:
                raise KeyUnusable(
                    f"the online key is not the one that the store names for {model}",
                    do="copy the right one here; nothing was changed",
                    path=path,
                )
            signer = ModelSigner(model, online, await asyncio.to_thread(self._own_keys, model, added))
            roles = {names.channel_role(channel): None for channel in added}
            keys = {role: signer.key_of(role).public_key for role in roles}
            targets = await put_targets(store, model, fleet, state.files["targets"], keys)
            await sign_next(store, signer, state, roles, targets=targets)
        channels = tuple(sorted({*state.channels, *added}))
        return ModelInit(model, channels, path if path.exists() else None, False, added)

    def _own_keys(self, model: str, channels: Sequence[str]) -> dict[str, CryptoSigner]:
        from syncd.trust.keys import channel_key_path

        return {
            channel: _load_or_generate(channel_key_path(self._keys, model, channel))
            for channel in channels
            if channel in self._own_key
        }

    def _write(self, root: bytes) -> bool:
        """root.json and, if there is none, a starting configuration; True if it is new."""
        make_folder(self._config.parent)
        if not self._root_file.exists():
            replace_file(self._root_file, root)
        if self._config.exists():
            return False
        text = store_text(self._section) + trust_text(self._root_file, self._keys)
        for model in self._models:
            text += (
                f"\n# [[publish]]                        # uncomment on the training machine\n"
                f"# model = {quoted(model)}\n"
                f'# watch = "/data/runs/{model}"\n'
            )
        replace_file(self._config, text.encode())
        return True

    def _copies(self, models: Sequence[ModelInit]) -> tuple[tuple[str, str], ...]:
        found = [
            (str(self._keys / "fleet.key"), "a safe place off this machine; syncd never needs it to publish")
        ]
        for each in models:
            if each.key is not None:
                found.append((str(each.key), f"KEYS/models/ of the machine that trains {each.model}"))
        found.append((str(self._root_file), "[trust] root of every training machine"))
        return tuple(found)


def _load_or_generate(path: Path) -> CryptoSigner:
    from syncd.trust.keys import generate_key, load_key

    return load_key(path) if path.exists() else generate_key(path)
