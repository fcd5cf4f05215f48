"""Several targets of a route: who is chosen, who is down, and whose time it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from nexusg.errors import TargetError
from nexusg.targets.pool import MAX_PAUSE_S, PAUSE_S, Pool
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from nexusg.targets.pool import Member


class Targets:
    """A pool of ``names``, what it reports, and a dial whose outcome a test decides on."""

    def __init__(self, *names: str, failures: int = 2) -> None:
        self.clock = FakeClock()
        self.broken: dict[str, str] = {}  # target: code of the error
        self.costs_s: dict[str, float] = {}  # target: how long a dial of it takes
        self.dialled: list[str] = []
        self.allowed_s: list[float] = []
        self.news: list[tuple[Any, ...]] = []
        self.pool = Pool(
            names,
            failures,
            on_down=lambda one: self.news.append(("down", one.target, one.error, one.connections)),
            on_up=lambda one, down_s: self.news.append(("up", one.target, down_s)),
            clock=self.clock,
        )
        self.held: list[Member] = []  # of each stream so far, in their order

    def member(self, name: str) -> Member:
        """The one of that name."""
        return next(one for one in self.pool.members if one.target == name)

    def connections(self) -> list[int]:
        """How many connections each member has, in their order."""
        return [one.connections for one in self.pool.members]

    def dial(self, name: str, timeout_s: float) -> str:
        """A connection to ``name`` is its name."""
        self.dialled.append(name)
        self.allowed_s.append(timeout_s)
        self.clock.advance(min(self.costs_s.get(name, 0), timeout_s))
        code = self.broken.get(name) or ("timeout" if self.costs_s.get(name) else "")
        if code:
            raise TargetError(f"target {name}: {code}", code)
        return name

    def connect(self, timeout_s: float = 10, total_s: float = 10) -> str:
        """The target that the next stream gets."""
        self.dialled.clear()
        self.allowed_s.clear()
        connection, member = self.pool.connect(self.dial, timeout_s, total_s)
        assert connection == member.target
        self.held.append(member)
        return connection

    def fail(self, name: str, times: int = 1) -> None:
        """Dial ``name``, which is broken, as often, alone."""
        self.broken[name] = "refused"
        for _ in range(times):
            with pytest.raises(TargetError):
                self.pool._counted(self.member(name), self.dial, 1)
            self.pool._dialled(self.member(name), TargetError(f"target {name}: refused", "refused"))


# The choice ------------------------------------------------------------------------------------


def test_ties_go_round() -> None:
    targets = Targets("a", "b", "c")
    assert [targets.connect() for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert targets.connections() == [2, 2, 2]


def test_also_when_no_connection_lasts() -> None:
    targets = Targets("a", "b")
    seen = []
    for _ in range(4):
        seen.append(targets.connect())
        targets.held[-1].release()
    assert seen == ["a", "b", "a", "b"]


def test_the_one_with_the_fewest_connections() -> None:
    targets = Targets("a", "b")
    for _ in range(4):
        targets.connect()
    for stream in (1, 3):  # those of b
        targets.held[stream].release()
    assert targets.connections() == [2, 0]
    assert [targets.connect() for _ in range(2)] == ["b", "b"]


def test_a_dial_counts_while_it_lasts() -> None:
    """Users who come at the same moment do not all go to the same target."""
    targets, gate = Targets("a", "b"), Event()

    def slow(name: str, timeout_s: float) -> str:
        gate.wait()
        return name

    dials = [Greenlet.spawn(targets.pool.connect, slow, 1, 1) for _ in range(4)]
    gevent.sleep(0)
    assert targets.connections() == [2, 2]
    gate.set()
    gevent.joinall(dials)
    assert sorted(dial.get()[0] for dial in dials) == ["a", "a", "b", "b"]


def test_a_stream_that_ends_during_the_dial() -> None:
    """Nothing is counted of it, neither as a connection nor as a failure."""
    targets = Targets("a", "b")
    dial = Greenlet.spawn(targets.pool.connect, lambda *_: gevent.sleep(5), 10, 10)
    gevent.sleep(0)
    assert targets.connections() == [1, 0]
    dial.kill()
    assert targets.connections() == [0, 0]
    assert targets.member("a").error == ""


# Failures --------------------------------------------------------------------------------------


def test_the_next_target_serves_the_stream() -> None:
    targets = Targets("a", "b")
    targets.broken["a"] = "refused"
    assert targets.connect() == "b"
    assert targets.dialled == ["a", "b"]
    assert targets.connections() == [0, 1]
    assert targets.news == []
    assert targets.member("a").error == "target a: refused"


def test_one_failure_makes_it_the_last() -> None:
    """However many connections the others have."""
    targets = Targets("a", "b")
    targets.broken["a"] = "refused"
    assert [targets.connect() for _ in range(3)] == ["b", "b", "b"]
    assert targets.dialled == ["b"]
    assert targets.connections() == [0, 3]


def test_failures_in_a_row_mark_it_down_once() -> None:
    targets = Targets("a", "b")
    targets.connect()
    targets.fail("a", 3)
    assert targets.news == [("down", "a", "target a: refused", 1)]
    assert repr(targets.member("a")) == "<Member a: down, 1 connections>"
    assert repr(targets.member("b")) == "<Member b: up, 0 connections>"


def test_only_those_in_a_row() -> None:
    targets = Targets("a")
    for _ in range(3):
        targets.fail("a")
        targets.broken.clear()
        assert targets.connect() == "a"
    assert targets.news == []
    assert targets.member("a").error == ""


def test_all_down() -> None:
    """Each is tried all the same; the error names all of them, and there is one event for each."""
    targets = Targets("a", "b")
    targets.broken = {"a": "refused", "b": "refused"}
    for _ in range(3):
        with pytest.raises(TargetError) as caught:
            targets.connect()
        assert sorted(targets.dialled) == ["a", "b"]
    assert caught.value.code == "refused"
    text = str(caught.value)
    assert text.startswith("no target could be reached: target ")
    assert "target a: refused" in text
    assert "target b: refused" in text
    assert [news[:2] for news in targets.news] == [("down", "a"), ("down", "b")]
    assert targets.connections() == [0, 0]
    targets.broken.clear()
    assert targets.connect() in ("a", "b")


def test_different_causes() -> None:
    targets = Targets("a", "b")
    targets.broken = {"a": "refused", "b": "dns"}
    with pytest.raises(TargetError, match="no target could be reached: target a: ref") as caught:
        targets.connect()
    assert caught.value.code == "io"
    assert str(caught.value.__cause__) == "target b: dns"


def test_a_pool_of_one_fails_as_its_target_does() -> None:
    targets = Targets("a")
    targets.broken["a"] = "refused"
    with pytest.raises(TargetError) as caught:
        targets.connect()
    assert (str(caught.value), caught.value.code) == ("target a: refused", "refused")


def test_other_errors_pass() -> None:
    targets = Targets("a")

    def bug(*_: object) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        targets.pool.connect(bug, 1, 1)
    assert targets.connections() == [0]


# Trials ----------------------------------------------------------------------------------------


def test_a_trial_after_a_pause() -> None:
    """The next user goes there first, whatever its connections; the one behind does not."""
    targets = Targets("a", "b")
    targets.connect()
    targets.fail("a", 2)
    assert targets.connect() == "b"
    targets.clock.advance(PAUSE_S)
    assert targets.connect() == "b"
    assert targets.dialled == ["a", "b"]
    assert targets.connect() == "b"
    assert targets.dialled == ["b"]
    targets.broken.clear()
    targets.clock.advance(2 * PAUSE_S)
    assert targets.connect() == "a"
    assert targets.news[1:] == [("up", "a", 3 * PAUSE_S)]


def test_one_that_has_failed_once_gets_it_too() -> None:
    """Else it would be neither down nor used until all others have failed."""
    targets = Targets("a", "b")
    targets.broken["a"] = "refused"
    targets.connect()
    targets.broken.clear()
    assert targets.connect() == "b"
    targets.clock.advance(PAUSE_S)
    assert targets.connect() == "a"
    assert targets.news == []
    assert targets.connections() == [1, 2]


def test_pauses_grow_to_a_limit() -> None:
    targets = Targets("a", "b")
    targets.fail("a", 2)
    pauses: list[float] = []
    since = targets.clock()
    while len(pauses) < 10:
        targets.clock.advance(0.5)
        targets.connect()
        targets.held[-1].release()
        if targets.dialled[0] == "a":
            pauses.append(targets.clock() - since)
            since = targets.clock()
    assert pauses[:6] == [PAUSE_S, 2, 4, 8, 16, 32]
    assert set(pauses[6:]) == {MAX_PAUSE_S}


def test_they_begin_anew_after_a_success() -> None:
    targets = Targets("a", "b")
    targets.fail("a", 2)
    for pause_s in (1, 2, 4):
        targets.clock.advance(pause_s)
        targets.connect()
    targets.broken.clear()
    targets.clock.advance(8)
    targets.connect()
    targets.fail("a")
    targets.clock.advance(PAUSE_S)
    targets.connect()
    assert targets.dialled[0] == "a"


def test_one_user_at_a_time_tries() -> None:
    targets, gate = Targets("a", "b"), Event()
    targets.fail("a", 2)
    targets.clock.advance(PAUSE_S)
    trial = Greenlet.spawn(targets.pool.connect, lambda *_: gate.wait(), 10, 10)
    gevent.sleep(0)
    assert targets.connect() == "b"
    assert targets.dialled == ["b"]
    gate.set()
    trial.join()
    assert targets.news[-1][:2] == ("up", "a")


# Checks ----------------------------------------------------------------------------------------


def failed_check(name: str) -> TargetError:
    """What a check of ``name`` may find."""
    return TargetError(f"target {name}: status 503", "unhealthy")


def test_checks_mark_down_and_up() -> None:
    targets = Targets("a", "b")
    a = targets.member("a")
    targets.pool.checked(a, None)
    targets.pool.checked(a, failed_check("a"))
    assert targets.news == []
    assert targets.connect() == "b"
    targets.pool.checked(a, failed_check("a"))
    assert targets.news == [("down", "a", "target a: status 503", 0)]
    targets.clock.advance(30)
    targets.pool.checked(a, None)
    targets.pool.checked(a, None)
    assert targets.news[1:] == [("up", "a", 30)]
    assert a.error == ""
    assert targets.connect() == "a"


def test_no_user_is_sent_where_a_check_has_failed() -> None:
    targets = Targets("a", "b")
    targets.fail("a", 2)
    targets.pool.checked(targets.member("a"), failed_check("a"))
    targets.clock.advance(10 * MAX_PAUSE_S)
    assert targets.connect() == "b"
    assert targets.dialled == ["b"]


def test_a_check_ends_what_dials_have_found() -> None:
    targets = Targets("a", "b")
    targets.fail("a", 5)
    targets.pool.checked(targets.member("a"), None)
    assert targets.news[-1] == ("up", "a", 0)
    targets.broken.clear()
    assert targets.connect() == "a"


def test_a_dial_does_not_end_what_checks_have_found() -> None:
    """A service may accept connections, and answer them with errors only."""
    targets = Targets("a", "b")
    targets.broken["b"] = "refused"
    for _ in range(2):
        targets.pool.checked(targets.member("a"), failed_check("a"))
        assert targets.connect() == "a"
    assert targets.news[0] == ("down", "a", "target a: status 503", 1)
    assert targets.member("a").error == "target a: status 503"
    assert targets.member("a").down_since is not None


# Time ------------------------------------------------------------------------------------------


def test_a_black_hole_leaves_the_others_their_share() -> None:
    targets = Targets("a", "b", "c")
    targets.costs_s = {"a": 99, "b": 99}
    assert targets.connect(10, 10) == "c"
    assert targets.allowed_s == pytest.approx([10 / 3, 10 / 3, 10 / 3])


def test_what_a_refusal_saves_goes_to_the_rest() -> None:
    targets = Targets("a", "b")
    targets.broken["a"] = "refused"
    targets.connect(10, 10)
    assert targets.allowed_s == [5, 10]


def test_a_target_gets_no_more_than_its_own_time() -> None:
    targets = Targets("a", "b")
    targets.costs_s = {"a": 99, "b": 99}
    with pytest.raises(TargetError) as caught:
        targets.connect(2, 10)
    assert targets.allowed_s == [2, 2]
    assert caught.value.code == "timeout"


def test_a_dial_that_takes_longer_than_it_may() -> None:
    targets = Targets("a", "b")
    targets.broken["a"] = "io"

    def late(name: str, timeout_s: float) -> str:
        targets.clock.advance(20 if name == "a" else 0)
        return targets.dial(name, timeout_s)

    assert targets.pool.connect(late, 10, 10)[0] == "b"
    assert targets.allowed_s == [5, 0]


# Everything at once ----------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """Streams come and go, targets break and are mended, time passes, checks look."""

    streams: Bundle[Member] = Bundle("streams")

    @initialize(count=st.integers(1, 4), failures=st.integers(1, 3))
    def begin(self, count: int, failures: int) -> None:
        """Make the pool."""
        self.targets = Targets(*"abcd"[:count], failures=failures)
        self.names = list("abcd"[:count])
        self.failures = failures
        self.open: list[str] = []
        self.failed = dict.fromkeys(self.names, 0)  # dials in a row
        self.bad_checks = dict.fromkeys(self.names, 0)

    @rule(data=st.data())
    def break_or_mend(self, data: st.DataObject) -> None:
        """A target changes its mind."""
        name = data.draw(st.sampled_from(self.names))
        if self.targets.broken.pop(name, None) is None:
            self.targets.broken[name] = data.draw(st.sampled_from(["refused", "timeout"]))

    @rule(target=streams)
    def connect(self) -> MultipleResults[Member]:
        """A stream comes."""
        before = dict(zip(self.names, self.targets.connections(), strict=True))
        well = [name for name in self.names if not self.failed[name] and not self.bad_checks[name]]
        due = [name for name in self.names if self._due(name)]
        try:
            chosen: str | None = self.targets.connect()
        except TargetError:
            chosen = None
        dialled = list(self.targets.dialled)
        assert len(set(dialled)) == len(dialled)
        if chosen is None:
            assert sorted(dialled) == self.names, "refused before all were tried"
        first = dialled[0]
        if due:
            assert first in due
        elif well:
            assert first in well, "one that failed was chosen while another works"
            assert before[first] == min(before[name] for name in well)
        elif up := [name for name in self.names if not self._down(name)]:
            assert first in up, "a down target was chosen while another is up"
        for name in dialled:
            self.failed[name] = 0 if name == chosen else self.failed[name] + 1
        if chosen is None:
            return multiple()
        self.open.append(chosen)
        return multiple(self.targets.held[-1])

    @rule(member=consumes(streams))
    def release(self, member: Member) -> None:
        """A stream ends."""
        member.release()
        self.open.remove(member.target)

    @rule(data=st.data(), well=st.booleans())
    def check(self, data: st.DataObject, well: bool) -> None:
        """A check has looked at a target."""
        name = data.draw(st.sampled_from(self.names))
        self.targets.pool.checked(self.targets.member(name), None if well else failed_check(name))
        self.bad_checks[name] = 0 if well else self.bad_checks[name] + 1
        self.failed[name] = 0 if well else self.failed[name]

    @precondition(lambda self: any(self.failed.values()))
    @rule(seconds=st.sampled_from([0.5, PAUSE_S, MAX_PAUSE_S]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.targets.clock.advance(seconds)

    @invariant()
    def connections_are_those_that_are_open(self) -> None:
        """None is negative, forgotten, or counted twice."""
        if hasattr(self, "targets"):
            counted = dict(zip(self.names, self.targets.connections(), strict=True))
            assert counted == {name: self.open.count(name) for name in self.names}

    @invariant()
    def down_is_what_has_failed_often(self) -> None:
        """And each change was told once."""
        if hasattr(self, "targets"):
            for name in self.names:
                down = self.targets.member(name).down_since is not None
                assert down is self._down(name)
                told = [news[0] for news in self.targets.news if news[1] == name]
                assert told == ["down", "up"] * (len(told) // 2) + ["down"] * down

    def _down(self, name: str) -> bool:
        return max(self.failed[name], self.bad_checks[name]) >= self.failures

    def _due(self, name: str) -> bool:
        trial_at = self.targets.member(name)._trial_at
        tried = self.failed[name] and not self.bad_checks[name]
        return bool(tried) and self.targets.clock() >= trial_at


# The thorough profile takes nearly as long as a test may, and a failure has to be shrunk, too.
TestPoolMachine = pytest.mark.timeout(180)(PoolMachine.TestCase)
