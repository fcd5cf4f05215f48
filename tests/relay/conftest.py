"""Relays on port 0, stopped after their test."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout
from gevent.event import Event

from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.support.relayed import AMPLE_S, SECRET


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    StartRelay = Callable[..., DevRelay]


class Log:
    """What a relay has logged: ``on_log`` of its settings."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Mapping[str, object]]] = []
        self._more = Event()

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        self.entries.append((event, fields))
        self._more.set()

    @property
    def events(self) -> list[str]:
        """The names of all events."""
        return [event for event, _ in self.entries]

    def wait(self, event: str) -> Mapping[str, object]:
        """The fields of the newest ``event``, once there is one."""
        with Timeout(AMPLE_S, AssertionError(f"no {event} in {self.events}")):
            while event not in self.events:
                self._more.clear()
                self._more.wait()
        return next(fields for name, fields in reversed(self.entries) if name == event)


@pytest.fixture(scope="session")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of certificates for all tests."""
    return tmp_path_factory.mktemp("nexusg-dev")


@pytest.fixture
def start_relay(certificate_folder: Path) -> Iterator[StartRelay]:
    """A function that starts a relay with settings of the test's, plain ws unless it asks for TLS.

    What it logs is in ``relay.config.on_log``, a `Log`.
    """
    with ExitStack() as stack:

        def start(**settings: Any) -> DevRelay:
            usual: dict[str, Any] = {
                "secret": SECRET,
                "tls": False,
                "certificates": certificate_folder,
                "sniff_timeout_s": 0.02,
                "on_log": Log(),
            }
            relay = DevRelay(RelayConfig(**{**usual, **settings}))
            stack.enter_context(relay)
            return relay

        yield start
