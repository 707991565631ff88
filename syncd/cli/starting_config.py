"""What `init` and `join` share: the starting configuration's text, where it lies, and the names that are allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from syncd.config import StoreSection
from syncd.errors import UsageError
from syncd.trust import names


def store_text(section: StoreSection) -> str:
    """The `[store]` section."""
    given = section.model_dump(exclude_none=True)
    return "[store]\n" + "".join(f"{key} = {quoted(str(value))}\n" for key, value in given.items())


def trust_text(root: Path, keys: Path | None) -> str:
    """The `[trust]` section."""
    text = f"\n[trust]\nroot = {quoted(str(root))}\n"
    return text if keys is None else f"{text}keys = {quoted(str(keys))}\n"


def quoted(text: str) -> str:
    """A TOML basic string: JSON's, with what TOML wants escaped besides."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def absolute_section(section: StoreSection) -> StoreSection:
    """A folder given by a bare path means the same wherever the configuration is read."""
    if "://" in section.url:
        return section
    return section.model_copy(update={"url": str(Path(section.url).expanduser().absolute())})


def config_folder() -> Path:
    """/etc/syncd for root, else the user's own."""
    from syncd import paths

    if os.geteuid() == 0:
        return paths.SYSTEM_CONFIG.parent
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "syncd"


def refuse_bad_names(models: Sequence[str], channels: Sequence[str]) -> None:
    """Raise UsageError for a name that cannot be one, and where no model is named."""
    if not models:
        raise UsageError("no model is named", do="add --model NAME")
    for kind, given in (("model", models), ("channel", channels)):
        for name in given:
            if not names.is_name(name):
                raise UsageError(
                    f"{name!r} cannot name a {kind}",
                    do="a name has up to 64 of a-z, 0-9, '.', '_', '-' and begins with a letter or digit",
                )
