"""publish, pull and restore from Python: blocking, from the configuration alone, inside a running loop too."""

from __future__ import annotations

from pathlib import Path

import pytest

import syncd
from syncd.errors import ConfigInvalid, UnknownModel, UsageError
from tests.support.publishing import MODEL, make_publishing, save_checkpoint


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    publishing = await make_publishing(tmp_path)
    (tmp_path / "root.json").write_bytes(publishing.signed.root)
    file = tmp_path / "config.toml"
    file.write_text(
        f'[store]\nurl = "{publishing.signed.folder}"\n'
        f'[trust]\nroot = "{tmp_path}/root.json"\nkeys = "{publishing.signed.keys}"\n'
        f'[node]\nfolder = "{tmp_path}/node"\n'
    )
    save_checkpoint(publishing.runs / "1.pt")
    return file


def use(config: Path) -> None:
    folder = config.parent
    result = syncd.publish(folder / "runs" / "1.pt", model=MODEL, metrics={"accuracy": 0.9}, config=config)
    assert (result.version, result.new) == (1, True)
    assert syncd.publish(folder / "runs" / "1.pt", model=MODEL, config=config).new is False
    pulled = syncd.pull(MODEL, to=folder / "pulled", config=config)
    assert pulled.version == 1
    assert (folder / "pulled" / "model.safetensors").is_file()
    restored = syncd.restore(MODEL, to=folder / "back", config=config)
    assert restored.version == 1
    assert (folder / "back" / "1.pt").read_bytes() == (folder / "runs" / "1.pt").read_bytes()


def test_a_training_script_publishes_pulls_and_restores(config: Path) -> None:
    use(config)


async def test_a_notebook_whose_loop_runs_already_does_the_same(config: Path) -> None:
    use(config)


def test_mistakes_are_told_as_everywhere(config: Path) -> None:
    checkpoint = config.parent / "runs" / "1.pt"
    with pytest.raises(UsageError, match="Not A Name"):
        syncd.publish(checkpoint, model="Not A Name", config=config)
    with pytest.raises(UnknownModel, match="other"):
        syncd.publish(checkpoint, model="other", config=config)
    config.write_text(config.read_text().replace("url", "ulr"))
    with pytest.raises(ConfigInvalid):
        syncd.publish(checkpoint, model=MODEL, config=config)
