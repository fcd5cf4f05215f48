"""Flow control: one test for each invariant, and the flush barrier against a model of the relay."""

from __future__ import annotations

import collections
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import (
    BARRIER_LIMIT_S,
    BATCH,
    GRANT_TIMEOUT_S,
    MAX_GRANT,
    STALL_S,
    UNFLUSHED_BYTES,
    WINDOW,
    BarrierStep,
    CappedWindow,
    FlushBarrier,
    Granter,
    SendWindow,
)


# SendWindow --------------------------------------------------------------------------------------

WINDOWS = st.builds(SendWindow, st.none() | st.integers(-5, 200) | st.just(2**63 - 1))
GRANTS = st.integers(-3, 20) | st.sampled_from([MAX_GRANT - 1, MAX_GRANT, 2**63 - 1, -(2**63)])
Step = int | Literal["take"]
STEPS = st.lists(st.just("take") | GRANTS, max_size=40)


def act(window: SendWindow, step: Step) -> bool:
    """Take, or grant; whether it was possible."""
    if step == "take":
        try:
            window.take()
        except LocalProtocolError:
            return False
    else:
        window.grant(step)
    return True


@given(WINDOWS | st.builds(CappedWindow), STEPS)
def test_w1_available_is_never_negative(window: SendWindow, steps: list[Step]) -> None:
    for step in steps:
        act(window, step)
        assert window.available >= 0


@given(WINDOWS | st.builds(CappedWindow), STEPS)
def test_w2_a_credit_is_taken_for_each_frame_and_only_then(
    window: SendWindow, steps: list[Step]
) -> None:
    for step in steps:
        available, sent, ready = window.available, window.sent, window.ready
        done = act(window, step)
        if step == "take":
            assert done is ready
            assert window.sent == sent + done
            assert window.available == available - (done and not window.unlimited)
        else:
            assert window.sent == sent


@given(WINDOWS, STEPS)
def test_w3_grants_are_clamped_and_saturate(window: SendWindow, steps: list[Step]) -> None:
    assert window.available <= MAX_GRANT
    for step in steps:
        available = window.available
        act(window, step)
        if step != "take":
            expected = min(available + min(max(step, 0), MAX_GRANT), MAX_GRANT)
            assert window.available == expected


@given(WINDOWS | st.builds(CappedWindow), STEPS)
def test_w4_no_grant_acknowledges_what_was_not_sent(window: SendWindow, steps: list[Step]) -> None:
    for step in steps:
        act(window, step)
        assert 0 <= window.unacknowledged <= window.sent
        assert 0 <= window.acknowledged <= window.sent


@pytest.mark.parametrize(
    ("first", "frames"), [(0, 0), (1, 1), (64, 64), (-7, 0), (2**70, MAX_GRANT)]
)
def test_first_windows(first: int, frames: int) -> None:
    window = SendWindow(first)
    assert window.available == frames
    assert window.ready is (frames > 0)


def test_without_a_credit_nothing_is_sent() -> None:
    window = SendWindow(1)
    window.take()
    with pytest.raises(LocalProtocolError, match="credit"):
        window.take()
    assert (window.sent, window.available) == (1, 0)


def test_unlimited() -> None:
    """Case 28: also when an old relay grants later on."""
    window = SendWindow(None)
    for _ in range(1000):
        window.take()
    assert (window.sent, window.unacknowledged, window.ready) == (1000, 0, True)
    window.grant(8)
    assert window.unlimited


# CappedWindow, the relay's rule ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grants", "capacity", "available"),
    [
        ([3, 1000], 64, 64),
        ([200], 200, 200),
        ([64, 8], 64, 64),
        ([0, -5, 96], 96, 96),
        ([2**63], MAX_GRANT, MAX_GRANT),
        ([8, 96], 64, 64),
        ([96, 8], 96, 96),
    ],
)
def test_the_first_grant_fixes_the_capacity(
    grants: list[int], capacity: int, available: int
) -> None:
    window = CappedWindow()
    for credits in grants:
        window.grant(credits)
    assert (window.capacity, window.available) == (capacity, available)
    assert not window.unlimited


def test_unlimited_until_the_first_grant() -> None:
    window = CappedWindow()
    for _ in range(100):
        window.take()
    window.grant(0)
    assert window.ready
    window.grant(2)
    assert window.available == 2
    window.take()
    window.take()
    assert not window.ready


# Granter -----------------------------------------------------------------------------------------

DOINGS = st.lists(
    st.sampled_from(["first", "due", "advance", "hold", "release"])
    | st.integers(0, 20)
    | st.tuples(st.sampled_from(["due", "overrun", "first"]), st.integers(-3, 90)),
    max_size=60,
)


@st.composite
def granters(draw: st.DrawFn) -> Granter:
    """With the second grant put off, or not."""
    window = draw(st.sampled_from([1, 3, 8, 64, 96, 200]))
    return Granter(window, second=draw(st.sampled_from([0, window - window // 16, window // 2])))


class Books:
    """What a granter gave, and for what."""

    def __init__(self, granter: Granter) -> None:
        self.granter = granter
        self.first = self.given = self.consumed = self.advances = self.free = 0

    def do(self, doing: str | int | tuple[str, int]) -> int:
        """One step; the credits it gave."""
        granter = self.granter
        what, number = doing if isinstance(doing, tuple) else (doing, None)
        credits = 0
        if isinstance(what, int):
            granter.consume(what)
            self.consumed += what
        elif what in ("hold", "release"):
            granter.held = what == "hold"
        elif what == "overrun":
            granter.overrun(max(number or 0, 0))
            self.free += max(number or 0, 0)
        elif what == "first":
            credits = granter.first(max(number or 0, 0))
            self.first += credits
            self.free += max(number or 0, 0) if credits else 0
        else:
            credits = granter.advance() if what == "advance" else granter.due(*most(number))
            self.advances += credits if what == "advance" else 0
        self.given += credits
        return credits


def pair(doing: str | int | tuple[str, int]) -> tuple[str | int, ...]:
    """A doing with or without an argument."""
    return doing if isinstance(doing, tuple) else (doing,)


def most(number: int | None) -> list[int]:
    """The argument of `Granter.due`, perhaps none."""
    return [] if number is None else [number]


Doings = list[str | int | tuple[str, int]]


@given(granters(), DOINGS)
def test_g1_no_more_is_given_than_window_and_consumption(granter: Granter, doings: Doings) -> None:
    books = Books(granter)
    for doing in doings:
        books.do(doing)
        assert books.given <= books.first + books.consumed + books.advances
        assert books.given == granter.given
    books.do("release")
    books.do("first")
    # Every advance, and what cost no credit, is made up for by what is consumed next.
    books.do(books.advances + books.free)
    books.do("due")
    assert granter.window <= books.given <= granter.window + books.consumed - books.free


@given(granters(), DOINGS)
def test_g2_grants_are_batches_and_advances_are_one(granter: Granter, doings: Doings) -> None:
    books = Books(granter)
    for doing in doings:
        credits = books.do(doing)
        what, number = doing if isinstance(doing, tuple) else (doing, MAX_GRANT)
        if credits and what == "due":
            assert min(BATCH, granter.window) <= credits <= number
        assert credits in ({0, 1} if what == "advance" else range(MAX_GRANT + 1))
        assert books.first in (0, granter.window)


@given(granters(), DOINGS)
def test_g3_nothing_is_given_before_the_first_grant_or_while_held(
    granter: Granter, doings: Doings
) -> None:
    books = Books(granter)
    for doing in doings:
        held, opened = granter.held, books.first > 0
        credits = books.do(doing)
        if held or (not opened and "first" not in pair(doing)):
            assert credits == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=30))
def test_g3_nothing_is_lost_by_holding(steps: list[tuple[bool, int]]) -> None:
    granter = Granter()
    granter.first()
    for hold, frames in steps:
        granter.held = hold
        granter.consume(frames)
        granter.due()
    granter.held = False
    granter.consume(BATCH)
    granter.due()
    left = WINDOW + sum(frames for _, frames in steps) + BATCH - granter.given
    assert 0 <= left < BATCH


def test_the_first_window_is_given_once() -> None:
    granter = Granter(96)
    granter.held = True
    assert granter.first() == 0
    granter.held = False
    assert [granter.first(), granter.first()] == [96, 0]


def test_a_batch_for_each_batch() -> None:
    granter = Granter()
    granter.first()
    granted = []
    for _ in range(20):
        granter.consume()
        granted.append(granter.due())
    assert granted == [0] * 7 + [8] + [0] * 7 + [8] + [0] * 4


def test_a_failed_grant_is_made_up_for() -> None:
    """Case 22: frames consumed while nothing could be sent come with the next grant."""
    granter = Granter()
    granter.first()
    granter.consume(100)
    assert granter.due() == 100
    granter.consume(2 * MAX_GRANT)
    assert [granter.due(), granter.due(), granter.due()] == [MAX_GRANT, MAX_GRANT, 0]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_a_window_below_a_batch_is_refilled(window: int) -> None:
    relay, granter = CappedWindow(), Granter(window)
    relay.grant(granter.first())
    for _ in range(100):
        assert relay.ready
        relay.take()
        granter.consume()
        relay.grant(granter.due())


def test_advances_are_paid_back() -> None:
    """Section 5.2: a trickle for a stalled receiver, without a larger window in the end."""
    granter = Granter()
    assert granter.advance() == 0, "before the first grant"
    granter.first()
    assert [granter.advance(), granter.advance()] == [1, 1]
    granter.consume(9)
    assert granter.due() == 0, "seven of nine are left"
    granter.consume(1)
    assert granter.due() == 8
    assert granter.given == WINDOW + 10
    granter.consume(3)
    assert granter.advance() == 1, "out of what is due anyway"
    granter.consume(6)
    assert granter.due() == 8
    granter.held = True
    assert granter.advance() == 0


@pytest.mark.parametrize(("window", "second"), [(64, 60), (96, 90), (200, 188)])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_first_grant_does_not_shrink_the_window(window: int, second: int, lost: int) -> None:
    """Case 23: the second grant is nearly the whole window, and no more than what was used."""
    relay, granter = CappedWindow(), Granter(window, second=second)
    grants = [granter.first()]
    if not lost:
        relay.grant(grants[0])
    for number in range(1, second + 2 * BATCH + 1):
        relay.take()
        assert granter.consume() is (number >= second and (number - second) % BATCH == 0)
        credits = granter.due()
        grants += [credits] if credits else []
        relay.grant(credits)
    assert grants == [window, second, BATCH, BATCH]
    assert relay.capacity == max(WINDOW, second if lost else window)
    assert relay.available == (second if lost else window)
    assert granter.limit == max(window, WINDOW + granter.doubt)
    assert granter.doubt == window - second


def test_what_is_above_the_limit_comes_later() -> None:
    granter = Granter()
    granter.first()
    granter.consume(30)
    assert [granter.due(BATCH - 1), granter.due(-5), granter.due(10)] == [0, 0, 10]
    assert granter.consume(0), "it is still due"
    assert granter.due() == 20
    assert (granter.given, granter.limit, granter.doubt) == (WINDOW + 30, MAX_GRANT, 0)


def test_what_cost_no_credit_brings_none() -> None:
    """Section 5.2: what comes before the first grant is not counted by the relay."""
    granter = Granter()
    granter.consume(10)
    assert granter.first(uncounted=30) == WINDOW
    assert not granter.consume(20 + BATCH - 1)
    assert granter.consume()
    assert granter.due() == BATCH


def test_an_overrun_brings_the_second_grant_forward() -> None:
    """The relay has seen no grant yet: it must not be without limits for long."""
    granter = Granter(second=60)
    granter.first()
    granter.consume(50)
    assert granter.due() == 0
    granter.overrun(36)
    assert granter.due() == 14
    assert granter.limit == WINDOW + 4
    granter.overrun(10)
    assert not granter.consume(10 + BATCH - 1)


def test_an_advance_brings_the_second_grant_forward() -> None:
    """It may be the first that the relay sees: then it is all the credit there is."""
    relay, granter = CappedWindow(), Granter(200, second=188)
    granter.first()
    granter.consume(187)
    relay.grant(granter.advance())
    assert (relay.capacity, granter.limit) == (64, 64 + 12)
    relay.take()
    assert granter.consume()
    assert granter.due() == 187


# The flush barrier -------------------------------------------------------------------------------


def window_after(sent: int, acknowledged: int = 0, credits: int = WINDOW) -> SendWindow:
    window = SendWindow(credits)
    for _ in range(sent):
        window.take()
    window.grant(acknowledged)
    return window


@pytest.mark.parametrize(
    ("credits", "frames", "size", "needed"),
    [
        (64, 0, 0, False),
        (64, 1, UNFLUSHED_BYTES, False),
        (64, 1, UNFLUSHED_BYTES + 1, True),
        (64, 30, 1 << 20, True),
        (None, 30, 1 << 20, False),
    ],
)
def test_when_a_barrier_is_needed(
    credits: int | None, frames: int, size: int, needed: bool
) -> None:
    window = SendWindow(credits)
    for _ in range(frames):
        window.take()
    assert FlushBarrier.needed(window, size) is needed
    window.grant(frames)
    assert FlushBarrier.needed(window, size) is False


def pads(barrier: FlushBarrier, window: SendWindow, now: float) -> int:
    """How many pads the barrier asks for at ``now``."""
    count = 0
    while barrier.step(now) is BarrierStep.PAD:
        window.take()
        count += 1
    return count


@pytest.mark.parametrize(("sent", "count"), [(1, 7), (7, 1), (8, 0), (9, 7), (63, 1), (64, 0)])
def test_it_pads_to_a_whole_batch(sent: int, count: int) -> None:
    window = window_after(sent)
    barrier = FlushBarrier(window, 10.0)
    assert pads(barrier, window, 10.0) == count
    assert barrier.step(10.0) is BarrierStep.WAIT
    window.grant(sent + count)
    assert barrier.step(10.0) is BarrierStep.DONE


def test_it_pads_as_soon_as_there_are_credits() -> None:
    window = window_after(5, credits=5)
    barrier = FlushBarrier(window, 10.0)
    assert barrier.step(10.0) is BarrierStep.WAIT
    window.available = 2
    assert pads(barrier, window, 11.0) == 2
    window.available = 2
    assert pads(barrier, window, 12.0) == 1


def test_it_pads_again_when_the_batches_are_out_of_phase() -> None:
    """Section 6.4: a retried grant of 11 leaves the relay waiting for eight more."""
    window = window_after(16)
    barrier = FlushBarrier(window, 10.0)
    assert barrier.step(10.0) is BarrierStep.WAIT
    window.grant(11)
    assert barrier.step(10.1) is BarrierStep.WAIT
    assert barrier.deadline == pytest.approx(10.1 + STALL_S)
    assert pads(barrier, window, barrier.deadline) == 3
    window.grant(8)
    assert barrier.step(10.4) is BarrierStep.DONE


def test_no_padding_before_the_stall() -> None:
    window = window_after(16)
    barrier = FlushBarrier(window, 10.0)
    assert barrier.step(10.0) is BarrierStep.WAIT
    window.grant(11)
    assert barrier.step(10.1) is BarrierStep.WAIT
    assert barrier.step(10.29) is BarrierStep.WAIT


def test_without_grants_it_gives_up() -> None:
    window = window_after(16)
    barrier = FlushBarrier(window, 10.0)
    assert barrier.step(10.0) is BarrierStep.WAIT
    assert barrier.deadline == 10.0 + GRANT_TIMEOUT_S
    window.grant(8)
    assert barrier.step(39.0) is BarrierStep.WAIT
    assert barrier.deadline == 39.0 + GRANT_TIMEOUT_S
    assert barrier.step(barrier.deadline) is BarrierStep.DONE


def test_a_relay_that_grants_one_by_one_cannot_keep_it_for_ever() -> None:
    """The absolute limit of section 6.4."""
    window, now = window_after(8), 10.0
    barrier = FlushBarrier(window, now)
    while (step := barrier.step(now)) is not BarrierStep.DONE:
        if step is BarrierStep.PAD:
            window.take()
        elif window.unacknowledged % BATCH == 0:
            now += 1.0
            window.grant(1)
        else:
            now = barrier.deadline
    assert now == 10.0 + BARRIER_LIMIT_S


@given(
    sent=st.integers(1, 64),
    start=st.floats(0, 1e6),
    grants=st.lists(st.integers(0, 12), max_size=30),
)
def test_the_barrier_never_spins(sent: int, start: float, grants: list[int]) -> None:
    """After WAIT the deadline lies ahead, and time alone ends it, in few steps."""
    window, now = window_after(sent), start
    barrier = FlushBarrier(window, now)
    for credits in [*grants, *[0] * 20]:
        assert pads(barrier, window, now) < BATCH
        if barrier.step(now) is BarrierStep.DONE:
            return
        assert barrier.deadline > now
        if credits:
            window.grant(credits)
        else:
            now = barrier.deadline
    pytest.fail("it did not end")


class ReverseCredit(RuleBasedStateMachine):
    """One stream towards a slow user, through relays with all their habits, until its end.

    The relay buffers up to 128 frames, grants what the user took in batches of eight, and a grant
    may be delayed, merged with the next one (a retry), or lost for good (v0.3.7, v0.3.8).
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = SendWindow(WINDOW)
        self.now = 1000.1
        self.buffer = 0  # frames that the user has not taken
        self.counter = 0  # taken, but not granted
        self.under_way: collections.deque[int] = collections.deque()
        self.arrived = self.lost = 0
        self.granted_at = self.now
        self.loses = False

    @initialize(loses=st.booleans())
    def choose_a_relay(self, loses: bool) -> None:
        self.loses = loses

    @rule(frames=st.integers(1, 70))
    def send(self, frames: int) -> None:
        for _ in range(frames):
            if self.window.ready:
                self.window.take()
                self.buffer += 1

    @rule(frames=st.integers(1, 40), fate=st.sampled_from(["sent", "retried", "lost"]))
    def user_takes(self, frames: int, fate: str) -> None:
        for _ in range(min(frames, self.buffer)):
            self.buffer -= 1
            self.counter += 1
            if self.counter >= BATCH and fate != "retried":
                self.grant(lost=fate == "lost" and self.loses)

    @precondition(lambda self: self.counter >= BATCH)
    @rule()
    def retry(self) -> None:
        self.grant(lost=False)

    def grant(self, *, lost: bool) -> None:
        if lost:
            self.lost += self.counter
        else:
            self.under_way.append(self.counter)
        self.counter = 0

    @precondition(lambda self: self.under_way)
    @rule()
    def grant_arrives(self) -> None:
        credits = self.under_way.popleft()
        self.arrived += credits
        self.granted_at = self.now
        self.window.grant(credits)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_never_sends_without_a_credit(self) -> None:
        assert self.window.sent + self.window.available == WINDOW + self.arrived
        assert self.buffer <= WINDOW, "of 128"
        books = self.buffer + self.counter + sum(self.under_way) + self.arrived + self.lost
        assert self.window.sent == books

    def teardown(self) -> None:
        """The local service ends; the user takes the rest; the barrier must end, and in time."""
        barrier = FlushBarrier(self.window, self.now)
        self.granted_at = self.now
        for _ in range(10_000):
            step = barrier.step(self.now)
            if step is BarrierStep.DONE:
                break
            if step is BarrierStep.PAD:
                self.send(1)
            elif self.under_way:
                self.now += 0.05
                self.grant_arrives()
            elif self.buffer or self.counter >= BATCH:
                self.now += 0.05
                self.user_takes(5, "sent")
                if self.counter >= BATCH:
                    self.retry()
            else:
                assert barrier.deadline > self.now
                self.now = barrier.deadline
            self.it_never_sends_without_a_credit()
        else:
            raise AssertionError("the barrier never ends")
        if not self.lost:
            assert (self.window.unacknowledged, self.buffer) == (0, 0), "everything was taken"
        assert self.now <= self.granted_at + GRANT_TIMEOUT_S + 1e-6


TestReverseCredit = ReverseCredit.TestCase
TestReverseCredit.settings = settings(stateful_step_count=20)
