"""open_predictor against a node folder: opening, gating, voting, swapping, holding, ending."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from syncd import open_predictor
from syncd.errors import ArchitectureRefused, Failed, GateRefused, NotInstalled, UnknownModel
from syncd.node.followers import FollowerReport, failed_votes, read_followers
from syncd.node.links import ModelFolder
from syncd.predictor import Predictor
from tests.support.small_daemon import activate, living, offer_and_wait, wait_until
from tests.support.tree import tree_of
from tests.support.versions import golden_of, install_version, make_model_folder

INPUT = torch.linspace(-1.0, 1.0, 8).reshape(2, 4)


class Net(nn.Module):
    """Answers its inputs times a weight; NaN for an input of 7, raises for one of 9, and refuses other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] != 4:
            raise ValueError(f"shape {tuple(images.shape)}")
        if bool((images == 9.0).any()):
            raise ArithmeticError("nine")
        answer: torch.Tensor = torch.where(images == 7.0, float("nan"), images * self.weight)
        return answer


def net_of(version: int) -> Net:
    net = Net()
    net.weight.data.fill_(float(version))
    return net.eval()


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return make_model_folder(tmp_path, "net")


@pytest.fixture
def opened(folder: ModelFolder) -> Iterator[Callable[..., Predictor]]:
    """open_predictor on this node folder with `Net`; what is opened is closed after the test."""
    predictors: list[Predictor] = []

    def open_one(**keywords: Any) -> Predictor:
        predictors.append(
            open_predictor("net", **{"node": folder.path.parent.parent, "build": Net, **keywords})
        )
        return predictors[-1]

    yield open_one
    for predictor in predictors:
        predictor.close()


def install(folder: ModelFolder, *versions: int) -> None:
    for version in versions:
        net = net_of(version)
        install_version(folder, version, net.state_dict(), golden=golden_of(net, [INPUT]))


def install_bad(folder: ModelFolder, version: int) -> None:
    """A version whose weights are not those that its golden sample was made with."""
    install_version(folder, version, net_of(999).state_dict(), golden=golden_of(net_of(version), [INPUT]))


def answers_as(predictor: Predictor, version: int) -> bool:
    return torch.equal(predictor(INPUT), INPUT * version)


def only_report(folder: ModelFolder) -> FollowerReport:
    (report,) = living(folder)
    return report


def test_without_a_version_it_says_where_it_looked_and_leaves_nothing(
    folder: ModelFolder, opened: Any
) -> None:
    before = tree_of(folder.path)
    with pytest.raises(NotInstalled, match="no version of net serves on this machine") as refused:
        opened()
    assert refused.value.where["path"] == folder.path
    began = time.monotonic()
    with pytest.raises(NotInstalled, match=r"after 0\.2 s"):
        opened(wait="200ms")
    assert 0.2 <= time.monotonic() - began < 5.0
    assert tree_of(folder.path) == before
    with pytest.raises(UnknownModel):
        open_predictor("../net")


def test_the_first_version_is_offered_like_any_other_and_a_waiting_process_votes(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1)
    found: list[Predictor] = []
    waiting = threading.Thread(target=lambda: found.append(opened(wait="30s")))
    waiting.start()
    wait_until(lambda: len(living(folder)) == 1, "a follower")
    tally = offer_and_wait(folder, 1, voters=1)
    assert len(tally.accepted) == 1
    assert only_report(folder).version is None
    activate(folder, 1)
    waiting.join(10.0)
    assert found[0].version == 1
    assert answers_as(found[0], 1)


def test_it_swaps_when_current_moves_and_back_again(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened()
    assert answers_as(predictor, 1)
    offer_and_wait(folder, 2, voters=1)
    assert answers_as(predictor, 1)
    activate(folder, 2)
    wait_until(lambda: predictor.version == 2, "version 2")
    assert answers_as(predictor, 2)
    folder.set_link("current", 1)
    wait_until(lambda: predictor.version == 1, "version 1")
    assert answers_as(predictor, 1)


def test_a_version_that_was_never_offered_is_gated_when_current_moves(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1, 3)
    install_bad(folder, 2)
    activate(folder, 1)
    predictor = opened()
    folder.set_link("current", 2)
    wait_until(lambda: failed_votes(living(folder), 2) != [], "a failed vote")
    assert "golden: output 0 differs" in failed_votes(living(folder), 2)[0][1]
    assert answers_as(predictor, 1)
    folder.set_link("current", 3)
    wait_until(lambda: predictor.version == 3, "version 3")
    wait_until(lambda: only_report(folder).vote is None, "the vote taken back")


def test_a_bad_version_is_refused_with_its_reason_and_the_serving_one_goes_on(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1)
    install_bad(folder, 2)
    poisoned = net_of(3).state_dict()
    poisoned["weight"][2] = float("nan")
    install_version(folder, 3, poisoned)
    install_version(folder, 4, {"weight": torch.ones(5), "seen": torch.zeros(())})
    install_version(folder, 5, {"weights": torch.ones(4), "seen": torch.zeros(())})
    install(folder, 6)
    cut_off = folder.version_folder(6) / "model.safetensors"
    cut_off.chmod(0o644)
    os.truncate(cut_off, 70)
    (install_version(folder, 7, {}) / "model.safetensors").unlink()
    activate(folder, 1)
    predictor = opened()
    reasons = {
        2: "golden: output 0 differs",
        3: "finite: 1 of 4 values of weight are not finite",
        4: "size mismatch for weight",
        5: "missing weight; unexpected weights",
        6: "model.safetensors",
        7: "version 7 has no model view",
    }
    for version, reason in reasons.items():
        links = {name: folder.read_link(name) for name in ("current", "previous")}  # type: ignore[arg-type]
        ((_, told),) = offer_and_wait(folder, version, voters=1).refused
        assert reason in told
        assert answers_as(predictor, 1)
        assert only_report(folder).version == 1
        assert {name: folder.read_link(name) for name in links} == links  # type: ignore[arg-type]
        folder.set_link("next", None)


def test_a_second_attempt_is_answered_again_without_loading_again(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    opened()
    offer_and_wait(folder, 2, voters=1, attempt=1)
    (folder.version_folder(2) / "model.safetensors").unlink()
    assert len(offer_and_wait(folder, 2, voters=1, attempt=2).accepted) == 1


def test_an_offer_that_is_taken_back_frees_the_version(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened()
    offer_and_wait(folder, 2, voters=1)
    folder.set_link("next", None)
    wait_until(lambda: not folder.version_in_use(2), "version 2 to be let go")
    assert folder.remove_version(2)
    assert answers_as(predictor, 1)


def test_the_serving_version_is_locked_and_let_go_after_the_last_call_on_it(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened()
    with predictor.pinned() as model:
        folder.set_link("current", 2)
        wait_until(lambda: predictor.version == 2, "version 2")
        assert model.version == 1
        assert torch.equal(model(INPUT), INPUT)
        assert folder.remove_version(1) is False
    del model
    gc.collect()
    wait_until(lambda: not folder.version_in_use(1), "version 1 to be let go")
    assert folder.remove_version(1)


def test_a_held_predictor_accepts_by_being_held_and_swaps_at_its_release(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened()
    with predictor.hold():
        with predictor.hold():
            wait_until(lambda: only_report(folder).held, "held in the report")
        assert len(offer_and_wait(folder, 2, voters=1).accepted) == 1
        activate(folder, 2)
        looked = time.monotonic() + 0.3
        wait_until(lambda: time.monotonic() > looked, "several looks")
        assert predictor.version == 1
        assert only_report(folder).version == 1
    wait_until(lambda: predictor.version == 2, "the swap at the release")
    wait_until(lambda: not only_report(folder).held, "no longer held in the report")


def test_calls_errors_and_answers_that_are_not_finite_are_reported(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1)
    activate(folder, 1)
    predictor = opened()
    for _ in range(5):
        predictor(INPUT)
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        predictor(torch.ones(1, 3))  # the caller's own mistake: not the version's error
    with pytest.raises(ArithmeticError, match="nine"):
        predictor(torch.full((3, 4), 9.0))
    assert predictor(torch.full((1, 4), 7.0)).isnan().all()
    assert predictor(torch.full((1, 4), float("inf"))).isinf().all()  # came in with the call
    wait_until(lambda: only_report(folder).predictions == 7, "7 predictions in the report")
    report = only_report(folder)
    assert (report.errors, report.nonfinite) == (1, 1)
    assert report.p50_ms is not None
    assert report.p99_ms is not None
    assert 0.0 < report.p50_ms <= report.p99_ms


def test_a_failure_that_the_application_reports_goes_back_at_once_and_is_voted(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1, 2, 3)
    activate(folder, 1)
    predictor = opened()
    predictor.report_failed(9, "not what serves: ignored")
    activate(folder, 2)
    wait_until(lambda: predictor.version == 2, "version 2")
    predictor.report_failed(2, "every box is empty")
    wait_until(lambda: predictor.version == 1, "back to version 1")
    wait_until(lambda: failed_votes(living(folder), 2) != [], "a failed vote")
    assert failed_votes(living(folder), 2)[0][1] == "every box is empty"
    activate(folder, 3)
    wait_until(lambda: predictor.version == 3, "version 3")


def test_opening_on_a_current_that_fails_votes_and_serves_the_previous_one(
    folder: ModelFolder, opened: Any
) -> None:
    install(folder, 1)
    install_bad(folder, 2)
    activate(folder, 1)
    activate(folder, 2)
    predictor = opened()
    assert predictor.version == 1
    assert answers_as(predictor, 1)
    wait_until(lambda: failed_votes(living(folder), 2) != [], "a failed vote")


def test_opening_with_nothing_that_passes_raises_and_leaves_its_vote_for_the_daemon(
    folder: ModelFolder, opened: Any
) -> None:
    install_bad(folder, 1)
    activate(folder, 1)
    with pytest.raises(GateRefused, match="golden: output 0 differs") as refused:
        opened()
    assert refused.value.where["version"] == 1
    (words,) = read_followers(folder)
    assert not words.alive
    assert failed_votes([words], 1)[0][1].startswith("golden: ")
    assert list(folder.followers.iterdir()) == []


def test_an_architecture_by_name_needs_to_be_allowed(folder: ModelFolder, opened: Any) -> None:
    net = squeezenet1_1(num_classes=3).eval()
    named = {"name": "torchvision.models:squeezenet1_1", "args": {"num_classes": 3}}
    images = torch.rand(1, 3, 32, 32)
    install_version(folder, 1, net.state_dict(), architecture=named, golden=golden_of(net, [images]))
    install_version(folder, 2, net.state_dict())
    activate(folder, 1)
    with pytest.raises(
        ArchitectureRefused, match=r"torchvision\.models:squeezenet1_1 is not allowed here: none is"
    ):
        opened(build=None, architectures=())
    predictor = opened(build=None)
    with torch.no_grad():
        assert torch.allclose(predictor(images), net(images), 1e-4, 1e-4)
    activate(folder, 2)
    wait_until(lambda: failed_votes(living(folder), 2) != [], "a failed vote")
    assert "names no architecture" in failed_votes(living(folder), 2)[0][1]


def test_who_does_not_vote_follows_and_is_not_waited_for(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened(vote=False)
    wait_until(lambda: not only_report(folder).voter, "a report without a vote")
    assert offer_and_wait(folder, 2, voters=0).all_accepted
    activate(folder, 2)
    wait_until(lambda: predictor.version == 2, "version 2")


FOLLOWING = """
import os, sys, torch, time
from syncd import open_predictor
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, images):
        return images * self.weight
for user in sys.argv[2:]:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
predictor = open_predictor("net", node=sys.argv[1], build=Net)
print(predictor.version, flush=True)
sys.stdin.readline()
while predictor.version == 1:
    time.sleep(0.01)
print(predictor.version, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_who_may_only_read_the_folder_follows_it_and_cannot_vote() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as node:
        folder = make_model_folder(Path(node) / "node", "net")
        Path(node).chmod(0o755)
        (Path(node) / "node").chmod(0o755)
        install(folder, 1, 2)
        activate(folder, 1)
        before = tree_of(folder.path)
        with subprocess.Popen(
            [sys.executable, "-c", FOLLOWING, str(Path(node) / "node"), "65534"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == "1\n"
            assert living(folder) == []
            assert tree_of(folder.path) == before
            activate(folder, 2)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "2\n"
        assert child.returncode == 0


def test_a_process_that_ends_without_closing_leaves_nothing(folder: ModelFolder) -> None:
    install(folder, 1)
    activate(folder, 1)
    before = tree_of(folder.path)
    node = str(folder.path.parent.parent)
    program = FOLLOWING.split("sys.stdin")[0]
    done = subprocess.run(
        [sys.executable, "-c", program, node], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert tree_of(folder.path) == before


def test_a_closed_predictor_says_so_and_closing_twice_is_fine(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1)
    activate(folder, 1)
    with opened() as predictor:
        assert answers_as(predictor, 1)
    predictor.close()
    with pytest.raises(Failed, match="this predictor is closed"):
        predictor(INPUT)
    with pytest.raises(Failed, match="this predictor is closed"):
        _ = predictor.version
    assert living(folder) == []
    assert not any(thread.name.startswith("syncd-follow") for thread in threading.enumerate())


def test_a_predictor_that_is_lost_stops_following(folder: ModelFolder) -> None:
    install(folder, 1)
    activate(folder, 1)
    open_predictor("net", node=folder.path.parent.parent, build=Net)
    gc.collect()
    assert living(folder) == []


def test_a_forked_child_is_told_and_the_parent_goes_on(folder: ModelFolder, opened: Any) -> None:
    install(folder, 1, 2)
    activate(folder, 1)
    predictor = opened()
    wait_until(lambda: len(living(folder)) == 1, "a follower")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            predictor(INPUT)
            text = "answered"
        except Failed as error:
            text = error.as_dict()["what"] + " " + error.as_dict()["do"]
        predictor.close()
        os.write(write_end, json.dumps(text).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        text = json.loads(told.read())
    assert os.waitpid(child, 0)[1] == 0
    assert "opened before a fork" in text
    assert "call open_predictor in the child" in text
    assert answers_as(predictor, 1)
    assert only_report(folder).pid == os.getpid()
    activate(folder, 2)
    wait_until(lambda: predictor.version == 2, "version 2 in the parent")
