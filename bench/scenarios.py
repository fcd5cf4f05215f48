"""What is measured: each scenario makes one kind of load, and says what came of it.

A scenario knows the doors that users go through, and neither agents nor repeats.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bench import Failed, tools
from bench.processes import ROOT, Process, program
from bench.sockets import pause


if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.agents import Doors
    from bench.bed import Bed

Values = dict[str, float]

MIB = 1024 * 1024

#: Beside the window; what the built-in load does not count.
WARMUP_PART = 0.2
#: The longest scenario, in times of the others: wrk has no warm-up, and a thousand streams take
#: time to open.
LONGEST = 3.0
#: How long a load may take beyond its window before it is given up.
OVERTIME_S = 60.0
#: A scenario with more errors than this has not worked.
MAX_ERROR_PART = 0.01

DELAY_S = 0.05
IDLE_STREAMS = 1000
#: Until the agent's CPU time is looked at, when the last idle stream has had its answer.
SETTLE_S = 0.3
#: Until its memory is: idle streams may be given time to be put aside.
IDLE_S, QUICK_IDLE_S = 35.0, 0.3

DATAGRAM_FLOWS, DATAGRAMS_IN_FLIGHT = 16, 4
IPERF_STREAMS = 16


@dataclass(frozen=True)
class Settings:
    """How long and how large; the same for every agent."""

    seconds: float = 3.0
    idle_streams: int = IDLE_STREAMS
    idle_s: float = IDLE_S
    plain: bool = False  #: the built-in load even where wrk is installed


@dataclass(frozen=True)
class Stage:
    """One running agent, to be measured."""

    bed: Bed
    process: Process
    doors: Doors
    settings: Settings

    def load(self, kind: str, **more: Any) -> dict[str, Any]:
        """Make a load of the benchmark's own. Blocks. Raises Failed."""
        with self.loading(kind, **more) as running:
            return running.read_answer(self._limit_s)

    def loading(self, kind: str, **more: Any) -> Process:
        """Start a load of the benchmark's own."""
        return program("load", {"kind": kind, **more}, self.bed.folder, f"load-{kind}")

    def window(self, longer: float = 1.0) -> dict[str, float]:
        """The times of a load of the benchmark's own."""
        seconds = self.settings.seconds * longer
        return {"warmup_s": seconds * WARMUP_PART, "seconds": seconds}

    def run_tool(self, name: str, *command: str) -> str:
        """Run a tool to its end, and return its output. Blocks. Raises Failed."""
        with Process(name, command, self.bed.folder, piped=True) as running:
            return running.read_rest(self._limit_s)

    @property
    def _limit_s(self) -> float:
        return self.settings.seconds * LONGEST + OVERTIME_S


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    family: ClassVar[str]  #: which table, see `report`
    needs: ClassVar[str] = "http"  #: the door that it goes through: "http", "tcp" or "udp"

    name: str
    title: str
    delay_s: float = field(default=0.0, kw_only=True)  #: each way, between agent and relay

    def lacks(self, bed: Bed) -> str:
        """Which tool is missing, and how to get it; "" if none is."""
        return ""

    def run(self, stage: Stage) -> Values:
        """Measure ``stage``. Blocks. Raises Failed."""
        raise NotImplementedError


def measured(stage: Stage, load: Callable[[], dict[str, Any]]) -> Values:
    """What ``load`` says, and what the agent has used for it."""
    stage.process.reset_peak()
    before, started = stage.process.usage(), time.monotonic()
    said = load()
    after, took_s = stage.process.usage(), time.monotonic() - started
    cpu_s = after.cpu_s - before.cpu_s
    return {
        **said,
        "cpu_s": cpu_s,
        "wall_s": took_s,
        "cpu_us": cpu_s / said["units"] * 1e6,
        "peak_mib": after.peak_bytes / MIB,
    }


@dataclass(frozen=True)
class Requests(Scenario):
    """Small requests over HTTP/1.1; with ``close``, each on a new connection."""

    family = "requests"

    in_flight: int
    close: bool = False
    longer: float = 1.0  #: times as long as the others

    def run(self, stage: Stage) -> Values:
        """See `Scenario`."""
        wrk = None if stage.settings.plain else stage.bed.tools.wrk
        values = measured(stage, lambda: self._wrk(stage, wrk) if wrk else self._own(stage))
        if values["errors"] > MAX_ERROR_PART * values["units"]:
            raise Failed(f"{values['errors']:g} errors beside {values['units']:g} answers")
        return values

    def _own(self, stage: Stage) -> dict[str, Any]:
        doors = stage.doors
        return stage.load(
            "requests",
            address=doors.small,
            name=doors.small_name,
            in_flight=self.in_flight,
            close=self.close,
            **stage.window(self.longer),
        )

    def _wrk(self, stage: Stage, wrk: str) -> dict[str, Any]:
        (host, port), name = stage.doors.small, stage.doors.small_name
        seconds = stage.settings.seconds * self.longer
        output = stage.run_tool(
            "wrk",
            *(wrk, "--threads", "1", "--connections", str(self.in_flight)),
            *("--duration", f"{math.ceil(seconds)}s", "--timeout", "10s"),
            *("--script", str(ROOT / "bench/wrk.lua"), "--header", f"Host: {name}"),
            *(("--header", "Connection: close") if self.close else ()),
            f"http://{host}:{port}/small",
        )
        return read_wrk(output)


def read_wrk(output: str) -> dict[str, float]:
    """The figures in what wrk.lua has printed. Raises Failed when there are none."""
    found = output.partition("RESULT ")[2]
    if not found:
        raise Failed(f"wrk has no result: {output.strip()[-500:]}")
    said = json.loads(found)
    if not said["requests"]:
        raise Failed("wrk got no answer at all")
    return {
        "units": said["requests"],
        "rate": said["requests"] / said["micros"] * 1e6,
        "p50_ms": said["p50_us"] / 1000,
        "p99_ms": said["p99_us"] / 1000,
        "errors": sum(said[kind] for kind in ("status", "connect", "read", "write", "timeout")),
    }


@dataclass(frozen=True)
class Transfer(Scenario):
    """Bulk data in one direction, every byte of it checked."""

    family = "transfers"

    direction: str  #: "download" or "upload", as the user sees it
    streams: int

    def run(self, stage: Stage) -> Values:
        """See `Scenario`."""
        return measured(
            stage,
            lambda: stage.load(
                self.direction,
                address=stage.doors.bulk,
                name=stage.doors.bulk_name,
                streams=self.streams,
                # The real relay drops what its queue to an agent has no room for, and with it the
                # user (PROTOCOL.md section 4.4); the development relay does not.
                tolerant=not stage.bed.relay.development,
                round_trip_s=2 * self.delay_s,
                **stage.window(),
            ),
        )


@dataclass(frozen=True)
class Iperf(Scenario):
    """The same with iperf3, through a claimed port: a check of the benchmark's own load."""

    family = "transfers"
    needs = "tcp"

    reverse: bool

    def lacks(self, bed: Bed) -> str:
        """See `Scenario`."""
        return "" if bed.tools.iperf3 else tools.install("iperf3")

    def run(self, stage: Stage) -> Values:
        """See `Scenario`."""
        iperf3, door = stage.bed.tools.iperf3, stage.doors.tcp
        assert iperf3
        assert door
        host, _, port = stage.bed.targets.iperf.rpartition(":")
        serve = (iperf3, "-s", "-1", "-B", host, "-p", port, "--forceflush")
        ask = (iperf3, "-c", door[0], "-p", str(door[1]), "-P", str(IPERF_STREAMS), "-J")
        time_s = str(math.ceil(stage.settings.seconds))

        def load() -> dict[str, Any]:
            with Process("iperf3-server", serve, stage.bed.folder, piped=True) as server:
                server.read_line(OVERTIME_S)  # it prints when it listens
                direction = ("-R",) if self.reverse else ()
                return read_iperf(stage.run_tool("iperf3", *ask, "-t", time_s, *direction))

        return measured(stage, load)


def read_iperf(output: str) -> dict[str, float]:
    """The figures in iperf3's JSON. Raises Failed when there are none."""
    try:
        said = json.loads(output)
    except ValueError:
        raise Failed(f"iperf3 has no result: {output.strip()[-500:]}") from None
    if "error" in said:
        raise Failed(f"iperf3: {said['error']}")
    received = said["end"]["sum_received"]
    if not received["bytes"]:
        raise Failed("iperf3: nothing was received")
    units = received["bytes"] / MIB
    return {"units": units, "rate": units / received["seconds"], "errors": 0}


@dataclass(frozen=True)
class Datagrams(Scenario):
    """Datagrams of 200 bytes to an echo and back."""

    family = "datagrams"
    needs = "udp"

    def run(self, stage: Stage) -> Values:
        """See `Scenario`."""
        return measured(
            stage,
            lambda: stage.load(
                "datagrams",
                address=stage.doors.udp,
                flows=DATAGRAM_FLOWS,
                in_flight=DATAGRAMS_IN_FLIGHT,
                round_trip_s=2 * self.delay_s,
                **stage.window(),
            ),
        )


@dataclass(frozen=True)
class Idle(Scenario):
    """Streams that have had one answer each and stay: what each of them holds."""

    family = "idle"

    def run(self, stage: Stage) -> Values:
        """See `Scenario`."""
        process, doors, streams = stage.process, stage.doors, stage.settings.idle_streams
        stage.load("idle", address=doors.small, name=doors.small_name, streams=1)  # its first costs
        process.reset_peak()
        before = process.usage()
        question = {"address": doors.small, "name": doors.small_name, "streams": streams}
        with stage.loading("idle", **question) as running:
            said = running.read_answer(OVERTIME_S)
            pause(SETTLE_S)
            opened = process.usage()
            pause(stage.settings.idle_s)
            after = process.usage()
            running.close_input()
            running.read_answer(OVERTIME_S)  # each stream has had another answer
        cpu_s = opened.cpu_s - before.cpu_s
        return {
            **said,
            "cpu_s": cpu_s,
            "cpu_us": cpu_s / streams * 1e6,
            "kib": (after.rss_bytes - before.rss_bytes) / 1024 / streams,
            "descriptors": (after.descriptors - before.descriptors) / streams,
            "peak_mib": after.peak_bytes / MIB,
        }


def catalogue() -> list[Scenario]:
    """All scenarios, in the order of the tables."""
    far = f"{DELAY_S * 1000:.0f} ms each way"
    both, counts = ("download", "upload"), (1, 16, 64)
    return [
        *(Requests(f"requests-{n}", f"keepalive, {n} in flight", n) for n in (1, 64)),
        Requests("requests-1000", "keepalive, 1000 in flight", 1000, longer=LONGEST),
        Requests("connections", "a new connection per request, 16 in flight", 16, close=True),
        Requests("far-requests", f"keepalive, 64 in flight, {far}", 64, delay_s=DELAY_S),
        *(Transfer(f"{way}-{n}", f"{way}, {_streams(n)}", way, n) for way in both for n in counts),
        *(
            Transfer(f"far-{way}", f"{way}, 1 stream, {far}", way, 1, delay_s=DELAY_S)
            for way in both
        ),
        Iperf("iperf3-download", f"iperf3, download, {IPERF_STREAMS} streams", reverse=True),
        Iperf("iperf3-upload", f"iperf3, upload, {IPERF_STREAMS} streams", reverse=False),
        Datagrams("datagrams", f"UDP echo, {DATAGRAM_FLOWS} flows, {DATAGRAMS_IN_FLIGHT} each"),
        Idle("idle", "idle streams"),
    ]


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"
