from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nexusg.cli.demo_service import DemoService, application


if TYPE_CHECKING:
    from pathlib import Path


def get(path: str, **environ: Any) -> tuple[list[str], str]:
    """The status lines and the body of the application's answer."""
    statuses: list[str] = []

    def start_response(status: str, _headers: object) -> None:
        statuses.append(status)

    body = application({"PATH_INFO": path, **environ}, start_response)
    return statuses, b"".join(body).decode()


class Socket:
    """A WebSocket that receives ``messages`` and is then closed."""

    def __init__(self, *messages: str) -> None:
        self.messages, self.sent = list(messages), list[str]()

    def receive(self) -> str | None:
        return self.messages.pop(0) if self.messages else None

    def send(self, message: str) -> None:
        self.sent.append(message)


def test_the_page_says_what_was_asked_for() -> None:
    statuses, body = get("/", HTTP_HOST="a<b")
    assert statuses == ["200 OK"]
    assert "It works" in body
    assert "<b>a&lt;b</b>" in body


@pytest.mark.parametrize("path", ["/x", "/ws"])
def test_there_is_nothing_else(path: str) -> None:
    statuses, body = get(path)
    assert statuses == ["404 Not Found"]
    assert "/ws" in body


def test_the_echo_sends_back_until_the_end() -> None:
    socket = Socket("a", "b")
    assert get("/ws", **{"wsgi.websocket": socket}) == ([], "")
    assert socket.sent == ["a", "b"]


def test_it_listens_on_free_ports_of_this_machine_only(certificates: tuple[Path, Path]) -> None:
    with DemoService(certificates[1]) as first, DemoService(certificates[1]) as second:
        places = {first.http, first.tls, second.http, second.tls}
    assert len(places) == 4
    assert all(place.startswith("127.0.0.1:") for place in places)
