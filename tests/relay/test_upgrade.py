from __future__ import annotations

import pytest
import wsproto
from wsproto.events import AcceptConnection, RejectConnection, Request

from nexusg.relay import upgrade
from tests.support.relayed import UPGRADE


def test_the_example_of_the_rfc() -> None:
    upgraded, response = upgrade.answer(UPGRADE)
    assert upgraded
    assert response.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in response
    assert response.endswith(upgrade.END_OF_HEAD)


@pytest.mark.parametrize(
    ("target", "accepted"),
    [("/connect", True), ("/connect?x=1", True), ("/connect/", False), ("/", False)],
)
def test_an_independent_client_agrees(target: str, accepted: bool) -> None:
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    request = client.send(Request(host="localhost", target=target))
    upgraded, response = upgrade.answer(request)
    client.receive_data(response)
    event = next(client.events())
    assert upgraded is accepted
    assert isinstance(event, AcceptConnection if accepted else RejectConnection)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"GET /connect HTTP/1.1", b"nonsense", 400),
        (b"HTTP/1.1", b"HTTP/2.0", 400),
        (b"/connect", b"/mesh", 404),
        (b"GET", b"POST", 405),
        (b"Upgrade: websocket", b"Upgrade: h2c", 426),
        (b"Upgrade: websocket\r\n", b"", 426),
        (b"Version: 13", b"Version: 8", 426),
        (b"Connection: Upgrade", b"Connection: close", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"\xff", 400),
    ],
)
def test_refusals(old: bytes, new: bytes, status: int) -> None:
    assert old in UPGRADE
    upgraded, response = upgrade.answer(UPGRADE.replace(old, new, 1))
    assert not upgraded
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % len(body) in head


def test_names_and_tokens_are_without_case() -> None:
    request = UPGRADE.replace(b"Connection: Upgrade", b"CONNECTION: keep-alive, upGRADE")
    assert upgrade.answer(request.replace(b"Upgrade: websocket", b"upgrade:WebSocket"))[0]
