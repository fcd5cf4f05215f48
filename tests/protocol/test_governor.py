"""The relay's lane is shared among busy streams (PROTOCOL.md section 5.6)."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nexusg.protocol.credit import BATCH, WINDOW, CappedWindow
from nexusg.protocol.governor import BUSY_S, LANE_BUDGET, Governor
from nexusg.protocol.messages import Control, Event, decode_control
from nexusg.protocol.stream import Stream


if TYPE_CHECKING:
    from collections.abc import Callable


def key(number: int) -> bytes:
    """The ID of a stream."""
    return number.to_bytes(16, "big")


def test_one_stream_has_it_all() -> None:
    assert Governor().share(key(1), 0.0) == LANE_BUDGET > WINDOW


def test_busy_streams_share() -> None:
    governor = Governor()
    assert [governor.share(key(n), 0.0) for n in range(1, 5)] == [192, 96, 64, 48]
    assert governor.share(key(1), 0.5) == 48, "being busy again changes nothing"


def test_idle_streams_give_back() -> None:
    governor = Governor()
    governor.share(key(1), 0.0)
    governor.share(key(2), 0.9)
    assert governor.share(key(3), BUSY_S) == LANE_BUDGET // 2


def test_ended_streams_give_back() -> None:
    governor = Governor()
    governor.share(key(1), 0.0)
    governor.forget(key(1))
    governor.forget(key(2))
    assert governor.share(key(3), 0.0) == LANE_BUDGET


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 3)), max_size=60))
def test_the_lane_is_never_shared_out_twice(steps: list[tuple[int, float]]) -> None:
    """What busy streams may have out, all together, fits the lane."""
    governor, now = Governor(), 0.0
    for number, pause in steps:
        now += pause
        share = governor.share(key(number), now)
        assert share * len(governor._busy) <= LANE_BUDGET
        assert share >= BATCH or len(governor._busy) > LANE_BUDGET // BATCH


# Streams whose credits it shares, and a relay that obeys -----------------------------------------


class Session:
    """What a `Stream` needs of its session; what it sends is kept."""

    def __init__(self) -> None:
        self.governor = Governor()
        self.now = 0.0
        self.sent: collections.deque[Control] = collections.deque()

    def send_binary(self, message: bytes) -> None:
        self.sent.append(decode_control(message[1:]))

    def send_control(self, message: Control) -> None:
        self.sent.append(message)


class Upload:
    """One stream, the relay's window for it, and all that is under way between them.

    Before a grant arrives the relay sends what it likes, and forgets that it did.
    """

    def __init__(
        self, session: Session, number: int, window: int, *, lost: bool, recorded: bool = False
    ) -> None:
        connect = Control(Event.CONNECT, key(number), transport="tcp")
        self.session = session
        self.stream = Stream(
            session,  # type: ignore[arg-type]
            connect,
            window,
            0.0,
            recorded=recorded,
        )
        self.stream.dialled()
        self.relay = CappedWindow()
        self.lost = lost  #: whether the next grant is
        self.first_seen = not lost
        self.frames: collections.deque[bool] = collections.deque()  # whether it cost a credit
        self.grants: collections.deque[int] = collections.deque()
        self.backlog = 0
        self.progress = 0
        self.unknown = 0  # sent without a credit, but not known to be when the first were given

    def send(self, frames: int = 1) -> None:
        """The user sends, as far as the relay reads."""
        for _ in range(frames):
            if self.relay.ready:
                self.unknown += self.relay.unlimited
                self.frames.append(not self.relay.unlimited)
                self.relay.take()

    def receive(self, frames: int = 1) -> None:
        """The agent gets some of them, as `AgentSession.receive` does."""
        for _ in range(min(frames, len(self.frames))):
            self.frames.popleft()
            self.stream.frames_in += 1
            if not self.stream.settled:
                self.stream.settled = True
                self.ask(self.stream.settle)
            self.backlog += 1

    def consume(self, frames: int = 1) -> None:
        """The local service takes some."""
        for _ in range(min(frames, self.backlog)):
            self.backlog -= 1
            self.progress += 1
            self.ask(self.stream.consumed)

    def ask(self, call: Callable[[], object]) -> None:
        """Do what may make the stream grant; look at what it gives."""
        given = self.stream.granter.given
        call()
        if not given and self.stream.granter.given:
            self.unknown -= self.stream.frames_in
        for message in self.session.sent:
            self.grants.append(message.credits)
        self.session.sent.clear()
        most = max(LANE_BUDGET // max(len(self.session.governor._busy), 1), 2 * BATCH)
        if given and self.stream.granter.given > given + 1:
            assert self.stream._out <= most, "no more than its share is newly given"

    def grant(self) -> None:
        """The relay gets the next grant, or misses it."""
        if self.grants:
            credits = self.grants.popleft()
            if self.lost and credits:
                self.lost = False
            else:
                self.relay.grant(credits)

    def settle_down(self) -> None:
        """Everything arrives and is taken; nobody's clock goes on."""
        while self.frames or self.backlog or self.grants:
            self.receive(len(self.frames))
            self.consume(self.backlog)
            self.grant()

    @property
    def out(self) -> int:
        """What the relay may put into its lane, and what of that may be there already."""
        return self.relay.available + sum(self.grants) + sum(self.frames)


class Uploads(RuleBasedStateMachine):
    """Some streams of one session at once, with first grants lost and not, stalls and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session()
        self.uploads: list[Upload] = []

    @initialize(
        streams=st.lists(
            st.tuples(st.integers(1, 200), st.sampled_from(["lost", "seen", "recorded"])),
            min_size=1,
            max_size=6,
        )
    )
    def begin(self, streams: list[tuple[int, str]]) -> None:
        for number, (window, kind) in enumerate(streams):
            recorded = kind == "recorded"
            upload = Upload(self.session, number, window, lost=kind == "lost", recorded=recorded)
            self.uploads.append(upload)

    @rule(number=st.integers(0, 5), frames=st.integers(1, 250))
    def user_sends(self, number: int, frames: int) -> None:
        self.pick(number).send(frames)

    @rule(number=st.integers(0, 5), frames=st.integers(1, 250))
    def agent_receives(self, number: int, frames: int) -> None:
        self.pick(number).receive(frames)

    @rule(number=st.integers(0, 5), frames=st.integers(1, 250))
    def service_takes(self, number: int, frames: int) -> None:
        self.pick(number).consume(frames)

    @rule(number=st.integers(0, 5))
    def relay_gets_a_grant(self, number: int) -> None:
        self.pick(number).grant()

    @rule(number=st.integers(0, 5))
    def all_is_quick(self, number: int) -> None:
        upload = self.pick(number)
        if not upload.stream.granter.held:
            upload.settle_down()

    @rule(number=st.integers(0, 5), pause=st.booleans())
    def agent_pauses(self, number: int, pause: bool) -> None:
        upload = self.pick(number)
        upload.ask(upload.stream.pause if pause else upload.stream.resume)

    @rule(number=st.integers(0, 5))
    def service_stalls(self, number: int) -> None:
        upload = self.pick(number)
        if upload.stream.starved:
            upload.ask(upload.stream.trickle)

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.session.now += seconds

    def pick(self, number: int) -> Upload:
        return self.uploads[number % len(self.uploads)]

    @invariant()
    def the_relay_has_no_more_than_the_window(self) -> None:
        """But for what was under way unlimited when it was granted, which nobody can know."""
        for upload in self.uploads:
            if upload.first_seen:
                assert upload.out <= upload.stream.granter.window + upload.unknown

    def teardown(self) -> None:
        """Every upload goes on, alone in the end, and with all it can have."""
        for upload in self.uploads:
            upload.ask(upload.stream.resume)
            upload.settle_down()
        for _ in range(4):
            for upload in self.uploads:
                assert upload.relay.ready, "it has run dry, and nobody asks again"
                upload.send(7)
            for upload in self.uploads:
                upload.settle_down()
        for upload in self.uploads:
            self.session.now += 2 * BUSY_S
            for _ in range(40):
                assert upload.relay.ready
                upload.send(250)
                upload.settle_down()
            assert not upload.relay.unlimited, "a grant was seen by now"
            window, doubt = upload.stream.granter.window, upload.stream.granter.doubt
            least = min(window, upload.stream.granter.limit, LANE_BUDGET) - doubt - (BATCH - 1)
            assert upload.relay.available >= max(least, 1)
            if upload.first_seen and window <= WINDOW:
                assert upload.relay.available >= window - (BATCH - 1), "the whole window again"


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=40, stateful_step_count=30)


@given(st.integers(8, 200), st.sampled_from([1, 5, 250]), st.booleans())
def test_a_relay_that_obeys_never_runs_dry(window: int, frames: int, lost: bool) -> None:
    """Whatever the window, and whether the user sends little at a time or all that it can."""
    upload = Upload(Session(), 1, window, lost=lost)
    upload.send()  # the prelude
    upload.settle_down()
    for _ in range(4 * window // frames + 4):
        assert upload.relay.ready
        upload.send(frames)
        upload.settle_down()
        assert lost or upload.out <= window
    # Without limits for long, it is brought under control soon rather than with much.
    limit = upload.stream.granter.limit if frames == 250 else LANE_BUDGET
    most = min(window, limit, LANE_BUDGET)
    assert upload.relay.available >= most - lost * min(window // 16, BATCH) - (BATCH - 1)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("window", [1, 8, 10, 16, 64, 200])
@pytest.mark.parametrize("used", [0, 1, 2, 7, 56, 59, 60, 63, 64, 190, 200])
def test_a_stall_does_not_break_the_books(window: int, used: int, lost: bool) -> None:
    """An advance may be the first grant that the relay sees, and all the credit that there is."""
    upload = Upload(Session(), 1, window, lost=lost)
    upload.send()
    upload.receive()
    upload.consume()
    if not lost:
        upload.grant()
    upload.send(used)
    upload.receive(used)
    for _ in range(5):
        if upload.stream.starved:
            upload.ask(upload.stream.trickle)
        upload.grant()
        upload.grant()
    for _ in range(3 * window):
        upload.settle_down()
        assert upload.relay.ready
        upload.send()


@pytest.mark.parametrize("lost", [False, True])
def test_a_large_window_that_the_relay_has_capped(lost: bool) -> None:
    """If the second grant is the first one seen, what is above it would be lost, and missed."""
    others = busy(5)
    upload = Upload(others[0].session, 99, 200, lost=lost)
    for _ in range(250):
        upload.send()
        upload.settle_down()
    assert upload.relay.capacity == (64 if lost else 200)
    upload.session.now += BUSY_S
    for _ in range(250):  # alone
        upload.send()
        upload.settle_down()
    for other in others:
        other.send(WINDOW)
        other.settle_down()
    for _ in range(10):  # and not alone
        assert upload.relay.ready
        upload.send(250)
        upload.settle_down()


def busy(streams: int, **options: bool) -> list[Upload]:
    """Uploads that have used their first windows, and are all at work."""
    session = Session()
    uploads = [Upload(session, n, WINDOW, lost=False, **options) for n in range(streams)]
    for upload in uploads:
        upload.send()
        upload.settle_down()
    for _ in range(3):
        for upload in uploads:
            upload.send(WINDOW)
        for upload in uploads:
            upload.settle_down()
    return uploads


@pytest.mark.parametrize("streams", [2, 3, 4, 5, 8, 12])
def test_busy_streams_stay_within_the_budget(streams: int) -> None:
    uploads = busy(streams)
    for turn in range(1000):
        upload = uploads[turn * 7 % streams]
        upload.send(turn % 40)
        upload.receive(turn % 30)
        upload.consume(turn % 20)
        upload.grant()
        assert sum(upload.out for upload in uploads) <= LANE_BUDGET
    assert all(upload.progress > 5000 / streams for upload in uploads)


def test_alone_again_a_stream_gets_its_window_back() -> None:
    first, *others = uploads = busy(8)
    assert first.out <= LANE_BUDGET // 8
    for upload in others[1:]:
        upload.session.governor.forget(upload.stream.id)
    first.session.now += BUSY_S
    for _ in range(WINDOW):
        first.send()
        first.settle_down()
    assert first.relay.available > WINDOW - BATCH
    assert sum(upload.out for upload in uploads) <= LANE_BUDGET + WINDOW


@pytest.mark.parametrize("recorded", [False, True])
def test_tiny_shares_starve_nobody(recorded: bool) -> None:
    """Forty streams: the lane cannot hold a batch for each, but none may wait for ever."""
    uploads = busy(40, recorded=recorded)
    for _ in range(100):
        for upload in uploads:
            assert upload.relay.ready
            upload.send(WINDOW)
        for upload in uploads:
            upload.settle_down()
            assert upload.out <= 2 * BATCH
    assert all(upload.progress >= 100 * BATCH for upload in uploads)
