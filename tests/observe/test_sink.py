from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.os import tp_read

from nexusg.observe.sink import LineWriter
from tests.conftest import MS
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"0123456789abcde\n"

# fcntl.F_SETPIPE_SZ is missing in CPython 3.10's typeshed.
F_SETPIPE_SZ = 1031


def dropped_line(count: int) -> bytes:
    return b"dropped %d\n" % count


class Pipe:
    """A pipe that holds 4096 bytes. Its reader reads only when told to."""

    def __init__(self) -> None:
        # As files, because gevent's os.close lets the loop do it later.
        self._ends = [open(fd, "wb", buffering=0) for fd in os.pipe()]  # noqa: SIM115 - see close
        self.reader, self.writer = (end.fileno() for end in self._ends)
        fcntl.fcntl(self.writer, F_SETPIPE_SZ, 4096)

    def read_all(self, until: bytes) -> bytes:
        """Read until the data end so, in a thread, because the reader blocks."""
        data = b""
        while not data.endswith(until):
            data += tp_read(self.reader, 65536)
        return data

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
def writer(pipe: Pipe) -> Iterator[LineWriter]:
    writer = LineWriter(pipe.writer, capacity_bytes=8192, dropped_line=dropped_line)
    yield writer
    os.set_blocking(pipe.reader, False)
    while not writer.close(timeout_s=5 * MS):  # a test may leave the pipe full
        os.read(pipe.reader, 65536)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> LineWriter:
    """A writer whose thread does not run: the test does its steps."""
    with monkeypatch.context() as patch:
        patch.setattr(LineWriter, "_run", lambda _self: None)
        return LineWriter(pipe.writer, capacity_bytes=4 * len(LINE), dropped_line=dropped_line)


def tick(times: int) -> None:
    for _ in range(times):
        gevent.sleep(MS)


def step(writer: LineWriter, times: int = 1) -> bool:
    return [writer._step() for _ in range(times)][-1]


def test_lines_arrive_in_order(pipe: Pipe, writer: LineWriter) -> None:
    lines = [b"%d\n" % number for number in range(100)]
    for line in lines:
        writer.write(line)
    assert writer.flush(1.0)
    assert os.read(pipe.reader, 65536) == b"".join(lines)
    assert (writer.queued_bytes, writer.dropped, writer.failed) == (0, 0, 0)


def test_a_full_pipe_does_not_stop_the_hub(pipe: Pipe, writer: LineWriter) -> None:
    """The heart of it: 160 kB for a pipe that nobody reads, while greenlets go on."""
    os.write(pipe.writer, b"-" * 4095 + b"\n")
    ticks = gevent.Greenlet.spawn(tick, 10)
    started = time.monotonic()
    for _ in range(10_000):
        writer.write(LINE)
    assert time.monotonic() - started < 1000 * MS
    ticks.join(timeout=2000 * MS)
    assert ticks.successful()
    assert not writer.flush(5 * MS), "the pipe is full"
    assert (writer.queued_bytes, writer.dropped) == (8192, 10_000 - 512)

    reader = gevent.Greenlet.spawn(pipe.read_all, b"dropped 9488\n")
    assert writer.flush(2.0)
    reader.join(timeout=2.0)
    assert reader.get().splitlines()[1:-1] == [LINE.strip()] * 512
    writer.write(LINE)
    assert writer.flush(1.0)
    assert os.read(pipe.reader, 65536) == LINE, "lines are taken again"


def test_the_count_stands_where_the_lines_are_missing(still: LineWriter, pipe: Pipe) -> None:
    for _ in range(7):
        still.write(LINE)
    step(still, 2)  # half of it is free: open again
    still.write(b"after\n")
    step(still, 5)
    assert os.read(pipe.reader, 4096) == LINE * 4 + b"dropped 3\nafter\n"
    assert (still.dropped, still.queued_bytes) == (3, 0)


def test_after_an_overflow_nothing_is_taken_until_half_is_free(still: LineWriter) -> None:
    for _ in range(5):
        still.write(LINE)
    step(still)
    still.write(LINE)
    assert still.dropped == 2


def test_a_line_that_never_fits_is_counted_at_once(still: LineWriter, pipe: Pipe) -> None:
    still.write(LINE * 5)
    step(still, 2)
    assert os.read(pipe.reader, 4096) == b"dropped 1\n"


def test_a_long_line_is_written_in_pieces(pipe: Pipe, writer: LineWriter) -> None:
    line = b"x" * 8000 + b"\n"
    writer.write(line)
    assert pipe.read_all(b"\n") == line


def test_a_non_blocking_descriptor_is_waited_for(still: LineWriter, pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    os.write(pipe.writer, b"-" * 4096)
    waits = []

    def wait() -> None:
        waits.append(os.read(pipe.reader, 4096))
        LineWriter._wait_writable(still)

    still._wait_writable = wait  # type: ignore[method-assign]
    still.write(LINE)
    step(still)
    assert (len(waits), os.read(pipe.reader, 4096)) == (1, LINE)


def test_a_descriptor_that_is_gone_costs_only_the_lines(still: LineWriter, pipe: Pipe) -> None:
    pipe.close_reader()
    still.write(LINE)
    still.write(LINE)
    step(still, 2)
    assert (still.failed, still.dropped, still.queued_bytes) == (2, 0, 0)


def test_close_ends_the_thread(still: LineWriter, pipe: Pipe) -> None:
    assert still.close()
    assert still.close(), "twice is once"
    still.write(LINE)
    assert (still.dropped, still.queued_bytes) == (1, 0), "a late line is dropped"
    assert still.flush(0)
    still._run()


def test_close_gives_up_on_a_full_pipe(still: LineWriter, pipe: Pipe) -> None:
    still.write(LINE)
    assert not still.close(timeout_s=MS)
    still._run()  # what was waiting comes first
    assert os.read(pipe.reader, 4096) == LINE


SHARING = """
    import sys
    from nexusg.observe.sink import LineWriter
    writer = LineWriter(1, dropped_line=lambda count: b"%d" % count, shared=True)
    for _ in range(20):
        writer.write(sys.argv[1].encode() * 20_000 + b"\\n")
    writer.close(10)
"""


def test_long_lines_of_processes_that_share_a_pipe_do_not_mix(pipe: Pipe) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SHARING)]
    processes = [
        subprocess.Popen([*command, letter], cwd=ROOT, stdout=pipe.writer) for letter in "ab"
    ]
    data = b""
    while data.count(b"\n") < 40:
        data += tp_read(pipe.reader, 65536)
    assert sorted(data.splitlines()) == [b"a" * 20_000] * 20 + [b"b" * 20_000] * 20
    assert [process.wait(10) for process in processes] == [0, 0]


def test_a_shared_descriptor_is_given_back_after_each_line(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writer, dropped_line=dropped_line, shared=True)
    writer._put_in_turn(LINE)  # coverage does not see the thread
    assert os.read(pipe.reader, 4096) == LINE
    assert writer.close()


HANGING = """
    import os, sys, threading
    from gevent import monkey
    if "patched" in sys.argv:
        monkey.patch_all()
    from nexusg.observe.sink import LineWriter
    writer = LineWriter(1, dropped_line=lambda count: b"%d" % count)
    for _ in range(1000):
        writer.write(b"x" * 1000)
    assert threading.active_count() == 1
    print(writer.close(0.01), file=sys.stderr)
"""


@pytest.mark.parametrize("mode", ["patched", "plain"])
def test_a_process_ends_though_nobody_reads_its_output(pipe: Pipe, mode: str) -> None:
    """Its thread hangs in a write; that must hold up neither ``close`` nor the exit."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGING), mode],
        cwd=ROOT,
        stdout=pipe.writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (0, "False\n")


def test_lines_that_wait_leave_together(still: LineWriter, pipe: Pipe) -> None:
    """One write for what fits one atomic write; the rest, and the end, come after it."""
    still._capacity_bytes = 1000
    for number in range(3):
        still.write(b"%d" % number * 40 + b"\n")
    assert still._step(100)
    assert os.read(pipe.reader, 4096) == b"0" * 40 + b"\n" + b"1" * 40 + b"\n"
    still._lines.put(None)
    assert still._step(100)
    assert os.read(pipe.reader, 4096) == b"2" * 40 + b"\n"
    assert still.queued_bytes == 0
    assert not still._step(100)
