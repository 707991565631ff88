"""A server that is replaced, killed daemons, new versions: clients that never stop asking lose nothing."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from syncd.node.links import NodeFolder
from tests.support.asking import Asker
from tests.support.commands import ROOT, Fleet, found_fleet, running, wait_until
from tests.support.nets import Slow
from tests.support.serving import (
    Server,
    ask,
    error_of,
    free_port,
    install_net,
    line,
    serving,
    write_config,
)
from tests.support.small_daemon import living, offer_and_wait
from tests.support.versions import golden_of, install_version, make_model_folder

ROW = [1.0, -2.0, 3.5, 0.25]
BODY: dict[str, Any] = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW}]}
LINE = '[publish.architecture]\nname = "tests.support.nets:Line"\n[publish.golden]\nshape = [2, 4]\n'


def answer_of(version: int) -> list[float]:
    with torch.no_grad():
        found: list[float] = line(version)(torch.tensor([ROW]))[0].tolist()
    return found


def save_line(fleet: Fleet, version: int) -> None:
    aside = fleet.folder / "runs" / "part.tmp"
    torch.save({"model": line(version).state_dict()}, aside)
    aside.rename(fleet.folder / "runs" / f"step-{version}.pt")


def one_machine(fleet: Fleet, port: int = 0) -> Path:
    """Publishes `runs`, follows it, and serves it."""
    (fleet.folder / "runs").mkdir(exist_ok=True)
    return fleet.config(
        "one",
        f'[[publish]]\nmodel = "m"\nwatch = "{fleet.folder}/runs"\nsettle = "50ms"\nrescan = "500ms"\n{LINE}'
        f'[[follow]]\nmodel = "m"\npoll = "1s"\nprobation = "0s"\n'
        f'[serve]\nlisten = "127.0.0.1:{port}"\narchitectures = ["tests.support.nets:*"]\n',
    )


class Crowd:
    """Four clients, two of them with kept connections."""

    def __init__(self, port: int, versions: int) -> None:
        expected = {str(version): answer_of(version) for version in range(1, versions + 1)}
        self.askers = [Asker(port, "m", BODY, expected, keeps=place % 2 == 0) for place in range(4)]
        for each in self.askers:
            each.start()

    def go_on(self, what: str, answers: int = 5) -> None:
        """Until each client has so many further answers."""
        wanted = [each.answers + answers for each in self.askers]
        wait_until(
            lambda: all(each.answers >= many for each, many in zip(self.askers, wanted, strict=True)),
            what,
            90,
        )

    def see(self, version: int) -> None:
        """Until each client was answered by `version`."""
        wait_until(
            lambda: all(str(version) in each.versions for each in self.askers), f"version {version}", 90
        )

    def end(self) -> None:
        """Stop; nothing failed, nothing was wrong, no version came back."""
        for each in self.askers:
            each.end()
        print(
            f"answers {sum(each.answers for each in self.askers)}, "
            f"longest {max(each.longest_s for each in self.askers):.2f} s"
        )
        for each in self.askers:
            assert each.failed == []
            assert each.wrong == []
            assert each.versions == sorted(each.versions)


@pytest.mark.timeout(400)
def test_daemon_killed_and_restarted_server_replaced_under_its_socket_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    fleet = found_fleet(tmp_path)
    config = one_machine(fleet)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as held:
        port = held.getsockname()[1]
        with running(config, PYTHONPATH=str(ROOT)) as daemon:
            save_line(fleet, 1)
            folder = NodeFolder(fleet.folder / "one").model_folder("m")
            wait_until(lambda: folder.read_link("current") == 1, "version 1 is installed", 90)
            server = Server(config, held=held)
            crowd = Crowd(port, 5)
            try:
                crowd.go_on("the first answers")
                save_line(fleet, 2)
                crowd.see(2)
                daemon.end(signal.SIGKILL)
                crowd.go_on("answers without a daemon", 50)
                with running(config, PYTHONPATH=str(ROOT)) as second:
                    crowd.go_on("answers beside a new daemon")
                    assert server.end() == 0
                    server = Server(config, held=held)
                    crowd.go_on("answers of a second server")
                    save_line(fleet, 3)
                    crowd.see(3)
                    assert second.end() == 0
                    assert server.end() == 0
                    server = Server(config, held=held)
                    crowd.go_on("answers of a third server, without a daemon")
                    with running(config, PYTHONPATH=str(ROOT)):
                        save_line(fleet, 4)
                        crowd.see(4)
            finally:
                server.process.poll()
                try:
                    crowd.end()
                finally:
                    server.kill()


@pytest.mark.timeout(300)
def test_served_by_a_child_of_the_daemon_it_ends_with_it_killed_or_told(tmp_path: Path) -> None:
    fleet, port = found_fleet(tmp_path), free_port()
    config = one_machine(fleet, port)
    save_line(fleet, 1)
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with running(config, "--with-serve", PYTHONPATH=str(ROOT)) as daemon:
            wait_until(lambda: not _refuses(port), "the child listens", 90)
            wait_until(lambda: ask(port, "GET", "/v2/health/ready")[0] == 200, "the child serves", 90)
            told = json.loads(ask(port, "POST", "/v2/models/m/infer", BODY)[2])
            assert told["outputs"][0]["data"] == pytest.approx(answer_of(1), abs=1e-5)
            assert daemon.end(number) == status
            wait_until(lambda: _refuses(port), "the child is gone")


def test_before_the_first_install_it_is_live_not_ready_and_serves_what_comes(tmp_path: Path) -> None:
    node, port = tmp_path / "node", free_port()
    with serving(write_config(node, port, ["m"])):
        assert ask(port, "GET", "/v2/health/live")[0] == 200
        for method, path, body in (
            ("GET", "/v2/health/ready", None),
            ("GET", "/v2/models/m/ready", None),
            ("GET", "/v2/models/m", None),
            ("POST", "/v2/models/m/infer", BODY),
        ):
            answer = ask(port, method, path, body)
            assert error_of(answer)[0] == 503
            assert int(answer[1]["retry-after"]) >= 1
        folder = make_model_folder(node, "m")  # the daemon comes later than the server
        net = line(1)
        install_version(
            folder,
            1,
            net.state_dict(),
            architecture={"name": "tests.support.nets:Line", "args": {}},
            golden=golden_of(net, [torch.ones(2, 4)]),
        )
        wait_until(lambda: len(living(folder)) == 1, "the server follows")
        assert len(offer_and_wait(folder, 1, voters=1).accepted) == 1
        assert error_of(ask(port, "POST", "/v2/models/m/infer", BODY))[0] == 503
        folder.activate(1)
        wait_until(lambda: ask(port, "GET", "/v2/health/ready")[0] == 200, "ready")
        status, _, data = ask(port, "POST", "/v2/models/m/infer", BODY)
        assert status == 200
        assert json.loads(data)["outputs"][0]["data"] == pytest.approx(answer_of(1), abs=1e-5)


def test_a_version_that_the_gate_refuses_is_told_in_the_index_and_nothing_answers(tmp_path: Path) -> None:
    node, port = tmp_path / "node", free_port()
    net = line(1)
    folder = make_model_folder(node, "m")
    net.layer.weight.data[0, 0] = float("nan")
    install_version(folder, 1, net.state_dict(), architecture={"name": "tests.support.nets:Line", "args": {}})
    folder.activate(1)
    with serving(write_config(node, port, ["m"])):
        told = json.loads(ask(port, "POST", "/v2/repository/index")[2])
        assert told[0]["state"] == "UNAVAILABLE"
        assert "not finite" in told[0]["reason"]
        assert error_of(ask(port, "POST", "/v2/models/m/infer", BODY))[0] == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_answers_what_was_asked_refuses_what_comes_and_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    node, port = tmp_path / "node", free_port()
    folder = install_net(node, "slow", 1, Slow().eval(), [torch.ones(2, 4)])
    slow = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [2000.0, 0, 0, 0]}]}
    answers: list[tuple[int, dict[str, str], bytes]] = []
    with serving(write_config(node, port, ["slow"])) as server:
        idle = socket.create_connection(("127.0.0.1", port), 10)
        asking = threading.Thread(
            target=lambda: answers.append(ask(port, "POST", "/v2/models/slow/infer", slow))
        )
        asking.start()
        wait_until(
            lambda: b"syncd_serve_waiting_requests 1.0" in ask(port, "GET", "/metrics")[2],
            "it is being asked",
        )
        began = time.monotonic()
        server.process.send_signal(number)
        wait_until(lambda: _refuses(port), "it accepts nothing more")
        assert server.process.wait(20) == (130 if number == signal.SIGINT else 0)
        asking.join(10)
        idle.close()
    assert answers[0][0] == 200
    assert answers[0][1]["connection"] == "close"
    assert time.monotonic() - began < 10
    assert living(folder) == []


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_ends_in_time_though_a_prediction_does_not(tmp_path: Path) -> None:
    node, port = tmp_path / "node", free_port()
    install_net(node, "slow", 1, Slow().eval(), [torch.ones(2, 4)])
    slow = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [60000.0, 0, 0, 0]}]}
    config = write_config(node, port, ["slow"])
    config.write_text('shutdown_within = "1s"\n' + config.read_text())
    with serving(config) as server:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        body = json.dumps(slow).encode()
        head = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(
            lambda: b"syncd_serve_waiting_requests 1.0" in ask(port, "GET", "/metrics")[2],
            "it is being asked",
        )
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 8
        connection.close()
    assert "a prediction that does not end" in server.log.read_text()


def test_a_descriptor_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    node = tmp_path / "node"
    config = write_config(node, free_port(), ["m"])
    with socket.socket() as not_listening:
        server = Server(config, held=not_listening)
        assert server.process.wait(60) == 2
    assert "does not listen" in server.log.read_text()
    assert not node.exists()


def test_variables_meant_for_another_process_are_ignored(tmp_path: Path) -> None:
    port = free_port()
    with serving(write_config(tmp_path / "node", port, ["m"]), LISTEN_PID="1", LISTEN_FDS="1"):
        assert ask(port, "GET", "/livez")[0] == 200
