"""The limit of open files is raised as far as possible, and said to be short when it is."""

from __future__ import annotations

import resource

import pytest

from nexusg.cli.descriptors import WANTED, raise_limit


class Limits:
    """Stands in for the system: a soft and a hard limit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.limits = (soft, hard)
        self.refuses = False
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, _: int, limits: tuple[int, int]) -> None:
        if self.refuses:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


def test_the_soft_limit_becomes_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(monkeypatch, 1024, 1_048_576)
    assert raise_limit() == ""
    assert limits.limits == (1_048_576, 1_048_576)


@pytest.mark.parametrize("limit", [WANTED, resource.RLIM_INFINITY])
def test_what_is_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    limits = Limits(monkeypatch, limit, limit)
    limits.refuses = True
    assert raise_limit() == ""


def test_a_short_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 1024, 4096)
    assert raise_limit().startswith("only 4096 files may be open")


def test_a_system_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 256, resource.RLIM_INFINITY).refuses = True
    assert raise_limit().startswith("only 256 files may be open")


def test_the_real_system() -> None:
    """Whatever the limits are here, they are not lowered."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit()
    after = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert after[0] >= before[0]
    assert after[1] == before[1]
