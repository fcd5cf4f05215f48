"""Is the other side still there? The session and its streams, by pings (sections 1.3 and 7)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.protocol.liveness import (
    FLOOR_S,
    PING_AFTER_S,
    PINGS_AT_A_TIME,
    PROBE_S,
    SILENCE_S,
    SWEEP_S,
    Health,
    HealthPolicy,
    Liveness,
    Sign,
)


NOW = 1000.0


# The session -------------------------------------------------------------------------------------


def test_a_ping_after_five_seconds_and_the_end_after_ten() -> None:
    live = Liveness(NOW)
    assert live.deadline == NOW + PING_AFTER_S
    assert live.check(NOW + 4.9) is Sign.FINE
    assert live.check(live.deadline) is Sign.PING
    assert live.check(NOW + 5.1) is Sign.FINE
    assert live.deadline == NOW + SILENCE_S
    assert live.check(NOW + 9.9) is Sign.FINE
    assert live.check(live.deadline) is Sign.DEAD
    assert live.check(NOW + 60) is Sign.FINE, "it is said once"
    assert live.deadline == math.inf


@pytest.mark.parametrize("heard_after", [0.0, 4.0, 5.0, 9.9, 11.0])
def test_any_byte_is_a_sign_of_life(heard_after: float) -> None:
    live = Liveness(NOW)
    live.check(NOW + 5)
    live.heard(NOW + heard_after)
    assert live.deadline == NOW + heard_after + PING_AFTER_S
    assert live.check(NOW + heard_after + 4.9) is Sign.FINE


def test_no_verdict_without_a_ping() -> None:
    """A process that was stopped for a minute has not looked for what arrived meanwhile."""
    live = Liveness(NOW)
    assert live.check(NOW + 60) is Sign.PING
    assert live.deadline == NOW + 60 + PROBE_S
    assert live.check(NOW + 60 + PROBE_S) is Sign.DEAD


def test_a_probe_shortens_the_silence() -> None:
    live = Liveness(NOW)
    live.probe(NOW + 1)
    assert live.check(NOW + 1) is Sign.FINE, "the prober has sent the ping"
    assert live.deadline == NOW + 1 + PROBE_S
    live.probe(NOW + 2)
    assert live.deadline == NOW + 1 + PROBE_S, "a storm of changes postpones nothing"
    assert live.check(live.deadline) is Sign.DEAD


def test_a_probe_does_not_lengthen_the_silence() -> None:
    live = Liveness(NOW)
    live.check(NOW + 5)
    live.probe(NOW + 9)
    assert live.deadline == NOW + SILENCE_S


def test_a_probe_is_over_when_something_is_heard() -> None:
    live = Liveness(NOW)
    live.probe(NOW + 1)
    live.heard(NOW + 2)
    assert live.deadline == NOW + 2 + PING_AFTER_S


@given(
    start=st.floats(0, 1e7),
    steps=st.lists(st.tuples(st.sampled_from(["check", "heard", "probe"]), st.floats(0, 8))),
)
def test_the_deadline_is_neither_missed_nor_spun_on(
    start: float, steps: list[tuple[str, float]]
) -> None:
    live, now = Liveness(start), start
    for what, pause in steps:
        now += pause
        getattr(live, what)(now)
        if what == "check":
            assert live.deadline > now
        due = live.deadline
        if due < math.inf and due > now:
            assert live.check(math.nextafter(due, 0)) is Sign.FINE, "nothing is due before"


# Streams -----------------------------------------------------------------------------------------


class FakeStream:
    """What `Health` looks at."""

    def __init__(self, now: float = NOW) -> None:
        self.activity = self.idle_mark = self.outstanding_pings = 0
        self.idle_since = now
        self.pingable = True


class Checks:
    """The sweeps over some streams, and what came of them."""

    def __init__(self, *streams: FakeStream, **settings: Any) -> None:
        self.streams = list(streams)
        self.now = self.heard_at = NOW
        self.health = Health(HealthPolicy(**settings), NOW)
        self.pings: list[tuple[float, FakeStream]] = []
        self.lost: list[tuple[float, FakeStream]] = []

    def run(self, seconds: float, *, silent: bool = False) -> None:
        """Look at each deadline, as a session does."""
        end = self.now + seconds
        while (deadline := self.health.deadline) <= end:
            self.now = max(self.now, deadline)
            if not silent:
                self.heard_at = self.now
            self.look()
            assert self.health.deadline > self.now, "a shell would spin"
        self.now = end

    def look(self) -> None:
        asked: list[Any] = self.health.sweep(self.streams, self.now) or []  # type: ignore[arg-type]
        again, lost = self.health.overdue(self.now, self.heard_at)
        for stream in again:
            self.health.ask(stream, self.now)
        self.pings += [(self.now - NOW, stream) for stream in (*asked, *again)]  # type: ignore[misc]
        self.lost += [(self.now - NOW, stream) for stream in lost]  # type: ignore[misc]
        self.streams = [stream for stream in self.streams if stream not in lost]

    def pong(self, stream: FakeStream) -> None:
        self.health.pong(stream, self.now)  # type: ignore[arg-type]


def test_two_missed_pongs_are_a_verdict() -> None:
    """Case 38."""
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(59)
    assert checks.pings == []
    checks.run(20)
    assert [round(at) for at, _ in checks.pings] == [60, 65]
    assert [round(at) for at, _ in checks.lost] == [70]


def test_pongs_keep_an_idle_stream() -> None:
    stream = FakeStream()
    checks = Checks(stream)
    for _ in range(5):
        before = len(checks.pings)
        checks.run(66)
        assert len(checks.pings) > before
        checks.pong(stream)
        assert (stream.outstanding_pings, stream.idle_since) == (0, checks.now)
    assert checks.lost == []


def test_many_streams_are_asked_a_part_at_a_time() -> None:
    """Thousands that were opened together hold nothing up together."""
    streams: list[Any] = [FakeStream() for _ in range(2 * PINGS_AT_A_TIME + 7)]
    health = Health(HealthPolicy(), NOW)
    at = NOW + 65
    parts = []
    while (silent := health.sweep(streams, at)) is not None:
        parts.append(len(silent))
        assert health.deadline <= at + SWEEP_S
        at += FLOOR_S
    assert parts == [PINGS_AT_A_TIME, PINGS_AT_A_TIME, 7]


def test_one_lost_pong_is_not_a_verdict() -> None:
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(67)
    assert len(checks.pings) == 2
    checks.pong(stream)
    checks.run(59)
    assert (len(checks.pings), checks.lost) == (2, [])


@pytest.mark.parametrize("moment", [61, 64, 66, 69])
def test_any_traffic_cancels_the_verdict(moment: float) -> None:
    """A busy stream whose pong is late behind its data lives on."""
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(moment)
    assert checks.pings
    stream.activity += 1
    checks.run(55)
    assert checks.lost == []


def test_traffic_starts_the_count_of_missed_pongs_anew() -> None:
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(62)
    assert stream.outstanding_pings == 1
    stream.activity += 1
    checks.run(5)
    assert stream.outstanding_pings == 0
    checks.pings.clear()
    checks.run(80)
    assert len(checks.pings) == 2, "two questions again before the verdict"
    assert checks.lost


def test_traffic_between_two_sweeps_cancels_when_the_pong_is_due() -> None:
    stream = FakeStream()
    checks = Checks(stream, inactivity_s=5.0, pong_s=2.0)
    checks.run(5)
    assert len(checks.pings) == 1
    stream.activity += 1
    checks.run(2)
    assert (stream.outstanding_pings, len(checks.pings)) == (0, 1)


def test_no_verdict_while_the_session_itself_is_silent() -> None:
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(61)
    checks.run(100, silent=True)
    assert checks.lost == []
    assert len(checks.pings) == 2, "and no question after question"
    checks.run(20)
    assert len(checks.lost) == 1


@pytest.mark.parametrize("at", [0, 62, 67])
def test_streams_that_are_not_open_are_not_pinged(at: float) -> None:
    """While dialling, flushing or delivering."""
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(at)
    stream.pingable = False
    checks.pings.clear()
    checks.run(120)
    assert (checks.pings, checks.lost, stream.outstanding_pings) == ([], [], 0)


def test_switched_off() -> None:
    checks = Checks(FakeStream(), enabled=False)
    checks.run(600)
    assert (checks.pings, checks.lost) == ([], [])


def test_a_stream_that_ended_is_forgotten() -> None:
    stream = FakeStream()
    checks = Checks(stream)
    checks.run(62)
    checks.streams.clear()
    checks.health.forget(stream)  # type: ignore[arg-type]
    checks.health.forget(stream)  # type: ignore[arg-type]
    checks.run(60)
    assert checks.lost == []


def test_sweeps_go_on_while_pongs_are_awaited() -> None:
    """The trickle of credits and the end of a pause depend on them."""
    quiet, busy = FakeStream(), FakeStream()
    checks = Checks(quiet, busy, inactivity_s=5.0, pong_s=600.0)
    for _ in range(10):
        busy.activity += 1
        checks.run(SWEEP_S)
        assert busy.idle_mark == busy.activity
    assert checks.pings == [(pytest.approx(5), quiet)]


def test_the_oldest_question_is_due_first() -> None:
    first, second = FakeStream(), FakeStream(NOW + 2)
    checks = Checks(first, second, inactivity_s=1.0, pong_s=3.0)
    checks.run(8.5)
    asked = [(round(at), stream) for at, stream in checks.pings]
    assert asked == [(1, first), (3, second), (4, first), (6, second)]
    assert [(round(at), stream) for at, stream in checks.lost] == [(7, first)]


@given(
    settings=st.fixed_dictionaries(
        {"inactivity_s": st.floats(0, 100), "pong_s": st.floats(0, 100), "enabled": st.booleans()}
    ),
    steps=st.lists(
        st.tuples(st.floats(0, 30), st.booleans(), st.sampled_from(["data", "pong", "close", ""])),
        max_size=12,
    ),
)
def test_health_never_spins_nor_sleeps_past_a_sweep(
    settings: dict[str, Any], steps: list[tuple[float, bool, str]]
) -> None:
    streams = [FakeStream() for _ in range(3)]
    checks = Checks(*streams, **settings)
    for pause, silent, what in steps:
        assert checks.health.deadline <= max(checks.now, NOW) + SWEEP_S
        checks.run(pause if settings["inactivity_s"] > 1 else pause / 20, silent=silent)
        for stream in streams[:2]:
            if what == "data":
                stream.activity += 1
            elif what == "pong":
                checks.pong(stream)
            elif what == "close":
                stream.pingable = False


def test_settings_cannot_make_a_spin() -> None:
    checks = Checks(FakeStream(), inactivity_s=0.0, pong_s=0.0)
    assert checks.health.sweep_s == FLOOR_S
    checks.run(1.0)
    assert len(checks.pings) == 2
    assert len(checks.lost) == 1
