"""One session: how it comes about, what it is for, and every way it can end."""

from __future__ import annotations

import errno
import time
import uuid
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet

from nexusg.agent import session as session_module
from nexusg.agent.streams import StreamPump
from nexusg.attest.base import Stage
from nexusg.config.model import Attestation, Backend, HealthChecks
from nexusg.errors import DialFailed, Rejected, Retry, SessionLost, TokenError, TokenTimeout
from nexusg.protocol.messages import Reason
from nexusg.protocol.wsframes import PING, encode_frame
from nexusg.transport.channel import Channel
from tests.conftest import MS
from tests.support.pair import NONCE, Local
from tests.support.peer import RELAY, Bench


if TYPE_CHECKING:
    from collections.abc import Iterator


NAMES = {"backend": "web", "relay": RELAY, "session": "s1"}
GARBAGE = b"\x83\x00"  # a frame of a kind that does not exist


# Coming about ----------------------------------------------------------------------------------


def test_a_session_that_is_accepted_and_closed(bench: Bench) -> None:
    """Sections 2.1, 2.3 and 15: two tokens, the proof, and at the end a close frame."""
    session = bench.session
    assert not session.established
    bench.start()
    bench.peer.challenge()
    assert bench.peer.wait_token("attest") == "attest token"
    assert not bench.named("session.connected"), "nothing has proven the acceptance"
    bench.peer.events += bench.peer.core.accept(time.monotonic())
    bench.peer.flush()
    connected = bench.wait("session.connected")
    assert (connected.session, connected.tls) == ("s1", "TLSv1.3")
    assert 0 <= connected.took_s < 5
    assert session.established
    assert session.names() == NAMES
    session.close("stopping")
    closed = bench.peer.wait_close()
    assert (closed.code, closed.reason) == (1001, "stopping")
    assert bench.end() is None
    assert not session.established
    counters = bench.context.counters
    assert counters.connects == 1
    assert counters.last_connected_at == pytest.approx(time.time(), abs=60)
    assert counters.bytes_received == session.link.bytes_in > 0
    assert counters.bytes_sent == session.link.bytes_out > 0
    assert counters.messages_sent == 2
    assert not session.opened, "what it has moved is counted once"


def test_what_the_provider_is_asked(bench: Bench) -> None:
    """Section 9.5, and section 2.2: the relay does not wait longer for the second token."""
    bench.connect()
    (first, first_s), (second, second_s) = bench.provider.requests
    assert (first.stage, first.nonce, first_s) == (Stage.HANDSHAKE, "", 15)
    assert (second.stage, second.nonce, second_s) == (Stage.ATTEST, NONCE, 9)


def test_without_a_token_nobody_dials(bench: Bench) -> None:
    """Section 2.2: the handshake token comes first."""
    error = TokenError("no token today")
    bench.provider.errors[Stage.HANDSHAKE].append(error)
    bench.start()
    assert bench.end() is error
    assert bench.dialled == 0


def test_a_dial_that_fails(bench: Bench) -> None:
    bench.dial_error = DialFailed("refused", "refused")
    bench.start()
    assert bench.end() is bench.dial_error
    assert not bench.session.opened


@pytest.mark.parametrize("stage", [Stage.HANDSHAKE, Stage.ATTEST])
def test_a_token_that_cannot_be_sent(bench: Bench, stage: Stage) -> None:
    """A text that is not Unicode is the provider's fault, and costs this attempt only."""
    bench.provider.tokens[stage] = "eyJ\ud800"
    bench.start()
    if stage is Stage.ATTEST:
        bench.peer.challenge()
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert "internal error" in str(error)
    assert bench.session.link.closed
    ((_, failure),) = bench.failures
    assert isinstance(failure, UnicodeEncodeError)
    assert "eyJ" not in str(failure), "it goes into a log"
    bench.failures.clear()


def test_the_upgrade_may_have_brought_frames(bench: Bench) -> None:
    """What came right behind the answer is read first."""
    bench.leftover = encode_frame(PING, b"early") * 10
    bench.connect()
    assert bench.session.core.messages_in == 1


def test_a_second_token_that_cannot_be_had(bench: Bench) -> None:
    """Section 2.2: its own error, and the relay is told that we leave."""
    error = TokenTimeout("too slow")
    bench.provider.errors[Stage.ATTEST].append(error)
    bench.start()
    bench.peer.challenge()
    assert bench.peer.wait_close().code == 1001
    assert bench.end() is error


def test_a_second_token_that_comes_too_late(bench: Bench) -> None:
    """The session has ended meanwhile; the token must not be sent, nor be an error."""
    gate = bench.provider.gates[Stage.ATTEST]
    gate.clear()
    bench.start()
    bench.peer.challenge()
    bench.until(lambda: len(bench.provider.requests) == 2)
    bench.session.core.close(1001)
    gate.set()
    gevent.sleep(MS)
    bench.peer.hang_up()
    assert isinstance(bench.end(), Rejected)


# Rejections ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["handshake", "attest"])
def test_the_relay_says_why_it_refuses(bench: Bench, stage: str) -> None:
    """Section 1.4: close 1008 with the reason."""
    bench.start()
    if stage == "attest":
        bench.peer.challenge()
    bench.peer.wait_token(stage)
    bench.peer.reject("token is expired")
    error = bench.end()
    assert isinstance(error, Rejected)
    assert (error.stage, error.reason, error.close_code) == (stage, "token is expired", 1008)
    assert bench.peer.wait_close().code == 1008, "the close frame is answered"


@pytest.mark.parametrize("stage", ["handshake", "attest"])
def test_the_relay_refuses_without_a_word(bench: Bench, stage: str) -> None:
    """Section 1.4: a reason that is too long means no close frame at all."""
    bench.start()
    if stage == "attest":
        bench.peer.challenge()
    bench.peer.wait_token(stage)
    bench.peer.hang_up()
    error = bench.end()
    assert isinstance(error, Rejected)
    assert (error.stage, error.reason) == (stage, "")


@pytest.mark.parametrize(
    ("code", "accepted", "kind"),
    [
        ("eof", False, Rejected),
        ("reset", False, Rejected),
        ("tls", False, Rejected),
        ("io", False, SessionLost),
        ("eof", True, SessionLost),
        ("reset", True, SessionLost),
        ("tls", True, SessionLost),
    ],
)
def test_what_an_end_means(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: str, accepted: bool, kind: type
) -> None:
    """Section 2.3: before the proof, an end is a rejection, however it is spelled."""
    if accepted:
        bench.connect()
    else:
        bench.start()
        bench.peer.wait_token("handshake")

    def read_into(_: object) -> int:
        raise SessionLost("the end", code)

    monkeypatch.setattr(bench.session.link, "read_into", read_into)
    bench.peer.say(encode_frame(PING, b""))  # lets the read end that is under way
    error = bench.end()
    assert type(error) is kind
    if kind is SessionLost:
        assert (error.code, error.__cause__) == (code, None)


def test_a_close_frame_that_is_no_rejection(bench: Bench) -> None:
    """Only 1008 speaks of the credentials."""
    bench.start()
    bench.peer.wait_token("handshake")
    bench.peer.say_close(1013, "try again later")
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert (error.code, error.close_code) == ("closed", 1013)
    assert str(error) == "the relay closed the session with code 1013: try again later"


def test_a_peer_that_is_no_relay(bench: Bench) -> None:
    """Section 17, case 3: nothing is sent, and there is no hurry to come again."""
    bench.start()
    bench.peer.wait_token("handshake")
    bench.peer.core.wire.send_text("hello, who are you?")
    bench.peer.flush()
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert (error.code, error.retry) == ("protocol", Retry.TOKEN)
    assert bench.peer.wait_close().code == 1002
    assert len(bench.provider.requests) == 1


# Losses ----------------------------------------------------------------------------------------


def test_the_relay_restarts(bench: Bench) -> None:
    bench.connect()
    bench.peer.say_close(1012)
    error = bench.end()
    assert (error.code, error.close_code) == ("closed", 1012)
    assert str(error) == "the relay closed the session with code 1012"


def test_1008_after_the_acceptance_is_no_rejection(bench: Bench) -> None:
    bench.connect()
    bench.peer.say_close(1008, "out of memory")
    assert isinstance(bench.end(), SessionLost)


def test_the_end_of_file_takes_the_streams_along(bench: Bench) -> None:
    """Section 17, case 34: the local connections are closed, and nothing of them is left."""
    session = bench.connect()
    _, first = bench.open(b"one")
    _, second = bench.open(b"two")
    bench.wait("stream.connected", 2)
    bench.peer.hang_up()
    error = bench.end()
    assert (error.code, session.streams_lost) == ("eof", 2)
    for local in (first, second):
        local.recv(3)
        assert local.recv(1) == b""
    assert [event.reason for event in bench.named("stream.closed")] == ["session_ended"] * 2
    assert not bench.context.pumps
    assert not session.core.streams


def test_a_relay_that_breaks_the_protocol(bench: Bench) -> None:
    bench.connect()
    bench.peer.say(GARBAGE)
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert (error.code, error.retry) == ("protocol", Retry.LOST)
    assert "broke the protocol" in str(error)
    assert bench.peer.wait_close().code == 1002


def test_the_protocol_broken_while_we_leave(bench: Bench) -> None:
    """Whatever a relay says to our close frame, the session was closed by us."""
    session = bench.connect()
    session._closing = True
    bench.peer.say(GARBAGE)
    assert bench.end() is None


@pytest.mark.parametrize("step", ["challenge", "acceptance"])
def test_a_relay_that_does_not_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Section 2.2: each step has its time."""
    monkeypatch.setattr(f"nexusg.protocol.handshake.{step.upper()}_TIMEOUT_S", 10 * MS)
    bench.start()
    if step == "acceptance":
        bench.peer.challenge()
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert error.code == "silent"
    assert f"no {step} from the relay" in str(error)


def test_a_relay_that_falls_silent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 17, case 9."""
    for name in ("PING_AFTER_S", "SILENCE_S", "PROBE_S"):
        monkeypatch.setattr(f"nexusg.protocol.liveness.{name}", 10 * MS)
    bench.connect()
    bench.peer.core.answers_pings = False
    error = bench.end()
    assert error.code == "silent"
    assert "nothing was heard" in str(error)


def test_a_relay_that_stops_reading(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 1.3: a write without progress is the end, also while the relay still talks."""
    monkeypatch.setattr(session_module, "WRITE_TIMEOUT_S", 10 * MS)
    monkeypatch.setattr(session_module, "GOODBYE_S", 10 * MS)
    session = bench.connect()
    bench.peer._reader.kill()
    session.core.wire.send_binary(bytes(4_000_000))
    session.flush()
    for _ in range(3):
        gevent.sleep(10 * MS)
        session._rearm.set()
    error = bench.end()
    assert error.code == "stalled"
    assert bench.context.counters.stalled_links == 1


@pytest.mark.parametrize("accepted", [False, True])
def test_a_write_that_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch, accepted: bool) -> None:
    """Nothing more is written; if the reader does not find out why, the failure is the reason."""
    break_writer(monkeypatch)
    if accepted:
        bench.connect()
    else:
        bench.start()
        bench.peer.wait_token("handshake")
    bench.session.core.wire.send_ping(b"break")
    bench.session.flush()
    error = bench.end()
    assert isinstance(error, SessionLost if accepted else Rejected)


def test_after_a_failed_write_the_relay_may_still_say_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its close frame says more than our EPIPE."""
    break_writer(monkeypatch)
    bench.start()
    bench.peer.wait_token("handshake")
    bench.session.core.wire.send_ping(b"break")
    bench.session.flush()
    gevent.sleep(MS)
    bench.peer.reject("signature is invalid")
    error = bench.end()
    assert isinstance(error, Rejected)
    assert error.reason == "signature is invalid"


def break_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write fail that holds a ping ``break``."""
    write = Channel.write

    def broken(channel: Channel, data: bytes) -> bool:
        if data[:2] == b"\x89\x85":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return write(channel, data)

    monkeypatch.setattr(Channel, "write", broken)


def test_streams_that_are_idle_for_long_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used lately does not."""
    monkeypatch.setattr(session_module, "REST_S", 0.0)
    rested: list[str] = []

    def rest(pump: StreamPump) -> bool:
        rested.append(pump.stream.hostname)
        return True

    monkeypatch.setattr(StreamPump, "rest", rest)
    session = bench.connect()
    for name in ("idle.test", "busy.test"):
        bench.open(b"x", hostname=name)
    bench.until(lambda: len(session.core.streams) == 2)
    (busy,) = (one for one in session.core.streams.values() if one.hostname == "busy.test")
    busy.idle_since = bench.context.clock() + 1000
    rested.clear()  # the ticker has looked before
    session._let_rest(bench.context.clock())
    assert rested == ["idle.test"]
    assert session._rest_at >= bench.context.clock() - 1
    monkeypatch.setattr(session_module, "RESTS_AT_A_TIME", 1)
    busy.idle_since = 0
    rested.clear()
    session._let_rest(bench.context.clock())
    assert len(rested) == 1, "the others have their turn after a pause"


# Kills and bugs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [1, 2, 3])
@pytest.mark.parametrize("stage", ["handshake", "attest", "accepted"])
def test_killed_whenever_and_however_often(bench: Bench, stage: str, kills: int) -> None:
    """A stop kills a session that is not established; the end of the stop kills it again."""
    greenlet = bench.start()
    if stage == "attest":
        bench.peer.challenge()
    if stage == "accepted":
        bench.peer.accept()
        bench.wait("session.connected")
    else:
        bench.peer.wait_token(stage)
    for _ in range(kills):
        greenlet.kill(block=False)
    greenlet.join(5)
    assert bench.session.link.closed
    assert bench.session.tasks.join(5), "no greenlet is left behind"
    if kills == 1:
        assert bench.peer.wait_close().code == 1001, "section 14: on every exit path"


def test_killed_while_dialling(bench: Bench) -> None:
    bench.provider.gates[Stage.HANDSHAKE].clear()
    greenlet = bench.start()
    gevent.sleep(0)
    greenlet.kill()
    assert not bench.session.opened


@pytest.mark.parametrize("where", ["receive", "tick"])
def test_a_bug_costs_one_session(bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Not the agent: the next session may do better, and the operator is told."""

    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    session = bench.connect()
    monkeypatch.setattr(session.core, where, bug)
    session._rearm.set()
    bench.peer.say(encode_frame(PING, b""))
    error = bench.end()
    assert isinstance(error, SessionLost)
    assert "internal error in " in str(error)
    assert "ZeroDivisionError" in str(error)
    ((task, failure),) = bench.failures
    assert task.startswith("session s1: ")
    assert isinstance(failure, ZeroDivisionError)
    bench.failures.clear()


def test_a_bug_after_the_end_changes_nothing(bench: Bench) -> None:
    """What ended the session first is why it ended."""
    session = bench.connect()
    session._stop(SessionLost("first", "silent"))
    session._task_failed("ticker", ZeroDivisionError())
    assert str(bench.end()) == "first"
    bench.failures.clear()


# While it lasts --------------------------------------------------------------------------------


def test_messages_that_are_ignored_are_counted(bench: Bench) -> None:
    """Section 17, case 25."""
    bench.connect()
    bench.peer.core.wire.send_binary(b"\x07?")
    bench.peer.flush()
    ignored = bench.wait("message.ignored")
    assert "unknown kind" in ignored.what
    assert bench.context.counters.ignored_messages == 1


def test_a_stream_that_says_nothing_gets_its_credits_soon(bench: Bench) -> None:
    """Section 5.4: after a moment even without a first message; the ticker is woken for it."""
    bench.connect()
    gevent.sleep(MS)  # the ticker sleeps until the next ping by now
    user, _ = bench.open(None)
    bench.peer.wait(lambda: user.credit_calls)


def test_draining_refuses_new_streams_soon(bench: Bench) -> None:
    """Section 15: also those that say nothing; the others go on."""
    session = bench.connect()
    old, local = bench.open(b"before")
    bench.wait("stream.connected")
    session.drain()
    gevent.sleep(MS)
    new = bench.peer.open(None)
    bench.peer.wait(lambda: new.reason)
    assert new.reason == "shutdown"
    assert local.recv(100) == b"before"
    local.send(b"after")
    bench.peer.wait(lambda: old.data)
    assert old.data == b"after"
    assert session.established


def test_a_probe_finds_a_dead_path_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8.2: after a network change."""
    monkeypatch.setattr("nexusg.protocol.liveness.PROBE_S", 5 * MS)
    session = bench.connect()
    bench.peer.core.answers_pings = False
    session.probe()
    assert bench.end().code == "silent"


def test_a_probe_of_a_living_path_changes_nothing(bench: Bench) -> None:
    session = bench.connect()
    before = session.link.bytes_in
    session.probe()
    bench.until(lambda: session.link.bytes_in > before)
    assert session.established


def test_health_settings_reach_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7: the relay has forgotten the stream and does not say so."""
    monkeypatch.setattr("nexusg.protocol.liveness.FLOOR_S", MS)
    checks = HealthChecks(inactivity_timeout_s=5 * MS, pong_timeout_s=5 * MS)
    backend = Backend("web", hostnames=("app.example.com",), health_checks=checks)
    bench = Bench(monkeypatch, backend=backend)
    bench.connect()
    bench.peer.core.answers_health = False
    bench.open(b"x")
    keep_alive = Greenlet.spawn(talk, bench)
    closed = bench.wait("stream.closed")
    keep_alive.kill()
    assert (closed.reason, closed.ended_by) == ("timeout", "agent")
    bench.stop()


def talk(bench: Bench) -> None:
    """Signs of life from the relay."""
    while True:
        bench.peer.core.wire.send_ping()
        bench.peer.flush()
        gevent.sleep(2 * MS)


def test_the_relay_may_be_asked_for_connections_while_it_is_open(bench: Bench) -> None:
    """Section 11.3; the rest is in test_outbound.py."""
    assert not bench.session.takes_outbound
    session = bench.connect()
    assert session.takes_outbound
    opened = []

    def open_stream(stream: Any) -> Local:
        opened.append(stream)
        return Local(stream, takes=False)

    session.connect_outbound("db.example.com:5432", open_stream)
    (stream,) = opened
    assert stream.target_addr == "db.example.com:5432"
    assert uuid.UUID(bytes=stream.id).version == 4
    assert bench.context.counters.streams_opened == 1
    session.drain()
    assert session.established
    assert not session.takes_outbound, "new ones of either kind are refused"


def test_a_fork_disowns_what_is_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    disowned: list[bool] = []
    bench.session.forked()
    session = bench.connect()
    monkeypatch.setattr(session.link, "disown", lambda: disowned.append(True))
    session.forked()
    assert disowned == [True]


# Closing ---------------------------------------------------------------------------------------


def test_a_relay_that_does_not_answer_the_close_frame(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a moment, not more."""
    monkeypatch.setattr(session_module, "GOODBYE_S", 10 * MS)
    session = bench.connect()
    monkeypatch.setattr(bench.peer.core, "receive", lambda *_: [])
    session.close("stopping")
    assert bench.end() is None


def test_a_relay_that_answers_the_close_frame_by_hanging_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is nothing to wait for."""
    monkeypatch.setattr(session_module, "GOODBYE_S", 60)
    session = bench.connect()
    closing = Greenlet.spawn(session.close, "stopping")
    bench.peer.wait(lambda: bench.peer.core.wire.close_received)
    bench.peer.hang_up()
    closing.get(timeout=5)
    assert bench.end() is None


def test_closing_twice(bench: Bench) -> None:
    session = bench.connect()
    gevent.joinall([Greenlet.spawn(session.close, "stopping") for _ in range(2)], timeout=5)
    assert bench.end() is None
    session.close("again")


class Endless:
    """A local service that always has something to say, and takes everything."""

    name = "endless"

    def __init__(self) -> None:
        self.reads = 0

    def try_send(self, data: bytes) -> int:
        return len(data)

    def try_read(self, limit: int) -> bytes:
        self.reads += 1
        assert self.reads < 100_000, "nobody else gets a turn"
        return bytes(limit)

    def unsent_bytes(self) -> int:
        return 0

    def shutdown_write(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("end", ["relay", "protocol", "agent"])
def test_a_talkative_service_does_not_hold_up_the_end(bench: Bench, end: str) -> None:
    """After a close frame nothing it says can be sent, so it must not be asked."""
    session = bench.connect()
    bench.open(b"", target=Endless(), credits=0)
    bench.wait("stream.connected")
    if end == "relay":
        bench.peer.say_close(1012)
    elif end == "protocol":
        bench.peer.say(GARBAGE)
    else:
        for pump in list(bench.context.pumps):
            pump.finish(Reason.SHUTDOWN, "agent", "")
        session.close("stopping")
    bench.end()


@pytest.fixture
def attested(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A session whose settings speak of attestation."""
    attestation = Attestation(timeout_s=3, hmac_secret=None)
    bench = Bench(monkeypatch, backend=Backend("web", hostnames=("a.b",), attestation=attestation))
    yield bench
    bench.stop()


def test_the_configured_time_is_for_the_handshake(attested: Bench) -> None:
    attested.connect()
    assert [seconds for _, seconds in attested.provider.requests] == [3, 9]


def test_a_reauth_is_answered(bench: Bench) -> None:
    """Section 3.2; the rest is in test_reauth.py."""
    bench.connect()
    bench.peer.reauth("r" * 43)
    assert bench.peer.wait_token("reauth") == "reauth token"


def names(events: list[Any]) -> list[str]:
    """What happened, in order."""
    return [event.name() for event in events]


def test_events_come_in_order(bench: Bench) -> None:
    bench.connect()
    _, local = bench.open(b"x")
    bench.wait("stream.connected")
    local.close()
    bench.wait("stream.closed")
    assert names(bench.events) == ["session.connected", "stream.connected", "stream.closed"]
