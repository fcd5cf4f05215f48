"""Agents beside main loops, at a real relay; gunicorn's own are in tests/e2e/test_gunicorn.py."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from gevent.event import Event

from nexusg.agent.agent import Agent
from nexusg.integrations import tunnel
from nexusg.integrations.generations import Generations
from nexusg.integrations.tunnel import run_beside
from tests.conftest import MS
from tests.integrations.doubles import FakeWorker, spawn, until
from tests.support.relayed import AMPLE_S, make_token
from tests.support.running import HEAD, Running, make_config, read_exactly
from tests.support.services import echo


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.relay.server import DevRelay


class Lock:
    """Leadership over the workers of one test."""

    def __init__(self) -> None:
        self.holder: object = None
        self.fails: Exception | None = None

    def claim(self) -> Claim:
        return Claim(self)


class Claim:
    """What stands in for a `Leadership`, whose lock is one process's."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def take(self) -> bool:
        if self._lock.fails:
            raise self._lock.fails
        self._lock.holder = self._lock.holder or self
        return self._lock.holder is self

    def release(self) -> None:
        if self._lock.holder is self:
            self._lock.holder = None


class Server:
    """Workers with tunnels, at one relay."""

    def __init__(self, relay: DevRelay, make_worker: Callable[..., FakeWorker]) -> None:
        self.relay = relay
        self.generations = Generations()
        self.loops: dict[FakeWorker, Any] = {}
        self._make = make_worker

    def start(self, age: int = 1, claim: Claim | None = None, **options: Any) -> FakeWorker:
        """Run a worker. ``config`` and ``deliver`` are the tunnel's, the rest is the worker's."""
        config = options.pop("config", None) or make_config([self.relay])
        deliver = options.pop("deliver", "memory")
        worker = self._make(age, **options)
        self.generations.announce(age)
        what = worker, worker.run, config, deliver, claim, self.generations
        self.loops[worker] = spawn(run_beside, *what)
        return worker

    def connected(self, age: int = 1, claim: Claim | None = None, **options: Any) -> FakeWorker:
        """Run one, and wait for its session."""
        worker = self.start(age, claim, **options)
        until(lambda: "session.connected" in worker.log)
        return worker

    def end(self, worker: FakeWorker) -> None:
        """Wait until it has ended, as it must have begun to."""
        self.loops[worker].get(timeout=AMPLE_S)

    def stop(self, *workers: FakeWorker) -> None:
        """As a signal does."""
        for worker in workers:
            worker.alive = False

    def close(self) -> None:
        for worker, loop in self.loops.items():
            worker.alive = False
            worker.pool.kill()
            loop.kill()


@pytest.fixture
def relay(running: Running) -> DevRelay:
    return running.relay()


@pytest.fixture
def server(
    relay: DevRelay, make_worker: Callable[..., FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    for name in ("POLL_S", "LEAD_S", "BEAT_S", "RESTART_S"):
        monkeypatch.setattr(tunnel, name, 2 * MS)
    server = Server(relay, make_worker)
    yield server
    server.close()


def talk(user: Any, text: bytes = b"hello") -> None:
    user.sendall(text)
    assert read_exactly(user, len(text)) == text


def opened(running: Running, relay: DevRelay) -> Any:
    """A user who has been answered once."""
    user = running.user(relay)
    assert read_exactly(user, len(HEAD)) == HEAD
    return user


def test_a_life(running: Running, relay: DevRelay, server: Server) -> None:
    worker = server.connected()
    user = opened(running, relay)
    talk(user)
    assert worker.addresses == [user.getsockname()]
    user.close()
    until(lambda: "stream.closed" in worker.log)
    server.stop(worker)
    server.end(worker)
    assert [line.split()[2] for line in worker.log.lines if not line.startswith("debug")] == [
        "agent.started",
        "session.connected",
        "agent.stopping",
        "session.closed",
        "agent.stopped",
    ]


def test_the_streams_to_the_socket(running: Running, relay: DevRelay, server: Server) -> None:
    server.connected(deliver="socket")
    user = opened(running, relay)
    talk(user)
    user.close()


def test_the_streams_to_the_mappings(running: Running, relay: DevRelay, server: Server) -> None:
    service = running.service(echo)
    server.connected(config=make_config([relay], target=service.target), deliver="config")
    opened(running, relay).close()
    assert service.accepted == 1


def test_what_is_in_flight_ends(running: Running, relay: DevRelay, server: Server) -> None:
    """With the heart beating all the while, and without an end for a stream that looks idle."""
    config = make_config([relay])
    idle = dataclasses.replace(config.shutdown, idle_s=0.0)
    worker = server.connected(config=dataclasses.replace(config, shutdown=idle))
    user = opened(running, relay)
    server.stop(worker)
    worker.closed.wait(AMPLE_S)
    talk(user)
    late = opened(running, relay)  # is served, too
    beats = worker.beats
    until(lambda: worker.beats > beats)
    user.close()
    talk(late)
    late.close()
    server.end(worker)
    assert "agent.stopped cut=0" in worker.log


def test_the_heart_beats_until_the_agent_has_ended(
    running: Running, relay: DevRelay, server: Server
) -> None:
    """Of streams to the socket gunicorn's loop knows nothing."""
    service = Holding()
    worker = server.connected(
        config=make_config([relay], target=running.service(service).target), deliver="config"
    )
    user = running.user(relay)
    service.begun.wait(AMPLE_S)
    server.stop(worker)
    worker.closed.wait(AMPLE_S)
    beats = worker.beats
    until(lambda: worker.beats > beats + 3)
    assert not server.loops[worker].ready()
    user.close()
    service.go.set()
    server.end(worker)


class Holding:
    """A service that answers when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go = Event(), Event()

    def __call__(self, sock: Any) -> None:
        sock.recv(100)
        self.begun.set()
        self.go.wait(AMPLE_S)


def test_the_graceful_timeout_is_the_end(running: Running, relay: DevRelay, server: Server) -> None:
    worker = server.connected(graceful_timeout=40 * MS)
    user = opened(running, relay)
    server.stop(worker)
    server.end(worker)
    assert user.recv(1) == b""
    assert "agent.stopped cut=1" in worker.log


def test_a_busy_worker_refuses_some_in_the_end(
    running: Running, relay: DevRelay, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no moment without streams."""
    looked = Event()
    look = tunnel.Tunnel._streams

    def noticed(self: tunnel.Tunnel) -> set[str]:
        looked.set()
        return look(self)

    monkeypatch.setattr(tunnel.Tunnel, "_streams", noticed)
    monkeypatch.setattr(tunnel, "LULL_S", 0.0)
    worker = server.connected()
    first = opened(running, relay)
    server.stop(worker)
    looked.wait(AMPLE_S)
    second = opened(running, relay)
    first.close()
    until(lambda: "agent.stopping" in worker.log)
    assert running.user(relay).recv(1) == b""
    talk(second)
    second.close()
    server.end(worker)
    assert "agent.stopped cut=0" in worker.log


def test_a_younger_worker_takes_over(running: Running, relay: DevRelay, server: Server) -> None:
    old = server.connected(1)
    server.generations.announce(2)
    server.stop(old)
    old.closed.wait(AMPLE_S)
    opened(running, relay).close()
    assert "agent.stopping" not in old.log
    young = server.connected(2)
    server.end(old)
    opened(running, relay).close()
    assert len(young.addresses) == 1


def test_nobody_waits_for_one_who_has_gone(server: Server) -> None:
    """As when all are to stop, before some of them had a session."""
    old = server.connected(1)
    lock = Lock()
    lock.holder = object()
    young = server.start(2, lock.claim())
    server.stop(old)
    old.closed.wait(AMPLE_S)
    server.stop(young)
    server.end(young)
    server.end(old)


def test_a_leader_waits_for_nobody_who_has_gone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "SUCCESSION_S", 0.0)
    lock = Lock()
    leader, follower = server.connected(1, lock.claim()), server.start(2, lock.claim())
    until(lambda: "standing by" in follower.log)
    server.stop(follower, leader)
    server.end(follower)
    server.end(leader)
    assert "session.connect" not in follower.log


def test_siblings_wait_for_each_other_no_longer(server: Server) -> None:
    """The younger one was the first to be ready."""
    young, old = server.connected(2), server.connected(1)
    server.stop(young, old)
    server.end(young)
    server.end(old)


def test_nobody_waits_for_one_who_had_nothing(server: Server) -> None:
    """To hand over: its relay was never there."""
    unreachable = dataclasses.replace(
        make_config([server.relay]).backends[0], nexus_addresses=("ws://127.0.0.1:9/",)
    )
    config = dataclasses.replace(make_config([server.relay]), backends=(unreachable,))
    worker = server.start(config=config)
    until(lambda: "session.failed" in worker.log)
    server.generations.announce(2)
    server.stop(worker)
    server.end(worker)
    assert server.generations.takeovers == 0


def test_ready_is_who_has_tried_all_relays(
    running: Running, relay: DevRelay, server: Server
) -> None:
    """And has reached one."""
    other = running.relay()
    config = make_config([relay, other])
    addresses = (*config.backends[0].nexus_addresses, "ws://127.0.0.1:9/")
    both = dataclasses.replace(config.backends[0], nexus_addresses=addresses)
    worker = server.start(config=dataclasses.replace(config, backends=(both,)))
    until(lambda: server.generations.takeovers == 1)
    assert "session.failed" in worker.log


def test_one_leads_and_another_follows(running: Running, relay: DevRelay, server: Server) -> None:
    lock = Lock()
    leader = server.connected(2, lock.claim())
    follower = server.start(1, lock.claim())
    until(lambda: "standing by" in follower.log)
    assert "agent.started" not in follower.log
    server.stop(leader)
    server.end(leader)
    assert "session.connected" in follower.log, "the leader did not wait for it"
    opened(running, relay).close()
    assert len(follower.addresses) == 1


def test_the_last_one_waits_for_a_while(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "SUCCESSION_S", 10 * MS)
    worker = server.connected(1, Lock().claim())
    server.stop(worker)
    server.end(worker)


def test_a_worker_that_never_led(server: Server) -> None:
    lock = Lock()
    lock.holder = object()
    worker = server.start(1, lock.claim())
    until(lambda: "standing by" in worker.log)
    server.stop(worker)
    server.end(worker)
    assert "agent" not in worker.log


def test_a_lock_that_cannot_be_used(server: Server) -> None:
    """The app is served all the same."""
    lock = Lock()
    lock.fails = OSError("no locks")
    worker = server.start(1, lock.claim())
    until(lambda: "error: nexusg: no tunnel: OSError: no locks" in worker.log)
    beats = worker.beats
    until(lambda: worker.beats > beats)
    server.stop(worker)
    server.end(worker)


def test_a_configuration_that_cannot_be_used(server: Server) -> None:
    """It was read in the master; this is for what only a worker can find out."""
    worker = server.start(config=dataclasses.replace(make_config([server.relay]), backends=()))
    until(lambda: "error: nexusg: no tunnel: backends: is required" in worker.log)
    until(lambda: worker.beats)
    server.stop(worker)
    server.end(worker)


def test_a_worker_that_quits(running: Running, relay: DevRelay, server: Server) -> None:
    """By an exception out of its loop."""
    worker = server.connected()
    user = opened(running, relay)
    loop = server.loops[worker]
    loop.kill()
    assert user.recv(1) == b""
    assert "session.closed" in worker.log
    assert "agent.stopped cut=1" in worker.log


def test_a_worker_that_quits_while_it_retires(
    running: Running, relay: DevRelay, server: Server
) -> None:
    worker = server.connected()
    opened(running, relay)
    server.stop(worker)
    worker.closed.wait(AMPLE_S)
    server.loops[worker].kill()
    assert "session.closed" in worker.log


def test_an_agent_that_was_refused(running: Running, server: Server) -> None:
    """Too often: the app is still served, and the log says so."""
    config = make_config([server.relay], attestation={"hmac_secret": None, "command": "/bin/echo"})
    reconnect = dataclasses.replace(config.reconnect, give_up_after_rejections=1)
    token = make_token("the wrong one, but long enough for nobody to complain")
    attestation = dataclasses.replace(config.backends[0].attestation, args=(token,))
    backend = dataclasses.replace(config.backends[0], attestation=attestation)
    worker = server.start(
        config=dataclasses.replace(config, backends=(backend,), reconnect=reconnect)
    )
    until(lambda: "error: nexusg: no tunnel any more" in worker.log)
    beats = worker.beats
    until(lambda: worker.beats > beats)
    server.stop(worker)
    server.end(worker)
    assert token not in "".join(worker.log.lines)


def test_an_agent_that_failed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bug: it is started again."""
    agents: list[Agent] = []

    class Known(Agent):
        def start(self) -> None:
            agents.append(self)
            super().start()

    monkeypatch.setattr(tunnel, "Agent", Known)
    worker = server.connected()
    for slot in agents[0]._slots:
        assert slot.task is not None
        slot.task.kill()
    until(lambda: len(agents) == 2)
    until(lambda: sum("session.connected" in line for line in worker.log.lines) == 2)
    server.stop(worker)
    server.end(worker)
