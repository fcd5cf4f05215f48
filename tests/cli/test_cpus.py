from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nexusg.cli import cpus
from nexusg.cli.cpus import how_many, processors


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes ``cpu.max`` of a control group; this process is in /system.slice/nexusg.service."""
    own = tmp_path / "cgroup"
    own.write_text("1:cpu:/old\n0::/system.slice/nexusg.service\n")
    monkeypatch.setattr(cpus, "OWN_GROUP", own)
    monkeypatch.setattr(cpus, "GROUPS", tmp_path / "groups")

    def write(group: str, text: str) -> None:
        folder = tmp_path / "groups" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text + "\n")

    return write


def test_without_limits_all_processors_count(limit: object) -> None:
    assert processors() == 8


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("200000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("150000 100000", "300000 100000", 2),
        ("10000 100000", "max 100000", 1),
        ("9900000 100000", "max 100000", 8),
    ],
)
def test_the_least_quota_counts(
    limit: Callable[[str, str], None], own: str, above: str, expected: int
) -> None:
    limit("system.slice/nexusg.service", own)
    limit("system.slice", above)
    assert processors() == expected


def test_a_container_sees_its_own_group_at_the_root(limit: Callable[[str, str], None]) -> None:
    cpus.OWN_GROUP.write_text("0::/\n")
    limit("", "200000 100000")
    assert processors() == 2


def test_a_system_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "OWN_GROUP", tmp_path / "none")
    monkeypatch.setattr(cpus, "GROUPS", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors() == 1


@pytest.mark.usefixtures("limit")
def test_how_many() -> None:
    assert how_many(3) == 3
    assert how_many("auto") == 8


@pytest.mark.usefixtures("limit")
def test_even_the_largest_machine_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(1024)))
    assert how_many("auto") == 512
