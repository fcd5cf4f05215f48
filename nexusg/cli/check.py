"""``nexusg check``: every problem and warning of a configuration, or what it amounts to."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nexusg.config.loader import load
from nexusg.errors import ConfigError

from .destinations import line
from .exits import Exit


if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nexusg.config.model import Attestation, Backend, Config, Destination, PortMapping


def execute(given: argparse.Namespace) -> int:
    """Print the findings: for people, problems and warnings on stderr."""
    try:
        loaded = load(given.config)
    except ConfigError as error:
        if not given.json:
            raise
        _print_json(ok=False, problems=error.problems, warnings=(), backends=())
        return Exit.USAGE
    backends = [summary(backend) for backend in loaded.config.backends]
    if given.json:
        _print_json(ok=True, problems=(), warnings=loaded.warnings, backends=backends)
        return Exit.OK
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_text(given.config, loaded.config, len(loaded.warnings)))
    return Exit.OK


def summary(backend: Backend) -> dict[str, Any]:
    """What a backend claims and where it leads. Nothing in it is secret."""
    return {
        "name": backend.name,
        "relays": [_without_query(address) for address in backend.nexus_addresses],
        "hostnames": list(backend.hostnames),
        "tcp_ports": list(backend.tcp_ports),
        "udp_ports": [route.port for route in backend.udp_routes],
        "attestation": _source(backend.attestation),
        "authorizer": backend.attestation.tpm.authorizer_url,
        "targets": {
            str(port): {pattern: to.name for pattern, to in _destinations(mapping)}
            for port, mapping in backend.port_mappings.items()
        },
        "destinations": {
            str(port): {pattern: asdict(to) for pattern, to in _destinations(mapping)}
            for port, mapping in backend.port_mappings.items()
        },
    }


def _source(attestation: Attestation) -> str:
    if attestation.tpm:
        return "tpm"
    return "command" if attestation.command else "hmac"


def _destinations(mapping: PortMapping) -> Iterator[tuple[str, Destination]]:
    yield from mapping.hosts.items()
    if mapping.default:
        yield "default", mapping.default


def _without_query(address: str) -> str:
    """A relay's address without what may be secret in it."""
    before, _, host = address.partition("?")[0].rpartition("@")
    scheme = f"{before.partition('://')[0]}://" if before else ""
    return scheme + host


def _text(path: str, config: Config, warnings: int) -> str:
    lines = [f"{path}: {_count(len(config.backends), 'backend')}, {_count(warnings, 'warning')}"]
    for backend in config.backends:
        about = summary(backend)
        lines += ["", f"backend {about['name']}, {about['attestation']} tokens"]
        lines += [f"  relay   {relay}" for relay in about["relays"]]
        lines += [f"  claims  {claim}" for claim in _claims(about)]
        if about["authorizer"]:
            lines.append(f"  tpm     {about['authorizer']}")
        for port, mapping in backend.port_mappings.items():
            lines += [f"  port {port}  {name} -> {line(to)}" for name, to in _destinations(mapping)]
    return "\n".join(lines)


def _claims(about: dict[str, Any]) -> list[str]:
    ports = [f"{kind}:{port}" for kind in ("tcp", "udp") for port in about[f"{kind}_ports"]]
    return [*about["hostnames"], *ports]


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _print_json(**found: object) -> None:
    print(json.dumps(found, ensure_ascii=False))
