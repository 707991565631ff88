"""The demo's story: train, publish, follow, predict, kill, poison, restore, resume."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from syncd.demo.processes import Process, command
from syncd.errors import Failed

MODEL = "digits"
EPOCHS = 3
RESUME_FROM = 2
STEP_SECONDS = 240.0


@dataclass
class Story:
    """What has happened so far: the picture is drawn from it and the result is made from it."""

    phase: str = "starting"
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, Any] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    restarts: int = 0
    restore: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def tell(self, text: str) -> None:
        """Begin a phase: it is shown at once and kept in the list of events."""
        self.phase = text
        self.events.append((time.time() - self.started, text))

    def result(self) -> dict[str, Any]:
        """INTERFACE's object of `syncd demo --json`."""
        wanted = ("version", "checkpoint_bytes", "wire_bytes", "seconds_to_serve", "accuracy")
        counted = ("total", "failed", "p50_ms", "p99_ms", "p99_swap_ms")
        return {
            "versions": [{key: row.get(key) for key in wanted} for _, row in sorted(self.versions.items())],
            "predictions": {key: self.predictions.get(key) for key in counted},
            "refused": self.refused,
            "restarts": self.restarts,
            "restore": self.restore,
            "seconds": round(time.time() - self.started, 1),
        }


class _Socket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def _status(path: Path) -> dict[str, Any]:
    """What the daemon's status endpoint says; empty while it is not there."""
    connection = _Socket(path)
    try:
        connection.request("GET", "/v1/status")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()


class Demo:
    """One run in one folder; `changed` is called whenever the picture may have changed."""

    def __init__(self, folder: Path, changed: Callable[[Story], None]) -> None:
        self.folder = folder
        self.story = Story()
        self._changed = changed
        self._running: list[Process] = []
        self._wire_before = 0

    def run(self) -> dict[str, Any]:
        """Tell the whole story; whatever happens, every process has ended on return."""
        try:
            self._set_up()
            edge, client = self._start()
            training = self._train_and_serve(edge, client)
            self._poison(client)
            client.stop()
            self._note(client)
            self._lose_and_resume(training)
            self.story.tell("done")
            self._changed(self.story)
            return self.story.result()
        finally:
            for process in self._running:
                process.stop(within=5)

    def _set_up(self) -> None:
        self.story.tell("making keys and a store, joining an edge")
        self._changed(self.story)
        store = f"file://{self.folder}/store"
        (self.folder / "runs").mkdir()
        made = command(
            "init",
            store,
            "--model",
            MODEL,
            "--keys",
            "keys",
            "--no-passphrase",
            "--no-input",
            cwd=self.folder,
        )
        joined = ("join", store, "--fingerprint", made["fingerprint"], "--model", MODEL, "--no-input")
        command(*joined, "-c", "edge/joined.toml", cwd=self.folder)
        root = next((self.folder / "edge").rglob("root.json"))
        common = f'[store]\nurl = "{store}"\n[trust]\nroot = "{root}"\n'
        (self.folder / "publisher.toml").write_text(
            common + f'keys = "{self.folder}/keys"\n'
            f'[node]\nname = "trainer"\nfolder = "{self.folder}/publisher"\n'
            f'[status]\nlisten = "{self.folder}/publisher.sock"\n'
            f'[[publish]]\nmodel = "{MODEL}"\nwatch = "{self.folder}/runs/1"\nsettle = "200ms"\nrescan = "1s"\n'
            '[publish.architecture]\nname = "torchvision.models:resnet18"\nargs = { num_classes = 10 }\n'
            "[publish.golden]\nshape = [2, 3, 32, 32]\n"
        )
        (self.folder / "edge.toml").write_text(
            common + f'[node]\nname = "edge"\nfolder = "{self.folder}/node"\n'
            f'[status]\nlisten = "{self.folder}/edge.sock"\n'
            f'[[follow]]\nmodel = "{MODEL}"\npoll = "1s"\nprobation = "2s"\n'
        )

    def _start(self) -> tuple[Process, Process]:
        self.story.tell("starting a publisher, an edge and an application that never stops asking")
        self._changed(self.story)
        self._process("publisher", "-m", "syncd", "run", "-c", "publisher.toml")
        edge = self._edge()
        client = self._process("client", "-m", "syncd.demo.client", str(self.folder / "node"), MODEL)
        return edge, client

    def _process(self, name: str, *words: str) -> Process:
        process = Process(name, words, folder=self.folder)
        self._running.append(process)
        return process

    def _edge(self) -> Process:
        return self._process("edge", "-m", "syncd", "run", "-c", "edge.toml")

    def _train(self, epochs: int) -> Process:
        return self._process(
            "training", "-m", "syncd.demo.train", str(self.folder / "runs/1"), "--epochs", str(epochs)
        )

    def _train_and_serve(self, edge: Process, client: Process) -> Process:
        self.story.tell("training; each epoch's checkpoint is published, verified, gated and swapped in")
        training = self._train(EPOCHS)
        self._until(lambda: len(self._served(client)) >= 2, client, training)
        self.story.tell("the edge daemon is killed (SIGKILL); the application does not notice")
        edge.kill()
        self._running.remove(edge)
        self.story.restarts += 1
        self._wire_before = 0
        self._edge()
        self.story.tell("the edge daemon is back; training goes on")
        self._until(lambda: training.ended == 0, client, training)
        self._until(lambda: self._newest_trained() in self._served(client), client)
        return training

    def _poison(self, client: Process) -> None:
        self.story.tell("a poisoned checkpoint (weights that are not numbers) is published")
        self._process(
            "poison", "-m", "syncd.demo.poison", str(self.folder / f"runs/1/epoch-{EPOCHS}.pt")
        ).finish(60)
        self._until(lambda: bool(self.story.refused), client)
        self.story.tell("the gate refused it; the good version goes on serving")
        answered = self.story.predictions["total"]
        self._until(lambda: self.story.predictions["total"] > answered + 20, client)

    def _served(self, client: Process) -> set[int]:
        return {int(version) for version in client.last.get("versions", {})}

    def _newest_trained(self) -> int:
        published = _status(self.folder / "publisher.sock").get("published") or [{}]
        idle = not published[0].get("pending")
        return published[0].get("last_version") or -1 if idle else -1

    def _until(self, holds: Callable[[], bool], client: Process, *processes: Process) -> None:
        end = time.monotonic() + STEP_SECONDS
        while not holds():
            for process in (*self._running, *processes):
                process.check()
            self._note(client)
            self._changed(self.story)
            if time.monotonic() > end:
                raise Failed(
                    f"nothing happened for {STEP_SECONDS:.0f} s while {self.story.phase}", folder=self.folder
                )
            time.sleep(0.1)
        self._note(client)
        self._changed(self.story)

    def _note(self, client: Process) -> None:
        """Take over what client, edge and checkpoints say."""
        seen = client.last
        self.story.predictions = {key: value for key, value in seen.items() if key != "versions"} or {
            "total": 0
        }
        edge = (_status(self.folder / "edge.sock").get("models") or [{}])[0]
        for text, counts in seen.get("versions", {}).items():
            row = self.story.versions.setdefault(int(text), {"version": int(text)})
            if "wire_bytes" not in row:
                row.update(self._arrival(int(text), counts["first"], edge))
            row["accuracy"] = round(counts["right"] / counts["asked"], 4) if counts["asked"] else None
        self.story.refused = [
            {"version": entry["version"], "stage": "gate", "reason": entry["reason"]}
            for entry in edge.get("quarantined") or []
        ]

    def _arrival(self, version: int, first: float, edge: dict[str, Any]) -> dict[str, Any]:
        wire = edge.get("wire_bytes")
        if wire is None:
            return {}
        before, self._wire_before = self._wire_before, wire
        head = json.loads((self.folder / f"node/models/{MODEL}/versions/{version}/head.json").read_bytes())
        size = sum(file["size"] for file in head["files"] if file["use"] != "side")
        path = head["files"][0]["path"]
        written = (self.folder / "runs/1" / path).stat().st_mtime
        return {
            "checkpoint_bytes": size,
            "wire_bytes": wire - before,
            "seconds_to_serve": round(first - written, 2),
        }

    def _lose_and_resume(self, training: Process) -> None:
        self.story.tell("the training folder is lost; its state comes back by `syncd restore`")
        self._changed(self.story)
        original = self.folder / f"runs/1/epoch-{RESUME_FROM}.pt"
        digest = hashlib.sha256(original.read_bytes()).hexdigest()
        shutil.rmtree(self.folder / "runs/1")
        version = self._version_of(RESUME_FROM)
        back = command(
            "restore",
            f"{MODEL}@{version}",
            "--to",
            "runs/2",
            "-c",
            "publisher.toml",
            "--no-input",
            cwd=self.folder,
        )
        restored = self.folder / "runs/2" / back["files"][0]["path"]
        equal = (
            hashlib.sha256(restored.read_bytes()).hexdigest()
            == digest
            == back["files"][0]["sha256"].split(":")[-1]
        )
        self.story.tell("training resumes from it")
        again = self._process(
            "resumed", "-m", "syncd.demo.train", "runs/2", "--epochs", str(EPOCHS), "--resume", str(restored)
        )
        while again.ended is None:
            self._changed(self.story)
            time.sleep(0.1)
        again.finish(STEP_SECONDS)
        told = {line["epoch"]: line["losses"] for line in again.lines}
        whole = {line["epoch"]: line["losses"] for line in training.lines if line["epoch"] > RESUME_FROM}
        self.story.restore = {
            "version": version,
            "sha256_equal": equal,
            "losses_equal": bool(told) and told == whole,
        }

    def _version_of(self, epoch: int) -> int:
        for version in sorted(self.story.versions):
            head = self.folder / f"store/models/{MODEL}/versions/{version}/head.json"
            if json.loads(head.read_bytes())["files"][0]["path"] == f"epoch-{epoch}.pt":
                return version
        raise Failed(f"the checkpoint of epoch {epoch} was never served", folder=self.folder)


def run(changed: Callable[[Story], None], *, keep: Path | None = None) -> dict[str, Any]:
    """Run the demo in `keep`, or in a folder that is removed afterwards; `syncd demo --json`'s object.

    SIGTERM ends it as Ctrl-C does: with every process that it started.
    """
    if find_spec("sklearn") is None:
        raise Failed("the demo trains on scikit-learn's digits", do="pip install 'syncd[demo]'")
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise Failed("the folder to keep is not empty", do="name a new folder", keep=keep)
        return Demo(keep.resolve(), changed).run()
    with tempfile.TemporaryDirectory(prefix="syncd-demo-") as folder:
        return Demo(Path(folder).resolve(), changed).run()
