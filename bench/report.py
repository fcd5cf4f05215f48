"""Tables and JSON from measurements. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.figures import Spread, ratios, shown


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.runner import Measurement
    from bench.scenarios import Scenario

BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"


@dataclass(frozen=True)
class Column:
    """One figure in a table."""

    key: str
    title: str
    scale: float = 1.0
    spread: bool = False  #: shown with least and most
    ratio: bool = False  #: followed by the ratio to the first agent


@dataclass(frozen=True)
class Family:
    """Scenarios that share a table."""

    title: str
    columns: tuple[Column, ...]


def _rate(title: str) -> Column:
    return Column("rate", title, spread=True, ratio=True)


def _cpu(title: str, scale: float = 1.0) -> Column:
    return Column("cpu_us", title, scale, spread=True, ratio=True)


_P50, _P99 = Column("p50_ms", "p50 ms"), Column("p99_ms", "p99 ms")
_PEAK = Column("peak_mib", "peak MiB")

FAMILIES = {
    "requests": Family("Requests", (_rate("per s"), _cpu("CPU µs each"), _P50, _P99, _PEAK)),
    "transfers": Family("Transfers", (_rate("MiB/s"), _cpu("CPU ms per MiB", 0.001), _PEAK)),
    "datagrams": Family(
        "Datagrams",
        (_rate("per s"), _cpu("CPU µs each"), Column("lost_percent", "lost %"), _PEAK),
    ),
    "idle": Family(
        "Idle streams",
        (
            Column("kib", "KiB per stream", spread=True, ratio=True),
            Column("descriptors", "descriptors"),
            _cpu("CPU µs to open"),
            Column("rate", "opened per s"),
            _PEAK,
        ),
    ),
}


class Report:
    """All measurements of a run."""

    def __init__(self, scenarios: Sequence[Scenario], agents: Sequence[str]) -> None:
        self._scenarios = scenarios
        self._agents = agents
        self._found: dict[tuple[str, str], list[Measurement]] = {}

    def add(self, measurement: Measurement) -> None:
        """Keep ``measurement``."""
        self._found.setdefault((measurement.scenario, measurement.agent), []).append(measurement)

    @property
    def worked(self) -> bool:
        """Whether nothing failed; what was skipped did not."""
        return not any(one.failed for found in self._found.values() for one in found)

    def values(self, scenario: str, agent: str, key: str) -> dict[int, float]:
        """One figure, by repeat."""
        found = self._found.get((scenario, agent), ())
        return {one.repeat: one.values[key] for one in found if key in one.values}

    def markdown(self) -> str:
        """A table for each family, then what was skipped and what failed."""
        parts = []
        for name, family in FAMILIES.items():
            scenarios = [one for one in self._scenarios if one.family == name]
            rows = [row for one in scenarios for row in self._rows(one, family)]
            if rows:
                parts.append("\n".join([f"### {family.title}", "", *_head(family), *rows]))
        if notes := self._notes():
            parts.append("\n".join(notes))
        return "\n\n".join(parts) + "\n"

    def data(self) -> dict[str, Any]:
        """Everything, for JSON: each measurement, and the summary that the tables show."""
        return {
            "measurements": [
                dataclasses.asdict(one) for found in self._found.values() for one in found
            ],
            "summary": [
                self._summary(scenario, agent)
                for scenario in self._scenarios
                for agent in self._agents
            ],
        }

    def _rows(self, scenario: Scenario, family: Family) -> list[str]:
        rows: list[str] = []
        for agent in self._agents:
            if self.values(scenario.name, agent, "rate"):
                cells = [self._cells(scenario, agent, column) for column in family.columns]
                title = "" if rows else f"**{scenario.name}**"
                rows.append(_line([title, agent, *itertools.chain(*cells)]))
        return rows

    def _cells(self, scenario: Scenario, agent: str, column: Column) -> list[str]:
        values = self.values(scenario.name, agent, column.key)
        if not values:
            return ["", ""] if column.ratio else [""]
        scaled = Spread.of([value * column.scale for value in values.values()])
        cells = [_spread(scaled) if column.spread else shown(scaled.median)]
        if column.ratio:
            over = ratios(values, self.values(scenario.name, self._agents[0], column.key))
            compared = over and agent != self._agents[0]
            cells.append(_spread(Spread.of(over)) if compared else "")
        return cells

    def _notes(self) -> list[str]:
        """Each reason once, with all that it kept from being measured."""
        why: dict[str, dict[str, list[str]]] = {}
        for (scenario, agent), found in self._found.items():
            texts = [f"skipped, {one.skipped}" for one in found if one.skipped]
            texts += [f"FAILED: {one.failed.splitlines()[0]}" for one in found if one.failed]
            if errors := sum(one.values.get("errors", 0) for one in found):
                texts.append(f"{errors:g} connections broke in {len(found)} repeats")
            for text in dict.fromkeys(texts):
                why.setdefault(text, {}).setdefault(agent, []).append(scenario)
        return [
            f"- {agent}, {text}: {', '.join(scenarios)}"
            for text, agents in why.items()
            for agent, scenarios in agents.items()
        ]

    def _summary(self, scenario: Scenario, agent: str) -> dict[str, Any]:
        keys = {column.key for column in FAMILIES[scenario.family].columns}
        figures = {}
        for key in sorted(keys):
            values = self.values(scenario.name, agent, key)
            if values:
                over = ratios(values, self.values(scenario.name, self._agents[0], key))
                figures[key] = {
                    **dataclasses.asdict(Spread.of(list(values.values()))),
                    "ratio": dataclasses.asdict(Spread.of(over)) if over else None,
                }
        return {"scenario": scenario.name, "agent": agent, "figures": figures}


def facts(about: Mapping[str, str]) -> str:
    """What a run was made on and with, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n"


def replace_between_marks(text: str, new: str) -> str:
    """``text`` with ``new`` between its marks. Raises ValueError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} are not in it")
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{after}"


def _head(family: Family) -> list[str]:
    titles = ["", "agent"]
    for column in family.columns:
        titles += [column.title, "×"] if column.ratio else [column.title]
    return [_line(titles), "|---|---|" + "---:|" * (len(titles) - 2)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(spread: Spread) -> str:
    if spread.low == spread.high:
        return shown(spread.median)
    return f"{shown(spread.median)} ({shown(spread.low)} to {shown(spread.high)})"
