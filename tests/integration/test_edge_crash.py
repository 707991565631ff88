"""The edge killed by SIGKILL, and cut off like a power failure, before, within and after every action of the table.

Then it is started again: a whole version has served at all times, it ends on the newest that it may have, and what was
fetched is not fetched again.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from syncd.edge.fetch import WITHIN_FETCH
from syncd.edge.transitions import CRASH_POINTS, WITHIN, Action, crash_point
from syncd.node.followers import FollowerReport
from syncd.node.links import NodeFolder
from syncd.publisher.commit import open_model
from syncd.state import installed, wishes
from syncd.state.db import Database
from syncd.trust.names import channel_role
from syncd.trust.signing import channel_target
from tests.support.disks import after_power_cut, mounted_image
from tests.support.edge import assert_serves, follower
from tests.support.forked import Forked
from tests.support.published import Content, PublishedStore, published_store

WORKERS = 3
DRIVER = "tests.support.edge_driver"


def weights(seed: int) -> dict[str, np.ndarray]:
    """Six tensors of 1 MiB, each a segment of its own, and small ones."""
    own = np.random.default_rng(seed)
    made = {f"layer{i}.weight": own.standard_normal((512, 512), dtype=np.float32) for i in range(6)}
    return made | {"head.bias": own.standard_normal((100,), dtype=np.float32)}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How a node comes to carry out an action: where it starts, what the store shows, where it has to end."""

    node: str  # the prepared node folder
    store: str
    ends_on: int
    quarantined: tuple[int, ...] = ()
    mended: str | None = None  # the store after the crash, where it is another
    failing_follower: bool = False
    wish: str | None = None  # what a person tells the process that is killed
    then: str | None = None  # what a person tells the one that is started afterwards
    wish: str = ""  # what a person chose: "hold", lifted after the crash, or "leave" the version that serves


UPDATE = Scenario("serving-1", "two", 2)
SCENARIOS = {
    Action.TAKE_AIM: UPDATE,
    Action.INSTALL: UPDATE,
    Action.OFFER: UPDATE,
    Action.ACTIVATE: UPDATE,
    Action.RETIRE: UPDATE,
    Action.BACK_OFF: Scenario("serving-1", "spoiled", 2, mended="two"),
    Action.QUARANTINE: Scenario("serving-1", "poisoned", 1, quarantined=(2,)),
    Action.ROLL_BACK: Scenario("serving-1", "two", 1, quarantined=(2,), failing_follower=True),
    Action.LET_GO: Scenario("waiting-for-2", "spoiled-and-back", 1),
    Action.GO_BACK: Scenario("serving-2", "yanked", 1),
    Action.POSTPONE: Scenario("held-1", "two", 2, then="resume"),
    Action.TURN_BACK: Scenario("serving-2", "two", 1, quarantined=(2,), wish="rollback"),
    Action.POSTPONE: Scenario("serving-1", "two", 2, wish="hold"),
    Action.TURN_BACK: Scenario("serving-2", "two", 1, quarantined=(2,), wish="leave"),
}
# The points of the table, further times that one is passed, and the one inside a download.
EXTRA = {
    f"{crash_point(WITHIN, Action.INSTALL)}:2": UPDATE,
    f"{WITHIN_FETCH}:1": UPDATE,
    f"{WITHIN_FETCH}:4": UPDATE,
}
CASES = {point: SCENARIOS[Action(point.rpartition(".")[2])] for point in CRASH_POINTS} | EXTRA


def test_every_action_of_the_table_has_a_scenario():
    assert set(SCENARIOS) == set(Action)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """The stores, and node folders prepared by real runs of the edge."""
    base = tmp_path_factory.mktemp("ground")
    asyncio.run(_publish(base))
    with Forked(DRIVER) as forked:
        _run(forked, base, base / "serving-1", base / "one", "--until", 1)
        shutil.copytree(base / "serving-1", base / "serving-2", symlinks=True)
        _run(forked, base, base / "serving-2", base / "two", "--until", 2)
        shutil.copytree(base / "serving-1", base / "held-1", symlinks=True)
        _run(forked, base, base / "held-1", base / "one", "--until", 1, "--wish", "hold")
        shutil.copytree(base / "serving-1", base / "waiting-for-2", symlinks=True)
        _run(forked, base, base / "waiting-for-2", base / "spoiled", "--until", 2, "--within", 1, status=3)
    return base


async def _publish(base: Path) -> None:
    store = await published_store(base / "pub")
    (base / "root.json").write_bytes(store.signed.root)

    def keep(name: str) -> Path:
        shutil.copytree(store.url, base / name)
        return base / name

    await store.publish(Content(weights(1)))
    keep("one")
    first = set(store.packs())
    poisoned = weights(2)
    poisoned["head.bias"][3] = np.inf
    await _branch(store, base, "poisoned", Content(poisoned))
    await store.publish(Content(weights(2)), limit=2 << 20)
    keep("two")
    spoiled = keep("spoiled")
    for pack in sorted(set(store.packs()) - first)[-1:]:
        path = spoiled / "models/m/packs" / pack.name
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:64] + bytes(1000) + path.read_bytes()[1064:])
    await store.promote(1)
    back = keep("spoiled-and-back")
    shutil.rmtree(back / "models/m/packs")
    shutil.copytree(spoiled / "models/m/packs", back / "models/m/packs")
    await store.promote(2)
    repository = await _repository(store)
    facts = repository.channels["latest"]
    yanked = dataclasses.replace(facts, yanked=(2,), release=facts.release + 1)
    await repository.sign({channel_role("latest"): channel_target(yanked)})
    keep("yanked")
    await store.signed.store.aclose()


async def _branch(store: PublishedStore, base: Path, name: str, content: Content) -> None:
    """What the store would be with `content` as its next version, beside the store as it goes on."""
    aside = base / "aside"
    shutil.copytree(store.url, aside / "store")
    shutil.copytree(store.url.parent / "publisher", aside / "publisher", symlinks=True)
    await store.publish(content)
    shutil.copytree(store.url, base / name)
    for each in ("store", "publisher"):
        shutil.rmtree(store.url.parent / each)
        shutil.move(aside / each, store.url.parent / each)


async def _repository(store: PublishedStore):
    signed = store.signed
    folder = signed.folder.parent / "publisher" / store.model
    return await open_model(signed.store, store.model, signed.root, signed.keys, folder)


def _run(forked: Forked, base: Path, node: Path, store: Path, *more: object, status: int = 0, **keys) -> str:
    log = base / f"log-{os.urandom(6).hex()}"
    found = forked.run([node, store, base / "root.json", "m", *more], log, **keys)
    text = log.read_text()
    assert found == status, f"exit status {found}, not {status}:\n{text}"
    return text


def _crash(base: Path, forked: Forked, point: str, node: Path, signal: str, when_stopped=None) -> None:
    case = CASES[point]
    store = base / case.store
    environment = {"SYNCD_CRASH_AT": point, "SYNCD_CRASH_SIGNAL": signal}
    arguments = ["--until", 999, "--within", 20, *_told(case.wish)]  # until it is killed
    _run(forked, base, node, store, *arguments, status=-9, environment=environment, when_stopped=when_stopped)


def _told(wish: str | None) -> list[str]:
    return ["--wish", wish] if wish else []


def _look(node: Path, allowed: set[int]) -> None:
    """What serves at this moment is whole."""
    folder = NodeFolder(node).model_folder("m")
    serving = folder.read_link("current")
    assert serving in allowed
    assert_serves(folder, weights(serving))
    for version in folder.versions():
        assert (folder.version_folder(version) / "model.digests").exists()


def _wish(case: Scenario, node: Path, *, crashed: bool) -> None:
    """Choose what the scenario says, as the commands for people do."""
    if case.wish:
        with Database(node / "state.db") as db:
            if case.wish == "hold":
                wishes.save(db, "m", wishes.Wishes(held=not crashed))
            elif not crashed:
                wishes.save(db, "m", wishes.Wishes(leaving=installed.installed(db, "m")[2]))


def _recover(base: Path, forked: Forked, point: str, case: Scenario, node: Path) -> None:
    """Started again it ends by itself where it has to."""
    _look(node, {1, 2})
    _wish(case, node, crashed=True)
    text = _run(
        forked, base, node, base / (case.mended or case.store), "--until", case.ends_on, *_told(case.then)
    )
    shown = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert (shown["serving"], shown["state"]) == (case.ends_on, "IDLE")
    assert [each["version"] for each in shown["quarantined"]] == list(case.quarantined)
    folder = NodeFolder(node).model_folder("m")
    assert_serves(folder, weights(case.ends_on))
    assert list(folder.incoming.iterdir()) == []
    assert folder.read_link("next") is None
    with Database(node / "state.db") as db:
        assert set(installed.installed(db, "m")) == set(folder.versions())
    fetched = [each for each in (Action.TAKE_AIM, Action.BACK_OFF) if point.endswith(each)]
    if case is UPDATE and not fetched and not point.startswith(WITHIN_FETCH):
        assert shown["wire_bytes"] < 30_000  # metadata; the packs were here already


def _followers(case: Scenario, node: Path):
    if not case.failing_follower:
        return None
    held = follower(NodeFolder(node).model_folder("m"))
    held.__enter__().write(FollowerReport(version=2, errors=5))
    return held


def _kill_and_recover(base: Path, forked: Forked, point: str) -> str:
    case = CASES[point]
    node = base / f"node-{os.urandom(6).hex()}"
    shutil.copytree(base / case.node, node, symlinks=True)
    _wish(case, node, crashed=False)
    held = _followers(case, node)
    try:
        _crash(base, forked, point, node, "KILL")
        _recover(base, forked, point, case, node)
    finally:
        if held is not None:
            held.__exit__(None, None, None)
        shutil.rmtree(node)
    return "whole"


def _cut_and_recover(
    base: Path, forked: Forked, restarted: Forked, point: str, mount: Path, image: Path
) -> str:
    case = CASES[point]
    node = mount / "node"
    shutil.rmtree(node, ignore_errors=True)
    shutil.copytree(base / case.node, node, symlinks=True)
    _wish(case, node, crashed=False)
    subprocess.run(["sync", "-f", str(mount)], check=True, timeout=60)
    held = _followers(case, node)

    def cut() -> None:
        with after_power_cut(image) as after:
            inside = _followers(case, after / "node")
            try:
                _recover(base, restarted, point, case, after / "node")
            finally:
                if inside is not None:
                    inside.__exit__(None, None, None)

    try:
        _crash(base, forked, point, node, "STOP", when_stopped=cut)
    finally:
        if held is not None:
            held.__exit__(None, None, None)
    return "whole"


def _all_cases(work, points: list[str]) -> dict[str, object]:
    """Point → "whole" or the exception: the cases side by side, for the test of each to look at."""

    def one_worker(mine: list[str]) -> dict[str, object]:
        found: dict[str, object] = {}
        with work() as run:
            for point in mine:
                try:
                    found[point] = run(point)
                except Exception as error:  # noqa: BLE001 - handed to the test of this point
                    found[point] = error
        return found

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = pool.map(one_worker, [points[start::WORKERS] for start in range(WORKERS)])
    return {point: result for part in parts for point, result in part.items()}


@pytest.fixture(scope="module")
def killed(ground) -> dict[str, object]:
    @contextlib.contextmanager
    def work():
        with Forked(DRIVER) as forked:
            yield lambda point: _kill_and_recover(ground, forked, point)

    return _all_cases(work, list(CASES))


@pytest.fixture(scope="module")
def cut(ground, tmp_path_factory) -> dict[str, object]:
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("disk")

    @contextlib.contextmanager
    def work():
        with (
            tempfile.TemporaryDirectory(dir=memory) as aside,
            mounted_image(Path(aside) / "image", 40 << 20) as mount,
            Forked(DRIVER) as forked,
            Forked(DRIVER) as second,
        ):
            image = Path(aside) / "image"
            yield lambda point: _cut_and_recover(ground, forked, second, point, mount, image)

    return _all_cases(work, list(CASES))


@pytest.mark.parametrize("point", CASES)
def test_killed_at_any_point_a_whole_version_serves_and_it_ends_on_the_newest(killed, point):
    if isinstance(killed[point], Exception):
        raise killed[point]


@pytest.mark.root
@pytest.mark.parametrize("point", CASES)
def test_cut_off_like_a_power_failure_a_whole_version_serves_and_it_ends_on_the_newest(cut, point):
    if isinstance(cut[point], Exception):
        raise cut[point]


def test_a_second_daemon_on_the_same_node_folder_is_refused_and_changes_nothing(ground, tmp_path):
    node = tmp_path / "node"
    shutil.copytree(ground / "serving-1", node, symlinks=True)
    with NodeFolder(node).daemon_lock(), Forked(DRIVER) as forked:
        before = {path: path.lstat().st_mtime_ns for path in node.rglob("*")}
        text = _run(forked, ground, node, ground / "two", "--until", 2, status=99)
        assert f"node-busy: another daemon (pid {os.getpid()}) holds {node}" in text
        assert {path: path.lstat().st_mtime_ns for path in node.rglob("*")} == before


def test_killed_in_a_download_it_fetches_again_at_most_what_was_in_flight(ground, tmp_path):
    node = tmp_path / "node"
    shutil.copytree(ground / "serving-1", node, symlinks=True)
    with Forked(DRIVER) as forked:
        _crash(ground, forked, f"{WITHIN_FETCH}:4", node, "KILL")
        text = _run(forked, ground, node, ground / "two", "--until", 2)
    [line] = [each for each in text.splitlines() if "install 2" in each]
    kept = int(line.split("install 2 ")[1].split(" segments kept")[0])
    assert kept >= 4
