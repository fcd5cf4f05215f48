"""What stays up during a whole run: the relay and the local services."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench import Failed, nginx
from bench.processes import program
from bench.sockets import free_port


if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from bench.tools import Tools

Address = tuple[str, int]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Relay:
    """Where agents and users find a relay. ``tcp`` and ``udp`` are ports that may be claimed."""

    url: str
    ca_file: Path
    secret_file: Path
    http: Address
    tcp: Address | None = None
    udp: Address | None = None
    domain: str = "bench.localhost"
    development: bool = False

    @property
    def small_name(self) -> str:
        """The host name of the service for requests."""
        return f"small.{self.domain}"

    @property
    def bulk_name(self) -> str:
        """The host name of the service for transfers."""
        return f"bulk.{self.domain}"

    @property
    def hub(self) -> Address:
        """What agents connect to."""
        parts = urlsplit(self.url)
        assert parts.hostname
        return parts.hostname, parts.port or (80 if parts.scheme == "ws" else 443)

    @property
    def can_be_delayed(self) -> bool:
        """Whether a delay line may stand in: its certificate must do for the loopback."""
        return self.hub[0] in LOOPBACK

    def url_at(self, port: int) -> str:
        """The address of agents that go through a port of this machine."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"{parts.hostname}:{port}").geturl()


@dataclass(frozen=True)
class Targets:
    """Where the local services listen, as ``host:port``."""

    small: str
    bulk: str
    udp: str
    iperf: str


@dataclass(frozen=True)
class Bed:
    """Everything that agents are measured with."""

    folder: Path
    tools: Tools
    relay: Relay
    targets: Targets
    ca_file: Path  #: of the certificate that the hop behind the floor shows
    certificate_file: Path


def make(
    stack: ExitStack, folder: Path, tools: Tools, external: Relay | None, *, plain: bool
) -> Bed:
    """Start the relay, unless there is an ``external`` one, and the services. Blocks.

    ``plain``: the benchmark's own service even where nginx is installed. Raises Failed.
    """
    try:
        from nexusg.relay import certs
    except ImportError:
        raise Failed("certificates need an extra: pip install 'nexusg[relay]'") from None
    ca_file, certificate_file = certs.ensure(folder)
    targets = _start_services(stack, folder, tools, plain=plain)
    relay = external or _start_relay(stack, folder, ca_file)
    return Bed(folder, tools, relay, targets, ca_file, certificate_file)


def _start_services(stack: ExitStack, folder: Path, tools: Tools, *, plain: bool) -> Targets:
    ports = stack.enter_context(program("service", {}, folder)).read_answer()
    bulk = small = f"127.0.0.1:{ports['http']}"
    if tools.nginx and not plain:
        small = nginx.start_service(stack, tools, folder)
    return Targets(small, bulk, f"127.0.0.1:{ports['udp']}", f"127.0.0.1:{free_port()}")


def _start_relay(stack: ExitStack, folder: Path, ca_file: Path) -> Relay:
    secret_file = folder / "secret"
    secret_file.touch(0o600)
    secret_file.write_text(secrets.token_urlsafe(32))
    settings = {"secret_file": str(secret_file), "certificates": str(folder)}
    said = stack.enter_context(program("devrelay", settings, folder)).read_answer()

    http, tcp, udp = (("127.0.0.1", said[kind]) for kind in ("http", "tcp", "udp"))
    return Relay(said["url"], ca_file, secret_file, http, tcp, udp, development=True)
