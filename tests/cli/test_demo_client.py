"""The client against the service, without a tunnel between them."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING

import pytest
from gevent.server import StreamServer

from nexusg.cli.demo_client import FAILURES, echo, fetch
from nexusg.cli.demo_service import DemoService
from nexusg.cli.example import HOSTNAME


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def service(certificates: tuple[Path, Path]) -> Iterator[DemoService]:
    with DemoService(certificates[1]) as service:
        yield service


def port(place: str) -> int:
    return int(place.rpartition(":")[2])


def test_the_page_by_http(service: DemoService) -> None:
    reply = fetch(HOSTNAME, port(service.http))
    assert reply.status == "200 OK"
    assert f"<b>{HOSTNAME}:{port(service.http)}</b>" in reply.body
    assert 0 < reply.took_s < 5


def test_the_page_by_tls(service: DemoService, certificates: tuple[Path, Path]) -> None:
    reply = fetch(HOSTNAME, port(service.tls), certificates[0])
    assert (reply.status, "It works" in reply.body) == ("200 OK", True)


def test_the_certificate_is_verified(service: DemoService, certificates: tuple[Path, Path]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        fetch("elsewhere.test", port(service.tls), certificates[0])


def test_the_echo(service: DemoService) -> None:
    assert echo(HOSTNAME, port(service.http), "hello ☃") == "hello ☃"


@pytest.mark.parametrize("ask", [fetch, partial(echo, text="hello")])
def test_an_answer_that_is_not_http(ask: Callable[[str, int], object]) -> None:
    server = StreamServer(("127.0.0.1", 0), lambda sock, _: sock.sendall(b"220 mail.test\r\n"))
    server.start()
    try:
        with pytest.raises(FAILURES):
            ask(HOSTNAME, server.server_port or 0)
    finally:
        server.stop()
