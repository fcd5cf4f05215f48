"""The order of a run, and what becomes of failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import Failed
from bench.runner import Lap, Measurement, Runner, laps
from bench.scenarios import Requests, Settings


if TYPE_CHECKING:
    from contextlib import ExitStack

NEAR, FAR = Requests("near", "", 1), Requests("far", "", 1, delay_s=0.05)


class Process:
    """A process that uses nothing."""

    def usage(self) -> Any:
        """Nothing."""
        return type("Usage", (), {"cpu_s": 0.0})

    def wait_end(self, _timeout_s: float) -> bool:
        """It has not ended."""
        return False

    def tail(self) -> str:
        """An empty log."""
        return ""


class Agent:
    """An agent that counts its starts."""

    def __init__(self, name: str, lack: str = "", broken: str = "") -> None:
        self.name = name
        self.starts = 0
        self._lack = lack
        self._broken = broken

    def lacks(self, _bed: object, _needs: str, _delay_s: float) -> str:
        """What the test says."""
        return self._lack

    def start(self, _stack: ExitStack, _bed: object, _delay_s: float) -> Any:
        """Start nothing."""
        self.starts += 1
        if self._broken:
            raise Failed(self._broken)
        return Process(), None


class Fake(Requests):
    """A scenario that works unless its name says otherwise."""

    def run(self, _stage: object) -> dict[str, float]:
        """No load at all."""
        if self.name == "bad":
            raise Failed("it broke")
        return {"rate": 1.0}


GOOD, BAD, LAST = (Fake(name, "", 1) for name in ("good", "bad", "last"))


def order(quick: bool) -> list[tuple[str, list[str], int]]:
    agents: Any = [Agent("a"), Agent("b")]
    return [
        (lap.agent.name, [one.name for one in lap.scenarios], lap.repeat)
        for lap in laps(agents, [NEAR, FAR], 2, quick=quick)
    ]


def test_agents_alternate_within_each_repeat() -> None:
    assert order(quick=False) == [
        (agent, [scenario], repeat)
        for scenario in ("near", "far")
        for repeat in (0, 1)
        for agent in ("a", "b")
    ]


def test_the_quick_run_keeps_a_process_for_all_that_it_can() -> None:
    assert order(quick=True) == [
        (agent, [scenario], repeat)
        for repeat in (0, 1)
        for agent in ("a", "b")
        for scenario in ("near", "far")
    ]


def run(agent: Agent, *scenarios: Requests) -> list[tuple[str, str]]:
    """What came of each, in the order of the reports."""
    reports: list[Measurement] = []
    bed: Any = None
    lap_agent: Any = agent
    Runner(bed, Settings(), reports.append).run(Lap(lap_agent, scenarios, 0, 0.0))
    return [(one.scenario, one.skipped or one.failed or "measured") for one in reports]


def test_after_a_failure_the_others_get_a_new_process() -> None:
    agent = Agent("a")
    assert run(agent, GOOD, BAD, LAST) == [
        ("good", "measured"),
        ("bad", "it broke"),
        ("last", "measured"),
    ]
    assert agent.starts == 2


def test_an_agent_that_does_not_start_fails_them_all() -> None:
    assert run(Agent("a", broken="no"), GOOD, LAST) == [("good", "no"), ("last", "no")]


def test_what_an_agent_lacks_is_skipped_without_starting_it() -> None:
    agent = Agent("a", lack="no UDP")
    assert run(agent, GOOD) == [("good", "no UDP")]
    assert agent.starts == 0
