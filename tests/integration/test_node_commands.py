"""`syncd rollback`, `pin`, `unpin`, `approve`, `hold`, `resume`, as people type them, with and without a daemon."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.commands import (
    Daemon,
    Fleet,
    copy_of,
    done,
    found_fleet,
    free_port,
    running,
    save_checkpoint,
    syncd,
    tree,
    wait_until,
)

TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet with three versions of m."""
    fleet = found_fleet(tmp_path_factory.mktemp("founded"))
    config = fleet.config("publisher", '[[publish]]\nmodel = "m"\nwatch = "/nowhere"\n')
    for seed in (1, 2, 3):
        save_checkpoint(fleet.folder / f"{seed}.pt", seed)
        done("publish", fleet.folder / f"{seed}.pt", "--model", "m", "-c", config)
    return fleet


@pytest.fixture
def fleet(founded: Fleet, tmp_path: Path) -> Fleet:
    return copy_of(founded, tmp_path)


def config_of(fleet: Fleet, name: str = "edge", more: str = "") -> Path:
    return fleet.config(name, f'[[follow]]\nmodel = "m"\npoll = "1s"\nprobation = "0s"\n{more}')


def model_of(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status()["models"][0]
    return found


def refused(*words: object) -> tuple[int, dict[str, Any]]:
    found = syncd(*words, "--json")
    return found.status, json.loads(found.out)["error"]


def test_pin_hold_rollback_approve_work_with_the_daemon_and_without_and_stay(fleet: Fleet) -> None:
    config = config_of(fleet)
    with running(config) as daemon:
        wait_until(lambda: model_of(daemon)["serving"] == 3, "version 3 serves", 60)
        answer = done("pin", "m@2", "-c", config)
        assert answer == {"model": "m", "version": 2, "previous": 3, "held": False, "pinned": 2}
        wait_until(lambda: model_of(daemon)["serving"] == 2, "version 2 serves", 60)
        assert "pinned to version 2" in syncd("status", "-c", config).out
        assert done("hold", "m", "-c", config)["held"] is True
        assert daemon.end() == 0
    answer = done("rollback", "m", "-c", config)
    assert (answer["version"], answer["previous"], answer["held"]) == (3, 2, True)
    answer = done("approve", "m@2", "-c", config)
    assert (answer["version"], answer["previous"]) == (2, 3)
    with running(config) as daemon:
        wait_until(lambda: model_of(daemon)["last_poll"] is not None, "it has polled", 60)
        shown = model_of(daemon)
        assert (shown["serving"], shown["held"], shown["pinned"]) == (3, True, None)
        assert shown["quarantined"] == []
        assert "held: no updates until" in syncd("status", "-c", config).out
        assert done("resume", "m", "-c", config)["held"] is False
        assert "was not pinned" in syncd("unpin", "m", "-c", config).out


def test_what_is_not_there_is_told_with_exit_status_2_and_changes_nothing(fleet: Fleet) -> None:
    config = config_of(fleet)
    assert refused("rollback", "m", "-c", config)[1]["code"] == "not-installed"
    cases = (("pin", "m@9"), ("pin", "x@1"), ("approve", "m@9"), ("hold", "x"), ("rollback", "x"))
    with running(config) as daemon:
        wait_until(lambda: model_of(daemon)["serving"] == 3, "version 3 serves", 60)
        with_daemon = [refused(*words, "-c", config) for words in cases]
        assert refused("rollback", "m", "-c", config)[0] == 1
        assert daemon.end() == 0
    before = tree(fleet.folder / "edge/models")
    without = [refused(*words, "-c", config) for words in cases]
    for found in (with_daemon, without):
        assert [status for status, _ in found] == [2] * len(cases)
        codes = [error["code"] for _, error in found]
        assert codes == [
            *("unknown-version", "unknown-model", "unknown-version", "unknown-model", "unknown-model")
        ]
    assert tree(fleet.folder / "edge/models") == before
    for words in (("pin", "m"), ("hold", "m@1"), ("approve", "m:latest"), ("pin", "@")):
        assert refused(*words, "-c", config)[0] == 2


def test_over_tcp_the_commands_bring_the_token_of_the_configuration(fleet: Fleet, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    port = free_port()
    config = config_of(fleet, "tcp", 'approve = "manual"\n')
    listen = f'listen = "{fleet.folder}/tcp.sock"'
    assert listen in config.read_text()
    over_tcp = f'listen = "127.0.0.1:{port}"\ntoken_file = "{token}"'
    config.write_text(config.read_text().replace(listen, over_tcp))
    with running(config) as daemon:
        wait_until(lambda: model_of(daemon)["state"] == "WAITING", "it waits for approval", 60)
        shown = model_of(daemon)
        assert (shown["waits_for"], shown["serving"]) == ("approval", None)
        assert "waits for `syncd approve m@3`" in syncd("status", "-c", config).out
        done("approve", "m@3", "-c", config)
        wait_until(lambda: model_of(daemon)["serving"] == 3, "version 3 serves", 60)
        token.write_text(TOKEN[::-1])
        status, error = refused("hold", "m", "-c", config)
        assert (status, error["code"]) == (1, "denied")
        assert error["what"] == "the token is not the one of this daemon"
        token.write_text(TOKEN)
        assert model_of(daemon)["held"] is False


def test_check_tries_the_token_file_and_the_programs_of_hooks(fleet: Fleet, tmp_path: Path) -> None:
    hooks = "".join(
        f'[[follow.hooks]]\non = "swap"\n{each}\n'
        for each in (
            'command = ["/nowhere/reload"]',
            'command = ["sh", "-c", "true"]',
            'http = "http://x/load"',
        )
    )
    config = config_of(fleet, "checked", hooks)
    listen = f'listen = "{fleet.folder}/checked.sock"'
    over_tcp = f'listen = "127.0.0.1:{free_port()}"\ntoken_file = "{tmp_path}/none"'
    config.write_text(config.read_text().replace(listen, over_tcp))
    found = json.loads(syncd("check", "-c", config, "--json").out)["checks"]
    wrong = {each["name"]: each["detail"] for each in found if not each["ok"]}
    assert wrong == {
        "hook of m on swap": "/nowhere/reload is no program that this user may run",
        "status": "the token file cannot be read: No such file or directory",
    }
    assert [each["ok"] for each in found if each["name"] == "hook of m on swap"] == [False, True, True]


def test_a_daemon_without_a_token_does_not_start_where_others_reach_it(fleet: Fleet) -> None:
    config = config_of(fleet, "open")
    listen = f'listen = "{fleet.folder}/open.sock"'
    config.write_text(config.read_text().replace(listen, f'listen = "0.0.0.0:{free_port()}"'))
    status, error = refused("run", "-c", config)
    assert (status, error["code"]) == (2, "config-invalid")
    assert "0.0.0.0 is not this machine alone" in json.dumps(error)


def test_the_stream_of_events_ends_with_the_daemon_and_goes_on_with_the_next_where_it_was(
    fleet: Fleet,
) -> None:
    config = config_of(fleet, "told")
    path = fleet.folder / "told.sock"
    with running(config) as daemon:
        wait_until(lambda: model_of(daemon)["serving"] == 3, "version 3 serves", 60)
        with stream(path, {"last-event-id": "0"}) as lines:
            done("hold", "m", "-c", config)
            seen = until_kind(lines, "syncd.command")
            assert [each["type"] for each in seen] == ["syncd.install", "syncd.swap", "syncd.command"]
            assert seen[-1]["data"]["by"].startswith("uid ")
            began = time.monotonic()
            assert daemon.end() == 0
            assert time.monotonic() - began < 10
            assert [line for line in lines if line.startswith("data")] == []
    done("resume", "m", "-c", config)
    with running(config), stream(path, {"last-event-id": seen[-1]["id"]}) as lines:
        [then] = until_kind(lines, "syncd.command")
        assert then["data"]["command"] == "resume"
        assert int(then["id"]) == int(seen[-1]["id"]) + 1


@contextlib.contextmanager
def stream(path: Path, headers: dict[str, str]) -> Iterator[Iterator[str]]:
    """The lines of `/v1/events` over a daemon's socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with (
        httpx.Client(transport=transport, base_url="http://localhost", timeout=20) as client,
        client.stream("GET", "/v1/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        yield answer.iter_lines()


def until_kind(lines: Iterator[str], kind: str) -> list[dict[str, Any]]:
    """The events of a stream up to one of `kind`."""
    found: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith("data: "):
            found.append(json.loads(line[6:]))
            if found[-1]["type"] == kind:
                return found
    raise AssertionError(f"the stream ended without {kind}: {found}")
