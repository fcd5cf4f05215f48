"""Problems and warnings become lines that an editor can jump to."""

from __future__ import annotations

from nexusg.config.nodes import Mark
from nexusg.config.report import MAX_LINES, Report


def test_lines() -> None:
    report = Report("conf/x.yaml")
    report.name_backend(0, "web")
    report.add(Mark(12, 5), ("backends", 0, "weight"), "is heavy")
    report.add(Mark(12, 4), ("backends", 0), "is wrong")
    report.add(Mark(2, 1), ("surprise",), "unknown key")
    report.add(Mark(1, 9), (), "is empty")
    report.add(Mark(20, 1), ("backends", 1, "name"), "is required")
    report.add(Mark(30, 1), ("backends",), "is odd", fatal=False)
    assert len(report) == 5
    assert report.problems() == [
        "conf/x.yaml:1:9: is empty",
        "conf/x.yaml:2:1: surprise: unknown key",
        'conf/x.yaml:12:4: backends[0] "web": is wrong',
        'conf/x.yaml:12:5: backends[0] "web": weight: is heavy',
        "conf/x.yaml:20:1: backends[1].name: is required",
    ]
    assert report.warnings() == ["conf/x.yaml:30:1: backends: is odd"]


def test_a_name_cannot_forge_a_line() -> None:
    report = Report("x")
    report.name_backend(0, "a\nx:1:1: all is well")
    report.add(Mark(1, 1), ("backends", 0), "is wrong")
    [line] = report.problems()
    assert "\n" not in line


def test_one_mistake_is_told_once() -> None:
    report = Report("x")
    for _ in range(2):
        report.add(Mark(1, 1), ("a",), "is wrong")
    assert len(report.problems()) == 1


def test_lines_are_bounded() -> None:
    report = Report("x")
    for line in range(MAX_LINES + 7):
        report.add(Mark(line, 1), (), "is wrong")
    assert len(report.problems()) == MAX_LINES + 1
    assert report.problems()[-1] == "x: and 7 more"
