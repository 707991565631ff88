"""config.example.toml: complete, equal to the defaults, and it loads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from syncd.config import Config, load_config
from syncd.findings import _field, _model_in, all_keys

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "config.example.toml"
# Keys whose commented value is an example because there is no default, or none that is the same everywhere.
NO_DEFAULT = {
    "store.endpoint", "store.region", "store.profile", "store.proxy", "store.ca_file", "store.client_cert",
    "store.client_key", "node.name", "node.folder", "status.listen", "status.token_file",
    "follow.hooks.command", "publish.weights.key", "publish.weights.strip_prefix", "publish.golden.file",
    "follow.cron",
}  # fmt: skip


def uncommented() -> dict[str, Any]:
    """The example with every commented key switched on."""
    return tomllib.loads(re.sub(r"^# (?=\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE))


def flat(document: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(document, list) and document and isinstance(document[0], dict):
        return flat(document[0], above)
    if not isinstance(document, dict) or above[-1:] == ("args",):
        return {above: document}
    found: dict[tuple[str, ...], Any] = {above: document} if above else {}
    for key, value in document.items():
        found |= flat(value, (*above, key))
    return found


@pytest.mark.parametrize("name", ["config.example.toml", "deploy/examples/one-machine.toml"])
def test_the_example_loads(name: str) -> None:
    config = load_config(ROOT / name)
    assert config.publish
    assert config.follow


def test_the_example_has_every_key_and_no_other() -> None:
    assert set(flat(uncommented())) == set(all_keys(Config))


def test_every_commented_value_is_the_default() -> None:
    active = set(flat(tomllib.loads(EXAMPLE.read_text())))
    document = uncommented()
    for path, value in flat(document).items():
        if path in active or isinstance(value, dict) or ".".join(path) in NO_DEFAULT:
            continue
        section: Any = Config
        for step in path[:-1]:
            section = _model_in(section.model_fields[step].annotation)
        default = section.model_fields[path[-1]].default
        assert _parsed(section, path[-1], value) == default, ".".join(path)


def _parsed(section: Any, key: str, value: Any) -> Any:
    """`value` as `key` of `section` understands it, whatever the other keys are."""
    field = section.model_fields[key]
    return TypeAdapter(Annotated[field.annotation, "", *field.metadata]).validate_python(value)


def test_keys_without_a_default_really_have_none() -> None:
    for dotted in NO_DEFAULT:
        field = _field(Config, tuple(dotted.split(".")))
        assert field is not None
        assert field.default is None
