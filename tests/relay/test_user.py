"""Users and their streams, on real sockets."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket

from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from nexusg.relay import link
from nexusg.relay import user as user_module
from nexusg.relay.link import Link
from nexusg.relay.settings import Habits
from nexusg.relay.user import User
from tests.conftest import MS
from tests.relay.test_sniff import client_hello
from tests.support.pair import Local
from tests.support.relayed import (
    AMPLE_S,
    HOST,
    RawAgent,
    http_get,
    read_to_end,
    slow_user,
    user,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.protocol.stream import Stream
    from tests.relay.conftest import StartRelay


class Meeting:
    """A relay, an agent, and a user connected through both."""

    def __init__(self, relay: Any, first: bytes, slow: bool, **agent: Any) -> None:
        self.relay = relay
        self.agent = RawAgent(relay, **agent).wait_accepted()
        self.user = (slow_user if slow else user)(relay, first)
        self.local = self.agent.wait_local()
        if first:
            self.agent.wait(lambda: self.local.frames)
            self.local.frames.clear()

    @property
    def stream(self) -> Stream:
        """At the agent."""
        return self.local.stream

    @property
    def relay_stream(self) -> Any:
        """At the relay, as long as it knows it."""
        return self.relay.agents[0].session.streams.get(self.stream.id)

    def reply(self, data: bytes) -> None:
        """Send ``data`` to the user, all of it, as credits come."""
        view = memoryview(data)
        with gevent.Timeout(AMPLE_S):
            while len(view):
                self.agent.wait(lambda: self.stream.sendable)
                view = view[self.stream.send(view) :]
                self.agent.flush()

    def until(self, condition: Callable[[], object]) -> None:
        """Let others run until ``condition()`` holds, for what the agent cannot see."""
        with gevent.Timeout(AMPLE_S, AssertionError("never came true")):
            while not condition():
                gevent.sleep(0)

    def pause(self) -> None:
        """Have the relay stop reading the user, with one read under way."""
        self.stream.pause()
        self.agent.flush()
        self.until(lambda: self.relay_stream.paused)
        self.user.sendall(b"under way")
        self.agent.wait(lambda: self.local.data == b"under way")

    def finish(self) -> None:
        """End the stream from the agent's side, without the flush barrier."""
        self.stream.abort(Reason.NORMAL)
        self.agent.flush()

    def close(self) -> None:
        self.user.close()
        self.agent.stop()


def lazy(stream: Stream) -> Local:
    """A local service that never takes anything."""
    return Local(stream, takes=False)


def send_until_closed(sock: Any, data: bytes = b"x" * 32768) -> None:
    try:
        while True:
            sock.sendall(data)
            gevent.sleep(0)
    except OSError:
        pass


def reset(sock: Any) -> None:
    """Close with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def meet(start_relay: StartRelay) -> Iterator[Callable[..., Meeting]]:
    meetings = []

    def meet(
        first: bytes = http_get(), *, slow: bool = False, agent: Any = None, **settings: Any
    ) -> Meeting:
        relay = start_relay(**settings)
        meetings.append(Meeting(relay, first, slow, **(agent or {})))
        return meetings[-1]

    yield meet
    for meeting in meetings:
        meeting.close()


# Data ----------------------------------------------------------------------------------------


def test_bytes_go_both_ways(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    meeting.user.sendall(b"question")
    meeting.agent.wait(lambda: meeting.local.data == b"question")
    meeting.reply(b"answer")
    assert meeting.user.recv(100) == b"answer"


def test_a_server_that_speaks_first(start_relay: StartRelay) -> None:
    relay = start_relay()
    with RawAgent(relay, hostnames=None, tcp_ports=[relay.public_ports[0]]) as agent:
        agent.wait_accepted()
        with user(relay) as sock:
            local = agent.wait_local()
            while not local.stream.settled:
                gevent.sleep(1 * MS)
            local.stream.send(memoryview(b"220 ready"))
            agent.flush()
            assert sock.recv(100) == b"220 ready"
            assert local.frames == []


def test_megabytes_up(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    data = bytes(range(256)) * 16384
    sending = Greenlet.spawn(meeting.user.sendall, data)
    meeting.agent.wait(lambda: sum(map(len, meeting.local.frames)) == len(data))
    sending.get()
    assert meeting.local.data == data
    assert max(map(len, meeting.local.frames)) <= user_module.READ_BYTES


def test_megabytes_down_to_a_user_in_no_hurry(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    data = bytes(range(256)) * 16384
    sending = Greenlet.spawn(meeting.reply, data)
    received = bytearray()
    while len(received) < len(data):
        received += meeting.user.recv(4096)
    sending.get()
    assert received == data


def test_credits_come_when_the_users_kernel_has_taken_the_data(
    meet: Callable[..., Meeting],
) -> None:
    meeting = meet()
    for _ in range(8):
        meeting.reply(b"x")
    meeting.agent.wait(lambda: meeting.stream.window.unacknowledged == 0)
    meeting.reply(b"x" * 7)
    assert meeting.user.recv(100)
    assert meeting.stream.window.acknowledged == 8


def test_congestion_stops_the_users(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CONGESTED_BYTES", 1000)
    meeting = meet()
    data = bytes(1024 * 1024)
    sending = Greenlet.spawn(meeting.user.sendall, data)
    meeting.agent.wait(lambda: sum(map(len, meeting.local.frames)) == len(data))
    sending.get()


# Credits and pauses --------------------------------------------------------------------------


def test_forward_stops_without_credits(meet: Callable[..., Meeting]) -> None:
    meeting = meet(agent={"make_local": lazy})
    meeting.until(lambda: not meeting.relay_stream.window.unlimited)
    sending = Greenlet.spawn(send_until_closed, meeting.user)
    meeting.agent.wait(lambda: len(meeting.local.frames) >= 64)
    assert meeting.agent.quiet(10 * MS)
    assert len(meeting.local.frames) == 64
    meeting.stream.consumed(64)
    meeting.agent.flush()
    meeting.agent.wait(lambda: len(meeting.local.frames) >= 72)
    meeting.user.close()
    sending.join()


@pytest.mark.parametrize("idle_timeout_s", [0.0, 0.03])
def test_a_user_that_gets_no_credit_for_long_is_closed(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch, idle_timeout_s: float
) -> None:
    monkeypatch.setattr(user_module, "STARVED_S", 0.03 if not idle_timeout_s else 60.0)
    meeting = meet(agent={"make_local": lazy}, idle_timeout_s=idle_timeout_s)
    sending = Greenlet.spawn(send_until_closed, meeting.user)
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)
    sending.join(AMPLE_S)


def test_a_pause_stops_reading_until_the_resume(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    meeting.pause()
    meeting.user.sendall(b"held")
    assert meeting.agent.quiet(10 * MS)
    meeting.stream.resume()
    meeting.agent.flush()
    meeting.agent.wait(lambda: meeting.local.data == b"under wayheld")


# The user ends -------------------------------------------------------------------------------


def test_a_users_half_close_is_a_full_close(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    meeting.user.sendall(b"last words")
    meeting.user.shutdown(socket.SHUT_WR)
    assert read_to_end(meeting.user) == b""
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)
    assert meeting.local.data == b"last words"


def test_a_users_reset(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    reset(meeting.user)
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_a_user_found_dead_while_writing(meet: Callable[..., Meeting]) -> None:
    """The reset arrives during a pause, so that only a write finds it."""
    meeting = meet()
    meeting.pause()
    reset(meeting.user)
    meeting.reply(b"x")
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_a_user_found_dead_while_draining(meet: Callable[..., Meeting]) -> None:
    meeting = meet(user_buffer_bytes=4096, slow=True)
    meeting.pause()
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.agent.flush()
    meeting.until(lambda: meeting.relay_stream.bytes_in == 64 * 32768)
    reset(meeting.user)
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_an_idle_user_is_closed(meet: Callable[..., Meeting]) -> None:
    meeting = meet(idle_timeout_s=0.02)
    assert read_to_end(meeting.user) == b""
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_a_user_that_is_written_to_is_not_idle(meet: Callable[..., Meeting]) -> None:
    meeting = meet(idle_timeout_s=0.04)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        meeting.reply(b"x")
        gevent.sleep(1 * MS)
    assert meeting.local.cause is None
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_a_user_that_takes_nothing_is_closed_when_idle(meet: Callable[..., Meeting]) -> None:
    meeting = meet(idle_timeout_s=0.03, user_buffer_bytes=4096, slow=True)
    meeting.pause()  # the reader has an idle timeout of its own
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.agent.flush()
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


def test_more_than_128_messages_kept_are_too_many(meet: Callable[..., Meeting]) -> None:
    meeting = meet(user_buffer_bytes=4096, slow=True)
    meeting.stream.window.grant(1000)
    for _ in range(user_module.BUFFER_FRAMES):
        meeting.stream.send(memoryview(bytes(32768)))
    meeting.agent.flush()
    meeting.until(lambda: meeting.relay_stream.bytes_in == 128 * 32768)
    assert meeting.agent.quiet(10 * MS)
    meeting.stream.send(memoryview(b"one"))
    meeting.stream.send(memoryview(b"too many"))
    meeting.agent.flush()
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)


# The agent ends ------------------------------------------------------------------------------


def test_a_plain_route_is_closed_at_once(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    meeting.reply(b"answer")
    meeting.finish()
    assert meeting.user.recv(100) == b"answer"
    assert meeting.user.recv(100) == b""
    send_until_closed(meeting.user, b"x")


def test_a_tls_route_is_half_closed_first(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "HALF_CLOSED_S", 0.03)
    meeting = meet(client_hello(HOST))
    meeting.finish()
    begin = time.monotonic()
    assert meeting.user.recv(100) == b""
    meeting.user.sendall(b"discarded")
    send_until_closed(meeting.user, b"x")
    assert time.monotonic() - begin >= 0.025


def test_what_a_slow_user_has_not_taken_in_time_is_lost(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "FLUSH_S", 0.005)
    meeting = meet(user_buffer_bytes=4096, slow=True)
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.finish()
    meeting.relay.config.on_log.wait("user.gone")
    assert 0 < len(read_to_end(meeting.user)) < 64 * 32768


def test_what_it_takes_in_time_is_not(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "FLUSH_S", AMPLE_S)
    meeting = meet(user_buffer_bytes=65536)
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.finish()
    assert len(read_to_end(meeting.user)) == 64 * 32768


def test_both_ends_at_the_same_moment(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's end is under way to the reader when that sees the user's."""
    meeting = meet(user_buffer_bytes=4096, slow=True)
    meeting.pause()
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.agent.flush()
    meeting.until(lambda: meeting.relay_stream.bytes_in == 64 * 32768)

    def read(listener: User) -> bytes:
        listener.on_end("normal")
        return b""

    monkeypatch.setattr(User, "_read", read)
    meeting.stream.resume()
    meeting.agent.flush()
    meeting.agent.wait(lambda: meeting.local.cause is Cause.USER)
    meeting.relay.config.on_log.wait("user.gone")
    assert "relay.task_failed" not in meeting.relay.config.on_log.events


def test_the_agent_goes(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    meeting.reply(b"answer")
    assert meeting.user.recv(100) == b"answer"
    meeting.agent.stop()
    assert read_to_end(meeting.user) == b""


# Lanes and bad habits ------------------------------------------------------------------------


def test_data_lost_in_a_full_lane_kills_the_user(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = meet(lanes=4)
    monkeypatch.setattr(Link, "flush", lambda self: None)  # nothing leaves the lane
    sending = Greenlet.spawn(send_until_closed, meeting.user)
    meeting.until(lambda: meeting.relay_stream is None)
    sending.join(AMPLE_S)
    monkeypatch.undo()
    meeting.relay.agents[0].flush()
    meeting.agent.wait(lambda: len(meeting.local.frames) == 4)
    assert meeting.agent.quiet(10 * MS)
    assert meeting.local.cause is None, "the disconnect was lost as well"


def test_a_connect_lost_in_a_full_lane_closes_the_user(start_relay: StartRelay) -> None:
    relay: Any = start_relay(lanes=0)
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        with user(relay, http_get()) as sock:
            assert read_to_end(sock) == b""
        assert agent.locals == []


def test_a_lost_disconnect(meet: Callable[..., Meeting]) -> None:
    meeting = meet(habits=Habits(lose_disconnects=True))
    meeting.user.close()
    meeting.until(lambda: meeting.relay_stream is None)
    assert meeting.agent.quiet(10 * MS)
    assert meeting.local.cause is None


def test_a_disconnect_of_the_agents_counts_even_so(meet: Callable[..., Meeting]) -> None:
    meeting = meet(habits=Habits(lose_disconnects=True))
    meeting.finish()
    assert read_to_end(meeting.user) == b""


def test_a_stream_recorded_late(
    meet: Callable[..., Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, waiting = User._record, []
    monkeypatch.setattr(User, "_record", lambda *args: waiting.append(args))
    meeting = meet(habits=Habits(record_delay_s=0.005))
    session = meeting.relay.agents[0].session
    meeting.stream.send(memoryview(b"lost "))
    meeting.agent.flush()
    meeting.until(lambda: session.messages_in == 4)  # two tokens, a grant, and data
    assert meeting.relay_stream is None
    [(listener, delay_s)] = waiting
    record(listener, delay_s)
    assert meeting.relay_stream.window.unlimited, "the first grant was lost, too"
    meeting.reply(b"found")
    assert meeting.user.recv(100) == b"found"


def test_a_lost_first_grant(meet: Callable[..., Meeting]) -> None:
    meeting = meet(habits=Habits(lose_first_grant=True))
    meeting.until(lambda: not meeting.relay_stream.deaf_to_grants)
    assert meeting.relay_stream.window.unlimited


def test_a_relay_that_never_grants(meet: Callable[..., Meeting]) -> None:
    meeting = meet(habits=Habits(never_grant=True))
    meeting.stream.send(memoryview(bytes(64 * 32768)))
    meeting.agent.flush()
    read = 0
    while read < 64 * 32768:
        read += len(meeting.user.recv(65536))
    assert meeting.agent.quiet(10 * MS)
    assert meeting.stream.window.available == 0
