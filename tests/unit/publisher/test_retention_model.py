"""Publishers and collectors as a small model, every interleaving of their steps: no kept version ever lacks a pack.

The rules are those of `syncd/publisher/retention.py`; each naive order that they replace is shown to lose a pack.
A step is what the store does at once: one read of the signed state, one put, one list, one delete, one compare-and-set.
A kill is a process that is never scheduled again, so every prefix counts. Time is left out (a day may pass, or none),
but for the seven days: what was put in the model is young, what lay there before is old.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

Packs = frozenset[str]
Versions = frozenset[tuple[int, Packs]]
OLD = frozenset({"p1", "p2", "orphan"})


@dataclass(frozen=True)
class Rules:
    """What is done, and what a naive writer would do: one field differs at a time."""

    retire_first: bool = True  # else: list, delete, then commit the index
    plans_anew: bool = True  # else: the loser of a race signs its old plan again
    names_once: bool = True  # else: equal bytes have equal names, and what lies there is taken as it is
    orphans_old: bool = True  # else: whatever nothing refers to is an orphan at once


@dataclass(frozen=True)
class Publisher:
    """Publishes a version whose one segment is that of version 1, which is being retired."""

    version: int
    at: str = "read"
    saw: int = -1
    pack: str = ""
    tries: int = 0


@dataclass(frozen=True)
class Collector:
    """Keeps the newest version alone."""

    at: str = "read"
    saw: int = -1
    used: Packs = frozenset()
    condemned: Packs = frozenset()
    going: Packs = frozenset()
    tries: int = 0


@dataclass(frozen=True)
class World:
    """serial: the timestamp's number. kept, retired: the signed index. store: the packs that lie there."""

    serial: int
    kept: Versions
    retired: Versions
    store: Packs
    made: int
    processes: tuple[Publisher | Collector, ...]

    def lost(self) -> bool:
        return any(not packs <= self.store for _, packs in self.kept)

    def moved(self, number: int, process: Publisher | Collector, **more: object) -> World:
        processes = (*self.processes[:number], process, *self.processes[number + 1 :])
        return replace(self, processes=processes, **more)  # type: ignore[arg-type]


MOST_TRIES = 2


def publish(world: World, number: int, me: Publisher, rules: Rules) -> World | None:
    if me.at == "read":
        if me.tries == MOST_TRIES:
            return None
        kept = {pack for _, packs in world.kept for pack in packs if pack == "p1" or pack.startswith("again")}
        if kept:  # the segment lies in a pack of a kept version: it is referred to
            mine = replace(me, at="commit", saw=world.serial, pack=min(kept), tries=me.tries + 1)
        else:
            mine = replace(me, at="put", saw=world.serial, tries=me.tries + 1)
        return world.moved(number, mine)
    if me.at == "put":
        name = f"again-{world.made}" if rules.names_once else "p1"
        return world.moved(
            number, replace(me, at="commit", pack=name), store=world.store | {name}, made=world.made + 1
        )
    if me.at == "commit":
        if world.serial != me.saw:
            if rules.plans_anew:
                return world.moved(number, replace(me, at="read"))
            return world.moved(number, replace(me, saw=world.serial))
        kept = world.kept | {(me.version, frozenset({me.pack}))}
        return world.moved(number, replace(me, at="done"), serial=world.serial + 1, kept=kept)
    return None


def packs_of(versions: Versions) -> Packs:
    return frozenset(pack for _, packs in versions for pack in packs)


def collect(world: World, number: int, me: Collector, rules: Rules) -> World | None:
    if me.at == "read":
        if me.tries == MOST_TRIES:
            return None
        at = "retire" if rules.retire_first else "look"
        return world.moved(number, replace(me, at=at, saw=world.serial, tries=me.tries + 1))
    if me.at == "retire":
        if world.serial != me.saw:
            return world.moved(number, replace(me, at="read"))
        newest = max(version for version, _ in world.kept)
        going = frozenset(each for each in world.kept if each[0] != newest)
        return world.moved(
            number,
            replace(me, at="look"),
            serial=world.serial + 1,
            kept=world.kept - going,
            retired=world.retired | going,
        )
    if me.at == "look":
        kept = world.kept
        condemned = packs_of(world.retired)
        if not rules.retire_first:
            newest = max(version for version, _ in kept)
            condemned = packs_of(frozenset(each for each in kept if each[0] != newest))
            kept = frozenset(each for each in kept if each[0] == newest)
        used = packs_of(kept)
        return world.moved(number, replace(me, at="list", saw=world.serial, used=used, condemned=condemned))
    if me.at == "list":
        old = OLD if rules.orphans_old else world.store
        going = (world.store - me.used) & (me.condemned | old)
        return world.moved(number, replace(me, at="delete", going=going))
    if me.at == "delete":
        if me.going:
            pack = min(me.going)
            return world.moved(number, replace(me, going=me.going - {pack}), store=world.store - {pack})
        return world.moved(number, replace(me, at="forget"))
    if me.at == "forget":
        if world.serial != me.saw:
            return world.moved(
                number, replace(me, at="done")
            )  # the next pass finds nothing left, and forgets
        if rules.retire_first:
            more = {"retired": frozenset(), "serial": world.serial + 1}
        else:
            newest = max(version for version, _ in world.kept)
            kept = frozenset(each for each in world.kept if each[0] == newest)
            more = {"kept": kept, "serial": world.serial + 1}
        return world.moved(number, replace(me, at="done"), **more)
    return None


def after(world: World, rules: Rules) -> Iterator[World]:
    """The world after the next step of each process that has one."""
    for number, process in enumerate(world.processes):
        step = publish if isinstance(process, Publisher) else collect
        moved = step(world, number, process, rules)  # type: ignore[arg-type]
        if moved is not None:
            yield moved


@dataclass
class Walk:
    """Everything that can happen: distinct worlds, whole interleavings, and those of them that lost a pack."""

    worlds: int
    interleavings: int
    losing: int


def walk(processes: tuple[Publisher | Collector, ...], rules: Rules) -> Walk:
    start = World(
        0, frozenset({(1, frozenset({"p1"})), (2, frozenset({"p2"}))}), frozenset(), OLD, 0, processes
    )
    counted: dict[World, tuple[int, int]] = {}

    def count(world: World) -> tuple[int, int]:
        """Interleavings from here, and those in which a kept version lacks a pack at some moment."""
        if world not in counted:
            paths = [count(each) for each in after(world, rules)]
            total = sum(each for each, _ in paths) or 1
            counted[world] = (total, total if world.lost() else sum(each for _, each in paths))
        return counted[world]

    total, losing = count(start)
    return Walk(len(counted), total, losing)


CASTS = {
    "a publisher and a collector": (Publisher(3), Collector()),
    "two publishers and a collector": (Publisher(3), Publisher(4), Collector()),
    "a publisher and two collectors": (Publisher(3), Collector(), Collector()),
}


@pytest.mark.parametrize("cast", CASTS)
def test_in_no_interleaving_a_kept_version_lacks_a_pack(cast: str) -> None:
    found = walk(CASTS[cast], Rules())
    assert found.losing == 0
    assert found.interleavings >= 100
    print(f"{cast}: {found.interleavings} interleavings, {found.worlds} states, 0 lost")


@pytest.mark.parametrize(
    "naive",
    [
        pytest.param(Rules(retire_first=False), id="list, delete, commit"),
        pytest.param(Rules(plans_anew=False), id="the loser signs its plan again"),
        pytest.param(Rules(names_once=False), id="a pack that lies there is taken as it is"),
        pytest.param(Rules(orphans_old=False), id="orphans have no age"),
    ],
)
def test_each_naive_order_loses_a_pack_of_a_released_version(naive: Rules) -> None:
    found = walk(CASTS["a publisher and a collector"], naive)
    assert found.losing > 0
    print(f"{found.losing} of {found.interleavings} interleavings lose a pack")


def test_the_collector_does_its_work_what_was_retired_is_gone_in_the_end() -> None:
    """Not safe by idleness: alone it leaves the newest version and nothing else."""
    world = World(
        0, frozenset({(1, frozenset({"p1"})), (2, frozenset({"p2"}))}), frozenset(), OLD, 0, (Collector(),)
    )
    while following := list(after(world, Rules())):
        (world,) = following
    assert (world.store, world.retired) == (frozenset({"p2"}), frozenset())
    assert {version for version, _ in world.kept} == {2}
