"""A backend's SOCKS5 listener: when it listens, which session it asks, and when it stops."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest

from nexusg.agent import socks as module
from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.socks import SocksService
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Backend, Config, Socks5Auth
from nexusg.config.secret import Secret
from nexusg.outbound.server import Socks5Server
from nexusg.outbound.socks5 import Reply
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.agent.lifecycle import LifecycleEvent

AMPLE_S = 5.0
ASKING = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0cexample.test\x01\xbb"


class FakeCore:
    def __init__(self, streams: int) -> None:
        self.streams = dict.fromkeys(range(streams))


class FakeSession:
    """A session that refuses every request, and keeps what it was asked."""

    def __init__(self, *, streams: int = 0, ready: bool = True) -> None:
        self.core = FakeCore(streams)
        self.takes_outbound = ready
        self.asked: list[str] = []

    def connect_outbound(self, target: str, open_stream: Any) -> None:
        """As in a real one."""
        self.asked.append(target)
        assert open_stream.args == (self,)
        open_stream.keywords["client"].refuse(Reply.REFUSED)


class FakeSlot:
    def __init__(self, session: FakeSession | None) -> None:
        self.session = session


class Bench:
    """A service, its sessions, and what it tells."""

    def __init__(
        self, *sessions: FakeSession | None, worker: int | None = None, **backend: Any
    ) -> None:
        usual: dict[str, Any] = {"name": "web", "socks5_listen_addr": "127.0.0.1:0"}
        self.events: list[LifecycleEvent] = []
        self.failures: list[BaseException] = []
        self.tasks = Tasks("agent", self._failed)
        self.context = Context(
            config=Config(),
            budget=Budget(1),
            tasks=Tasks("streams", self._failed),
            emit=self.events.append,
            task_failed=self._failed,
            worker=worker,
        )
        slots = cast("Any", [FakeSlot(session) for session in sessions])
        made = Backend(**{**usual, **backend})
        self.service = SocksService(self.context, made, slots, self.tasks)

    def wait(self, name: str) -> Any:
        """The first event of this name. Blocks."""
        with gevent.Timeout(AMPLE_S, AssertionError(f"no {name} in {self.events}")):
            while not self.named(name):
                gevent.sleep(MS)
        return self.named(name)[0]

    def named(self, name: str) -> list[Any]:
        """The events of one name so far."""
        return [event for event in self.events if event.name() == name]

    def listening(self) -> int:
        """Its port, once it listens. Blocks."""
        return int(self.wait("socks.listening").address.rpartition(":")[2])

    def request(self, first: bytes = ASKING) -> bytes:
        """All that a program gets that says ``first``. Blocks."""
        with socket.create_connection(("127.0.0.1", self.listening()), AMPLE_S) as sock:
            sock.sendall(first)
            data = b""
            while piece := sock.recv(100):
                data += piece
            return data

    def stop(self) -> None:
        self.service.stop()
        assert self.tasks.kill(1)
        assert self.context.tasks.kill(1)
        assert not self.failures, self.failures

    def _failed(self, _task: str, error: BaseException) -> None:
        self.failures.append(error)


@pytest.fixture
def start() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def start_(*sessions: FakeSession | None, **options: Any) -> Bench:
        made.append(Bench(*sessions, **options))
        made[-1].service.start()
        return made[-1]

    yield start_
    for bench in made:
        bench.stop()


# Sessions ----------------------------------------------------------------------------------------


def test_the_session_with_the_fewest_streams_is_asked(start: Any) -> None:
    """Those that are down, or draining, are not."""
    busy, free = FakeSession(streams=3), FakeSession(streams=1)
    draining = FakeSession(ready=False)
    bench = start(None, busy, draining, free)
    assert bench.request() == b"\x05\x00" + Reply.REFUSED.message
    assert [one.asked for one in (busy, draining, free)] == [[], [], ["example.test:443"]]
    assert bench.wait("socks.listening").backend == "web"


def test_no_session(start: Any) -> None:
    bench = start(None, FakeSession(ready=False))
    assert bench.request() == b"\x05\x00" + Reply.FAILURE.message
    event = bench.wait("outbound.refused")
    assert event.client.startswith("127.0.0.1:")
    assert (event.target, event.error) == (
        "example.test:443",
        "there is no session with a relay",
    )
    assert bench.context.counters.outbound_refused == 1


def test_a_client_that_is_not_understood(start: Any) -> None:
    bench = start(FakeSession())
    assert bench.request(b"GET / HTTP/1.1\r\n\r\n") == b""
    assert bench.wait("outbound.refused").error == "the client seems to speak HTTP, not SOCKS5"


def test_a_password(start: Any) -> None:
    auth = Socks5Auth("me", Secret("hunter2"))
    bench = start(FakeSession(), socks5_auth=auth)
    assert bench.request() == b"\x05\xff"
    login = b"\x05\x01\x02\x01\x02me\x07hunter2" + ASKING[3:]
    assert bench.request(login) == b"\x05\x02\x01\x00" + Reply.REFUSED.message


# The listener ------------------------------------------------------------------------------------


def test_stop(start: Any) -> None:
    bench = start()
    port = bench.listening()
    bench.service.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), AMPLE_S)


def test_stop_before_it_has_begun(start: Any) -> None:
    bench = start()
    bench.service.stop()
    gevent.sleep(5 * MS)
    assert bench.events == []


def test_never_started() -> None:
    bench = Bench()
    bench.service.stop()
    bench.service.disown()


@pytest.mark.parametrize("address", [":0", "0.0.0.0:0", "[::]:0", "192.0.2.7:0"])
def test_open_to_others(start: Any, address: str) -> None:
    """Refused, unless there is a password, or it was asked for."""
    bench = start(socks5_listen_addr=address)
    event = bench.wait("socks.failed")
    assert "set socks5Auth, or socks5AllowOpen: true" in event.error
    assert (event.backend, event.address, event.retry_in_s) == ("web", address, None)


@pytest.mark.parametrize(
    "backend",
    [{"socks5_allow_open": True}, {"socks5_auth": Socks5Auth("u", Secret("p"))}],
    ids=["asked for", "password"],
)
def test_open_on_purpose(start: Any, backend: dict[str, Any]) -> None:
    assert start(socks5_listen_addr=":0", **backend).listening()


def test_no_address(start: Any) -> None:
    event = start(socks5_listen_addr="nowhere", socks5_allow_open=True).wait("socks.failed")
    assert event.error.startswith("cannot listen: 'nowhere' is not")
    assert event.retry_in_s is None


def test_a_port_that_comes_free(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is reported once, however often it is tried."""
    monkeypatch.setattr(module, "RETRY_S", 4 * MS)
    monkeypatch.setattr(module, "MAX_RETRY_S", 5 * MS)
    attempts = []
    real_start = Socks5Server.start

    def counted(self: Socks5Server) -> str:
        attempts.append(self)
        return real_start(self)

    monkeypatch.setattr(Socks5Server, "start", counted)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bench = start(socks5_listen_addr=f"127.0.0.1:{port}")
        event = bench.wait("socks.failed")
        assert event.error.endswith("Address already in use")
        assert event.retry_in_s == 4 * MS
        while len(attempts) < 3:
            gevent.sleep(MS)
    assert bench.listening() == port
    assert len(bench.named("socks.failed")) == 1


def test_failures_to_accept(start: Any) -> None:
    bench = start()
    bench.listening()
    server = cast("Any", bench.service)._server
    server._troubled("cannot accept: Too many open files")
    assert bench.wait("socks.failed").retry_in_s == 0


def test_a_child_leaves_the_listener_to_its_parent(start: Any, tmp_path: Any) -> None:
    bench = start(socks5_listen_addr=f"unix:{tmp_path}/socks")
    bench.wait("socks.listening")
    bench.service.disown()
    assert (tmp_path / "socks").exists()


def test_workers_share_a_port(start: Any) -> None:
    port = start(worker=0).listening()
    assert start(worker=1, socks5_listen_addr=f"127.0.0.1:{port}").listening() == port
    alone = start(socks5_listen_addr=f"127.0.0.1:{port}")
    assert alone.wait("socks.failed").error.endswith("Address already in use")


def test_the_first_worker_has_the_unix_socket(start: Any, tmp_path: Any) -> None:
    address = f"unix:{tmp_path}/socks"
    second = start(worker=1, socks5_listen_addr=address)
    start(worker=0, socks5_listen_addr=address).wait("socks.listening")
    assert second.events == []
