"""The daemon as a process: what it runs, what it refuses, how it ends, what it tells."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.commands import (
    Daemon,
    Fleet,
    copy_of,
    done,
    found_fleet,
    running,
    save_checkpoint,
    syncd,
    tree,
    wait_until,
)

PUBLISHED_KEYS = {"model", "state", "last_version", "last_error", "pending", "seen", "ignored"}
MODEL_KEYS = {
    "model", "channel", "state", "serving", "available", "previous", "probation_until", "quarantined", "last_poll",
    "last_change", "wire_bytes", "followers", "trust",
}  # fmt: skip
METRIC = re.compile(r"^syncd_(daemon|store|publisher|edge|predictor|trust)_[a-z0-9_]+(\{[^}]*\})? \S+$")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return found_fleet(tmp_path_factory.mktemp("founded"))


@pytest.fixture
def fleet(founded: Fleet, tmp_path: Path) -> Fleet:
    return copy_of(founded, tmp_path)


def one_machine(fleet: Fleet, name: str = "one", *, settle: str = "100ms", more: str = "") -> Path:
    """A configuration that publishes what lies in `runs` and follows it."""
    (fleet.folder / "runs").mkdir(exist_ok=True)
    return fleet.config(
        name,
        f'[[publish]]\nmodel = "m"\nwatch = "{fleet.folder}/runs"\nsettle = "{settle}"\nrescan = "500ms"\n'
        f'[[follow]]\nmodel = "m"\npoll = "1s"\nprobation = "0s"\n{more}',
    )


def get(path: Path, route: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of a route of a daemon's socket."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(10)
            self.sock.connect(str(path))

    with contextlib.closing(Connection("localhost")) as connection:
        connection.request(method, route)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def serving(daemon: Daemon) -> int | None:
    found: int | None = daemon.status()["models"][0]["serving"]
    return found


def test_what_training_writes_is_published_followed_and_told(fleet: Fleet) -> None:
    config = one_machine(fleet)
    listening = fleet.folder / "one.sock"
    with running(config) as daemon:
        assert stat.S_IMODE(listening.stat().st_mode) == 0o660
        assert get(listening, "/livez")[0] == 200
        assert get(listening, "/readyz")[0] == 503
        save_checkpoint(fleet.folder / "runs/epoch-1.pt", 1)
        wait_until(lambda: serving(daemon) == 1, "version 1 serves", 60)
        status = daemon.status()
        assert {"node", "version", "started_at", "store", "published", "models"} <= set(status)
        assert {"url", "reachable", "last_contact", "clock_skew_s"} <= set(status["store"])
        assert status["store"]["reachable"] is True
        assert set(status["published"][0]) >= PUBLISHED_KEYS
        assert set(status["models"][0]) >= MODEL_KEYS
        assert status["published"][0]["last_version"] == 1
        assert status["models"][0]["trust"]
        assert get(listening, "/readyz") == (200, "ready\n")
        code, text = get(listening, "/metrics")
        assert code == 200
        samples = [line for line in text.splitlines() if not line.startswith("#")]
        assert [line for line in samples if not METRIC.match(line)] == []
        assert 'syncd_edge_serving_version_number{channel="latest",model="m"} 1.0' in samples
        assert 'syncd_publisher_last_version_number{model="m"} 1.0' in samples
        people = syncd("status", "-c", config)
        assert "serving 1" in people.out
        assert people.err == ""
        assert get(listening, "/nowhere")[0] == 404
        assert get(listening, "/v1/status", "POST")[0] == 405
        assert daemon.end() == 0
    assert not listening.exists()


def test_idle_it_stays_under_120_mib_and_torch_is_not_mapped(fleet: Fleet) -> None:
    with running(one_machine(fleet)) as daemon:
        for version in (1, 2):
            weights = torch.randn(12_000_000, generator=torch.Generator().manual_seed(version)) * 0.02
            torch.save({"model": {"weight": weights}}, fleet.folder / f"runs/large-{version}.pt")
            wait_until(lambda: serving(daemon) == version, "the version serves", 60)  # noqa: B023
        wait_until(lambda: daemon.status()["models"][0]["state"] == "IDLE", "idle again")
        process = Path(f"/proc/{daemon.process.pid}")
        resident = int(re.findall(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())[0]) / 1024
        mapped = (process / "maps").read_text()
    print(f"idle RSS {resident:.0f} MiB")
    assert "torch" not in mapped
    assert resident < 120


def test_a_second_daemon_on_the_node_folder_is_refused_and_changes_nothing(fleet: Fleet) -> None:
    config = fleet.config("one")
    with running(config) as daemon:
        second = fleet.folder / "second.toml"
        second.write_text(config.read_text().replace("one.sock", "second.sock"))
        before = {name: each for name, each in tree(fleet.folder / "one").items() if "state.db" not in name}
        answer = syncd("run", "-c", second, "--json")
        assert answer.status == 1
        error = answer.json["error"]
        assert error["code"] == "node-busy"
        assert str(daemon.process.pid) in error["what"]
        after = {name: each for name, each in tree(fleet.folder / "one").items() if "state.db" not in name}
        assert after == before
        assert not (fleet.folder / "second.sock").exists()
        assert get(fleet.folder / "one.sock", "/livez")[0] == 200


@pytest.mark.parametrize("kind", ["socket", "port"])
def test_an_address_that_is_taken_is_refused(fleet: Fleet, kind: str) -> None:
    with contextlib.ExitStack() as taken:
        if kind == "port":
            busy = taken.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"127.0.0.1:{busy.getsockname()[1]}"
        else:
            taken.enter_context(running(fleet.config("first")))
            address = f"{fleet.folder}/first.sock"
        config = fleet.config("busy")
        config.write_text(config.read_text().replace(f"{fleet.folder}/busy.sock", address))
        answer = syncd("run", "-c", config, "--json")
        assert answer.status == 1
        assert answer.json["error"]["code"] == "port-busy"
        assert address in answer.json["error"]["what"]
        text = syncd("run", "-c", config)
        assert text.status == 1
        assert text.out == ""
        assert f"another process listens on {address}" in text.err


def test_killed_it_leaves_a_socket_that_the_next_start_replaces(fleet: Fleet) -> None:
    config = fleet.config("killed")
    with running(config) as daemon:
        daemon.end(signal.SIGKILL)
    assert (fleet.folder / "killed.sock").exists()
    with running(config):
        assert get(fleet.folder / "killed.sock", "/livez")[0] == 200


def test_on_loopback_another_host_name_is_refused(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = fleet.config("tcp")
    config.write_text(config.read_text().replace(f"{fleet.folder}/tcp.sock", f"127.0.0.1:{port}"))
    with running(config):
        assert done("status", "-c", config)["node"] == "tcp"
        with urllib.request.urlopen(f"http://localhost:{port}/livez", timeout=10) as answer:
            assert answer.status == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request("GET", "/v1/status", headers={"Host": host})
                assert connection.getresponse().status == 421


def test_it_starts_and_answers_with_the_store_unreachable(fleet: Fleet) -> None:
    save_checkpoint(fleet.folder / "runs/epoch-1.pt", 1)
    config = one_machine(fleet)
    with running(config) as daemon:
        wait_until(lambda: serving(daemon) == 1, "version 1 serves", 60)
        assert daemon.end() == 0
    (fleet.folder / "store").rename(fleet.folder / "away")
    with running(config) as daemon:
        wait_until(lambda: daemon.status()["store"]["reachable"] is False, "the store is missed")
        assert serving(daemon) == 1
        assert get(fleet.folder / "one.sock", "/livez")[0] == 200
        (fleet.folder / "away").rename(fleet.folder / "store")
        save_checkpoint(fleet.folder / "runs/epoch-2.pt", 2)
        wait_until(lambda: serving(daemon) == 2, "version 2 serves once the store is back", 90)


def test_sighup_takes_new_sections_and_keeps_the_old_after_a_mistake(fleet: Fleet) -> None:
    config = fleet.config("hup")
    old = config.read_text()
    with running(config) as daemon:
        assert daemon.status()["models"] == []
        config.write_text(old + '[[follow]]\nmodel = "m"\npoll = "1s"\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        assert [each["model"] for each in daemon.status()["models"]] == ["m"]

        config.write_text(old + '[[follow]]\nmodel = "m"\npol = "1s"\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("the new configuration is refused; the old one goes on")
        assert f"{config}:13: follow[0].pol = '1s': unknown key; did you mean follow[0].poll?" in daemon.text
        assert [each["model"] for each in daemon.status()["models"]] == ["m"]

        config.write_text(old.replace('store"', 'elsewhere"'))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded", count=2)
        assert "takes effect at a restart only  section=[store]" in daemon.text
        assert daemon.status()["models"] == []
        assert daemon.status()["store"]["url"].endswith("/store")


def test_sigterm_publishes_what_has_not_settled_yet(fleet: Fleet) -> None:
    config = one_machine(fleet, settle="1h")
    with running(config) as daemon:
        save_checkpoint(fleet.folder / "runs/epoch-1.pt", 1)
        wait_until(lambda: daemon.status()["published"][0]["seen"] >= 1, "it was seen")
        assert daemon.end() == 0
    assert (fleet.folder / "store/models/m/versions/1/head.json").is_file()


def test_ctrl_c_drains_and_exits_130(fleet: Fleet) -> None:
    with running(one_machine(fleet)) as daemon:
        assert daemon.end(signal.SIGINT) == 130
    assert "signal=SIGINT" in daemon.text


@contextlib.contextmanager
def notify_socket(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(folder / "notify.socket"))
        receiver.settimeout(20)
        yield receiver


def test_systemd_is_told_ready_watchdog_reloading_and_stopping(fleet: Fleet) -> None:
    config = fleet.config("notify", '[[follow]]\nmodel = "m"\n')

    def until(receiver: socket.socket, wanted: str) -> str:
        while True:
            told = receiver.recv(4096).decode()
            if wanted in told:
                return told

    with notify_socket(fleet.folder) as receiver:
        env = {"NOTIFY_SOCKET": str(fleet.folder / "notify.socket"), "WATCHDOG_USEC": "600000"}
        with running(config, **env) as daemon:
            assert "STATUS=m@- serving" in until(receiver, "READY=1")
            for _ in range(3):
                until(receiver, "WATCHDOG=1")
            daemon.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in until(receiver, "RELOADING=1")
            until(receiver, "READY=1")
            daemon.process.send_signal(signal.SIGTERM)
            assert "EXTEND_TIMEOUT_USEC=" in until(receiver, "STOPPING=1")
            assert daemon.process.wait(20) == 0


def test_under_the_journal_lines_carry_a_priority_and_no_time(fleet: Fleet) -> None:
    with running(fleet.config("journal"), JOURNAL_STREAM="8:1") as daemon:
        assert daemon.end() == 0
    assert all(re.match(r"<[2-7]>\w+ ", line) for line in daemon.text.splitlines())


def test_a_foreign_state_file_is_refused_and_left_alone(fleet: Fleet) -> None:
    config = fleet.config("foreign")
    (fleet.folder / "foreign").mkdir()
    (fleet.folder / "foreign/state.db").write_bytes(b"this is no database" * 100)
    answer = syncd("run", "-c", config)
    assert answer.status == 1
    assert "state.db" in answer.err
    assert (fleet.folder / "foreign/state.db").read_bytes() == b"this is no database" * 100


def test_a_missing_key_is_told_at_once_and_the_edge_beside_it_goes_on(fleet: Fleet) -> None:
    save_checkpoint(fleet.folder / "runs/epoch-1.pt", 1)
    config = one_machine(fleet)
    done("publish", fleet.folder / "runs/epoch-1.pt", "--model", "m", "-c", config)
    key = fleet.folder / "keys/models/m.key"
    key.rename(key.with_suffix(".away"))
    with running(config) as daemon:
        daemon.wait_for("key-unusable: there is no such key on this machine")
        wait_until(lambda: serving(daemon) == 1, "version 1 serves", 60)
        assert daemon.status()["failing"] == {f"publish m {fleet.folder}/runs": "key-unusable"}
        code, text = get(fleet.folder / "one.sock", "/readyz")
        assert code == 503
        assert "key-unusable" in text
        key.with_suffix(".away").rename(key)
        wait_until(
            lambda: get(fleet.folder / "one.sock", "/readyz")[0] == 200, "ready once the key is there", 60
        )
        assert daemon.status()["failing"] == {}
