"""`syncd status`: light; its plain forms are understood here, because typer alone would cost more than the answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from syncd.cli.output import Common, bytes_text

_FLAGS = {
    "--json": "json",
    "--quiet": "quiet",
    "-q": "quiet",
    "--verbose": "verbose",
    "-v": "verbose",
    "--no-input": "no_input",
}


def plain_form(arguments: Sequence[str]) -> Common | None:
    """The options of `syncd status …` if nothing but the common ones stands there; None: typer shall judge it."""
    given: dict[str, Any] = {}
    words = list(arguments)
    if words.count("status") != 1:
        return None
    words.remove("status")
    while words:
        word = words.pop(0)
        if word in _FLAGS:
            given[_FLAGS[word]] = True
        elif word in ("-c", "--config") and words:
            given["config"] = Path(words.pop(0))
        else:
            return None
    return Common(**given)


def status(common: Common) -> None:
    """What the daemon of this machine is doing."""
    document = run_status(common)
    common.give(document, _status_lines(document))


def run_status(common: Common) -> dict[str, Any]:
    """Ask the daemon; reads no more of the configuration than its address: this command is light."""
    from syncd.status.client import fetch_status

    address, token_file = daemon_address(common)
    token = None
    if token_file is not None and os.access(token_file, os.R_OK):  # where reading is free, it is not needed
        from syncd.status.token import read_token

        token = read_token(token_file)
    return fetch_status(address, token)


def daemon_address(common: Common) -> tuple[str, Path | None]:
    """Where the daemon of this configuration answers, and over TCP the file with its token."""
    from syncd import paths
    from syncd.configfile import read_sources
    from syncd.errors import UsageError

    file = paths.config_file(common.config)
    section = read_sources(file).document.get("status")
    section = section if isinstance(section, dict) else {}
    listen, token = section.get("listen"), section.get("token_file")
    address = paths.status_address(listen if isinstance(listen, str) else None, config=file)
    try:
        place = paths.parse_address(address)
    except ValueError as error:
        raise UsageError(
            f"[status] listen is {address!r}: {error}", do="`syncd check` says what is allowed"
        ) from error
    return address, Path(token) if isinstance(place, tuple) and isinstance(token, str) else None


def _status_lines(document: dict[str, Any]) -> Iterator[str]:
    store = document.get("store") or {}
    reachable = {True: "reachable", False: "unreachable", None: "not asked yet"}[store.get("reachable")]
    yield f"{document.get('node')}  syncd {document.get('version')}, since {document.get('started_at')}"
    skew = store.get("clock_skew_s")
    late = f", its clock is {skew:+.0f} s from ours" if skew is not None and abs(skew) >= 5 else ""
    yield f"store  {store.get('url')}: {reachable}, last answer {store.get('last_contact') or 'never'}{late}"
    for each in document.get("published") or []:
        yield (
            f"publish  {each['model']}: {each['state'] or '-'}, last version {each['last_version'] or 'none'}, "
            f"{each['pending'] or 0} waiting"
        )
        if each.get("last_error"):
            yield f"  last error: {_text(each['last_error'])}"
        for ignored in (each.get("ignored") or [])[:10]:
            yield f"  ignored {ignored['path']}: {ignored['why']}"
    for each in document.get("models") or []:
        yield from _model_lines(each)
    for name, code in (document.get("failing") or {}).items():
        yield f"failing  {name}: {code}"


def _text(error: Any) -> str:
    return f"{error.get('code')}: {error.get('what')}" if isinstance(error, dict) else str(error)


def _model_lines(each: dict[str, Any]) -> Iterator[str]:
    yield (
        f"follow  {each['model']}:{each['channel']}: {each['state'] or '-'}, serving {each['serving'] or 'none'}, "
        f"available {each['available'] or 'none'}, previous {each['previous'] or 'none'}, "
        f"{bytes_text(each['wire_bytes'] or 0)} received"
    )
    if each.get("probation_until"):
        yield f"  on probation until {each['probation_until']}"
    if each.get("held"):
        yield f"  held: no updates until `syncd resume {each['model']}`"
    if each.get("pinned"):
        yield f"  pinned to version {each['pinned']}"
    if each.get("waits_for"):
        yield f"  version {each.get('target')}: {each.get('reason')}"
    for hook in each.get("hooks") or []:
        last = hook.get("last")
        if last and not last["ok"]:
            yield f"  hook {hook['hook']} on {hook['on']} failed for version {last['version']}: {last['detail']}"
    for refused in each.get("quarantined") or []:
        yield f"  quarantined {refused['version']}: {refused['reason']}"
    for one in each.get("followers") or []:
        latency = (
            f", p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms"
            if one.get("p50_ms") is not None
            else ""
        )
        yield (
            f"  follower {one['id']}: version {one['version'] or '-'}, {one['predictions'] or 0} predictions, "
            f"{one['errors'] or 0} errors{latency}"
        )
