"""Which flow has to go."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, cast

import pytest

from nexusg.agent.flowtable import FlowTable, affordable


if TYPE_CHECKING:
    from nexusg.agent.flows import UdpFlow


class Flow:
    """As much of a flow as its table knows."""

    def __init__(self, table: FlowTable) -> None:
        self.table = table
        self.evicted = 0
        table.add(cast("UdpFlow", self))

    def evict(self) -> None:
        self.evicted += 1
        self.table.discard(cast("UdpFlow", self))


def test_the_longest_unused_one_goes() -> None:
    table = FlowTable(3)
    flows = [Flow(table) for _ in range(3)]
    table.used(cast("UdpFlow", flows[0]))
    for _ in range(2):
        flows.append(Flow(table))
        assert len(table) == 3
    assert [flow.evicted for flow in flows] == [0, 1, 1, 0, 0]


def test_an_ended_one_makes_room() -> None:
    table = FlowTable(1)
    first = Flow(table)
    table.discard(cast("UdpFlow", first))
    table.discard(cast("UdpFlow", first))
    Flow(table)
    assert (first.evicted, len(table)) == (0, 1)


@pytest.mark.parametrize(
    ("soft", "expected"), [(1024, 512), (100_000, 4096), (resource.RLIM_INFINITY, 4096)]
)
def test_file_descriptors_are_left_for_others(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert affordable(4096) == expected
