"""Several services behind one route: they share the users, die under them, and come back."""

from __future__ import annotations

import hashlib
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, joinall, socket
from gevent.server import StreamServer

from nexusg.agent.health import HealthCheck
from nexusg.config.model import Destination, TargetHealth
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, read_to_end
from tests.support.running import HEAD, Running, WatchedAgent, read_exactly
from tests.support.services import PIECE_BYTES, Sink, echo, hold


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nexusg.agent.stats import TargetStats
    from tests.support.services import Service


class Place:
    """A unix socket where a service can be started, killed and started again."""

    def __init__(self, path: Path, serve: Callable[[Any], object] = echo) -> None:
        self.path = path
        self.target = f"unix:{path}"
        self._serve = serve
        self._open: set[Any] = set()
        self._server: StreamServer | None = None

    def start(self) -> Place:
        """Listen there, from now on."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(64)
        self._server = StreamServer(listener, self._run)
        self._server.start()
        return self

    def kill(self) -> None:
        """End it, and every connection with it. Blocks."""
        if self._server is not None:
            self._server.stop(timeout=0)
            for sock in list(self._open):
                sock.close()
            self._server = None

    def _run(self, sock: Any, _: object) -> None:
        self._open.add(sock)
        try:
            self._serve(sock)
        except OSError:  # the agent has ended it
            pass
        finally:
            sock.close()
            self._open.discard(sock)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks follow upon each other, and are patient."""
    monkeypatch.setattr(HealthCheck, "_pause_s", lambda _: 20 * MS)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only users find out what is down."""
    monkeypatch.setattr(HealthCheck, "run", lambda _: None)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    """Two services that echo."""
    with ExitStack() as stack:
        two = Place(tmp_path / "a"), Place(tmp_path / "b")
        for place in two:
            stack.callback(place.start().kill)
        yield two


def both(services: Sequence[Place | Service], **settings: Any) -> Destination:
    """A destination whose targets these are."""
    return Destination(targets=tuple(one.target for one in services), **settings)


def figures(agent: WatchedAgent, target: str) -> TargetStats:
    """What is known of one target."""
    return next(one for one in agent.stats().targets if one.target == target)


def served_by(agent: WatchedAgent) -> list[str]:
    """Where the streams went, in their order."""
    return [event.target for event in agent.named("stream.connected")]


# Sharing ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_two_services_share_the_users(running: Running) -> None:
    """Each gets as many, whoever comes when."""
    relay = running.relay()
    services = [running.service(hold) for _ in range(2)]
    agent = running.connected(relay, target=both(services))
    users = [running.user(relay) for _ in range(10)]
    agent.wait("stream.connected", 10)
    assert [one.streams for one in agent.stats().targets] == [5, 5]
    gone = services[0].target
    for event, user in zip(list(agent.named("stream.connected")), users, strict=True):
        if event.target == gone:
            user.close()
    agent.wait("stream.closed", 5)
    assert figures(agent, gone).streams == 0
    for _ in range(5):
        running.user(relay)
    agent.wait("stream.connected", 15)
    assert served_by(agent)[10:] == [gone] * 5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dialling", [False, True], ids=["connected", "dialling"])
@pytest.mark.parametrize("end", ["lost", "stopped"])
def test_nothing_is_counted_of_what_has_ended(
    running: Running,
    places: tuple[Place, Place],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    dialling: bool,
) -> None:
    """The session was lost or the agent stopped, during a dial too."""
    relay = running.relay()
    targets = both(places)
    agent = running.connected(relay, target=targets)
    if dialling:
        monkeypatch.setattr("nexusg.agent.connector.dial", lambda *_: gevent.sleep(AMPLE_S))
    for _ in range(4):
        running.user(relay)
    agent.wait_until(lambda: [one.streams for one in agent.stats().targets] == [2, 2])
    if not dialling:
        agent.wait("stream.connected", 4)
    if end == "lost":
        relay.drop_agents()
    else:
        agent.stop(0)
    agent.wait("stream.closed", 4)
    agent.wait_until(lambda: not len(agent._context.tasks))
    assert [one.streams for one in agent.stats().targets] == [0, 0]


# Dying -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_one_is_killed_and_no_user_fails(running: Running, places: tuple[Place, Place]) -> None:
    """They come all the time; those that are connected to it lose their connection, of course."""
    relay = running.relay()
    targets = both(places)
    agent = running.connected(relay, target=targets)
    talks = []
    for number in range(40):
        if number == 15:
            places[0].kill()
        text = b"user %d" % number
        talks.append((text, Greenlet.spawn(running.talk, relay, text)))
        talks[-1][1].join(0.002)
        if number == 14:  # so that none of them is connected to it
            joinall([talk for _, talk in talks], timeout=AMPLE_S)
    joinall([talk for _, talk in talks], timeout=AMPLE_S, raise_error=True)
    assert [talk.value for _, talk in talks] == [text for text, _ in talks]
    agent.wait("stream.closed", 40)
    assert agent.stats().streams_closed == {"normal": 40}
    assert served_by(agent)[15:] == [places[1].target] * 25
    assert set(served_by(agent)[:15]) == {one.target for one in places}


def test_checks_find_out_before_the_users(running: Running, places: tuple[Place, Place]) -> None:
    """One event for the death, one for the recovery, and the users are back."""
    relay = running.relay()
    agent = running.connected(relay, target=both(places))
    places[0].kill()
    down = agent.wait("target.down")
    assert (down.backend, down.target, down.streams) == ("web", places[0].target, 0)
    assert "cannot connect to" in down.error
    assert not figures(agent, places[0].target).up
    assert running.talk(relay, b"hello") == b"hello"
    agent.wait("stream.closed")
    places[0].start()
    up = agent.wait("target.up")
    assert up.target == places[0].target
    assert up.down_s > 0
    users = [running.user(relay) for _ in range(4)]
    for user in users:
        read_exactly(user, len(HEAD))
    assert [one.streams for one in agent.stats().targets] == [2, 2]
    assert (len(agent.named("target.down")), len(agent.named("target.up"))) == (1, 1)
    assert agent.stats().dial_failures == 0


def test_all_are_down_and_one_comes_back(running: Running, places: tuple[Place, Place]) -> None:
    """The user sees a close, the operator both names; no restart of the agent is needed."""
    relay = running.relay()
    agent = running.connected(relay, target=both(places))
    for place in places:
        place.kill()
    agent.wait("target.down", 2)
    assert read_to_end(running.user(relay, b"hello")) == b""
    closed = agent.wait("stream.closed")
    assert (closed.reason, closed.target) == ("dial_failed", "")
    assert closed.error.startswith("no target could be reached: target unix:")
    assert all(place.target in closed.error for place in places)
    places[1].start()
    assert running.talk(relay, b"hello") == b"hello"  # also if no check has noticed yet
    agent.wait("target.up")
    assert served_by(agent) == [places[1].target]


def test_a_service_that_is_unfit(running: Running) -> None:
    """It accepts connections, but says of itself that it is not to be used."""

    def unfit(sock: Any) -> None:
        sock.recv(PIECE_BYTES)
        sock.sendall(b"HTTP/1.1 503 No\r\nConnection: close\r\n\r\n")

    def fit(sock: Any) -> None:
        data = sock.recv(PIECE_BYTES)
        checked = data.startswith(b"GET /healthz ")
        sock.sendall(b"HTTP/1.1 204 OK\r\n\r\n" if checked else data)

    relay = running.relay()
    services = [running.service(unfit), running.service(fit)]
    targets = both(services, health=TargetHealth("/healthz"))
    agent = running.connected(relay, target=targets)
    down = agent.wait("target.down")
    assert down.error == f"target {services[0].target}: GET /healthz was answered with 503"
    for number in range(6):
        assert running.talk(relay, b"%d" % number) == b"%d" % number
    assert served_by(agent) == [services[1].target] * 6


def test_stopping_ends_the_checks(running: Running, places: tuple[Place, Place]) -> None:
    """At once, also while streams are let finish."""
    relay = running.relay()
    agent = running.connected(relay, target=both(places))
    user = running.user(relay)
    agent.wait("stream.connected")
    stop = Greenlet.spawn(agent.stop)
    agent.wait("agent.stopping")
    agent.wait_until(lambda: all(task.ready() for task in agent._checks))
    assert len(agent._checks) == 1
    assert not stop.ready()
    user.close()
    stop.join()
    assert agent.events[-1].name() == "agent.stopped"


# Early data ------------------------------------------------------------------------------------


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A target that neither accepts nor refuses: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with ExitStack() as stack:
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            gevent.sleep(0)
            yield "{}:{}".format(*address)


@pytest.mark.usefixtures("unchecked")
def test_what_users_send_meanwhile_is_kept(running: Running, black_hole: str) -> None:
    """The first target is silent, the second is not there, the third gets every byte, once."""
    data, sink = random.Random(1).randbytes(1024 * 1024), Sink()
    relay = running.relay()
    service = running.service(sink)
    targets = Destination(
        targets=(black_hole, "unix:/nowhere", service.target), connect_timeout_s=0.1
    )
    agent = running.connected(relay, target=targets)
    user = running.user(relay, data)
    user.shutdown(socket.SHUT_WR)
    assert sink.ended.wait(AMPLE_S)
    assert sink.digest == hashlib.sha256(HEAD + data).digest()
    closed = agent.wait("stream.closed")
    assert (closed.reason, closed.target) == ("normal", service.target)
    assert closed.bytes_in == len(HEAD + data)
    assert agent.named("stream.connected")[0].took_s >= 0.1
