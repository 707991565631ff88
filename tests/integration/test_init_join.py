"""Founding a fleet and joining an edge: idempotent, killed anywhere and run again, nothing replaced."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from syncd.cli.setup import InitResult, run_init, run_join
from syncd.config import StoreSection, load_config
from syncd.errors import KeyUnusable, NotAuthentic, UnknownChannel, UnknownModel, UsageError
from tests.support.signed_store import SignedStore, disk, open_folder

MODELS = ("resnet50", "detector")


def init(tmp_path: Path, *models: str, **more: object) -> InitResult:
    section = StoreSection(url=f"file://{tmp_path}/store")
    return run_init(section, models=models or MODELS, keys=tmp_path / "fleet" / "keys", **more)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_init_makes_private_keys_one_root_for_all_models_and_a_configuration_that_loads(
    tmp_path: Path,
) -> None:
    made = init(tmp_path, channels=("canary",))
    root = (tmp_path / "store/fleet/1.root.json").read_bytes()
    assert made.fingerprint == hashlib.sha256(root).hexdigest()
    assert made.root.read_bytes() == root
    for model in MODELS:
        assert (tmp_path / f"store/models/{model}/metadata/1.root.json").read_bytes() == root
    for key in (tmp_path / "fleet/keys").rglob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "fleet/keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) & 0o055 == 0o055
    assert [each.channels for each in made.models] == [("latest", "stable", "canary")] * 2
    assert made.join.endswith(f"--fingerprint {made.fingerprint} --model resnet50 --model detector")
    config = load_config(made.config)
    assert config.trust.root == made.root
    assert config.trust.keys == tmp_path / "fleet/keys"


def test_init_again_adds_models_and_channels_and_replaces_nothing(tmp_path: Path) -> None:
    first = init(tmp_path, "resnet50")
    kept = contents(tmp_path)
    second = init(tmp_path, "resnet50")
    assert (second.fingerprint, second.models[0].new, second.models[0].added_channels) == (
        first.fingerprint,
        False,
        (),
    )
    assert contents(tmp_path) == kept
    third = init(tmp_path, "resnet50", "detector", channels=("canary",))
    assert [(each.model, each.new, each.added_channels) for each in third.models] == [
        ("resnet50", False, ("canary",)),
        ("detector", True, ("latest", "stable", "canary")),
    ]
    now = contents(tmp_path)
    timestamp = "store/models/resnet50/metadata/timestamp.json"
    assert {name for name, data in kept.items() if now.get(name) != data} == {timestamp}


def test_a_channel_added_later_is_released_and_followed(tmp_path: Path) -> None:
    init(tmp_path, "m")
    init(tmp_path, "m", channels=("canary",))
    signed = SignedStore(tmp_path / "store", tmp_path / "fleet/keys", open_folder(tmp_path / "store"), b"")
    signed.root = (tmp_path / "fleet/root.json").read_bytes()

    async def release() -> None:
        await signed.release("m", "canary")
        facts = await signed.trust("m", tmp_path / "node").refresh("canary")
        assert facts is not None
        assert facts.version == 1

    asyncio.run(release())


def test_a_channel_with_a_key_of_its_own_is_released_where_that_key_is_and_nowhere_else(
    tmp_path: Path,
) -> None:
    made = init(tmp_path, "m", own_key=("stable",))
    own = made.keys / "channels/m/stable.key"
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    signed = SignedStore(
        tmp_path / "store", made.keys, open_folder(tmp_path / "store"), made.root.read_bytes()
    )
    asyncio.run(signed.release("m", "stable"))
    own.rename(tmp_path / "elsewhere.key")
    timestamp = signed.path("m", "metadata/timestamp.json").read_bytes()
    with pytest.raises(KeyUnusable, match="a key of its own"):
        asyncio.run(signed.release("m", "stable"))
    assert signed.path("m", "metadata/timestamp.json").read_bytes() == timestamp
    asyncio.run(signed.release("m", "latest"))


def test_a_fleet_key_under_a_passphrase_is_asked_for_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    asked: list[bool] = []

    def answer(text: str):  # type: ignore[no-untyped-def]
        return lambda new: (asked.append(new), text)[1]

    init(tmp_path, "a", passphrase=answer("secret"))
    init(tmp_path, "b", passphrase=answer("secret"))
    assert asked == [True, False]
    before = disk(tmp_path / "fleet"), contents(tmp_path / "store")
    with pytest.raises(KeyUnusable):
        init(tmp_path, "c", passphrase=answer("wrong"))
    assert (disk(tmp_path / "fleet"), contents(tmp_path / "store")) == before


def test_another_fleets_keys_on_a_store_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    init(tmp_path)
    before = contents(tmp_path / "store")
    section = StoreSection(url=f"file://{tmp_path}/store")
    with pytest.raises(KeyUnusable):
        run_init(section, models=["m"], keys=tmp_path / "other" / "keys")
    other = StoreSection(url=f"file://{tmp_path}/other-store")
    run_init(other, models=["m"], keys=tmp_path / "other" / "keys")
    kept = contents(tmp_path / "other")
    with pytest.raises(UsageError, match=r"root\.json"):
        run_init(section, models=["m"], keys=tmp_path / "other" / "keys")
    assert contents(tmp_path / "store") == before
    assert contents(tmp_path / "other") == kept


@pytest.mark.parametrize("models", [[], ["Upper"], ["../x"], ["a" * 65], [""]])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_made(
    tmp_path: Path, models: list[str]
) -> None:
    with pytest.raises(UsageError):
        run_init(StoreSection(url=f"file://{tmp_path}/store"), models=models, keys=tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from syncd.store.folder import FolderStore
from syncd.cli.setup import run_init
from syncd.config import StoreSection
put, left = FolderStore.put, [int(sys.argv[2])]
async def counted(self, key, data, *, mode):
    if not key.startswith("_syncd-probe"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return await put(self, key, data, mode=mode)
FolderStore.put = counted
base = Path(sys.argv[1])
run_init(StoreSection(url=f"file://{base}/store"), models=["m"], keys=base / "fleet" / "keys")
"""


@pytest.mark.parametrize("puts", range(10))
def test_init_killed_after_any_put_and_run_again_works(tmp_path: Path, puts: int) -> None:
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), str(puts)], timeout=60, check=False)
    assert ended.returncode in (-signal.SIGKILL, 0)
    if puts < 8:
        assert ended.returncode == -signal.SIGKILL
    before = contents(tmp_path / "store")
    made = init(tmp_path, "m")
    after = contents(tmp_path / "store")
    assert all(after[name] == data for name, data in before.items() if "_syncd-probe" not in name)
    joined = run_join(
        StoreSection(url=f"file://{tmp_path}/store"),
        fingerprint=made.fingerprint,
        models=["m:stable"],
        config=tmp_path / "edge/config.toml",
    )
    assert joined.follows == (("m", "stable"),)


def test_join_writes_a_configuration_that_works_as_it_stands_and_again_adds_models(tmp_path: Path) -> None:
    made = init(tmp_path)
    section = StoreSection(url=f"file://{tmp_path}/store")
    config = tmp_path / "edge" / "joined.toml"
    joined = run_join(
        section, fingerprint=made.fingerprint.upper(), models=["resnet50:stable"], config=config
    )
    assert joined.root == tmp_path / "edge/root.json"
    assert joined.root.read_bytes() == made.root.read_bytes()
    loaded = load_config(config)
    assert [(each.model, each.channel) for each in loaded.follow] == [("resnet50", "stable")]
    assert loaded.trust.root == joined.root
    run_join(section, fingerprint=f"sha256:{made.fingerprint}", models=["detector"], config=config)
    assert [each.model for each in load_config(config).follow] == ["resnet50", "detector"]
    before = disk(tmp_path / "edge")
    with pytest.raises(UsageError, match="already"):
        run_join(section, fingerprint=made.fingerprint, models=["detector:stable"], config=config)
    assert disk(tmp_path / "edge") == before


def test_join_on_the_machine_where_init_ran_extends_its_configuration(tmp_path: Path) -> None:
    made = init(tmp_path, "m")
    run_join(
        StoreSection(url=f"file://{tmp_path}/store"),
        fingerprint=made.fingerprint,
        models=["m"],
        config=made.config,
    )
    loaded = load_config(made.config)
    assert loaded.trust.keys == made.keys
    assert [each.model for each in loaded.follow] == ["m"]


@pytest.mark.parametrize(
    ("fingerprint", "models", "error"),
    [
        ("0" * 64, ["m"], NotAuthentic),
        ("not a fingerprint", ["m"], UsageError),
        (None, ["other"], UnknownModel),
        (None, ["m:canary"], UnknownChannel),
        (None, [], UsageError),
    ],
)
def test_a_join_that_is_refused_writes_nothing(
    tmp_path: Path, fingerprint: str | None, models: list[str], error: type[Exception]
) -> None:
    made = init(tmp_path, "m")
    with pytest.raises(error):
        run_join(
            StoreSection(url=f"file://{tmp_path}/store"),
            fingerprint=fingerprint or made.fingerprint,
            models=models,
            config=tmp_path / "edge/config.toml",
        )
    assert not (tmp_path / "edge").exists()


def test_join_where_there_is_no_fleet_says_so(tmp_path: Path) -> None:
    init(tmp_path, "m")
    (tmp_path / "store/fleet/1.root.json").unlink()
    with pytest.raises(UsageError, match="no fleet"):
        run_join(
            StoreSection(url=f"file://{tmp_path}/store"),
            fingerprint="0" * 64,
            models=["m"],
            config=tmp_path / "edge/config.toml",
        )


def test_an_odd_path_is_quoted_so_that_the_configuration_still_loads(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" Ü 🎈'
    run_init(StoreSection(url=str(odd / "store")), models=["m"], keys=odd / "keys")
    assert tomllib.loads((odd / "config.toml").read_text())["store"]["url"] == str(odd / "store")
    assert Path(load_config(odd / "config.toml").store.url).is_absolute()
