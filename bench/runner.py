"""Goes through scenarios, repeats and agents, one agent at a time, and keeps what came of each.

Agents alternate within a repeat (A B C A B C …), so that what the machine does meanwhile meets all
of them. Each measurement is of a fresh process; only the quick run keeps it for all scenarios.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import Failed
from bench.scenarios import Stage


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.agents import Agent
    from bench.bed import Bed
    from bench.processes import Process
    from bench.scenarios import Scenario, Settings, Values

#: A thousand connections take a moment to end, and the next scenario is not to pay for it.
CALM_S, CALM_STEP_S = 5.0, 0.1


@dataclass(frozen=True)
class Measurement:
    """One scenario with one agent, once: figures, or why there are none."""

    scenario: str
    agent: str
    repeat: int
    values: Values = field(default_factory=dict)
    skipped: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Lap:
    """What one process of an agent is measured with."""

    agent: Agent
    scenarios: Sequence[Scenario]
    repeat: int
    delay_s: float


def laps(
    agents: Sequence[Agent], scenarios: Sequence[Scenario], repeats: int, *, quick: bool
) -> Iterator[Lap]:
    """The order of a run."""
    if not quick:
        for scenario in scenarios:
            for repeat in range(repeats):
                for agent in agents:
                    yield Lap(agent, [scenario], repeat, scenario.delay_s)
        return
    for repeat in range(repeats):
        for agent in agents:
            for delay_s in sorted({scenario.delay_s for scenario in scenarios}):
                alike = [scenario for scenario in scenarios if scenario.delay_s == delay_s]
                yield Lap(agent, alike, repeat, delay_s)


class Runner:
    """Runs laps on a bed; ``on_measured`` is told of each measurement."""

    def __init__(
        self, bed: Bed, settings: Settings, on_measured: Callable[[Measurement], object]
    ) -> None:
        self._bed = bed
        self._settings = settings
        self._on_measured = on_measured

    def run(self, lap: Lap) -> None:
        """Measure one lap. Blocks; never raises Failed."""
        todo = [scenario for scenario in lap.scenarios if not self._skip(lap, scenario)]
        while todo:
            with contextlib.ExitStack() as stack:
                try:
                    process, doors = lap.agent.start(stack, self._bed, lap.delay_s)
                except Failed as error:
                    for scenario in todo:
                        self._report(lap, scenario, failed=str(error))
                    return
                stage = Stage(self._bed, process, doors, self._settings)
                # After a failure the others get a new process.
                while self._measure(lap, todo.pop(0), stage) and todo:
                    _calm(process)

    def _skip(self, lap: Lap, scenario: Scenario) -> bool:
        why = scenario.lacks(self._bed)
        why = why or lap.agent.lacks(self._bed, scenario.needs, scenario.delay_s)
        if why:
            self._report(lap, scenario, skipped=why)
        return bool(why)

    def _measure(self, lap: Lap, scenario: Scenario, stage: Stage) -> bool:
        try:
            values = scenario.run(stage)
        except Failed as error:
            self._report(lap, scenario, failed=f"{error}{stage.process.tail()}")
            return False
        self._report(lap, scenario, values=values)
        return True

    def _report(
        self,
        lap: Lap,
        scenario: Scenario,
        values: Values | None = None,
        skipped: str = "",
        failed: str = "",
    ) -> None:
        measurement = Measurement(
            scenario.name, lap.agent.name, lap.repeat, values or {}, skipped, failed
        )
        self._on_measured(measurement)


def _calm(process: Process) -> None:
    """Wait until ``process`` has dealt with the end of the load before, for a while at most."""
    before, deadline = -1.0, time.monotonic() + CALM_S
    while (used_s := _cpu_s(process)) != before and time.monotonic() < deadline:
        before = used_s
        process.wait_end(CALM_STEP_S)


def _cpu_s(process: Process) -> float:
    try:
        return process.usage().cpu_s
    except Failed:
        return 0.0  # the next scenario will say so
