"""`versions`, `show`, `diff`, `promote` and `yank` as processes; channels never move back by themselves."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch

from syncd.publisher.commit import ModelRepository, open_model
from syncd.publisher.pending import commit_pending
from syncd.store.folder import FolderStore
from tests.support.commands import Fleet, copy_of, done, running, syncd, tree, wait_until
from tests.support.signed_store import make_head

BODY, HEAD = "0.weight", "1.bias"


def save(path: Path, seed: int, *, width: int = 700, bias: float = 0.0, extra: bool = False) -> None:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 10))
    state = net.state_dict()
    state[HEAD] += bias
    if extra:
        state["2.scale"] = torch.ones(3)
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save({"model": state, "epoch": seed}, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Three versions of `m`: 2 has another bias than 1, 3 is new and has a tensor more; `stable` has its own key."""
    folder = tmp_path_factory.mktemp("made")
    words = [
        "--model",
        "m",
        "--own-key",
        "stable",
        "--keys",
        folder / "keys",
        "--no-passphrase",
        "--no-input",
    ]
    fleet = Fleet(folder, done("init", f"file://{folder}/store", *words)["fingerprint"])
    config = fleet.config("publisher")
    save(folder / "runs/1.pt", 1)
    save(folder / "runs/2.pt", 1, bias=1.0)
    save(folder / "runs/3.pt", 3, extra=True)
    for number in (1, 2, 3):
        told = ["--metric", f"accuracy=0.{number}", "--tag", f"t{number}", "--note", "by hand"]
        done("publish", folder / f"runs/{number}.pt", "--model", "m", "-c", config, *told)
    return fleet


@pytest.fixture
def fleet(made: Fleet, tmp_path: Path) -> Fleet:
    return copy_of(made, tmp_path)


def keys_without_online(fleet: Fleet) -> Path:
    """A machine that has the key of `stable` and no other."""
    keys = fleet.folder / "person"
    shutil.copytree(fleet.folder / "keys/channels", keys / "channels")
    keys.chmod(0o700)
    return keys


def channels(fleet: Fleet, config: Path) -> dict[str, int | None]:
    (model,) = done("versions", "m", "-c", config)["models"]
    return dict(model["channels"])


def test_versions_show_and_diff_tell_what_is_there_and_who_signed(made: Fleet, tmp_path: Path) -> None:
    config = made.config("publisher")
    found = done("versions", "-c", config)
    assert [
        (each["version"], each["channels"], each["metrics"], each["tags"]) for each in found["versions"]
    ] == [
        (1, [], {"accuracy": 0.1}, ["t1"]),
        (2, [], {"accuracy": 0.2}, ["t2"]),
        (3, ["latest"], {"accuracy": 0.3}, ["t3"]),
    ]
    assert all(each["model"] == "m" and each["training_state"] for each in found["versions"])
    signed = found["models"][0]["signed_by"]
    assert signed["channel-latest"] == signed["versions"] != signed["channel-stable"]
    alone = ["--store", f"file://{made.folder}/store", "--fingerprint", made.fingerprint]
    assert done("versions", "m", *alone, cwd=tmp_path)["versions"] == found["versions"]
    head = done("show", "m@2", "-c", config)
    assert (head["format"], head["version"], head["tensors"], head["note"]) == (
        "syncd.head/1",
        2,
        4,
        "by hand",
    )
    assert head["files"][0]["size"] == (made.folder / "runs/2.pt").stat().st_size
    small = done("diff", "m@1", "m@2", "-c", config)
    assert [each["name"] for each in small["changed"]] == [HEAD]
    assert (small["added"], small["removed"], small["unchanged"]) == ([], [], 3)
    large = done("diff", "m@1", "m@3", "-c", config)
    assert [each["name"] for each in large["added"]] == ["2.scale"]
    assert {each["name"] for each in large["changed"]} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    back = done("diff", "m@3", "m@1", "-c", config)
    assert [each["name"] for each in back["removed"]] == ["2.scale"]
    assert BODY in syncd("diff", "m@1", "m@3", "-c", config).out


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (["show", "m@9"], "unknown-version", 2),
        (["show", "m"], "usage", 2),
        (["diff", "m@1", "n@1"], "usage", 2),
        (["versions", "nobody"], "unknown-model", 2),
        (["versions", "../m"], "usage", 2),
        (["promote", "m@9", "latest"], "unknown-version", 2),
        (["promote", "m@1", "nowhere"], "unknown-channel", 2),
        (["promote", "nobody@1", "latest"], "unknown-model", 2),
        (["promote", "m@1", "latest", "--keys", "nowhere"], "key-unusable", 1),
        (["yank", "m@9", "--reason", "bad"], "unknown-version", 2),
        (["yank", "m@1", "--reason", ""], "usage", 2),
        (["yank", "m@1"], "usage", 2),
    ],
)
def test_what_is_not_there_is_a_clear_error_and_nothing_changes(
    made: Fleet, words: list[str], code: str, status: int
) -> None:
    before = tree(made.folder / "store")
    answer = syncd(*words, "-c", made.config("publisher"), "--json")
    assert (answer.json["error"]["code"], answer.status) == (code, status)
    assert tree(made.folder / "store") == before


def test_a_person_promotes_up_and_down_and_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    config = fleet.config("publisher")
    before = tree(fleet.folder / "store")
    planned = done("promote", "m@1", "latest", "-c", config, "--dry-run")
    assert tree(fleet.folder / "store") == before
    down = done("promote", "m@1", "latest", "-c", config, "--keys", fleet.folder / "keys")
    assert down == planned
    assert (down["version"], down["release"], down["committed"], down["previous"]) == (1, 4, True, 3)
    up = done("promote", "m@3", "latest", "-c", config)
    assert (up["release"], up["previous"]) == (5, 1)
    packs = [name for name in tree(fleet.folder / "store") if "/packs/" in name]
    assert packs == [name for name in before if "/packs/" in name]
    done("promote", "m@2", "stable", "-c", config)
    assert channels(fleet, config) == {"latest": 3, "stable": 2}
    (fleet.folder / "keys/channels/m/stable.key").unlink()
    refused = syncd("promote", "m@3", "stable", "-c", config, "--json")
    assert (refused.json["error"]["code"], refused.status) == ("key-unusable", 1)
    assert channels(fleet, config) == {"latest": 3, "stable": 2}


def test_the_channels_own_key_alone_leaves_the_release_and_a_running_publisher_commits_it(
    fleet: Fleet,
) -> None:
    person = fleet.config("person-node")
    keys = keys_without_online(fleet)
    (fleet.folder / "keys/channels/m/stable.key").unlink()
    refused = syncd("promote", "m@1", "latest", "-c", person, "--keys", keys, "--json")
    assert (refused.json["error"]["code"], refused.status) == ("key-unusable", 1)
    left = done("promote", "m@2", "stable", "-c", person, "--keys", keys)
    assert (left["committed"], left["release"], left["pending"]) == (False, 1, "pending/stable-1.json")
    assert channels(fleet, person)["stable"] is None
    again = done("promote", "m@1", "stable", "-c", person, "--keys", keys)
    assert (again["committed"], again["pending"]) == (False, "pending/stable-2.json")
    watched = fleet.folder / "watched"
    watched.mkdir()
    text = f'[[publish]]\nmodel = "m"\nwatch = "{watched}"\nrescan = "1s"\n'
    with running(fleet.config("publisher", text)) as daemon:
        pending = fleet.folder / "store/models/m/pending"
        wait_until(lambda: not list(pending.glob("*.json")), "the publisher commits what waits")
        assert channels(fleet, person)["stable"] == 1
        done("promote", "m@3", "stable", "-c", person, "--keys", keys)
        wait_until(lambda: not list(pending.glob("*.json")), "and what comes while it runs")
        assert channels(fleet, person)["stable"] == 3
        daemon.wait_for("promoted")
    nothing_refused = "pending-refused" not in daemon.text
    assert nothing_refused


async def _repository(fleet: Fleet, name: str = "looker") -> ModelRepository:
    root = (fleet.folder / "root.json").read_bytes()
    store = FolderStore(fleet.folder / "store")
    return await open_model(store, "m", root, fleet.folder / "keys", fleet.folder / name)


def test_a_pending_role_that_is_forged_overtaken_or_of_a_foreign_key_is_committed_by_nobody(
    fleet: Fleet,
) -> None:
    config, keys = fleet.config("person-node"), keys_without_online(fleet)
    done("promote", "m@2", "stable", "-c", config, "--keys", keys)
    folder = fleet.folder / "store/models/m/pending"
    honest = (folder / "stable-1.json").read_bytes()
    (folder / "stable-1.json").unlink()
    (folder / "stable-2.json").write_bytes(honest)  # another release than it says
    (folder / "stable-3.json").write_bytes(honest.replace(b'"version":2', b'"version":3'))  # signature broken
    (folder / "stable-4.json").write_bytes(b"{}")
    (folder / "latest-9.json").write_bytes(honest)  # signed by a key that may not sign this channel
    (folder / "nowhere-1.json").write_bytes(honest)

    async def commit() -> tuple[list[str], dict[str, int | None]]:
        repository = await _repository(fleet)
        done = await commit_pending(repository)
        assert done.releases == ()
        await repository.load()
        return sorted(name for name, _ in done.refused), {
            name: facts and facts.version for name, facts in repository.channels.items()
        }

    timestamp = (fleet.folder / "store/models/m/metadata/timestamp.json").read_bytes()
    refused, on = asyncio.run(commit())
    assert refused == [f"pending/{name}.json" for name in ("latest-9", "stable-2", "stable-3", "stable-4")]
    assert on == {"latest": 3, "stable": None}
    assert (fleet.folder / "store/models/m/metadata/timestamp.json").read_bytes() == timestamp
    (folder / "stable-1.json").write_bytes(honest)
    for name in ("stable-2", "stable-3", "stable-4"):
        (folder / f"{name}.json").unlink()
    asyncio.run(_commit(fleet))
    assert channels(fleet, config)["stable"] == 2
    (folder / "stable-1.json").write_bytes(honest)  # played back
    asyncio.run(_commit(fleet))
    assert channels(fleet, config)["stable"] == 2
    assert not (folder / "stable-1.json").exists()


async def _commit(fleet: Fleet) -> None:
    await commit_pending(await _repository(fleet))


def test_a_yanked_version_is_installed_by_nobody_and_a_node_on_it_goes_back(fleet: Fleet) -> None:
    config = fleet.config("publisher")
    done("promote", "m@2", "latest", "-c", config)
    follow = '[[follow]]\nmodel = "m"\npoll = "1s"\nprobation = "0s"\n'
    current = fleet.folder / "edge/models/m/current"
    with running(fleet.config("edge", follow)) as daemon:
        wait_until(lambda: current.is_symlink() and current.readlink().name == "2", "version 2 serves")
        done("promote", "m@3", "latest", "-c", config)
        wait_until(lambda: current.readlink().name == "3", "version 3 serves")
        yanked = done("yank", "m@3", "--reason", "trained on mislabelled data", "-c", config)
        assert (yanked["channels"], yanked["named_by"], yanked["unsigned"]) == (["latest"], ["latest"], [])
        wait_until(lambda: current.readlink().name == "2", "version 2 serves again")
        daemon.wait_for("yanked")
    told = {each["version"]: each["yanked"] for each in done("versions", "m", "-c", config)["versions"]}
    assert told == {1: None, 2: None, 3: "trained on mislabelled data"}
    assert done("restore", "m", "--to", fleet.folder / "resumed", "-c", config)["version"] == 2
    for words in (
        ["promote", "m@3", "latest"],
        ["pull", "m:latest", "--to", fleet.folder / "out"],
        ["pull", "m@3", "--to", fleet.folder / "out"],
    ):
        refused = syncd(*words, "-c", config, "--json")
        assert (refused.json["error"]["code"], refused.status) == ("unknown-version", 2)
        assert "yanked" in refused.json["error"]["what"]
    save(fleet.folder / "runs/3.pt", 3, extra=True)
    again = done("publish", fleet.folder / "runs/3.pt", "--model", "m", "--channel", "stable", "-c", config)
    assert (again["version"], again["new"], again["channels"]) == (3, False, ["latest"])
    assert channels(fleet, config) == {"latest": 3, "stable": None}


def test_an_automatic_release_never_moves_a_channel_back_however_42_and_41_interleave(fleet: Fleet) -> None:
    """Two publishers claim 4 and 5, and finish in either order, on a channel that a person moves meanwhile."""

    async def story() -> list[tuple[int, int]]:
        older, newer = await _repository(fleet, "a"), await _repository(fleet, "b")
        first, second = await older.claim(), await newer.claim()
        assert (first, second) == (4, 5)
        seen = []

        async def commit(repository: ModelRepository, version: int) -> None:
            await repository.load()
            await repository.commit(version=version, head=make_head("m", version), channel="latest")
            facts = repository.channels["latest"]
            assert facts is not None
            seen.append((facts.version, facts.release))

        await commit(newer, second)
        await commit(older, first)
        await older.load()
        await older.promote(1, "latest")  # a person may
        await newer.load()
        third = await newer.claim()
        await commit(newer, third)
        return seen

    assert asyncio.run(story()) == [(5, 4), (5, 4), (6, 6)]
