"""A development relay, local services and agents in one process, over real TLS.

with Running(folder) as running:
    relay, service = running.relay(), running.service(echo)
    agent = running.agent(relay, target=service.target)
    agent.wait("session.connected")
    assert running.talk(relay, b"hello") == b"hello"
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gevent import Timeout
from gevent.event import Event

from nexusg.agent.agent import Agent
from nexusg.config.model import Attestation, Backend, Config, PortMapping, RelayTls
from nexusg.config.secret import Secret
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, HOST, SECRET, http_get, user
from tests.support.services import Service


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.config.model import Destination

#: How often a condition is asked that no event announces.
POLL_S = 2 * MS

#: What every request of `Running.talk` begins with: it is how the relay finds the backend.
HEAD = http_get()


class WatchedAgent(Agent):
    """An agent whose events a test can wait for."""

    def __init__(self, config: Config, **options: Any) -> None:
        self.events: list[LifecycleEvent] = []
        self._changed = Event()
        self._also: Callable[[LifecycleEvent], object] | None = options.pop("on_event", None)
        super().__init__(config, on_event=self._note, **options)

    def named(self, name: str) -> list[Any]:
        """The events of one name so far."""
        return [event for event in self.events if event.name() == name]

    def wait(self, name: str, count: int = 1) -> Any:
        """Wait for the ``count``-th event of that name, and return it. Blocks."""
        self.wait_until(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds; it is asked after every event, and often. Blocks."""
        try:
            with Timeout(AMPLE_S):
                while not condition():
                    self._changed.clear()
                    self._changed.wait(POLL_S)
        except Timeout:
            raise AssertionError(f"never came true; events: {self.events}") from None

    def _note(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        self._changed.set()
        if self._also is not None:
            self._also(event)


class Running:
    """Starts things, and ends them in the reverse order. Use as a context."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is where the development certificates are kept."""
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def relay(self, **settings: Any) -> DevRelay:
        """A relay that has started, with settings of the test's."""
        logged: list[tuple[str, dict[str, object]]] = []
        usual: dict[str, Any] = {
            "secret": SECRET,
            "certificates": self._folder,
            "sniff_timeout_s": 20 * MS,
            "on_log": lambda event, fields: logged.append((event, fields)),
        }
        relay = self._stack.enter_context(DevRelay(RelayConfig(**{**usual, **settings})))
        relay.logged = logged  # type: ignore[attr-defined]  # for the tests only
        return relay

    def service(self, serve: Callable[[Any], object], **options: Any) -> Service:
        """A local service."""
        return self._stack.enter_context(Service(serve, **options))

    def agent(
        self,
        *relays: DevRelay,
        target: str | Destination = "127.0.0.1:9",
        start: bool = True,
        settings: dict[str, Any] | None = None,
        attestation: dict[str, Any] | None = None,
        backend: dict[str, Any] | None = None,
        **options: Any,
    ) -> WatchedAgent:
        """An agent of these relays, started. ``options`` are those of `Agent`."""
        config = make_config(
            relays, target=target, settings=settings, attestation=attestation, backend=backend
        )
        agent = WatchedAgent(config, **options)
        self._stack.callback(agent.stop, 0)
        if start:
            agent.start()
        return agent

    def connected(self, *relays: DevRelay, **options: Any) -> WatchedAgent:
        """An agent that has connected to all of these relays. Blocks."""
        agent = self.agent(*relays, **options)
        agent.wait("session.connected", len(relays))
        return agent

    def user(self, relay: DevRelay, first: bytes = b"") -> Any:
        """A user's connection, closed at the end; ``first`` stands behind the head."""
        return self.raw_user(relay, HEAD + first)

    def raw_user(self, relay: DevRelay, first: bytes = b"") -> Any:
        """The same, without the head."""
        sock = user(relay, first)
        self._stack.callback(sock.close)
        return sock

    def talk(self, relay: DevRelay, text: bytes = b"") -> bytes:
        """What an echoing service makes of ``text``. Blocks."""
        sock = self.user(relay, text)
        try:
            return read_exactly(sock, len(HEAD) + len(text))[len(HEAD) :]
        finally:
            sock.close()


def make_config(
    relays: Sequence[DevRelay],
    *,
    target: str | Destination = "127.0.0.1:9",
    settings: dict[str, Any] | None = None,
    attestation: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
) -> Config:
    """One backend at these relays, all of whose streams go to ``target``."""
    signed: dict[str, Any] = {"hmac_secret": Secret(SECRET), **(attestation or {})}
    ports = [port for relay in relays for port in relay.public_ports]
    ca_file = next((str(relay.ca_file) for relay in relays if relay.ca_file), None)
    one: dict[str, Any] = {
        "name": "web",
        "hostnames": (HOST,),
        "nexus_addresses": tuple(relay.url for relay in relays),
        "attestation": Attestation(**signed),
        "port_mappings": {port: PortMapping(default=target) for port in ports},
        "tls": RelayTls(ca_file=ca_file),
        **(backend or {}),
    }
    return Config(backends=(Backend(**one),), **(settings or {}))


def read_exactly(sock: Any, size: int) -> bytes:
    """``size`` bytes, or what there is until the end. Blocks."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 65536))
        if not piece:
            break
        data += piece
    return bytes(data)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every wait of an agent that is only a matter of politeness."""
    short = {
        "reconnect.FLOOR_S": 0.0,
        "reconnect.BACKOFF_FIRST_S": 10 * MS,
        "reconnect.REJECTED_FIRST_S": 10 * MS,
        "reconnect.TOKEN_FIRST_S": 10 * MS,
        "session.LAST_WORD_S": 20 * MS,
        "stopping.STEP_S": 5 * MS,
        "streams.LINGER_S": 20 * MS,
        "streams.LINGER_STEP_S": 2 * MS,
    }
    for name, seconds in short.items():
        monkeypatch.setattr(f"nexusg.agent.{name}", seconds)
