"""Log lines and what systemd is told."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from pathlib import Path

from syncd.daemon.logs import LineFormatter
from syncd.daemon.notify import Notifier
from syncd.errors import StoreUnreachable


def record(
    level: int = logging.INFO, error: BaseException | None = None, **extra: object
) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    made = logging.LogRecord("syncd.edge.poll", level, __file__, 1, "poll answered", (), info)
    made.__dict__.update(extra)
    return made


def test_a_line_has_time_level_room_words_and_what_it_is_about() -> None:
    line = LineFormatter(journal=False).format(record(model="resnet50", version=42, why="two words"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ info    edge      poll answered  model=resnet50 version=42 why='two words'",
        line,
    )


def test_a_value_cannot_forge_a_line() -> None:
    line = LineFormatter(journal=False).format(record(path="a\n2026 error forged"))
    assert "\n" not in line


def test_under_the_journal_every_line_of_an_error_has_its_priority() -> None:
    error = StoreUnreachable("no answer", do="wait", store="s3://x")
    text = LineFormatter(journal=True).format(record(logging.ERROR, error))
    lines = text.splitlines()
    assert lines[0] == "<3>error   edge      poll answered"
    assert lines[1] == "<3>store-unreachable: no answer"
    assert all(line.startswith("<3>") for line in lines)


def test_without_systemd_nothing_is_sent_and_there_is_no_watchdog() -> None:
    notifier = Notifier({})
    notifier.ready("all is well")
    assert notifier.watchdog_s is None


def test_the_watchdog_is_only_ours_if_its_pid_is() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "0"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_s is None


def test_an_abstract_socket_is_reached_and_a_receiver_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    name = f"@syncd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:])
        Notifier({"NOTIFY_SOCKET": name}).ready("m@1 serving")
        assert receiver.recv(1000) == b"READY=1\nSTATUS=m@1 serving"
    Notifier({"NOTIFY_SOCKET": name}).ready("nobody hears")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("nobody hears")
    assert sys.exc_info() == (None, None, None)
