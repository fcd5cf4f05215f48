"""From a stream to its local service: handlers, mappings, and everything that can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket

from nexusg.agent import connector as connector_module
from nexusg.agent.connect import connect_request
from nexusg.agent.connector import Connector
from nexusg.config.model import Backend, Destination, PortMapping, TlsTerminate
from nexusg.errors import NoRoute, TargetError
from nexusg.protocol.messages import Reason
from nexusg.targets.certificates import Certificates
from nexusg.targets.memory import MemorySocket, memory_pair
from nexusg.targets.sockets import SocketTarget
from nexusg.targets.terminate import TerminatedTarget
from nexusg.targets.udp import UdpTarget
from tests.conftest import MS
from tests.support.certs import Authority
from tests.support.clock import FakeClock
from tests.support.pair import Pair
from tests.support.rig import Rig
from tests.support.services import Service, echo


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.agent.connect import ConnectHandler, ConnectRequest


@pytest.fixture
def service() -> Iterator[Service]:
    """A local service that echoes."""
    with Service(echo) as service:
        yield service


def stream(**connect: Any) -> Any:
    """A stream that the relay has announced."""
    return Pair.established().open(None, **connect)[1].stream


def connector(*handlers: ConnectHandler, target: str | None = None) -> Connector:
    """A connector that asks these, the last one first, and maps port 443 to ``target``."""
    mappings = {} if target is None else {443: PortMapping(default=target)}
    backend = Backend("web", hostnames=("app.example.com",), port_mappings=mappings)
    return make(backend, *handlers)


def make(
    backend: Backend, *handlers: ConnectHandler, services: dict[str, Any] | None = None
) -> Connector:
    """A connector in a context of its own."""
    return Connector(Rig().context, backend, handlers, Certificates(), services or {})


def reaching(destination: Destination, *handlers: ConnectHandler, **options: Any) -> Connector:
    """A connector that maps port 443 to ``destination``."""
    mappings = {443: PortMapping(default=destination)}
    backend = Backend("web", hostnames=("app.example.com",), port_mappings=mappings)
    return make(backend, *handlers, **options)


@pytest.fixture
def nobody() -> Iterator[str]:
    """A target where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield "{}:{}".format(*sock.getsockname())


class Dials:
    """Stands in for ``dial``: how it was called, and what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuses = False
        monkeypatch.setattr(connector_module, "dial", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if self.refuses:
            raise TargetError(f"target {arguments[0]}: refused", "refused")
        ours, _ = memory_pair()
        ours.name = arguments[0]
        return ours

    def times(self) -> list[float]:
        """How long each dial might take."""
        return [arguments[4] for arguments in self.calls]


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Dials:
    return Dials(monkeypatch)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ConnectRequest]:
    """The requests that were made."""
    made: list[ConnectRequest] = []

    def make_one(*arguments: Any) -> ConnectRequest:
        made.append(connect_request(*arguments))
        return made[-1]

    monkeypatch.setattr(connector_module, "connect_request", make_one)
    return made


def unused(_: ConnectRequest) -> Any:
    """A handler that leaves the stream to others."""
    raise NoRoute("not mine")


# Mappings --------------------------------------------------------------------------------------


def test_a_mapped_stream(service: Service) -> None:
    target = connector(target=service.target).connect(stream())
    assert target.name == service.target
    assert target.send(b"hello") == 5
    target.wait_readable()
    data = target.try_read(100)
    assert data is not None
    assert bytes(data) == b"hello"
    target.close()


def test_without_a_mapping() -> None:
    with pytest.raises(NoRoute, match=r"no mapping for port 8443, host 'app\.example\.com'"):
        connector(target="127.0.0.1:9").connect(stream(conn_port=8443))


def test_a_mapped_flow() -> None:
    """Its route key is no host name, but may stand among them (section 10.6)."""
    flow = stream(transport="udp", hostname="udp:443", conn_port=443)
    target = connector(target="127.0.0.1:9").connect_flow(flow)
    assert (type(target), target.name) == (UdpTarget, "127.0.0.1:9")
    target.close()
    mapping = PortMapping(default="127.0.0.1:9", hosts={"udp:443": "localhost:10"})
    backend = Backend("web", port_mappings={443: mapping})
    target = make(backend).connect_flow(flow)
    assert target.name == "localhost:10"
    target.close()
    with pytest.raises(NoRoute, match="no mapping for port 443, host 'udp:443'"):
        connector().connect_flow(flow)
    with pytest.raises(TargetError, match="a UDP flow needs host:port"):
        connector(target="unix:/run/x").connect_flow(flow)


def test_nobody_listens() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(TargetError) as caught:
            connector(target=f"127.0.0.1:{port}").connect(stream())
    assert caught.value.code == "refused"


# Handlers --------------------------------------------------------------------------------------


def test_a_handler_is_told_who_is_there() -> None:
    requests = []
    ours, theirs = memory_pair()

    def handler(request: ConnectRequest) -> MemorySocket:
        requests.append(request)
        return ours

    assert connector(handler).connect(stream(hostname="App.Example.com")) is ours
    (request,) = requests
    assert (request.backend, request.hostname) == ("web", "app.example.com")
    theirs.close()


def test_a_handler_may_return_a_socket() -> None:
    """It becomes the agent's."""
    ours, theirs = socket.socketpair()
    target = connector(lambda _: ours).connect(stream())
    assert isinstance(target, SocketTarget)
    assert target.name == "handler:<lambda>"
    target.send(b"x")
    assert theirs.recv(10) == b"x"
    target.close()
    assert theirs.recv(10) == b""
    theirs.close()


def test_an_object_may_be_a_handler() -> None:
    class Handler:
        def __call__(self, _: ConnectRequest) -> object:
            return ours

    ours, theirs = socket.socketpair()
    target = connector(Handler()).connect(stream())
    assert target.name == "handler:Handler"
    target.close()
    theirs.close()


@pytest.mark.parametrize("handler", [unused, lambda _: None], ids=["NoRoute", "None"])
def test_a_handler_may_leave_it_to_the_mapping(service: Service, handler: ConnectHandler) -> None:
    target = connector(handler, target=service.target).connect(stream())
    assert target.name == service.target
    target.close()


def test_handlers_stack() -> None:
    """Section 13: the last one is asked first, and the first answer counts."""
    asked = []
    ours, _ = memory_pair()

    def named(name: str, answer: object) -> ConnectHandler:
        def handler(_: ConnectRequest) -> object:
            asked.append(name)
            return answer

        return handler

    handlers = [named("a", None), named("b", ours), named("c", None), unused]
    assert connector(*handlers).connect(stream()) is ours
    assert asked == ["c", "b"]


def test_a_falsy_connection_is_a_connection() -> None:
    """What counts is that it is there: it may be a container as well, and empty."""

    class Empty(MemorySocket):
        __slots__ = ()

        def __len__(self) -> int:
            return 0

    ours, _ = memory_pair()
    target = Empty(ours._outbound, ours._inbound)
    assert connector(lambda _: target).connect(stream()) is target


def test_a_handler_that_fails() -> None:
    """Section 13: any other error is a failed dial, and the operator is told which."""

    def handler(_: ConnectRequest) -> object:
        raise KeyError("database")

    with pytest.raises(TargetError, match="KeyError: 'database'") as caught:
        connector(handler, target="127.0.0.1:9").connect(stream())
    assert caught.value.code == "handler"
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_handler_may_raise_our_errors() -> None:
    error = TargetError("the pool is exhausted", "timeout")

    def handler(_: ConnectRequest) -> object:
        raise error

    with pytest.raises(TargetError) as caught:
        connector(handler).connect(stream())
    assert caught.value is error


@pytest.mark.parametrize("nonsense", [42, "127.0.0.1:80", object(), ()], ids=repr)
def test_a_handler_that_returns_nonsense(nonsense: object) -> None:
    with pytest.raises(TargetError, match="the connect handler returned") as caught:
        connector(lambda _: nonsense).connect(stream())
    assert caught.value.code == "handler"


def test_a_handler_serves_a_flow_with_a_datagram_socket() -> None:
    requests: list[ConnectRequest] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def handler(request: ConnectRequest) -> object:
        requests.append(request)
        return ours

    target = connector(handler).connect_flow(stream(transport="udp", hostname="udp:443"))
    assert isinstance(target, UdpTarget)
    assert [(one.transport, one.original_hostname) for one in requests] == [("udp", "udp:443")]
    assert target.try_send(b"x")
    assert theirs.recv(10) == b"x"
    target.close()
    theirs.close()
    ours, theirs = memory_pair()
    with pytest.raises(TargetError, match="a connected datagram socket is wanted"):
        connector(lambda _: ours).connect_flow(stream(transport="udp"))


# Several targets -------------------------------------------------------------------------------


def test_one_after_the_other(dials: Dials) -> None:
    """The name in logs is that of the target that serves the stream."""
    to = reaching(Destination(targets=("a:1", "b:1")))
    streams = [stream() for _ in range(3)]
    assert [to.connect(one).name for one in streams] == ["a:1", "b:1", "a:1"]
    assert [one.streams for one in to.pools.stats()] == [2, 1]
    for one in streams:
        to.release(one)
        to.release(one)
    to.release(stream())
    assert [one.streams for one in to.pools.stats()] == [0, 0]


def test_from_one_that_is_not_there_to_the_next(service: Service, nobody: str) -> None:
    to = reaching(Destination(targets=(nobody, service.target)))
    one = stream()
    target = to.connect(one)
    assert target.name == service.target
    assert [counted.streams for counted in to.pools.stats()] == [0, 1]
    target.close()
    to.release(one)


def test_none_is_there(nobody: str) -> None:
    to = reaching(Destination(targets=(nobody, "unix:/nowhere")))
    with pytest.raises(TargetError) as caught:
        to.connect(stream())
    assert caught.value.code == "refused"
    assert f"target {nobody}: cannot connect" in str(caught.value)
    assert "target unix:/nowhere: cannot connect" in str(caught.value)


def test_a_stream_that_has_ended_when_it_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its release has gone by, so it must not be counted."""
    one, to = stream(), reaching(Destination(targets=("a:1", "b:1")))

    def dial(*_: Any) -> Any:
        one.abort(Reason.SHUTDOWN)
        to.release(one)
        return memory_pair()[0]

    monkeypatch.setattr(connector_module, "dial", dial)
    to.connect(one)
    assert [counted.streams for counted in to.pools.stats()] == [0, 0]


def test_a_flow_goes_to_the_first() -> None:
    flow = stream(transport="udp", hostname="udp:443")
    target = reaching(Destination(targets=("127.0.0.1:9", "127.0.0.1:10"))).connect_flow(flow)
    assert target.name == "127.0.0.1:9"
    target.close()


# What is done on the way -----------------------------------------------------------------------


def test_a_request_is_made_when_it_is_needed(dials: Dials, requests: list[ConnectRequest]) -> None:
    reaching(Destination(targets=("a:1",))).connect(stream())
    assert requests == []
    reaching(Destination(targets=("a:1",), proxy_protocol="v2")).connect(stream())
    assert [one.client_ip for one in requests] == ["192.0.2.7"]
    reaching(Destination(targets=("a:1",), proxy_protocol="v2"), unused).connect(stream())
    assert len(requests) == 2
    assert [call[2] for call in dials.calls] == [None, *requests]


def test_an_application_of_this_process(requests: list[ConnectRequest]) -> None:
    """It is told of the TLS that is ended in front of it."""
    calls: list[tuple[ConnectRequest, bool]] = []
    ours, _ = memory_pair()

    class App:
        def connect(self, request: ConnectRequest, spawn: Callable[..., object], tls: bool) -> Any:
            assert spawn("wsgi", lambda: None)
            calls.append((request, tls))
            return ours

    to = reaching(Destination(targets=("wsgi:shop:app",)), services={"wsgi:shop:app": App()})
    assert to.connect(stream()) is ours
    assert calls == [(requests[0], False)]
    to._context.tasks.join(1)


def test_tls_is_ended_in_front_of_any_target(dials: Dials, tmp_path: Path) -> None:
    certificate = Authority(tmp_path).issue()
    how = TlsTerminate(cert_file=str(certificate))
    to = reaching(Destination(targets=("a:1", "b:1"), tls_terminate=how))
    one = stream()
    target = to.connect(one)
    assert isinstance(target, TerminatedTarget)
    assert target.name == "a:1"
    assert [counted.streams for counted in to.pools.stats()] == [1, 0]
    target.close()
    to.release(one)
    assert [counted.streams for counted in to.pools.stats()] == [0, 0]


def test_tls_cannot_be_ended(service: Service) -> None:
    how = TlsTerminate(cert_file="nowhere.pem")
    to = reaching(Destination(targets=(service.target,), tls_terminate=how))
    with pytest.raises(TargetError, match=r"nowhere\.pem"):
        to.connect(stream())
    service.wait_open(0)


# Time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked_s", "allowed_s"), [(0, 10), (3, 3), (10, 10), (30, 30)])
def test_a_single_target_gets_what_is_set(dials: Dials, asked_s: float, allowed_s: float) -> None:
    to = Destination(targets=("a:1",), connect_timeout_s=asked_s)
    reaching(to).connect(stream())
    assert dials.times() == [allowed_s]


@pytest.mark.parametrize(
    ("asked_s", "allowed_s"), [(10, [5, 10]), (2, [2, 2]), (7, [5, 7]), (30, [15, 30])]
)
def test_of_several_each_gets_a_share(dials: Dials, asked_s: float, allowed_s: list[float]) -> None:
    dials.refuses = True
    to = Destination(targets=("a:1", "b:1"), connect_timeout_s=asked_s)
    with pytest.raises(TargetError):
        reaching(to).connect(stream())
    assert dials.times() == allowed_s


@pytest.mark.parametrize(("asked_s", "allowed_s"), [(10, 6), (3, 3), (30, 26)])
def test_what_handlers_take_is_missing(dials: Dials, asked_s: float, allowed_s: float) -> None:
    """It is one time for everything (section 6.2)."""
    clock = FakeClock()
    to = reaching(
        Destination(targets=("a:1",), connect_timeout_s=asked_s),
        lambda _: clock.advance(4) and None,
    )
    to._context.clock = clock
    to.connect(stream())
    assert dials.times() == [pytest.approx(allowed_s)]


@pytest.mark.parametrize(("took_s", "allowed_s"), [(0, 10), (4, 6), (99, 0)])
def test_a_flow_gets_what_is_left(
    monkeypatch: pytest.MonkeyPatch, took_s: float, allowed_s: float
) -> None:
    times: list[float] = []
    monkeypatch.setattr(connector_module, "dial_udp", lambda *call: times.append(call[2]))
    clock = FakeClock()
    to = reaching(Destination(targets=("a:1",)), lambda _: clock.advance(took_s) and None)
    to._context.clock = clock
    to.connect_flow(stream(transport="udp"))
    assert times == [allowed_s]


def test_a_handler_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that catches every Exception: the limit is none."""
    monkeypatch.setattr(connector_module, "CONNECT_TIMEOUT_S", 5 * MS)

    def stubborn(_: ConnectRequest) -> object:
        try:
            gevent.sleep(5)
        except Exception:
            gevent.sleep(5)
        return None

    with pytest.raises(TargetError, match="not connected within") as caught:
        connector(stubborn, target="127.0.0.1:9").connect(stream())
    assert caught.value.code == "timeout"


def test_a_timeout_of_the_handlers_own_is_its_failure() -> None:
    """It is not mistaken for ours."""

    def handler(_: ConnectRequest) -> object:
        raise TimeoutError("the database is slow")

    with pytest.raises(TargetError, match="the database is slow") as caught:
        connector(handler).connect(stream())
    assert caught.value.code == "handler"
