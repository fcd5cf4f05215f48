"""The tables, the JSON, and BENCHMARKS.md."""

from __future__ import annotations

import json

import pytest

from bench.report import BEGIN, END, FAMILIES, Report, replace_between_marks
from bench.runner import Measurement
from bench.scenarios import Requests, catalogue
from tests.support.source import ROOT


ONE, TWO = Requests("one", "the first", 1), Requests("two", "the second", 2)


def measurement(agent: str, repeat: int, rate: float, cpu_us: float) -> Measurement:
    values = {"rate": rate, "cpu_us": cpu_us, "p50_ms": 1.0, "p99_ms": 2.0, "peak_mib": 50.0}
    return Measurement("one", agent, repeat, values)


@pytest.fixture
def report() -> Report:
    """Two agents, three repeats: the second is half as fast, for twice the CPU."""
    made = Report([ONE, TWO], ["ours", "theirs"])
    for repeat, speed in enumerate((1, 2, 3)):
        made.add(measurement("ours", repeat, 1000 * speed, 10 / speed))
        made.add(measurement("theirs", repeat, 500 * speed, 20 / speed))
    return made


def test_a_table(report: Report) -> None:
    assert report.markdown().splitlines() == [
        "### Requests",
        "",
        "|  | agent | per s | × | CPU µs each | × | p50 ms | p99 ms | peak MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        "| **one** | ours | 2 000 (1 000 to 3 000) |  | 5 (3.33 to 10) |  | 1 | 2 | 50 |",
        "|  | theirs | 1 000 (500 to 1 500) | 0.5 | 10 (6.67 to 20) | 2 | 1 | 2 | 50 |",
    ]
    assert report.worked


def test_what_was_skipped_or_failed_is_noted_once(report: Report) -> None:
    for repeat in range(3):
        report.add(Measurement("two", "ours", repeat, skipped="no tool"))
        report.add(Measurement("two", "theirs", repeat, failed="it broke\nIts log ends with: …"))
    assert report.markdown().splitlines()[-2:] == [
        "- ours, skipped, no tool: two",
        "- theirs, FAILED: it broke: two",
    ]
    assert not report.worked


def test_broken_connections_are_noted() -> None:
    report = Report([ONE], ["ours"])
    for repeat in range(2):
        report.add(Measurement("one", "ours", repeat, {"rate": 1, "cpu_us": 1, "errors": 3}))
    assert report.markdown().splitlines()[-1] == "- ours, 6 connections broke in 2 repeats: one"
    assert report.worked


def test_the_json_has_every_figure_and_the_summary(report: Report) -> None:
    data = json.loads(json.dumps(report.data()))
    assert len(data["measurements"]) == 6
    [theirs] = [
        one["figures"]["rate"]
        for one in data["summary"]
        if (one["scenario"], one["agent"]) == ("one", "theirs")
    ]
    assert theirs["median"] == 1000
    assert theirs["ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_only_what_is_between_the_marks_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_between_marks(text, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


def test_marks_are_needed() -> None:
    with pytest.raises(ValueError, match="bench: begin"):
        replace_between_marks("no marks", "new")


def test_every_scenario_has_a_table() -> None:
    assert {scenario.family for scenario in catalogue()} == set(FAMILIES)


def test_benchmarks_md_explains_every_scenario_and_column() -> None:
    text = (ROOT / "BENCHMARKS.md").read_text("utf-8")
    explained, begin, _ = text.partition(BEGIN)
    assert begin, "the tables have a place"
    missing = [one.name for one in catalogue() if f"`{one.name}`" not in explained]
    columns = {column.title for family in FAMILIES.values() for column in family.columns}
    assert missing + [title for title in columns if f"`{title}`" not in explained] == []
