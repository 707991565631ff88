"""Clients that never stop asking a V2 server, in threads: what failed, what was wrong, which versions answered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

Expected = Mapping[str, list[float]]


class Asker(threading.Thread):
    """Asks for one prediction after another and checks each answer against what its version must answer.

    Args:
        expected: version → the answer to `body`, flat.
        keeps: keep the connection as long as the server lets it; else one for each request.
    """

    def __init__(
        self, port: int, model: str, body: Mapping[str, Any], expected: Expected, *, keeps: bool
    ) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.versions: list[str] = []
        self.longest_s = 0.0
        self._port, self._path = port, f"/v2/models/{model}/infer"
        self._body = json.dumps(body)
        self._expected = expected
        self._keeps = keeps
        self._ending = threading.Event()

    def run(self) -> None:
        """Until `end`."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", self._path, self._body)
                answer = connection.getresponse()
                data = answer.read()
                if answer.status != 200:
                    raise ConnectionError(f"status {answer.status}: {data.decode()}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                connection.close()
            else:
                self._check(json.loads(data))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if not self._keeps:
                connection.close()
            self._ending.wait(0.002)
        connection.close()

    def _check(self, told: dict[str, Any]) -> None:
        self.answers += 1
        version = told["model_version"]
        if not self.versions or self.versions[-1] != version:
            self.versions.append(version)
        if told["outputs"][0]["data"] != pytest.approx(self._expected[version], abs=1e-4):
            self.wrong.append(f"version {version}: {told['outputs'][0]['data']}")

    def end(self) -> None:
        """Stop after the answer that is awaited."""
        self._ending.set()
        self.join(130)
