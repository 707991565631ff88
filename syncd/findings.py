"""Every mistake in a configuration, told at once: where, what was found, what is allowed, which key was meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from syncd.configfile import Sources
from syncd.crosscheck import mistakes_across
from syncd.errors import ConfigInvalid
from syncd.locate import KeyPath

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], sources: Sources) -> M:
    """The document as a `model`; ConfigInvalid with all findings if anything is wrong with it."""
    document = sources.document
    findings = [
        _finding(sources, path, value, problem, allowed)
        for path, value, problem, allowed in mistakes_across(document)
    ]
    told = {finding["key"] for finding in findings}
    try:
        config = model.model_validate(document, context={"from_file": True})
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            finding = _from_pydantic(model, sources, mistake)
            key = finding["key"]
            if mistake["type"] != "value_error" or not any(
                each == key or each.startswith(f"{key}.") for each in told
            ):
                findings.append(finding)
    if findings:
        findings.sort(key=lambda each: (each["file"] or "", each["line"] or 0, each["key"]))
        count = "1 mistake" if len(findings) == 1 else f"{len(findings)} mistakes"
        raise ConfigInvalid(
            f"{count} in the configuration",
            findings=findings,
            do="nothing was started or changed; mend them and try again (`syncd check` tries the rest)",
            **({"path": sources.path} if sources.path else {}),
        )
    return config


def dotted(path: KeyPath) -> str:
    """`("publish", 0, "golden", "shape")` → `publish[0].golden.shape`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _finding(sources: Sources, path: KeyPath, value: Any, problem: str, allowed: str) -> dict[str, Any]:
    file, line = sources.place(path)
    plain = value if isinstance(value, bool | int | float | str | None) else repr(value)
    if isinstance(plain, str) and len(plain) > 200:
        plain = plain[:200] + "…"
    return {"file": file, "line": line, "key": dotted(path), "value": plain, "problem": problem, "allowed": allowed,
            "nearest": None}  # fmt: skip


def _from_pydantic(model: type[BaseModel], sources: Sources, mistake: Any) -> dict[str, Any]:
    path: KeyPath = tuple(mistake["loc"])
    kind, context = mistake["type"], mistake.get("ctx") or {}
    if kind == "extra_forbidden":
        finding = _finding(sources, path, mistake["input"], "unknown key", "")
        level = known_keys(model, path[:-1])
        finding["allowed"] = "one of " + ", ".join(sorted(level)) if level else "no keys"
        finding["nearest"] = nearest_key(model, path)
        return finding
    field = _field(model, path)
    allowed = describe(field) if field else ""
    if kind == "missing":
        return _finding(sources, path, None, "missing", allowed)
    problem = (
        str(context["error"]) if kind == "value_error" else mistake["msg"][:1].lower() + mistake["msg"][1:]
    )
    if kind == "string_pattern_mismatch":
        problem = "not of the right form"
    return _finding(sources, path, mistake["input"], problem, allowed)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _field(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    found: FieldInfo | None = None
    at: type[BaseModel] | None = model
    for step in path:
        if isinstance(step, str):
            found = at.model_fields.get(step) if at else None
            if found is None:
                return None
            at = _model_in(found.annotation)
    return found


def known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys of the section at `path`."""
    if not path:
        return list(model.model_fields)
    field = _field(model, path)
    section = _model_in(field.annotation) if field else None
    return list(section.model_fields) if section else []


def all_keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key path of the configuration, sections too, without places in arrays."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        section = _model_in(field.annotation)
        if section:
            yield from all_keys(section, (*above, name))


def nearest_key(model: type[BaseModel], path: KeyPath) -> str | None:
    """The known key that was probably meant: of this section by likeness, else of another by likeness or name."""
    name = str(path[-1]).lower()
    close = difflib.get_close_matches(name, known_keys(model, path[:-1]), n=1, cutoff=0.6)
    if close:
        return dotted((*path[:-1], close[0]))
    everywhere = {key[-1]: ".".join(key) for key in reversed(list(all_keys(model)))}
    close = difflib.get_close_matches(name, list(everywhere), n=1, cutoff=0.75)
    return everywhere[close[0]] if close else None


def describe(field: FieldInfo) -> str:
    """What a key takes, in words: kind, unit and bounds."""
    low = next((each.ge for each in field.metadata if isinstance(each, annotated_types.Ge)), None)
    high = next((each.le for each in field.metadata if isinstance(each, annotated_types.Le)), None)
    is_duration = any(
        getattr(getattr(each, "func", None), "__name__", "") == "_duration" for each in field.metadata
    )
    is_size = any(getattr(getattr(each, "func", None), "__name__", "") == "_size" for each in field.metadata)
    show = _duration_text if is_duration else _size_text if is_size else str
    text = "a duration" if is_duration else "a size" if is_size else _kind(field)
    if low is not None and high is not None:
        text += f" from {show(low)} to {show(high)}"
    elif low is not None:
        text += f" of at least {show(low)}"
    note = field.description
    return f"{text} ({note})" if note else text


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [each for each in get_args(annotation) if each is not type(None)]
        annotation = rest[0] if len(rest) == 1 else annotation
    if get_origin(annotation) is typing.Literal:
        return " or ".join(f'"{each}"' for each in get_args(annotation))
    if any(getattr(each, "pattern", "") and "[a-z0-9]" in each.pattern for each in field.metadata):
        return "a name: 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit"
    section = _model_in(annotation)
    if section is not None:
        return (
            ("tables" if get_origin(annotation) is tuple else "a table")
            + " with "
            + ", ".join(section.model_fields)
        )
    if get_origin(annotation) is tuple:
        return "an array"
    names = {
        "str": "a string",
        "Path": "a path",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }
    return names.get(
        getattr(annotation, "__name__", ""), "a table" if get_origin(annotation) is dict else "a value"
    )


def _duration_text(seconds: Any) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _size_text(size: Any) -> str:
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= length and size % length == 0:
            return f"{size // length}{unit}"
    return f"{size}B"
