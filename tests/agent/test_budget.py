"""The count of bytes that wait for local services."""

from __future__ import annotations

from nexusg.agent.budget import Budget


def test_it_adds_up() -> None:
    budget = Budget(100)
    budget.add(60)
    budget.add(40)
    assert budget.used_bytes == 100
    assert not budget.exceeded, "the limit itself may be used"
    budget.add(1)
    assert budget.exceeded
    budget.release(101)
    assert (budget.used_bytes, budget.exceeded) == (0, False)
