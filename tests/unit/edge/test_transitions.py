"""The table of states is complete: no state without a way in and out, no pair without a decision."""

from itertools import product
from pathlib import Path

import syncd.edge
from syncd.edge.transitions import (
    AFTER_RESTART,
    CRASH_POINTS,
    DEFERRED,
    MAX_STARTS,
    NEVER,
    TOO_MANY_STARTS,
    TRANSITIONS,
    Action,
    Event,
    State,
    diagram,
)


def test_every_state_is_reachable_has_a_restart_row_and_every_pair_is_decided():
    reached = {State.IDLE}
    for _ in State:
        reached |= {goes_to for (state, _), (goes_to, _) in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    assert set(AFTER_RESTART) == set(State)
    for state, event in product(State, Event):
        decided = [(state, event) in TRANSITIONS, (state, event) in DEFERRED, event in NEVER[state]]
        assert decided.count(True) == 1, (state, event, decided)


def test_every_state_leads_back_to_idle():
    home = {State.IDLE}
    for _ in State:
        home |= {state for (state, _), (goes_to, _) in TRANSITIONS.items() if goes_to in home}
    assert home == set(State)


def test_every_action_is_used_and_has_its_crash_points():
    assert {action for _, action in TRANSITIONS.values()} == set(Action)
    assert len(CRASH_POINTS) == 3 * len(Action)


def test_too_many_starts_end_in_a_row_of_the_table():
    assert set(MAX_STARTS) == set(TOO_MANY_STARTS)
    assert all((state, event) in TRANSITIONS for state, event in TOO_MANY_STARTS.items())


def test_the_drawn_diagram_equals_the_table():
    drawn = Path(syncd.edge.__file__).with_name("STATES.md").read_text(encoding="utf-8")
    assert drawn == diagram()
