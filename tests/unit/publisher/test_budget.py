"""Bytes are lent up to a limit, in order, and come back when a borrower is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from syncd.publisher.budget import ByteBudget


async def test_a_borrower_waits_until_enough_is_given_back_and_small_ones_do_not_overtake() -> None:
    budget = ByteBudget(10)
    await budget.borrow(8)
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        await budget.borrow(count)
        order.append(name)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(take("large", 9))
        await asyncio.sleep(0)
        group.create_task(take("small", 1))
        await asyncio.sleep(0)
        assert order == []
        budget.give_back(8)
    assert order == ["large", "small"]
    assert budget.peak == 10


async def test_a_cancelled_borrower_leaves_the_budget_as_it_was_and_lets_the_next_one_in() -> None:
    budget = ByteBudget(10)
    await budget.borrow(8)
    waiting = asyncio.create_task(budget.borrow(9))
    behind = asyncio.create_task(budget.borrow(2))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await behind
    assert budget.lent == 10


async def test_a_borrower_cancelled_just_after_its_turn_came_gives_back() -> None:
    budget = ByteBudget(10)
    await budget.borrow(10)
    waiting = asyncio.create_task(budget.borrow(4))
    await asyncio.sleep(0)
    budget.give_back(10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.lent == 0


async def test_more_than_the_limit_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="11 bytes asked of a budget of 10"):
        await ByteBudget(10).borrow(11)
