"""The benchmark's own load, as a process: requests, transfers, datagrams, idle streams.

Every answer is checked. What is counted within the window, after the warm-up and before the end,
makes the rate; what is moved in all is what the agent's CPU time is divided by. It prints one JSON
line, `idle` two.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, socket
from gevent.event import Event
from gevent.pool import Pool

from bench import Failed, WrongBytes, wire
from bench.figures import percentile


if TYPE_CHECKING:
    from collections.abc import Callable

    User = Callable[[], None]

MIB = 1024 * 1024

#: For each connect, and for everything that is still to come when the window has ended.
PATIENCE_S = 20.0
#: A load that fails more often than this is broken, and is not worth its time.
MAX_ERRORS = 100

#: A transfer is cut into bodies of about this over all streams, so that it ends soon after the
#: window, but none is so short that its request costs much.
ROUND_BYTES = 16 * MIB
MIN_BODY_BYTES, MAX_BODY_BYTES = 256 * 1024, MIB
#: Downloads are asked for this far ahead, beside the round trips.
AHEAD_S = 0.05

#: Idle streams are opened so many at a time: a herd would measure the kernel's backlogs.
OPENERS = 50

DATAGRAM_BYTES = 200
_DATAGRAM = struct.Struct(">IQ")
#: A datagram that is not back after this is lost.
LOST_S = 0.5


class Window:
    """The time that counts, and what was moved in it."""

    def __init__(self, warmup_s: float, seconds: float) -> None:
        self.start = time.monotonic()
        self.opens = self.start + warmup_s
        self.closes = self.opens + seconds
        self.total = 0
        self.inside = 0
        self.errors = 0

    @property
    def open(self) -> bool:
        """Whether more is to be begun."""
        return time.monotonic() < self.closes

    def count(self, amount: int = 1) -> None:
        """``amount`` has arrived just now."""
        self.total += amount
        if self.opens <= time.monotonic() < self.closes:
            self.inside += amount

    def error(self, error: Exception) -> None:
        """Something has gone wrong; Failed when it does so all the time."""
        self.errors += 1
        if self.errors > MAX_ERRORS and self.errors > self.total / 10:
            raise Failed(f"{self.errors} errors beside {self.total} answers, the last: {error}")

    def result(self, scale: int = 1, **more: Any) -> dict[str, Any]:
        """What is printed; ``scale`` is what makes one unit."""
        if not self.total:
            raise Failed("nothing was moved")
        moved, took_s = self.inside, self.closes - self.opens
        if not moved:  # so short a window says little, but that it works
            moved, took_s = self.total, time.monotonic() - self.start
        rate = moved / scale / took_s
        return {"units": self.total / scale, "rate": rate, "errors": self.errors, **more}


# Requests ------------------------------------------------------------------------------------


def requests(
    address: tuple[str, int],
    name: str,
    in_flight: int,
    close: bool,
    warmup_s: float,
    seconds: float,
) -> dict[str, Any]:
    """Requests, ``in_flight`` at a time; with ``close`` each on a connection of its own."""
    window, took_s = Window(warmup_s, seconds), []
    question = wire.request(name, "/small", close=close)

    def user() -> None:
        while window.open:
            try:
                with _connected(address) as sock:
                    reader = wire.Reader(sock, 4096)
                    while window.open:
                        asked = time.monotonic()
                        _ask(sock, reader, question)
                        window.count()
                        took_s.append(time.monotonic() - asked)
                        if close:
                            break
            except (OSError, Failed) as error:
                window.error(error)

    _together([user] * in_flight, warmup_s + seconds)
    p50, p99 = (percentile(took_s, part) * 1000 for part in (0.5, 0.99))
    return window.result(p50_ms=p50, p99_ms=p99)


def idle(address: tuple[str, int], name: str, streams: int) -> dict[str, Any]:
    """Open ``streams``, one request on each; say so; when stdin ends, one more on each."""
    question, socks, started = wire.request(name, "/small"), [], time.monotonic()

    def open_one() -> None:
        sock = _connected(address)
        socks.append(sock)
        _ask(sock, wire.Reader(sock, 4096), question)

    def ask_again(sock: socket.socket) -> None:
        with sock:
            _ask(sock, wire.Reader(sock, 4096), question)

    _together([open_one] * streams, 0, OPENERS)
    _say({"rate": streams / (time.monotonic() - started), "units": streams})
    sys.stdin.read()
    _together([partial(ask_again, sock) for sock in socks], 0, OPENERS)
    return {"alive": len(socks)}


def _ask(sock: socket.socket, reader: wire.Reader, question: bytes) -> None:
    sock.sendall(question)
    head = _good(reader.head())
    if reader.body(wire.length(head)) != wire.SMALL:
        raise WrongBytes("the answer is not what the service said")


# Transfers -----------------------------------------------------------------------------------


def download(*, round_trip_s: float, **settings: Any) -> dict[str, Any]:
    """Bodies over many connections, asked for ahead so that the service never waits."""
    ahead_s = AHEAD_S + 2 * round_trip_s

    def user(sock: socket.socket, name: str, window: Window, body_bytes: int) -> None:
        question = wire.request(name, f"/down/{body_bytes}")
        reader, asked, done, started = wire.Reader(sock), 0, 0, time.monotonic()
        while window.open or done < asked:
            per_s = done / (time.monotonic() - started)
            more = int(2 + per_s * ahead_s) - (asked - done) if window.open else 0
            if more > 0:
                sock.sendall(question * more)
                asked += more
            if wire.length(_good(reader.head())) != body_bytes:
                raise WrongBytes("an answer of the wrong length")
            reader.pattern(body_bytes, window.count)
            done += 1

    return _transfer(user, **settings)


def upload(*, round_trip_s: float, **settings: Any) -> dict[str, Any]:
    """Bodies over many connections; one counts when the service has confirmed it."""
    del round_trip_s  # the writer never waits for an answer

    def user(sock: socket.socket, name: str, window: Window, body_bytes: int) -> None:
        reader, done = wire.Reader(sock), 0
        # The stream opens with a short message: a long one ends the reference agent's session
        # (PROTOCOL.md section 1.2).
        _ask(sock, reader, wire.request(name, "/small"))
        sent: list[None] = []
        writing = Greenlet.spawn(write, sock, sent, wire.request(name, "/up", body_bytes), window)
        try:
            while not (writing.ready() and done == len(sent)):
                _good(reader.head())
                window.count(body_bytes)
                done += 1
        finally:
            writing.kill()

    def write(sock: socket.socket, sent: list[None], question: bytes, window: Window) -> None:
        while window.open or not sent:  # the reader waits for one answer at least
            sent.append(None)
            try:
                sock.sendall(question)
                wire.send_pattern(sock, wire.length(question))
            except OSError:
                return  # the reader is told as well

    return _transfer(user, **settings)


def _transfer(
    user: Callable[[socket.socket, str, Window, int], None],
    *,
    address: tuple[str, int],
    name: str,
    streams: int,
    tolerant: bool,
    warmup_s: float,
    seconds: float,
) -> dict[str, Any]:
    """Run ``streams`` users; with ``tolerant`` a broken connection is counted and made again."""
    window = Window(warmup_s, seconds)
    body_bytes = max(MIN_BODY_BYTES, min(ROUND_BYTES // streams, MAX_BODY_BYTES))

    def lasting() -> None:
        again = True
        while again:
            try:
                with _connected(address) as sock:
                    user(sock, name, window, body_bytes)
                return
            except WrongBytes:
                raise
            except (OSError, Failed):
                if not tolerant:
                    raise
                window.errors += 1
                again = window.open

    _together([lasting] * streams, warmup_s + seconds)
    return window.result(MIB)


# Datagrams -----------------------------------------------------------------------------------


def datagrams(
    address: tuple[str, int],
    flows: int,
    in_flight: int,
    round_trip_s: float,
    warmup_s: float,
    seconds: float,
) -> dict[str, Any]:
    """Datagrams to an echo over ``flows`` sockets, ``in_flight`` at a time on each."""
    window = Window(warmup_s, seconds)
    lost: list[int] = []
    filling = bytes(DATAGRAM_BYTES - _DATAGRAM.size)

    def user(flow: int) -> None:
        under_way: set[int] = set()
        number = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(tuple(address))
            sock.settimeout(LOST_S + round_trip_s)
            while window.open or under_way:
                while window.open and len(under_way) < in_flight:
                    number += 1
                    under_way.add(number)
                    sock.send(_DATAGRAM.pack(flow, number) + filling)
                try:
                    data = sock.recv(65536)
                except TimeoutError:
                    lost.extend(under_way)
                    under_way.clear()
                    continue
                came, what = _DATAGRAM.unpack_from(data)
                if came != flow or data[_DATAGRAM.size :] != filling:
                    raise WrongBytes("a datagram came back that was not sent")
                if what in under_way:  # else it was given up, or doubled
                    under_way.remove(what)
                    window.count()

    _together([partial(user, flow) for flow in range(flows)], warmup_s + seconds)
    return window.result(lost_percent=100 * len(lost) / (window.total + len(lost)))


# Common --------------------------------------------------------------------------------------


def _together(
    users: list[Callable[[], None]], seconds: float, at_a_time: int | None = None
) -> None:
    """Run all of ``users``; the first error is raised at once. Blocks."""
    pool, failed, first = Pool(at_a_time), Event(), []

    def guarded(user: User) -> None:
        try:
            user()
        except (OSError, Failed) as error:
            first.append(error)
            failed.set()

    def all_of_them() -> None:
        for user in users:
            pool.spawn(guarded, user)
        pool.join()
        failed.set()

    late = Failed(f"not at an end {PATIENCE_S:g} s after the window")
    running = Greenlet.spawn(all_of_them)
    try:
        with gevent.Timeout(seconds + PATIENCE_S, late):
            failed.wait()
        if first:
            raise first[0]
    finally:
        running.kill()
        pool.kill()


def _connected(address: tuple[str, int]) -> socket.socket:
    host, port = address  # a list, from JSON
    sock = socket.create_connection((host, port), PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _good(head: bytes) -> bytes:
    if not head.startswith(b"HTTP/1.1 200 "):
        line = head.partition(b"\r\n")[0].decode(errors="replace")
        raise (WrongBytes if line else Failed)(
            f"the answer is {line!r}" if line else "the connection ended"
        )
    return head


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


KINDS = {load.__name__: load for load in (requests, idle, download, upload, datagrams)}


def main() -> None:
    """Make the load that the settings describe."""
    settings = json.loads(sys.argv[1])
    try:
        _say(KINDS[settings.pop("kind")](**settings))
    except (OSError, Failed) as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main()
