"""The development relay as a whole. It is for development and tests, and says so when it starts.

    with DevRelay(RelayConfig(secret="…")) as relay:
        ...  # agents connect to relay.url and trust relay.ca_file; users to relay.public_ports

It does what the real relay was measured to do, as far as an agent and its users can tell, except
for tunnels between relays, the remote verifier and maintenance deferral.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nexusg.errors import ConfigError
from nexusg.relay.hub import Hub, server_context
from nexusg.relay.public import PublicPort
from nexusg.relay.shared import Shared
from nexusg.relay.udp import UdpPort
from nexusg.relay.verify import Rules
from nexusg.transport.connect import join_host_port
from nexusg.transport.failure import words


if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from nexusg.relay.link import Link
    from nexusg.relay.settings import Habits, RelayConfig
    from nexusg.relay.sockets import Listener

    AnyListener = Listener | UdpPort

NOTICE = "for development and tests only: it knows no limits, and its keys are throw-away"

#: Enough for tasks that only have to be woken.
STOP_TIMEOUT_S = 5.0


class DevRelay:
    """One relay, to be started once. It belongs to the process's main hub."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self.ca_file: Path | None = None  #: what agents are to trust, if made by this relay
        self._shared = Shared(config)
        self._hub: Hub
        self._public: list[PublicPort]
        self._udp: list[UdpPort]

    def start(self) -> None:
        """Make certificates if need be, bind every port, and serve in the background.

        Raises ConfigError when a port or the certificates cannot be had.
        """
        config, shared = self.config, self._shared
        self._hub = Hub(shared, config.hub, self._context())
        self._public = [PublicPort(shared, (config.public_host, p)) for p in config.public_ports]
        self._udp = [UdpPort(shared, (config.public_host, p)) for p in config.public_udp_ports]
        try:
            for listener in self._listeners():
                listener.start()
        except ConfigError:
            self.stop()
            raise
        allowed, udp_allowed = config.allowed_tcp_ports, config.allowed_udp_ports
        shared.rules = Rules(
            config.secret,
            tcp_ports=frozenset(self.public_ports if allowed is None else allowed),
            udp_ports=frozenset(self.public_udp_ports if udp_allowed is None else udp_allowed),
            allow_outbound=config.allow_outbound,
            outbound_ports=frozenset(config.allowed_outbound_ports),
        )
        ports = {"public_ports": self.public_ports, "udp_ports": self.public_udp_ports}
        shared.log("relay.started", url=self.url, **ports, notice=NOTICE)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Accept nothing more, end every session as the habits say, then everything else.

        Return whether all ended within ``timeout_s``. Blocks.
        """
        deadline = time.monotonic() + timeout_s
        listeners = self._listeners()
        for listener in listeners:
            listener.stop()
        self.drop_agents()
        self._wait_links(lambda count: count == 0, deadline)
        ended = self._shared.tasks.kill(max(deadline - time.monotonic(), 0.0))
        for listener in listeners:
            listener.close_rest()
        return ended

    def __enter__(self) -> DevRelay:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where agents connect."""
        host = self.config.hub[0]
        scheme = "wss" if self.config.tls else "ws"
        return f"{scheme}://{join_host_port(host, self.hub_port)}/connect"

    @property
    def hub_port(self) -> int:
        """The port of ``url``."""
        return self._hub.listener.port

    @property
    def public_ports(self) -> tuple[int, ...]:
        """Where users connect, in the order of the settings."""
        return tuple(port.listener.port for port in self._public)

    @property
    def public_udp_ports(self) -> tuple[int, ...]:
        """Where users send datagrams, in the order of the settings."""
        return tuple(port.port for port in self._udp)

    @property
    def agents(self) -> tuple[Link, ...]:
        """The agents that are registered now."""
        return tuple(self._shared.links)

    def wait_agents(self, count: int = 1, timeout_s: float = 10.0) -> bool:
        """Wait until at least ``count`` agents are registered; whether they are. Blocks."""
        return self._wait_links(lambda links: links >= count, time.monotonic() + timeout_s)

    def drop_agents(self) -> None:
        """End every session, in the way that the habits say."""
        for link in self.agents:
            link.end()

    @property
    def habits(self) -> Habits:
        """The relay's bad habits; new ones count at once, for streams from their opening on."""
        return self._shared.habits

    @habits.setter
    def habits(self, habits: Habits) -> None:
        self._shared.habits = habits
        for link in self.agents:
            link.adopt_habits()

    def _listeners(self) -> list[AnyListener]:
        return [self._hub.listener, *(port.listener for port in self._public), *self._udp]

    def _wait_links(self, enough: Callable[[int], bool], deadline: float) -> bool:
        changed = self._shared.changed
        while not enough(len(self._shared.links)):
            changed.clear()
            if not changed.wait(max(deadline - time.monotonic(), 0.0)):
                return False
        return True

    def _context(self) -> ssl.SSLContext | None:
        config = self.config
        if not config.tls or config.context is not None:
            return config.context if config.tls else None
        try:
            from nexusg.relay import certs
        except ImportError as error:
            raise ConfigError(
                ["development certificates need an extra: pip install 'nexusg[relay]'"]
            ) from error
        try:
            self.ca_file, certificate_file = certs.ensure(config.certificates)
        except OSError as error:
            raise ConfigError(
                [f"cannot write development certificates to {config.certificates}: {words(error)}"]
            ) from error
        return server_context(certificate_file)
