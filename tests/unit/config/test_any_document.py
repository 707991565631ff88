"""Whatever a file says, it is a configuration or a list of mistakes, never a crash."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.config import Config, load_config
from syncd.configfile import Sources
from syncd.errors import ConfigInvalid
from syncd.findings import all_keys, check
from syncd.locate import line_of

KEYS = sorted({part for key in all_keys(Config) for part in key} | {"keeep", "x-y", ""})
LEAVES = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from(
        ["5m", "0s", "s3://a", "http://b", "127.0.0.1:1", "m", "/a", "0 2 * * sun", "*", "[::1]:5", "1e9d"]
    ),
    st.dates(),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)


def refusal(attempt: Callable[[], Config]) -> ConfigInvalid | None:
    """How the attempt was refused; None: it was not."""
    try:
        attempt()
    except ConfigInvalid as error:
        return error
    return None


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_document_is_accepted_or_told_with_findings(document: dict[str, object]) -> None:
    error = refusal(lambda: check(Config, Sources(None, document)))
    if error is not None:
        assert error.findings
        assert all(finding["problem"] for finding in error.findings)
        assert str(error).count("\n") >= len(error.findings)


EXAMPLE = (Path(__file__).resolve().parents[3] / "config.example.toml").read_text()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 60), st.text(max_size=6))
def test_a_damaged_example_is_a_configuration_or_told(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, put: str
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "syncd.toml"
    path.write_bytes((EXAMPLE[:start] + put + EXAMPLE[start + length :]).encode("utf-8", "surrogatepass"))
    error = refusal(lambda: load_config(path))
    if error is not None:
        assert error.findings
        assert all(finding["file"] == str(path) for finding in error.findings)


def test_every_key_of_the_example_is_found_on_its_own_line() -> None:
    document = tomllib.loads(EXAMPLE)
    lines = EXAMPLE.splitlines()
    for path, text in (
        (("store", "url"), "url ="),
        (("publish", 0, "golden", "shape"), "shape ="),
        (("follow", 0, "model"), "model ="),
        (("publish", 0, "architecture", "args", "num_classes"), "args ="),
    ):
        line = line_of(EXAMPLE, path)
        assert line is not None
        assert lines[line - 1].startswith(text)
    assert line_of(EXAMPLE, ("follow", 1)) is None
    assert document["follow"]


@pytest.mark.parametrize("lines", [2000])
def test_a_long_file_is_told_in_a_moment(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "long.toml"
    body = "".join(f'[[follow]]\nmodel = "m{number}"\n' for number in range(lines // 2))
    path.write_text('[store]\nurl = "/s"\n[trust]\nroot = "/r"\n' + body + '[[follow]]\nmodel = "Last"\n')
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    assert [finding["line"] for finding in caught.value.findings] == [lines + 6]
