"""`syncd serve` as a process, behind a socket of its own or one that its parent holds as a socket unit does."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from syncd.node.links import ModelFolder
from tests.support.commands import ROOT, environment, wait_until
from tests.support.nets import Line
from tests.support.small_daemon import activate
from tests.support.versions import golden_of, install_version, make_model_folder

# The socket's descriptor becomes 3 and the process's own id LISTEN_PID, as systemd does it.
_ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Server:
    """A running `syncd serve`. With `held`, a listening socket, it is started as by a socket unit."""

    def __init__(self, config: Path, *, held: socket.socket | None = None, **env: str) -> None:
        self.log = config.with_suffix(".serve.log")
        command: list[str] = [sys.executable, "-m", "syncd", "serve", "-c", str(config)]
        if held is not None:
            command = [sys.executable, "-I", "-S", "-c", _ACTIVATED, str(held.fileno()), *command]
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment(OMP_NUM_THREADS="1", **env),
                pass_fds=() if held is None else (held.fileno(),),
            )

    def wait_for(self, text: str, within_s: float = 60.0) -> None:
        """Until its log holds `text`, while it lives."""

        def seen() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return text in self.log.read_text()

        wait_until(seen, f"{text!r} in {self.log}", within_s)

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Signal it and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def write_config(node: Path, port: int, models: Sequence[str], serve: str = "", model: str = "") -> Path:
    """A configuration that serves `models` of the node folder `node`."""
    path = node.parent / f"{node.name}.toml"
    sections = "".join(f'[[serve.models]]\nmodel = "{each}"\n{model}' for each in models)
    path.write_text(
        f'[store]\nurl = "file://{node}/no-store"\n[trust]\nroot = "{node}/no-root.json"\n'
        f'[node]\nfolder = "{node}"\n[serve]\nlisten = "127.0.0.1:{port}"\n'
        f'architectures = ["torchvision.models:*", "tests.support.nets:*"]\n{serve}{sections}'
    )
    return path


@contextlib.contextmanager
def serving(config: Path, *, held: socket.socket | None = None, **env: str) -> Iterator[Server]:
    """A server that listens when the block begins and is gone when it ends."""
    server = Server(config, held=held, **env)
    try:
        server.wait_for("serves  models=")
        yield server
    finally:
        server.kill()


def install_net(
    node: Path,
    model: str,
    version: int,
    net: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    args: Mapping[str, Any] | None = None,
    *,
    golden: bool = True,
) -> ModelFolder:
    """Install `net` as a version of `model` and let it serve."""
    folder = make_model_folder(node, model)
    install_version(
        folder,
        version,
        net.state_dict(),
        architecture={"name": f"tests.support.nets:{type(net).__name__}", "args": dict(args or {})},
        golden=golden_of(net, inputs) if golden else None,
    )
    activate(folder, version)
    return folder


def line(seed: int, dtype: str = "float32") -> Line:
    """A Line with weights of its own."""
    torch.manual_seed(seed)
    return Line(dtype=dtype).eval()


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | str | dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of one request on a connection of its own."""
    data = json.dumps(body) if isinstance(body, dict) else body
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )


def error_of(answer: tuple[int, Mapping[str, str], bytes]) -> tuple[int, str]:
    """Status and text of an error, which must be the protocol's JSON."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json", answer
    return status, json.loads(body)["error"]
