"""Commands as processes: what stands on stdout, what on stderr, the exit status, the shape of the JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import (
    Fleet,
    copy_of,
    done,
    environment,
    found_fleet,
    running,
    save_checkpoint,
    syncd,
    tree,
)

FIVE_MISTAKES = """[store]
url = "s4://models"
[trust]
root = "root.json"
[[follow]]
model = "Big"
poll = "5"
keeep = 3
[status]
listen = "0.0.0.0:80"
"""
FIVE_LINES = (2, 6, 7, 8, 10)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet without any version."""
    return found_fleet(tmp_path_factory.mktemp("founded"))


@pytest.fixture(scope="module")
def fleet(founded: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet with one published version, shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("fleet")
    made = copy_of(founded, folder)
    save_checkpoint(folder / "runs/epoch-1.pt", 1)
    done("publish", folder / "runs/epoch-1.pt", "--model", "m", "-c", made.config("publisher"))
    return made


@pytest.mark.parametrize("command", ["run", "check", "publish", "restore"])
def test_five_mistakes_are_told_at_once_on_stderr_and_nothing_is_made(tmp_path: Path, command: str) -> None:
    config = tmp_path / "syncd.toml"
    config.write_text(FIVE_MISTAKES)
    before = tree(tmp_path)
    more = {"publish": ["x.pt", "--model", "m"], "restore": ["m", "--to", str(tmp_path / "out")]}.get(
        command, []
    )
    answer = syncd(command, "-c", config, *more)
    assert answer.status == 2
    told = answer.out if command == "check" else answer.err
    assert [int(line) for line in re.findall(rf"{re.escape(str(config))}:(\d+):", told)] == list(FIVE_LINES)
    assert "did you mean follow[0].keep?" in told
    assert command == "check" or answer.out == ""
    assert tree(tmp_path) == before


def test_five_mistakes_as_json_have_line_key_value_allowed_and_nearest(tmp_path: Path) -> None:
    config = tmp_path / "syncd.toml"
    config.write_text(FIVE_MISTAKES)
    answer = syncd("run", "-c", config, "--json")
    assert answer.status == 2
    assert answer.err == ""
    error = answer.json["error"]
    assert error["code"] == "config-invalid"
    assert {"code", "what", "where", "why", "do"} <= set(error)
    assert [finding["line"] for finding in error["findings"]] == list(FIVE_LINES)
    unknown = next(finding for finding in error["findings"] if finding["problem"] == "unknown key")
    assert (unknown["key"], unknown["value"], unknown["nearest"]) == ("follow[0].keeep", 3, "follow[0].keep")


def test_check_reports_mistakes_as_checks_too(tmp_path: Path) -> None:
    config = tmp_path / "syncd.toml"
    config.write_text(FIVE_MISTAKES)
    result = syncd("check", "-c", config, "--json").json
    assert result["ok"] is False
    assert len(result["checks"]) == 5
    assert all(set(each) == {"name", "ok", "detail", "fix"} for each in result["checks"])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["publsh", "x"], "did you mean 'publish'"),
        (["status", "--jsn"], "did you mean --json?"),
        (["pull", "m"], "--to"),
        (["pull", "m@zero", "--to", "out", "--store", "file:///nowhere"], "M@N"),
        (["publish", "x.pt", "--model", "m", "--metric", "acc", "-c", "FLEET"], "--metric"),
        (["restore", "m", "--to", "out"], "-c FILE"),
        (["join", "file:///nowhere", "--fingerprint", "abc", "--model", "m"], "64 hex digits"),
        (["verify", "m", "--remote"], "M@N --remote"),
    ],
)
def test_wrong_words_exit_2_with_the_nearest_right_ones(
    tmp_path: Path, fleet: Fleet, words: list[str], meant: str
) -> None:
    words = [str(fleet.config("wrong")) if word == "FLEET" else word for word in words]
    # HOME: no configuration of this machine's is found
    answer = syncd(*words, cwd=tmp_path, HOME=str(tmp_path))
    assert answer.status == 2, answer
    assert meant in answer.err
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []
    as_json = syncd(*words, "--json", cwd=tmp_path, HOME=str(tmp_path))
    assert as_json.status == 2
    assert as_json.err == ""
    assert as_json.json["error"]["code"] == "usage"


def test_every_command_has_help_with_exit_statuses_and_an_example() -> None:
    listed = syncd("--help").out
    for name in (
        "init",
        "join",
        "check",
        "run",
        "publish",
        "inspect",
        "pull",
        "restore",
        "verify",
        "status",
        "demo",
    ):
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
    text = syncd("pull", "--help").out
    assert "Exit: 0 done, 1 failed, 2 usage or config, 3 refused" in re.sub(r"\s+", " ", text)
    assert "Example: syncd pull" in re.sub(r"\s+", " ", text)
    assert syncd("--version").out.startswith("syncd 0.")


def test_a_wrong_fingerprint_exits_3_and_leaves_nothing(tmp_path: Path, fleet: Fleet) -> None:
    wrong = "0" * 64
    store = f"file://{fleet.folder}/store"
    join = syncd(
        "join", store, "--fingerprint", wrong, "--model", "m", "-c", tmp_path / "edge/e.toml", "--json"
    )
    pull = syncd("pull", "m", "--store", store, "--fingerprint", wrong, "--to", tmp_path / "out", "--json")
    for answer in (join, pull):
        assert answer.status == 3
        assert answer.json["error"]["code"] == "not-authentic"
        assert fleet.fingerprint in answer.json["error"]["what"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_there_exits_4(tmp_path: Path, fleet: Fleet) -> None:
    config = fleet.config("far")
    gone = f"file://{tmp_path}/nowhere"
    for words in (["pull", "m", "--to", "out"], ["restore", "m", "--to", "out"], ["check"]):
        answer = syncd(*words, "-c", config, "--store", gone, cwd=tmp_path)
        assert answer.status == 4, answer
    shown = [path for path in tmp_path.rglob("*") if ".syncd" not in path.parts and path.name != "out"]
    assert shown == []  # `out/.syncd` is where a pull keeps what it has accepted


def test_publish_pull_restore_verify_say_what_interface_promises(tmp_path: Path, fleet: Fleet) -> None:
    save_checkpoint(tmp_path / "epoch-2.pt", 2)
    config = fleet.config("line")
    checkpoint = tmp_path / "epoch-2.pt"
    words = ("publish", checkpoint, "--model", "m", "--metric", "accuracy=0.9", "--tag", "good", "-c", config)
    before = tree(fleet.folder / "store")
    dry = done(*words, "--dry-run")
    assert dry["new"] is True
    assert tree(fleet.folder / "store") == before
    made = done(*words)
    keys = {
        "model",
        "version",
        "checkpoint_bytes",
        "uploaded_bytes",
        "segments",
        "deltas",
        "seconds",
        "channels",
    }
    assert keys <= set(made)
    assert made["channels"] == ["latest"]
    again = done(*words)
    assert (again["version"], again["new"]) == (made["version"], False)
    reference = f"m@{made['version']}"

    pulled = done("pull", reference, "--to", tmp_path / "model", "-c", config)
    assert {"model", "version", "path", "model_bytes", "wire_bytes", "requests", "plan", "seconds"} <= set(
        pulled
    )
    assert pulled["path"] == str(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").is_file()
    by_fingerprint = done(
        "pull", "m", "--to", tmp_path / "other", "--fingerprint", fleet.fingerprint,
        "--store", f"file://{fleet.folder}/store", HOME=str(tmp_path),
    )  # fmt: skip
    assert by_fingerprint["version"] == made["version"]

    back = done("restore", reference, "--to", tmp_path / "runs", "-c", config)
    assert [file["path"] for file in back["files"]] == ["epoch-2.pt"]
    assert (tmp_path / "runs/epoch-2.pt").read_bytes() == checkpoint.read_bytes()
    verified = done("verify", reference, "--remote", "-c", config)
    assert verified["ok"] is True
    assert verified["bad"] == []


def test_text_goes_to_stdout_and_nothing_else_to_stderr(tmp_path: Path, fleet: Fleet) -> None:
    answer = syncd("pull", "m@1", "--to", tmp_path / "out", "-c", fleet.config("text"))
    assert answer.status == 0
    assert "m@1 is in" in answer.out
    assert answer.err == ""


def test_restore_if_any_of_an_empty_model_exits_0(tmp_path: Path, founded: Fleet) -> None:
    fleet = copy_of(founded, tmp_path)
    config = fleet.config("first")
    assert syncd("restore", "m", "--to", tmp_path / "out", "-c", config).status == 2
    result = done("restore", "m", "--to", tmp_path / "out", "--if-any", "-c", config)
    assert result["version"] is None
    assert result["files"] == []


def test_inspect_tells_kind_groups_model_and_why_not_complete(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pt", 1)
    whole = done("inspect", tmp_path / "whole.pt")
    assert {"kind", "complete", "proof", "groups", "model", "tensors"} <= set(whole)
    assert whole["complete"] is True
    assert whole["model"]["tensors"] == 2
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-100])
    cut = syncd("inspect", tmp_path / "cut.pt", "--json")
    assert cut.status == 3
    assert cut.json["complete"] is False
    assert cut.json["why"]
    assert syncd("inspect", tmp_path / "none.pt").status == 1


@pytest.mark.parametrize("damage", ["incomplete", "unknown", "missing"])
def test_a_bad_checkpoint_is_refused_by_publish_and_the_store_is_unchanged(
    tmp_path: Path, fleet: Fleet, damage: str
) -> None:
    path = tmp_path / "bad.pt"
    save_checkpoint(tmp_path / "good.pt", 3)
    if damage == "incomplete":
        path.write_bytes((tmp_path / "good.pt").read_bytes()[:-100])
    elif damage == "unknown":
        path.write_bytes(b"no checkpoint at all" * 100)
    before = tree(fleet.folder / "store")
    answer = syncd("publish", path, "--model", "m", "-c", fleet.config("bad"), "--json")
    expected = {"incomplete": (3, "checkpoint-incomplete"), "unknown": (1, "checkpoint-unsupported")}
    assert (answer.status, answer.json["error"]["code"]) == expected.get(damage, (1, "checkpoint-vanished"))
    assert tree(fleet.folder / "store") == before


def test_check_tries_everything_and_says_what_to_do(tmp_path: Path, fleet: Fleet) -> None:
    watch = tmp_path / "runs"
    section = f'[[publish]]\nmodel = "m"\nwatch = "{watch}"\n[[follow]]\nmodel = "m"\ncron = "0 2 * * sun"\n'
    config = fleet.config("checked", section)
    missing = syncd("check", "-c", config, "--json")
    assert missing.status == 1
    bad = [each for each in missing.json["checks"] if not each["ok"]]
    assert [each["name"] for each in bad] == [f"watch {watch}"]
    assert bad[0]["fix"]
    watch.mkdir()
    good = done("check", "-c", config)
    assert good["ok"] is True
    names = {each["name"] for each in good["checks"]}
    assert {
        "config",
        "trust.root",
        "store",
        "clock",
        "model m:latest",
        "store is honest",
        "key of m",
        "node folder",
    } <= names
    channel = next(each for each in good["checks"] if each["name"] == "model m:latest")
    assert channel["detail"].startswith("verified: version ")
    root = next(each for each in good["checks"] if each["name"] == "trust.root")
    assert fleet.fingerprint in root["detail"]


def test_check_refuses_keys_that_others_can_read(tmp_path: Path, founded: Fleet) -> None:
    fleet = copy_of(founded, tmp_path)
    (tmp_path / "runs").mkdir()
    config = fleet.config("keys", f'[[publish]]\nmodel = "m"\nwatch = "{tmp_path}/runs"\n')
    (tmp_path / "keys/models/m.key").chmod(0o644)
    answer = syncd("check", "-c", config, "--json")
    bad = [each for each in answer.json["checks"] if not each["ok"]]
    assert answer.status == 1
    assert [each["name"] for each in bad] == ["key of m"]
    assert "0644" in bad[0]["detail"]
    assert "chmod 600" in bad[0]["fix"]


def test_check_refuses_a_store_of_another_fleet(tmp_path: Path, fleet: Fleet) -> None:
    other = found_fleet(tmp_path)
    answer = syncd("check", "-c", fleet.config("other"), "--store", f"file://{other.folder}/store", "--json")
    assert answer.status == 3
    bad = [each for each in answer.json["checks"] if not each["ok"] and each["name"] == "store"]
    assert fleet.fingerprint in bad[0]["detail"]
    assert other.fingerprint in bad[0]["detail"]


def test_init_asks_for_a_passphrase_unless_told_and_makes_nothing_before(tmp_path: Path) -> None:
    words = ("init", f"file://{tmp_path}/store", "--model", "m", "--keys", tmp_path / "keys")
    refused = syncd(*words)
    assert refused.status == 2
    assert "--passphrase-file" in refused.err
    assert not (tmp_path / "keys").exists()
    (tmp_path / "secret").write_text("correct horse\n")
    made = done(*words, "--passphrase-file", tmp_path / "secret")
    assert {"store", "fingerprint", "keys", "models", "join", "config"} <= set(made)
    assert b"ENCRYPTED" in (tmp_path / "keys/fleet.key").read_bytes()
    assert "--model m" in made["join"]
    adds = (*words, "--channel", "canary")
    assert syncd(*adds, "--no-input").status == 2
    assert done(*adds, "--passphrase-file", tmp_path / "secret")["models"][0]["added_channels"] == ["canary"]


def test_join_writes_a_config_that_works_as_it_stands(tmp_path: Path, fleet: Fleet) -> None:
    config = tmp_path / "edge/syncd.toml"
    store = f"file://{fleet.folder}/store"
    joined = done("join", store, "--fingerprint", fleet.fingerprint, "--model", "m:stable", "-c", config)
    assert {"store", "fingerprint", "config"} <= set(joined)
    assert done("check", "-c", config, SYNCD_NODE__FOLDER=str(tmp_path / "node"))["ok"] is True


def test_ctrl_c_exits_130_and_leaves_nothing_half_done(tmp_path: Path, fleet: Fleet) -> None:
    """The store is a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = tmp_path / "c.toml"
        config.write_text(
            f'[store]\nurl = "http://127.0.0.1:{port}/x"\n[trust]\nroot = "{fleet.folder}/root.json"\n'
        )
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "syncd",
                "restore",
                "m",
                "--to",
                str(tmp_path / "out"),
                "-c",
                str(config),
                "--json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert err == ""
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and ".syncd" not in path.parts]
    assert left == []


def test_a_reader_that_goes_away_is_no_failure_of_ours(fleet: Fleet) -> None:
    command = f"{sys.executable} -m syncd --help | head -1"
    piped = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=environment()
    )
    assert piped.stderr == ""
    assert piped.stdout.startswith("Usage")


def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(tmp_path: Path, fleet: Fleet) -> None:
    save_checkpoint(tmp_path / "big.pt", 7, width=2000)
    config = fleet.config("bar")
    leader, follower = pty.openpty()
    words = ["publish", str(tmp_path / "big.pt"), "--model", "m", "-c", str(config), "--dry-run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "syncd", *words],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env=environment(TERM="xterm", COLUMNS="100"),
    )
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    assert process.wait(30) == 0
    assert "━".encode() in seen
    assert syncd(*words).err == ""


def test_status_answers_in_under_0_3_s_of_cpu(fleet: Fleet) -> None:
    """The best of three: other processes of this machine must not decide."""
    config = fleet.config("light", '[[follow]]\nmodel = "m"\npoll = "1h"\n')
    with running(config):
        spent = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "syncd", "status", "--json", "-c", str(config)],
                check=True,
                capture_output=True,
                env={**environment(), "PYTHONDONTWRITEBYTECODE": ""},
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"status took {min(spent):.3f} s of CPU")
    assert min(spent) < 0.3


def test_status_without_a_daemon_exits_1_and_says_what_to_start(tmp_path: Path, fleet: Fleet) -> None:
    config = fleet.config("silent")
    answer = syncd("status", "-c", config, "--json")
    assert answer.status == 1
    assert answer.json["error"]["code"] == "daemon-silent"
    assert "syncd run" in answer.json["error"]["do"]


def test_the_commands_of_the_readme_style_forms_put_options_anywhere(fleet: Fleet) -> None:
    config = fleet.config("anywhere")
    assert syncd("-c", config, "--json", "check").json["ok"] is True
    assert syncd("check", "--json", "-c", config).json["ok"] is True


def test_commands_that_publish_at_once_on_one_machine_all_succeed(tmp_path: Path, founded: Fleet) -> None:
    """They share the node folder: what one accepts must not look like a store set back to another."""
    fleet = copy_of(founded, tmp_path)
    config = fleet.config("shared")
    for seed in range(1, 4):
        save_checkpoint(tmp_path / f"runs/epoch-{seed}.pt", seed)
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "syncd",
                "publish",
                str(path),
                "--model",
                "m",
                "-c",
                str(config),
                "--json",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for path in sorted((tmp_path / "runs").iterdir())
    ]
    results = []
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        results.append(json.loads(out)["version"])
    assert len(set(results)) == 3


@pytest.mark.parametrize(
    ("section", "name", "code"),
    [
        ('[[follow]]\nmodel = "m"\nchannel = "beta"\n', "model m:beta", 2),
        ('[[follow]]\nmodel = "other"\n', "model other:latest", 2),
    ],
)
def test_check_tells_a_model_or_channel_that_is_not_there(
    fleet: Fleet, section: str, name: str, code: int
) -> None:
    answer = syncd("check", "-c", fleet.config("absent", section), "--json")
    assert answer.status == code
    assert [each["name"] for each in answer.json["checks"] if not each["ok"]] == [name]
