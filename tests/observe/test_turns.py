from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nexusg.observe.turns import Turns
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER = """
    import sys
    from nexusg.observe.turns import Turns
    turns = Turns(1)
    for line in sys.stdin:
        had = turns.begin(wait=False)
        turns.end()
        print(had, file=sys.stderr, flush=True)
"""


class Other:
    """Another process that writes to the same descriptor."""

    def __init__(self, fd: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(OTHER)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=fd,
            stderr=subprocess.PIPE,
        )

    def tries(self) -> bool:
        """Whether it is its turn now."""
        assert self._process.stdin
        assert self._process.stderr
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return bool(self._process.stderr.readline() == b"True\n")

    def end(self) -> None:
        self._process.communicate(timeout=10)


@contextmanager
def other(fd: int) -> Iterator[Other]:
    other = Other(fd)
    try:
        yield other
    finally:
        other.end()


@pytest.fixture
def pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb"):
        yield writer


def test_one_process_at_a_time(pipe: int) -> None:
    turns = Turns(pipe)
    with other(pipe) as them:
        assert turns.begin()
        assert not them.tries()
        turns.end()
        assert them.tries()
        assert turns.begin(wait=False)


def test_a_turn_that_is_not_had(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(_fd: int, _how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr("fcntl.lockf", lockf)
    assert not Turns(pipe).begin(wait=False)


def test_no_turns_at_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        turns = Turns(file.fileno())
        with other(file.fileno()) as them:
            assert turns.begin()
            assert them.tries()
            turns.end()


def test_without_locks_everybody_writes(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(_fd: int, _how: int) -> None:
        raise OSError

    monkeypatch.setattr("fcntl.lockf", lockf)
    turns = Turns(pipe)
    assert turns.begin()
    turns.end()


def test_a_descriptor_that_is_closed() -> None:
    reader, writer = os.pipe()
    for end in (reader, writer):
        with open(end, "wb" if end == writer else "rb"):
            pass
    turns = Turns(writer)
    assert turns.begin()
    turns.end()
