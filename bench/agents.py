"""The agents that are compared, all of them programs: started, reached through doors, ended.

An agent is any program that takes the common configuration file, and the floor, which is none.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from bench import Failed, nginx, tools
from bench.processes import Process, program
from bench.sockets import STEP_S, answers


if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from bench.bed import Address, Bed

#: From the start of an agent to its first answer, attestation and all.
READY_S = 20.0
#: How long a relay may take to notice that the agent before has gone.
LEAVE_S = 10.0

REFERENCE = "nexusg"


@dataclass(frozen=True)
class Doors:
    """Where users reach the services through an agent; None where they cannot."""

    small: Address
    small_name: str
    bulk: Address
    bulk_name: str
    tcp: Address | None = None
    udp: Address | None = None


class Agent(Protocol):
    """One of those compared."""

    name: str

    def lacks(self, bed: Bed, needs: str, delay_s: float) -> str:
        """Why it cannot do what a scenario ``needs`` ("http", "tcp", "udp"); "" if it can."""

    def start(self, stack: ExitStack, bed: Bed, delay_s: float) -> tuple[Process, Doors]:
        """Start it, with a delay line if asked for, and wait until it serves. Blocks."""


class Configured:
    """A program that takes the configuration file; ``{config}`` in its command is the file."""

    def __init__(self, name: str, command: str, *, udp: bool = True) -> None:
        self.name = name
        self._udp = udp
        self._command = shlex.split(command)

    def lacks(self, bed: Bed, needs: str, delay_s: float) -> str:
        """See `Agent`."""
        if delay_s and not bed.relay.can_be_delayed:
            return "the delay line needs a relay on this machine"
        if needs != "http" and getattr(bed.relay, needs) is None:
            return f"the relay has no {needs.upper()} port that may be claimed"
        return "it serves TCP only" if needs == "udp" and not self._udp else ""

    def start(self, stack: ExitStack, bed: Bed, delay_s: float) -> tuple[Process, Doors]:
        """See `Agent`."""
        relay = bed.relay
        doors = Doors(
            relay.http, relay.small_name, relay.http, relay.bulk_name, relay.tcp, relay.udp
        )
        _wait_unserved(doors)
        url = relay.url
        if delay_s:
            [port] = start_delay(stack, bed, delay_s, [relay.hub])
            url = relay.url_at(port)
        file = bed.folder / f"{self.name}.yaml"
        file.write_text(configuration(bed, url))
        command = [part.replace("{config}", str(file)) for part in self._command]
        # Every agent trusts the relay in the same way: not all have a setting for it.
        environ = {"SSL_CERT_FILE": str(relay.ca_file)}
        process = Process(f"agent-{self.name}", command, bed.folder, environ=environ)
        stack.enter_context(process)
        _wait_ready(process, doors)
        return process, doors


class Floor:
    """nginx's stream module: the same bytes, TLS on one side, and no protocol."""

    name = "nginx"

    def lacks(self, bed: Bed, needs: str, delay_s: float) -> str:
        """See `Agent`."""
        if needs == "udp":
            return "it has no TLS for datagrams"
        if bed.tools.nginx is None:
            return tools.install("nginx")
        return "" if bed.tools.stream_module is not None else tools.install("nginx's stream module")

    def start(self, stack: ExitStack, bed: Bed, delay_s: float) -> tuple[Process, Doors]:
        """See `Agent`."""
        targets = [bed.targets.small, bed.targets.bulk, bed.targets.iperf]
        hops = nginx.start_hop(stack, bed.tools, bed.folder, bed.certificate_file, targets)
        if delay_s:
            ports = start_delay(stack, bed, delay_s, [_address(hop) for hop in hops])
            hops = [f"127.0.0.1:{port}" for port in ports]
        process, fronts = nginx.start_floor(stack, bed.tools, bed.folder, bed.ca_file, hops)
        small, bulk, tcp = map(_address, fronts)
        doors = Doors(small, bed.relay.small_name, bulk, bed.relay.bulk_name, tcp)
        _wait_ready(process, doors)
        return process, doors


def built_in() -> list[Agent]:
    """The agents of every run, the one that others are compared with first."""
    python = shlex.quote(sys.executable)
    return [
        Configured(REFERENCE, f"{python} -m nexusg --config {{config}}"),
        Configured("naive", f"{python} -m bench.naive {{config}}", udp=False),
        Floor(),
    ]


def configuration(bed: Bed, url: str) -> str:
    """The file for every agent: only what all of them know, so each has its own defaults."""
    relay, targets = bed.relay, bed.targets
    names = {relay.small_name: targets.small, relay.bulk_name: targets.bulk}
    mappings: dict[int, Any] = {relay.http[1]: {"hosts": names}}
    backend: dict[str, Any] = {
        "name": "bench",
        "hostnames": list(names),
        "nexusAddresses": [url],
        "attestation": {"hmacSecretFile": str(relay.secret_file.absolute())},
        "portMappings": mappings,
    }
    if relay.tcp:
        backend["tcpPorts"] = [relay.tcp[1]]
        mappings.setdefault(relay.tcp[1], {})["default"] = targets.iperf
    if relay.udp:
        backend["udpRoutes"] = [{"port": relay.udp[1]}]
        mappings.setdefault(relay.udp[1], {})["default"] = targets.udp
    return yaml.safe_dump({"backends": [backend]}, sort_keys=False)


def start_delay(
    stack: ExitStack, bed: Bed, delay_s: float, targets: Sequence[Address]
) -> list[int]:
    """A delay line in front of each of ``targets``; its ports. Blocks."""
    settings = {"delay_s": delay_s, "targets": targets}
    line = stack.enter_context(program("delayline", settings, bed.folder))
    return list(line.read_answer()["ports"])


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _wait_unserved(doors: Doors) -> None:
    deadline = time.monotonic() + LEAVE_S
    while answers(doors.small, doors.small_name):
        if time.monotonic() > deadline:
            raise Failed(f"another agent serves {doors.small_name} already")


def _wait_ready(process: Process, doors: Doors) -> None:
    deadline = time.monotonic() + READY_S
    while not answers(doors.small, doors.small_name):
        process.check()
        if time.monotonic() > deadline:
            raise Failed(f"{process.name} serves nothing after {READY_S:g} s{process.tail()}")
        process.wait_end(STEP_S)
