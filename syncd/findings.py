"""Every mistake in a configuration, told at once: where, what was found, what is allowed, which key was meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, Final, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from syncd import paths
from syncd.configfile import Sources
from syncd.errors import ConfigInvalid
from syncd.locate import KeyPath

M = TypeVar("M", bound=BaseModel)
SCHEMES: Final = ("file", "s3", "gs", "az", "https", "http")
ONLY_FOR: Final = {
    "endpoint": ("s3",),
    "region": ("s3",),
    "profile": ("s3",),
    "proxy": ("https", "http"),
    "ca_file": ("https",),
    "client_cert": ("https",),
    "client_key": ("https",),
}


def check(model: type[M], sources: Sources) -> M:
    """The document as a `model`; ConfigInvalid with all findings if anything is wrong with it."""
    document = sources.document
    findings = [
        _finding(sources, path, value, problem, allowed)
        for path, value, problem, allowed in _across(document)
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


Cross = tuple[KeyPath, Any, str, str]


def _across(document: dict[str, Any]) -> Iterator[Cross]:
    """Mistakes that no single key has: groups set by half, keys that do not go together, addresses and stores."""
    store = _table(document, "store")
    yield from _about_store(store, bool(document.get("publish")))
    if document.get("publish") and "keys" not in _table(document, "trust"):
        yield (
            ("trust", "keys"),
            None,
            "missing, and there is a [[publish]]",
            "the folder of this machine's online keys",
        )
    yield from _about_repeats(document)
    for place, section in _tables(document, "publish"):
        golden = section.get("golden")
        if isinstance(golden, dict) and (("shape" in golden) == ("file" in golden)):
            yield ("publish", place, "golden"), golden, "half a golden sample", "shape or file, one of them"
        if golden and "architecture" not in section:
            yield (
                ("publish", place, "golden"),
                golden,
                "a golden sample without [publish.architecture]",
                "both",
            )
    for place, section in _tables(document, "follow"):
        if "poll" in section and "cron" in section:
            yield ("follow", place, "cron"), section["cron"], "beside poll", "poll or cron, one of them"
    listen = _table(document, "status").get("listen")
    if isinstance(listen, str):
        yield from _about_listen(listen)
    yield from _about_serve(_table(document, "serve"), bool(document.get("follow")))


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _tables(document: dict[str, Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    value = document.get(name)
    for place, each in enumerate(value if isinstance(value, list) else []):
        if isinstance(each, dict):
            yield place, each


def _about_store(store: dict[str, Any], publishes: bool) -> Iterator[Cross]:
    url = store.get("url")
    pair = [name for name in ("client_cert", "client_key") if name in store]
    if len(pair) == 1:
        yield ("store", pair[0]), store[pair[0]], "half a pair", "client_cert and client_key, both or neither"
    if not isinstance(url, str):
        return
    scheme, colon, rest = url.partition("://")
    if not colon:
        scheme = "file"
    if scheme not in SCHEMES:
        allowed = "a folder, or " + ", ".join(f"{each}://" for each in SCHEMES)
        close = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5)
        yield (
            ("store", "url"),
            url,
            "unknown kind of store" + (f"; {close[0]}:// is one" if close else ""),
            allowed,
        )
        return
    if "@" in rest.split("/")[0] and scheme != "file":
        hidden = f"{scheme}://…@{rest.split('/')[0].rpartition('@')[2]}"
        yield (
            ("store", "url"),
            hidden,
            "holds a user or password",
            "secrets come from files or the cloud's own chain",
        )
    if publishes and scheme in ("http", "https"):
        yield ("store", "url"), url, "read-only, and there is a [[publish]]", "file://, s3://, gs:// or az://"
    for name, schemes in ONLY_FOR.items():
        if name in store and scheme not in schemes:
            yield (
                ("store", name),
                store[name],
                f"means nothing for {scheme}://",
                f"only with {'://, '.join(schemes)}://",
            )


def _about_repeats(document: dict[str, Any]) -> Iterator[Cross]:
    seen: set[Any] = set()
    for place, section in _tables(document, "follow"):
        model = section.get("model")
        if isinstance(model, str) and model in seen:
            yield ("follow", place, "model"), model, "followed twice", "one [[follow]] for each model"
        seen.add(model if isinstance(model, str) else None)
    watched: set[Any] = set()
    for place, section in _tables(document, "publish"):
        model, watch = section.get("model"), section.get("watch")
        if isinstance(model, str) and isinstance(watch, str):
            if (model, watch) in watched:
                yield (
                    ("publish", place, "watch"),
                    watch,
                    f"watched twice for {model}",
                    "one [[publish]] for it",
                )
            watched.add((model, watch))


def _about_serve(serve: dict[str, Any], follows: bool) -> Iterator[Cross]:
    listen = serve.get("listen")
    if isinstance(listen, str):
        try:
            paths.parse_address(listen)
        except ValueError as error:
            yield (
                ("serve", "listen"),
                listen,
                str(error),
                "HOST:PORT such as 127.0.0.1:8080, or a socket's path",
            )
    seen: set[Any] = set()
    for place, section in _tables(serve, "models"):
        model = section.get("model")
        if isinstance(model, str) and model in seen:
            yield (
                ("serve", "models", place, "model"),
                model,
                "served twice",
                "one [[serve.models]] for each model",
            )
        seen.add(model if isinstance(model, str) else None)
    if serve and not seen and not follows:
        yield (
            ("serve", "models"),
            None,
            "missing, and nothing is followed",
            "a [[serve.models]] for each model",
        )


def _about_listen(listen: str) -> Iterator[Cross]:
    allowed = "a socket's path, or HOST:PORT with a loopback host such as 127.0.0.1:8765"
    try:
        address = paths.parse_address(listen)
    except ValueError as error:
        yield ("status", "listen"), listen, str(error), allowed
        return
    if isinstance(address, tuple) and not paths.is_loopback(address[0]):
        yield ("status", "listen"), listen, f"{address[0]} is not this machine alone", allowed
    elif not isinstance(address, tuple) and len(str(address).encode()) > 107:
        yield ("status", "listen"), listen, "longer than the 107 bytes that a socket's path may have", allowed
