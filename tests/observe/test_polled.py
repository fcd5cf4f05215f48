from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from nexusg.observe.polled import PolledWriter
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"0123456789abcde\n"
SIZE = 16 * 4096
F_SETPIPE_SZ = 1031  # missing in CPython 3.10's typeshed


class Pipe:
    """A pipe that a test can fill. (One with room for a single page has none after each line.)"""

    def __init__(self) -> None:
        self._ends = [open(fd, "wb", buffering=0) for fd in os.pipe()]  # noqa: SIM115 - see close
        self.reader, self.writer = (end.fileno() for end in self._ends)
        fcntl.fcntl(self.writer, F_SETPIPE_SZ, SIZE)

    def fill(self) -> None:
        os.write(self.writer, b"-" * SIZE)

    def close_reader(self) -> None:
        self._ends[0].close()

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def writer(pipe: Pipe) -> PolledWriter:
    return PolledWriter(
        pipe.writer,
        capacity_bytes=4 * len(LINE),
        dropped_line=lambda count: b"dropped %d\n" % count,
    )


def test_lines_are_written_at_once(pipe: Pipe, writer: PolledWriter) -> None:
    writer.write(LINE)
    writer.write(b"2\n")
    assert os.read(pipe.reader, 100) == LINE + b"2\n"
    assert not writer.waiting


def test_what_has_no_room_waits(pipe: Pipe, writer: PolledWriter) -> None:
    pipe.fill()
    writer.write(LINE)
    writer.flush()
    assert writer.waiting
    assert len(os.read(pipe.reader, SIZE)) == SIZE
    writer.flush()
    assert not writer.waiting
    assert os.read(pipe.reader, SIZE) == LINE


def test_the_count_stands_where_the_lines_are_missing(pipe: Pipe, writer: PolledWriter) -> None:
    pipe.fill()
    for _ in range(7):
        writer.write(LINE)
    assert writer.dropped == 3
    os.read(pipe.reader, SIZE)
    writer.write(b"after\n")
    assert os.read(pipe.reader, SIZE) == LINE * 4 + b"dropped 3\nafter\n"


def test_it_waits_for_its_turn(
    pipe: Pipe, writer: PolledWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer._turns, "begin", lambda *, wait: wait)
        writer.write(LINE)
    assert writer.waiting
    writer.flush()
    assert os.read(pipe.reader, SIZE) == LINE


def test_a_descriptor_that_is_gone_costs_only_the_lines(pipe: Pipe, writer: PolledWriter) -> None:
    pipe.close_reader()
    writer.write(LINE)
    assert not writer.waiting


def test_room_that_somebody_else_took(
    pipe: Pipe, writer: PolledWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    os.set_blocking(pipe.writer, False)

    class AlwaysReady:
        def poll(self, _timeout: int) -> bool:
            return True

    monkeypatch.setattr(writer, "_poll", AlwaysReady())
    writer.write(LINE)
    assert writer.waiting


def test_a_line_may_be_written_in_pieces(
    pipe: Pipe, writer: PolledWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        writer.write(LINE)
    assert os.read(pipe.reader, SIZE) == LINE


def test_close_writes_what_waits(pipe: Pipe, writer: PolledWriter) -> None:
    pipe.fill()
    writer.write(LINE)
    assert not writer.close(5 * MS)
    os.read(pipe.reader, SIZE)
    assert writer.close(5 * MS)
    assert os.read(pipe.reader, SIZE) == LINE
