"""Where a command's words go: data to stdout, talk to stderr, failures to one of them; light, without typer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncd.errors import SyncdError

if TYPE_CHECKING:
    from syncd.config import Config


@dataclass(frozen=True)
class Common:
    """The options that stand everywhere."""

    config: Path | None = None
    store: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    no_input: bool = False
    dry_run: bool = False

    def flags(self) -> dict[str, Any]:
        """The options that override the configuration, as `load_config` wants them."""
        return {"store.url": self.store}

    def words(self) -> list[str]:
        """The options that a child process of the same kind is given."""
        given = [("-c", self.config), ("--store", self.store)]
        told = [str(each) for name, value in given if value is not None for each in (name, value)]
        return told + ["-q"] * self.quiet + ["-v"] * self.verbose

    def load(self) -> Config:
        """The whole configuration; ConfigInvalid with every mistake."""
        from syncd.config import load_config

        return load_config(self.config, self.flags())

    def say(self, text: str) -> None:
        """Talk: to stderr, unless `-q`."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def give(self, result: dict[str, Any], lines: Iterable[str]) -> None:
        """The result, to stdout: one JSON object with `--json`, else lines for people."""
        if self.json:
            print(json.dumps(result, default=str), flush=True)
        else:
            for line in lines:
                print(line)
            sys.stdout.flush()


def print_error(error: SyncdError, *, as_json: bool) -> None:
    """Tell a failure once: JSON to stdout, or text to stderr."""
    if as_json:
        print(json.dumps({"error": error.as_dict()}, default=str), flush=True)
    else:
        print(error, file=sys.stderr, flush=True)


def bytes_text(count: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
