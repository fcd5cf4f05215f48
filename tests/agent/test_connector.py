"""From a stream to its local service: handlers, mappings, and everything that can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket

from nexusg.agent import connector as connector_module
from nexusg.agent.connector import Connector
from nexusg.config.model import Backend, PortMapping
from nexusg.errors import NoRoute, TargetError
from nexusg.targets.memory import MemorySocket, memory_pair
from nexusg.targets.sockets import SocketTarget
from nexusg.targets.udp import UdpTarget
from tests.conftest import MS
from tests.support.pair import Pair
from tests.support.services import Service, echo


if TYPE_CHECKING:
    from collections.abc import Iterator

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
    return Connector(backend, handlers, bytearray(1024))


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
    target = Connector(backend, (), bytearray(1024)).connect_flow(flow)
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


# Time ------------------------------------------------------------------------------------------


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
