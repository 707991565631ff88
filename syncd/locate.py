"""Where a key path stands in a TOML file: the line on which its statement begins."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

KeyPath = tuple[str | int, ...]


def holds(document: Any, path: Sequence[str | int]) -> bool:
    """Is there a value at `path`? Strings are keys of tables, integers places in arrays."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(document, list) or not 0 <= step < len(document):
                return False
        elif not isinstance(document, dict) or step not in document:
            return False
        document = document[step]
    return True


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line, counted from 1, on which the statement that brings `path` into being begins; None: it is not there.

    `text` parses as a whole. A prefix of its lines that parses either holds the path or does not, and never
    loses it again, so the first such prefix is found by halving.
    """
    lines = text.splitlines(keepends=True)
    if not holds(tomllib.loads(text), path):
        return None
    low, high = 1, len(lines)
    while low < high:
        middle = (low + high) // 2
        if holds(_next_that_parses(lines, middle), path):
            high = middle
        else:
            low = middle + 1
    return low


def _next_that_parses(lines: list[str], count: int) -> dict[str, Any]:
    """The shortest prefix of at least `count` lines that parses: a value over several lines counts as one."""
    while True:
        try:
            return tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            count += 1
            if count > len(lines):
                raise
