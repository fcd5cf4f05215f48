"""Connections that local programs have asked for: the answer, then a stream like any other."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest

from nexusg.agent import outbound
from nexusg.agent.outbound import OutboundPump, ProgramTarget
from nexusg.agent.stats import stream_stats
from nexusg.config.model import Backend
from nexusg.outbound.server import Client
from nexusg.outbound.socks5 import Reply, Request
from nexusg.protocol.messages import Control, Event, Reason, encode_control
from nexusg.protocol.relay_events import OutboundRequested
from nexusg.protocol.states import StreamState
from tests.conftest import MS
from tests.support.pair import User
from tests.support.rig import Rig


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.protocol.outbound import OutboundStream

TARGET = "example.test:443"
SUCCEEDED = Reply.SUCCEEDED.message


class OutboundRig(Rig):
    """A rig whose streams are asked for by programs."""

    def __init__(self, **pair: Any) -> None:
        super().__init__(**pair)
        self.backend, self.name = Backend("web"), "s1"
        self.socks: list[socket.socket] = []
        self._last = 0

    def ask(self, early: bytes = b"", *, begin: bool = True) -> tuple[socket.socket, OutboundPump]:
        """A program that has asked for a connection, and its pump, which has begun to wait."""
        program, ours = socket.socketpair()
        program.settimeout(5)
        self.socks += [program, ours]
        client = Client(ours, "127.0.0.1:5", Request("example.test", 443), early)
        made: list[OutboundPump] = []

        def open_stream(stream: OutboundStream) -> OutboundPump:
            made.append(OutboundPump(cast("Any", self), stream, client))
            return made[0]

        self._last += 1
        new_id = self._last.to_bytes(16, "big")
        self.pair.agent.connect_outbound(new_id, TARGET, open_stream, self.pair.clock())
        self.run() if begin else self.pair.pump()
        assert self.pair.relay_events.pop() == OutboundRequested(new_id, TARGET)
        return program, made[0]

    def succeed(self, pump: OutboundPump, credits: int = 64) -> User:
        """The relay has connected; the other end."""
        far = User()
        result = self._result(pump, success=True, credits=credits)
        stream = self.pair.relay.open(result, far)
        assert stream is not None
        far.stream = stream
        self.run()
        return far

    def refuse(self, pump: OutboundPump, reason: str) -> None:
        """The relay does not connect."""
        self.pair.relay.wire.send_binary(encode_control(self._result(pump, reason=reason)))
        self.run()

    def until(self, condition: Callable[[], object]) -> None:
        """Let sockets and bytes move until ``condition()`` holds. Blocks."""
        with gevent.Timeout(5, AssertionError("never came true")):
            while not condition():
                gevent.sleep(MS)
                self.run()

    def _result(self, pump: OutboundPump, **members: Any) -> Control:
        return Control(Event.OUTBOUND_RESULT.value, pump.stream.id, **members)

    def stop(self) -> None:
        super().stop()
        for sock in self.socks:
            sock.close()


@pytest.fixture
def rig() -> Iterator[OutboundRig]:
    rig = OutboundRig()
    yield rig
    rig.stop()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


# Success -----------------------------------------------------------------------------------------


def test_a_connection_from_beginning_to_end(rig: OutboundRig) -> None:
    program, pump = rig.ask()
    far = rig.succeed(pump)
    assert program.recv(100) == SUCCEEDED
    program.sendall(b"ping")
    rig.until(lambda: far.data == b"ping")
    far.stream.send(b"pong")
    rig.run()
    assert program.recv(100) == b"pong"
    (connected,) = rig.named("outbound.connected")
    assert (connected.hostname, connected.port) == ("example.test", 443)
    assert (connected.client, connected.target) == ("127.0.0.1:5", TARGET)
    program.close()
    rig.until(lambda: far.reason == "normal")
    closed = rig.closed()
    assert (closed.reason, closed.ended_by, closed.error) == ("normal", "user", "")
    assert (closed.bytes_in, closed.bytes_out, closed.target) == (4, 4, TARGET)
    assert not rig.named("outbound.refused")
    assert rig.context.counters.outbound_refused == 0


def test_what_came_behind_the_request_goes_out_after_the_success(rig: OutboundRig) -> None:
    program, pump = rig.ask(b"early ")
    assert pump.stream.bytes_out == 0
    program.sendall(b"bird")
    far = rig.succeed(pump)
    rig.until(lambda: far.data == b"early bird")


def test_an_answer_before_anybody_waits_for_it(rig: OutboundRig) -> None:
    program, pump = rig.ask(begin=False)
    rig.pair.relay.open(rig._result(pump, success=True, credits=64), User())
    rig.pair.pump()
    assert pump.stream.settled
    rig.run()
    assert program.recv(100) == SUCCEEDED


def test_data_comes_behind_the_success(rig: OutboundRig) -> None:
    program, pump = rig.ask()
    far = User()
    stream = rig.pair.relay.open(rig._result(pump, success=True, credits=64), far)
    assert stream is not None
    stream.send(b"hello")
    rig.pair.pump()  # both, before the greenlet has run
    assert pump.buffered_bytes == 5
    rig.run()
    assert program.recv(100)[: len(SUCCEEDED)] == SUCCEEDED


def test_the_far_end_leaves(rig: OutboundRig) -> None:
    program, pump = rig.ask()
    far = rig.succeed(pump)
    far.stream.send(b"last words")
    far.stream.end()
    rig.run()
    program.shutdown(socket.SHUT_WR)
    assert read_all(program) == SUCCEEDED + b"last words"
    rig.until(lambda: pump.done)
    assert rig.closed().ended_by == "target"


@pytest.mark.parametrize("said", [b"", b"last words"])
def test_the_far_end_leaves_before_the_program_knows(rig: OutboundRig, said: bytes) -> None:
    program, pump = rig.ask()
    stream = rig.pair.relay.open(rig._result(pump, success=True, credits=64), User())
    assert stream is not None
    if said:
        stream.send(said)
    stream.end()
    rig.pair.pump()
    assert pump.stream.state is StreamState.DELIVERING
    rig.run()
    program.shutdown(socket.SHUT_WR)
    assert read_all(program) == SUCCEEDED + said
    rig.until(lambda: pump.done)
    assert rig.closed().reason == "normal"


def test_credits_are_obeyed(rig: OutboundRig) -> None:
    program, pump = rig.ask(b"x")
    far = User(takes=False)
    stream = rig.pair.relay.open(rig._result(pump, success=True, credits=2), far)
    assert stream is not None
    rig.run()
    program.sendall(bytes(40_000))
    rig.until(lambda: len(far.frames) == 2)
    rig.run()
    assert len(far.frames) == 2
    assert pump.stream.window.available == 0


def test_the_sessions_end(rig: OutboundRig) -> None:
    program, pump = rig.ask()
    rig.succeed(pump)
    rig.pair.agent.lost()
    rig.run()
    assert read_all(program) == SUCCEEDED
    closed = rig.closed()
    assert (closed.reason, closed.ended_by) == ("session_ended", "session")


def test_figures(rig: OutboundRig) -> None:
    _, pump = rig.ask()
    rig.succeed(pump)
    stats = stream_stats(pump, rig.pair.clock())
    assert stats.is_outbound
    assert (stats.client, stats.hostname, stats.target) == ("127.0.0.1:5", "example.test", TARGET)


def test_early_bytes_in_pieces() -> None:
    program, ours = socket.socketpair()
    client = Client(ours, "x", Request("a", 1), b"abcde")
    target = ProgramTarget(client, bytearray(10))
    assert [bytes(target.try_read(3) or b"") for _ in range(2)] == [b"abc", b"de"]
    assert target.try_read(3) is None
    program.sendall(b"fg")
    assert bytes(target.try_read(3) or b"") == b"fg"
    target.close()
    program.close()


# Failure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "reply", "error"),
    [
        ("outbound port 25 not allowed", Reply.NOT_ALLOWED, "outbound port 25 not allowed"),
        ("dial failed", Reply.REFUSED, "dial failed"),
        ("", Reply.FAILURE, "no reason given"),
    ],
)
def test_refused(rig: OutboundRig, reason: str, reply: Reply, error: str) -> None:
    program, pump = rig.ask(bytes(5000))
    rig.refuse(pump, reason)
    assert read_all(program) == reply.message
    (event,) = rig.named("outbound.refused")
    assert event.error == f"the relay refused: {error}"
    assert (event.client, event.target, event.session) == ("127.0.0.1:5", TARGET, "s1")
    assert not rig.named("stream.closed")
    assert rig.context.counters.outbound_refused == 1
    assert rig.pair.relay.messages_in == 1 + 2  # nothing but the request, behind the tokens


def test_no_answer(rig: OutboundRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 40: a success that comes too late is disconnected."""
    monkeypatch.setattr(outbound, "RESULT_TIMEOUT_S", 20 * MS)
    program, pump = rig.ask()
    assert read_all(program) == Reply.TIMED_OUT.message
    (event,) = rig.named("outbound.refused")
    assert "has not answered within" in event.error
    far = rig.succeed(pump)
    assert far.reason == "unknown"
    assert far.stream.open is False


def test_the_sessions_end_while_waiting(rig: OutboundRig) -> None:
    program, _ = rig.ask()
    rig.pair.agent.lost()
    assert read_all(program) == Reply.FAILURE.message
    (event,) = rig.named("outbound.refused")
    assert event.error == "the stream has ended: session_ended"


def test_a_program_that_has_left(rig: OutboundRig) -> None:
    program, pump = rig.ask()
    program.close()
    far = rig.succeed(pump)
    assert far.reason == "local_error"
    (event,) = rig.named("outbound.refused")
    assert event.error == "the program has gone: Broken pipe"


def test_ended_before_anything_has_run(rig: OutboundRig) -> None:
    """Even the greenlet that says so is killed: the program's connection ends all the same."""
    program, pump = rig.ask()
    pump.finish(Reason.SHUTDOWN, "agent", "the agent is stopping")
    rig.context.tasks.abandon()
    rig.run()
    assert program.recv(1) == b""
    (event,) = rig.named("outbound.refused")
    assert event.error == "the agent is stopping"


def test_in_a_child_of_fork_nothing_is_said(
    rig: OutboundRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, pump = rig.ask()
    monkeypatch.setattr(pump._client, "_pid", -1)
    pump.finish(Reason.SESSION_ENDED, "session", "this process is a fork")
    rig.run()
    assert program.recv(1) == b""
