"""How words on the command line are understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.cli.begin import ask_passphrase
from syncd.cli.checkpoints import parse_metrics
from syncd.cli.output import Common, bytes_text
from syncd.cli.session import parse_reference, plain_fingerprint
from syncd.cli.status import plain_form
from syncd.errors import UsageError


@pytest.mark.parametrize(
    ("text", "means"),
    [("m", ("m", None, None)), ("m@12", ("m", 12, None)), ("m:stable", ("m", None, "stable"))],
)
def test_a_reference_is_a_model_a_version_or_a_channel(
    text: str, means: tuple[str, int | None, str | None]
) -> None:
    assert parse_reference(text) == means


@pytest.mark.parametrize(
    "text", ["", "@3", "m@", "m@0", "m@-1", "m@1.5", "m@٣", "m:", "m:stable@3", ":stable"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no version"):
        parse_reference(text)


def test_metrics_are_finite_numbers_with_a_name() -> None:
    assert parse_metrics(["accuracy=0.94", "loss=1e-3"]) == {"accuracy": 0.94, "loss": 0.001}
    for wrong in ("accuracy", "=1", "loss=low", "loss=nan", "loss=inf"):
        with pytest.raises(UsageError, match="NAME=NUMBER"):
            parse_metrics([wrong])


def test_a_fingerprint_may_have_its_prefix_colons_and_capitals() -> None:
    plain = "0a" * 32
    assert plain_fingerprint(plain) == plain
    assert plain_fingerprint("sha256:" + ":".join(["0A"] * 32)) == plain
    with pytest.raises(UsageError):
        plain_fingerprint("0a" * 31)


def test_only_the_plain_forms_of_status_are_taken_without_typer() -> None:
    assert plain_form(["status", "--json", "-c", "x.toml"]) == Common(config=Path("x.toml"), json=True)
    assert plain_form(["-q", "status"]) == Common(quiet=True)
    for words in (["status", "--help"], ["status", "x"], ["status", "-c"], ["check"], [], ["-c", "status"]):
        assert plain_form(words) is None


def test_bytes_are_told_with_their_unit() -> None:
    assert [bytes_text(count) for count in (0, 1023, 1536, 3 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 MiB", "5.0 TiB",
    ]  # fmt: skip


def test_a_passphrase_comes_from_its_file_and_is_never_empty(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("correct horse\n")
    assert ask_passphrase(Common(), tmp_path / "p", new=True) == "correct horse"
    (tmp_path / "p").write_text("\n")
    with pytest.raises(UsageError, match="empty"):
        ask_passphrase(Common(), tmp_path / "p", new=True)
    with pytest.raises(UsageError, match="cannot be read"):
        ask_passphrase(Common(), tmp_path / "none", new=True)
    with pytest.raises(UsageError, match="--passphrase-file"):
        ask_passphrase(Common(no_input=True), None, new=True)
