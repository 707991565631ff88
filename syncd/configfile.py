"""What the configuration says before anything is checked: files, environment and flags as one document.

Flags win over `SYNCD_A__B`, which wins over the file and its `conf.d/*.toml`. Tables are merged key by key, arrays
of tables (`[[publish]]`, `[[follow]]`) are joined, anything else: the later one wins. Each value keeps the place
that it came from. Light on purpose: no pydantic, for `syncd status`.
"""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from syncd.errors import ConfigInvalid
from syncd.locate import KeyPath, holds, line_of

MAX_FILE_BYTES: Final = 1 << 20
JOINED: Final = ("publish", "follow")
TOP_LEVEL: Final = ("shutdown_within",)
# Values that are paths: relative ones are taken from the file's folder, or where the command was typed.
PATHS: Final = frozenset(
    {
        ("store", "ca_file"),
        ("store", "client_cert"),
        ("store", "client_key"),
        ("trust", "root"),
        ("trust", "keys"),
        ("node", "folder"),
        ("status", "token_file"),
        ("publish", "watch"),
        ("publish", "golden", "file"),
    }
)


@dataclass(frozen=True)
class Source:
    """One file: `text` is what was parsed; `first` is where its `[[publish]]` and `[[follow]]` begin in the whole."""

    path: Path
    text: str
    document: dict[str, Any]
    first: dict[str, int]


@dataclass
class Sources:
    """The merged `document` and where each of its values came from."""

    path: Path | None
    document: dict[str, Any] = field(default_factory=dict)
    files: list[Source] = field(default_factory=list)
    set_by: dict[KeyPath, str] = field(default_factory=dict)  # by environment or flag: what to call the place

    def place(self, path: KeyPath) -> tuple[str | None, int | None]:
        """(file or flag or variable, line) of the value at `path`, or of the nearest table above it that is there."""
        for length in range(len(path), 0, -1):
            part = path[:length]
            if part in self.set_by:
                return self.set_by[part], None
            for source in reversed(self.files):
                inside = _inside(source, part)
                if inside is not None and holds(source.document, inside):
                    return str(source.path), line_of(source.text, inside)
        return (str(self.path) if self.path else None), None


def _inside(source: Source, path: KeyPath) -> KeyPath | None:
    """`path` of the merged document as it stands in one file."""
    if len(path) < 2 or path[0] not in source.first or not isinstance(path[1], int):
        return path
    place = path[1] - source.first[str(path[0])]
    return None if place < 0 else (path[0], place, *path[2:])


def read_sources(
    path: Path | None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Sources:
    """Read everything that has a say.

    Args:
        path: the file; None: only environment and flags speak. `conf.d/*.toml` is read beside a `config.toml`.
        flags: dotted key → value, for example `{"store.url": "file:///srv/models"}`; None values are left out.
    Raises:
        ConfigInvalid: a file cannot be read or is not TOML; all such files are told at once.
    """
    sources = Sources(path)
    findings: list[dict[str, Any]] = []
    for file in _files(path):
        _add_file(sources, file, findings)
    if findings:
        raise ConfigInvalid(
            _count(findings), findings=findings, do="nothing was started; mend the file and try again"
        )
    for name, key, raw in _from_environment(environ):
        _set(sources, key, _absolute(_value(raw), _kind(key), Path.cwd()), name)
    for dotted, value in (flags or {}).items():
        if value is not None:
            key = tuple(dotted.split("."))
            _set(
                sources,
                key,
                _absolute(value, _kind(key), Path.cwd()),
                f"--{key[0]}" if key[0] == "store" else dotted,
            )
    return sources


def _count(findings: list[dict[str, Any]]) -> str:
    return (
        "1 mistake in the configuration"
        if len(findings) == 1
        else f"{len(findings)} mistakes in the configuration"
    )


def _files(path: Path | None) -> Iterator[Path]:
    if path is None:
        return
    yield path
    if path.name == "config.toml":
        yield from sorted((path.parent / "conf.d").glob("*.toml"))


def _add_file(sources: Sources, file: Path, findings: list[dict[str, Any]]) -> None:
    def finding(problem: str, allowed: str, line: int | None = None) -> None:
        findings.append(
            {"file": str(file), "line": line, "key": "", "value": None, "problem": problem, "allowed": allowed,
             "nearest": None}
        )  # fmt: skip

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            return finding(f"larger than {MAX_FILE_BYTES} bytes", "a TOML file")
        text = data.decode()
        document = tomllib.loads(text)
    except FileNotFoundError:
        return finding("there is no such file", "`syncd init` and `syncd join` write one")
    except OSError as error:
        return finding(f"cannot be read: {error.strerror}", "a file that this user may read")
    except UnicodeDecodeError as error:
        return finding(f"not UTF-8 at byte {error.start}", "UTF-8 text")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else len(text.splitlines()) if "end of document" in str(error) else None
        return finding(f"not TOML: {error}", "TOML 1.0", line)
    first = {name: len(value) for name in JOINED if isinstance(value := sources.document.get(name, []), list)}
    sources.files.append(Source(file, text, document, first))
    _merge(sources.document, _absolute(document, (), file.absolute().parent))


def _merge(into: dict[str, Any], new: dict[str, Any], depth: int = 0) -> None:
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, depth + 1)
        elif depth == 0 and key in JOINED and isinstance(old, list) and isinstance(value, list):
            into[key] = [*old, *value]
        else:
            into[key] = value


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, KeyPath, str]]:
    """(variable, key path, value) of `SYNCD_A__B` and of the top-level keys; other `SYNCD_…` are none of ours."""
    for name in sorted(environ):
        if name.startswith("SYNCD_"):
            rest = name.removeprefix("SYNCD_").lower()
            if "__" in rest or rest in TOP_LEVEL:
                yield (
                    name,
                    tuple(int(part) if part.isdigit() else part for part in rest.split("__")),
                    environ[name],
                )


def _value(raw: str) -> Any:
    """Text as it is; an array or an inline table if it is written like one in TOML."""
    if raw[:1] in "[{":
        try:
            return tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            return raw
    return raw


def _kind(path: KeyPath) -> KeyPath:
    return tuple(part for part in path if not isinstance(part, int))


def _set(sources: Sources, path: KeyPath, value: Any, place: str) -> None:
    """Put `value` at `path`; a step that leads nowhere (`follow.3` of two) becomes an unknown key, told later."""
    at: Any = sources.document
    for step, following in itertools.pairwise(path):
        if isinstance(step, int) and isinstance(at, list) and step < len(at):
            at = at[step]
        elif isinstance(at, dict):
            empty: Any = [] if isinstance(following, int) else {}
            at = at.setdefault(str(step), empty)
        else:
            at = None
            break
    if isinstance(at, dict):
        at[str(path[-1])] = value
        sources.set_by[path] = place
    else:
        sources.document[".".join(map(str, path))] = value
        sources.set_by[(".".join(map(str, path)),)] = place


def _absolute(value: Any, kind: KeyPath, folder: Path) -> Any:
    """`value` with its relative paths taken from `folder`, at every depth."""
    if isinstance(value, dict):
        return {key: _absolute(inner, (*kind, key), folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner, kind, folder) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    bare_store = kind == ("store", "url") and "://" not in value
    socket = kind == ("status", "listen") and "/" in value
    if kind in PATHS or bare_store or socket:
        return str(folder / os.path.expanduser(value))  # noqa: PTH111 - a user that is not there stays as it is
    return value
