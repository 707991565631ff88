"""What is wrong with a configuration beyond a single key's type: halves of groups, keys at odds, stores, addresses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final

from syncd import paths
from syncd.locate import KeyPath

Mistake = tuple[KeyPath, Any, str, str]
"""Where, the value, what is wrong with it, what is allowed."""

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
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_FIELDS: Final[tuple[tuple[str, int, int, tuple[str, ...]], ...]] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("weekday", 0, 7, _WEEKDAYS),
)


def mistakes_across(document: dict[str, Any]) -> Iterator[Mistake]:
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
        cron = section.get("cron")
        if isinstance(cron, str) and (problem := mistake_in_cron(cron)):
            yield ("follow", place, "cron"), cron, problem, 'five fields: "0 2 * * sun" is Sundays at 02:00'
        for number, hook in _tables(section, "hooks"):
            if ("command" in hook) == ("http" in hook):
                yield ("follow", place, "hooks", number), hook, "half a hook", "command or http, one of them"
    listen = _table(document, "status").get("listen")
    if isinstance(listen, str):
        yield from _about_listen(listen, "token_file" in _table(document, "status"))
    yield from _about_serve(_table(document, "serve"), bool(document.get("follow")))


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _tables(document: dict[str, Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    value = document.get(name)
    for place, each in enumerate(value if isinstance(value, list) else []):
        if isinstance(each, dict):
            yield place, each


def _about_store(store: dict[str, Any], publishes: bool) -> Iterator[Mistake]:
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


def _about_repeats(document: dict[str, Any]) -> Iterator[Mistake]:
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


def _about_serve(serve: dict[str, Any], follows: bool) -> Iterator[Mistake]:
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


def _about_listen(listen: str, has_token: bool) -> Iterator[Mistake]:
    allowed = (
        "a socket's path, or HOST:PORT with a loopback host such as 127.0.0.1:8765; others with token_file"
    )
    try:
        address = paths.parse_address(listen)
    except ValueError as error:
        yield ("status", "listen"), listen, str(error), allowed
        return
    if isinstance(address, tuple):
        if not has_token and not paths.is_loopback(address[0]):
            yield ("status", "listen"), listen, f"{address[0]} is not this machine alone", allowed
    elif len(str(address).encode()) > 107:
        yield ("status", "listen"), listen, "longer than the 107 bytes that a socket's path may have", allowed


def mistake_in_cron(text: str) -> str | None:
    """What cron would not take in a line of five fields; None: nothing."""
    fields = text.lower().split()
    if len(fields) != len(_CRON_FIELDS):
        return f"{len(fields)} fields, not 5"
    for field, (name, low, high, names) in zip(fields, _CRON_FIELDS, strict=True):
        for part in field.split(","):
            if not _is_span(part, low, high, names):
                return f"{part!r} is no {name}"
    return None


def _is_span(part: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    """`*`, `5`, `1-5`, `*/10`, `1-5/2`, with names in place of numbers."""
    found = re.fullmatch(r"(\*|\w+(?:-\w+)?)(?:/(\d{1,2}))?", part, re.ASCII)
    if not found or (found[2] is not None and int(found[2]) == 0):
        return False
    if found[1] == "*":
        return True
    ends = [names.index(end) + min(low, 1) if end in names else end for end in found[1].split("-")]
    if not all(isinstance(end, int) or end.isdecimal() for end in ends):
        return False
    numbers = [int(end) for end in ends]
    return all(low <= number <= high for number in numbers) and numbers == sorted(numbers)
