"""What the sessions of an agent share: only the defaults are worth a test."""

from __future__ import annotations

import time

from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Config, Limits
from nexusg.transport.channel import READ_BYTES


def make() -> Context:
    """A context with the defaults."""
    tasks = Tasks("streams", lambda *_: None)
    return Context(Config(), Budget(1), tasks, lambda _: None, lambda *_: None)


def test_time_and_chance_are_real() -> None:
    context = make()
    assert context.clock is time.monotonic
    assert 0 <= context.rng() < 1
    assert len(context.entropy(4096)) == 4096
    assert context.entropy(16) != context.entropy(16)


def test_nothing_is_shared_between_agents() -> None:
    one, other = make(), make()
    assert one.counters is not other.counters
    assert one.pumps is not other.pumps
    assert one.buffer is not other.buffer
    assert len(one.buffer) == READ_BYTES
    assert one.flows is not other.flows


def test_the_number_of_flows_is_a_setting() -> None:
    tasks = Tasks("streams", lambda *_: None)
    config = Config(limits=Limits(udp_flows=7))
    context = Context(config, Budget(1), tasks, lambda _: None, lambda *_: None)
    assert context.flows.limit == 7
