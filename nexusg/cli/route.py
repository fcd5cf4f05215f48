"""``nexusg route``: where a connection from outside would go, by which rule, and what else fits.

A whole port is asked for as ``tcp:25`` or ``udp:53``, or, if its kind does not matter, as ``:25``.

The same router as in the agent decides. What a backend claims in its configuration is told too,
but decides nothing: the token command may claim otherwise, and the relay believes only the token.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nexusg.config.hostnames import ROUTE_KEYS, WILDCARD, is_route_key, normalize
from nexusg.config.loader import load
from nexusg.errors import ConfigError
from nexusg.targets.router import Router

from .destinations import line, remarks
from .exits import Exit


if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nexusg.config.model import Backend, Config, Destination, PortMapping


@dataclass(frozen=True)
class Answer:
    """What one backend would do with the connection."""

    backend: str
    claim: str  #: what of its configuration makes the relay choose it; empty if nothing does
    target: str  #: empty if nothing of it serves the connection
    rule: str  #: exact, wildcard or default
    pattern: str
    also: tuple[str, ...]  #: what else fits, but less well
    remarks: tuple[str, ...] = ()  #: on the destination
    destination: Destination | None = None


def execute(given: argparse.Namespace) -> int:
    """Print the answer; FAILED if no backend has a target."""
    host, port = normalize(given.address[0]), given.address[1]
    backends = _chosen(load(given.config).config, given.backend)
    host = _port_key(backends, host, port) or host
    answers = [ask(backend, host, port) for backend in backends]
    best = winner(answers)
    others = [answer for answer in answers if answer is not best]
    if given.json:
        found = {
            "host": host,
            "port": port,
            "route": asdict(best) if best else None,
            "others": [asdict(answer) for answer in others],
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        address = host if is_route_key(host) else f"{host}:{port}"
        print("\n".join(_text(address, best, others)))
    return Exit.OK if best else Exit.FAILED


def ask(backend: Backend, host: str, port: int) -> Answer:
    """What ``backend`` does with a connection to ``host``, or the key of a port, at ``port``."""
    claim = _claim(backend, host, port)
    # A claimed port carries its own key instead of a name (PROTOCOL.md section 4.3).
    name = claim if is_route_key(claim) else host
    route = Router(backend.port_mappings).resolve(port, name)
    if route is None:
        return Answer(backend.name, claim, "", "", "", ())
    to, fitting = route.destination, _fitting(backend.port_mappings[port], name)
    return Answer(
        backend=backend.name,
        claim=claim,
        target=to.name,
        rule=route.rule,
        pattern=route.pattern,
        also=tuple(f"{key} -> {line(other)}" for key, other in fitting if key != route.pattern),
        remarks=tuple(remarks(to)),
        destination=to,
    )


def winner(answers: list[Answer]) -> Answer | None:
    """The answer of the backend that gets the connection, if it has a target for it.

    A relay looks for the name, then for its wildcard (PROTOCOL.md section 10.5).
    """
    served = [answer for answer in answers if answer.target]
    return min(served, key=_rank, default=None)


def _rank(answer: Answer) -> int:
    if not answer.claim:
        return 2
    return int(answer.claim.startswith(WILDCARD))


def _chosen(config: Config, name: str | None) -> list[Backend]:
    found = [backend for backend in config.backends if name in (None, backend.name)]
    if not found:
        known = ", ".join(backend.name for backend in config.backends)
        raise ConfigError([f"nexusg route: there is no backend {name!r}, only {known}"])
    return found


def _port_key(backends: list[Backend], host: str, port: int) -> str:
    """The key of a port that is asked for as a whole; empty if a host is."""
    if f"{host}:" in ROUTE_KEYS:
        return f"{host}:{port}"
    if host:
        return ""
    keys = [key for backend in backends for key in _keys(backend, port)]
    return min(keys, default=f"tcp:{port}")


def _claim(backend: Backend, host: str, port: int) -> str:
    """What ``backend`` claims of all that fits, the best first."""
    keys = _keys(backend, port)
    if is_route_key(host):
        return host if host in keys else ""
    claimed = [name for name in _patterns(host) if name in backend.hostnames]
    return next(iter(claimed + keys), "")


def _keys(backend: Backend, port: int) -> list[str]:
    """The keys of ``port`` that ``backend`` claims."""
    keys = [f"tcp:{port}"] if port in backend.tcp_ports else []
    if any(route.port == port for route in backend.udp_routes):
        keys.append(f"udp:{port}")
    return keys


def _fitting(mapping: PortMapping, host: str) -> Iterator[tuple[str, Destination]]:
    """Every target of a port that would do, with its pattern."""
    for pattern in _patterns(host):
        if pattern in mapping.hosts:
            yield pattern, mapping.hosts[pattern]
    if mapping.default:
        yield "default", mapping.default


def _patterns(host: str) -> tuple[str, str]:
    """The name and its wildcard, which stands for exactly one label (section 10.5)."""
    return host, WILDCARD + host.partition(".")[2]


def _text(address: str, best: Answer | None, others: list[Answer]) -> Iterator[str]:
    if best is None:
        yield f"{address} has no route"
    else:
        yield f"{address} -> {best.target}"
        yield f"  backend  {best.backend}"
        yield f"  rule     {best.rule}" + (f" {best.pattern}" if best.rule != "default" else "")
        yield f"  claim    {best.claim or 'none: the relay may send it to somebody else'}"
        yield from (f"  with     {remark}" for remark in best.remarks)
        yield from (f"  passed   {also}" for also in best.also)
    for answer in others:
        end = f"{answer.target} by {answer.pattern}" if answer.target else "no target"
        claimed = f"claims {answer.claim}" if answer.claim else "does not claim it"
        yield f"  other    backend {answer.backend}: {end}, {claimed}"
