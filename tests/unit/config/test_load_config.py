"""Configuration: every mistake at once, each with its place; files, environment and flags in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncd import paths
from syncd.config import Config, load_config
from syncd.errors import ConfigInvalid
from syncd.locate import line_of

STORE = (
    '[store]\nurl = "file:///srv/models"\n[trust]\nroot = "/etc/syncd/root.json"\nkeys = "/etc/syncd/keys"\n'
)


@pytest.fixture(autouse=True)
def _no_syncd_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("SYNCD_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str, name: str = "syncd.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def findings_of(path: Path, flags: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path, flags)
    assert caught.value.exit_status == 2
    return {finding["key"]: finding for finding in caught.value.findings}


FIVE = """[store]
url = "s4://models/fleet"
client_cert = "cert.pem"
[trust]
root = "root.json"
[[follow]]
model = "resnet50"
poll = "5 minutes"
[[follow]]
model = "resnet18"
keeep = 3
keep = 1
"""


def test_five_mistakes_are_told_at_once_with_line_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, FIVE)
    found = findings_of(path)
    assert {key: finding["line"] for key, finding in found.items()} == {
        "store.url": 2,
        "store.client_cert": 3,
        "follow[0].poll": 8,
        "follow[1].keeep": 11,
        "follow[1].keep": 12,
    }
    assert all(finding["file"] == str(path) for finding in found.values())
    assert found["store.url"]["value"] == "s4://models/fleet"
    assert "s3://" in found["store.url"]["problem"]
    assert found["follow[0].poll"]["allowed"] == "a duration from 1s to 30d"
    assert found["follow[1].keeep"]["nearest"] == "follow[1].keep"
    assert "from 2 to 1000" in found["follow[1].keep"]["allowed"]


def test_the_text_of_the_error_shows_every_finding(tmp_path: Path) -> None:
    path = write(tmp_path, FIVE)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith("config-invalid: 5 mistakes")
    assert f"{path}:11: follow[1].keeep = 3: unknown key; did you mean follow[1].keep?" in text


@pytest.mark.parametrize(
    ("text", "key", "line", "says"),
    [
        ('[store]\nurl="x"\n', "trust", None, "missing"),
        (STORE + '[[publish]]\nmodel = "m"\n', "publish[0].watch", 6, "missing"),
        (
            STORE + '[[publish]]\nmodel="m"\nwatch="w"\ninclude = [\n "a",\n 3,\n]\n',
            "publish[0].include[1]",
            9,
            "string",
        ),
        (STORE + '[[publish]]\nmodel="m"\nwatch="w"\n[publish.golden]\n', "publish[0].golden", 9, "half"),
        (
            STORE + '[[follow]]\nmodel="m"\npoll="5m"\ncron="0 2 * * sun"\n',
            "follow[0].cron",
            9,
            "beside poll",
        ),
        (STORE + '[[follow]]\nmodel="m"\ncron="0 2 * *"\n', "follow[0].cron", 8, "4 fields"),
        (STORE + '[[follow]]\nmodel="m"\ncron="0 24 * * sun"\n', "follow[0].cron", 8, "no hour"),
        (STORE + '[[follow]]\nmodel="m"\n[[follow]]\nmodel="m"\n', "follow[1].model", 9, "twice"),
        (STORE + '[[follow]]\nmodel="m"\npoll = 5.0\n', "follow[0].poll", 8, "with a unit"),
        (STORE + '[[follow]]\nmodel="Big"\n', "follow[0].model", 7, "form"),
        (STORE + '[status]\nlisten = "0.0.0.0:80"\n', "status.listen", 7, "not this machine"),
        (STORE + '[status]\nlisten = "8765"\n', "status.listen", 7, "HOST:PORT"),
        (STORE + f'[status]\nlisten = "/{"x" * 120}"\n', "status.listen", 7, "107"),
        (STORE.replace("file:///srv", "https://me:hunter2@host"), "store.url", 2, "password"),
        (STORE + '[fleet]\nreports = "6h"\n', "fleet", 6, "unknown key"),
        ("[store]\nurl = \n", "", 2, "not TOML"),
        ('[store]\nurl = "a"\n[trust', "", 3, "not TOML"),
    ],
)
def test_each_mistake_names_its_key_and_line(
    tmp_path: Path, text: str, key: str, line: int | None, says: str
) -> None:
    found = findings_of(write(tmp_path, text))
    assert found[key]["line"] == line
    assert says in found[key]["problem"]


def test_a_secret_in_the_url_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, STORE.replace("file:///srv", "https://me:hunter2@host")))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.as_dict())


def test_an_http_store_cannot_be_published_to(tmp_path: Path) -> None:
    text = STORE.replace("file:///srv", "https://host") + '[[publish]]\nmodel="m"\nwatch="w"\n'
    assert "read-only" in findings_of(write(tmp_path, text))["store.url"]["problem"]


def test_a_publisher_without_keys_is_half_a_group(tmp_path: Path) -> None:
    text = STORE.replace('keys = "/etc/syncd/keys"\n', "") + '[[publish]]\nmodel="m"\nwatch="w"\n'
    found = findings_of(write(tmp_path, text))
    assert found["trust.keys"]["line"] == 3
    assert "publish" in found["trust.keys"]["problem"]


def test_a_missing_file_says_which_command_writes_one(tmp_path: Path) -> None:
    assert "syncd init" in findings_of(tmp_path / "none.toml")[""]["allowed"]


def test_conf_d_adds_models_overrides_keys_and_keeps_its_own_places(tmp_path: Path) -> None:
    main = write(tmp_path, STORE + '[[follow]]\nmodel = "a"\n', "config.toml")
    write(tmp_path, '[store]\nurl = "file:///other"\n[[follow]]\nmodel = "b"\n', "conf.d/10-b.toml")
    config = load_config(main)
    assert [section.model for section in config.follow] == ["a", "b"]
    assert config.store.url == "file:///other"
    extra = write(tmp_path, '[[follow]]\nmodel = "c"\nkeep = 0\n', "conf.d/20-c.toml")
    found = findings_of(main)
    assert found["follow[2].keep"]["file"] == str(extra)
    assert found["follow[2].keep"]["line"] == 3


def test_conf_d_is_left_alone_beside_a_file_of_another_name(tmp_path: Path) -> None:
    main = write(tmp_path, STORE, "publish-ada.toml")
    write(tmp_path, '[[follow]]\nmodel = "b"\n', "conf.d/10-b.toml")
    assert load_config(main).follow == ()


def test_flags_win_over_the_environment_which_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, STORE + '[[follow]]\nmodel = "a"\n')
    monkeypatch.setenv("SYNCD_STORE__URL", "file:///from/environment")
    monkeypatch.setenv("SYNCD_SHUTDOWN_WITHIN", "3s")
    monkeypatch.setenv("SYNCD_FOLLOW__0__POLL", "7s")
    monkeypatch.setenv("SYNCD_NODE_FOLDER", "/not/a/key")
    config = load_config(path)
    assert config.store.url == "file:///from/environment"
    assert config.shutdown_within == 3.0
    assert config.follow[0].poll == 7.0
    assert load_config(path, {"store.url": "file:///flag", "node.folder": None}).store.url == "file:///flag"


def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCD_STORE__URLL", "x")
    monkeypatch.setenv("SYNCD_FOLLOW__3__POLL", "5s")
    found = findings_of(write(tmp_path, STORE))
    assert found["store.urll"]["file"] == "SYNCD_STORE__URLL"
    assert found["store.urll"]["nearest"] == "store.url"
    assert any(finding["file"] == "SYNCD_FOLLOW__3__POLL" for finding in found.values())


def test_relative_paths_start_at_the_file_whatever_the_working_folder(tmp_path: Path) -> None:
    text = '[store]\nurl = "store"\n[trust]\nroot = "root.json"\nkeys="keys"\n[status]\nlisten="./s.sock"\n'
    text += '[[publish]]\nmodel="m"\nwatch="runs"\n'
    config = load_config(write(tmp_path / "etc", text))
    assert config.trust.root == tmp_path / "etc/root.json"
    assert config.store.url == str(tmp_path / "etc/store")
    assert config.publish[0].watch == tmp_path / "etc/runs"
    assert config.status.listen == str(tmp_path / "etc/s.sock")


def test_line_of_finds_the_first_line_of_a_statement_over_several_lines() -> None:
    text = 'a = 1\n\nb = [\n  1,\n  2,\n]\n[t]\n# talk\nc = """\nx\n"""\n[[u]]\nd = 1\n[[u]]\nd = 2\n'
    assert line_of(text, ("b", 1)) == 3
    assert line_of(text, ("t",)) == 7
    assert line_of(text, ("t", "c")) == 9
    assert line_of(text, ("u", 1, "d")) == 15
    assert line_of(text, ("u", 2)) is None


def test_every_path_key_is_taken_from_the_files_folder() -> None:
    from syncd.configfile import PATHS
    from syncd.findings import _field, all_keys

    fields = {key: _field(Config, key) for key in all_keys(Config)}
    assert {key for key, field in fields.items() if field and "Path" in str(field.annotation)} == set(PATHS)


def test_the_publishers_unit_has_folders_of_its_own() -> None:
    config = Path("/etc/syncd/publish-ada.toml")
    assert paths.node_folder(None, config=config, environ={}) == Path("/var/lib/syncd-publish-ada")
    assert paths.status_address(None, config=config, environ={}) == "/run/syncd-publish-ada/status.sock"
    assert paths.node_folder(None, daemon=True, environ={"STATE_DIRECTORY": "/s"}) == Path("/s")
    assert paths.node_folder(None, environ={"STATE_DIRECTORY": "/s", "SYNCD_NODE_FOLDER": "/n"}) == Path("/n")
    assert paths.node_folder(Path("/c"), environ={"SYNCD_NODE_FOLDER": "/n"}) == Path("/c")


CRON_LINES = {
    "0 2 * * sun": None,
    "*/5 * * * *": None,
    "0,30 8-18/2 1-15 jan-mar mon-fri": None,
    "0 0 * * 7": None,
    "0 0 * * 0": None,
    "60 * * * *": "'60' is no minute",
    "0 0 0 * *": "'0' is no day",
    "0 0 * 13 *": "'13' is no month",
    "0 0 * * 8": "'8' is no weekday",
    "0 0 * * fri-mon": "'fri-mon' is no weekday",
    "*/0 * * * *": "'*/0' is no minute",
    "0 0 * *": "4 fields, not 5",
    "@daily": "1 fields, not 5",
}


@pytest.mark.parametrize("line", CRON_LINES)
def test_a_cron_line_is_judged_when_the_file_is_read_as_the_edge_judges_it(line: str) -> None:
    from syncd.crosscheck import mistake_in_cron
    from syncd.edge.poll import cron_trigger

    assert mistake_in_cron(line) == CRON_LINES[line]
    if CRON_LINES[line] is None:
        cron_trigger(line)
    else:
        with pytest.raises(ConfigInvalid):
            cron_trigger(line)
