"""A Config made in Python is held to the same rules as a file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexusg.config.model import (
    Attestation,
    Backend,
    Config,
    Destination,
    Logging,
    PortMapping,
    Tpm,
    UdpRoute,
)
from nexusg.config.secret import Secret
from nexusg.config.validate import advise, dotted, require_valid, validate
from nexusg.errors import ConfigError


BACKEND = Backend(
    name="a",
    hostnames=("a.test",),
    nexus_addresses=("wss://relay.test/connect",),
    attestation=Attestation(hmac_secret=Secret("x" * 32)),
    port_mappings={443: PortMapping(default="127.0.0.1:80")},
)


def test_a_good_configuration() -> None:
    config = Config((BACKEND,))
    assert validate(config) == []
    assert advise(config) == []
    require_valid(config)


def test_everything_is_found_at_once() -> None:
    bad = Backend(
        name=" ",
        hostnames=("a.test", "UDP:53", ""),
        tcp_ports=(0,),
        udp_routes=(UdpRoute(53, -1),),
        port_mappings={443: PortMapping(hosts={"*.": "a:1", "a.test": " "})},
    )
    assert validate(Config((BACKEND, bad), logging=Logging(level="loud"))) == [
        "backends[1].name: must not be blank",
        'backends[1].hostnames[1]: "udp:53" is reserved for port claims: use tcpPorts or udpRoutes',
        "backends[1].hostnames[2]: is a blank host name",
        "backends[1].tcpPorts[0]: 0 is not a port (1 to 65535)",
        "backends[1].udpRoutes[0].flowIdleTimeoutSeconds: must not be negative",
        "backends[1].attestation: a command, an hmacSecret, an hmacSecretFile or a tpm block is "
        "required",
        "backends[1].portMappings[443].hosts: a key is a blank host name or pattern",
        'backends[1].portMappings[443].hosts["a.test"].targets[0]: is a blank target: write '
        '"host:port"',
        "backends[1].nexusAddresses: is required",
        "logging.level: must be one of debug, info, warning, error",
    ]


def test_nothing_is_too_little() -> None:
    with pytest.raises(ConfigError, match="backends: is required") as caught:
        require_valid(Config())
    assert caught.value.problems == ("backends: is required",)


def test_a_program_may_bring_tokens_and_targets() -> None:
    bare = Config((replace(BACKEND, attestation=Attestation(), port_mappings={}),))
    assert [problem.partition(":")[0] for problem in validate(bare)] == [
        "backends[0].attestation",
        "backends[0].portMappings",
    ]
    assert len(validate(bare, attested=True)) == len(validate(bare, mapped=True)) == 1
    require_valid(bare, attested=True, mapped=True)


def test_destinations() -> None:
    mapping = PortMapping("a:1", {"a.test": Destination(("a:1",), "v3")})
    bad = replace(BACKEND, port_mappings={443: mapping, 80: PortMapping(hosts={"a.test": "a:1"})})
    assert validate(Config((bad,))) == [
        'backends[0].portMappings[443].hosts["a.test"].proxyProtocol: must be one of off, v1, v2'
    ]


def test_a_tpm_beside_a_programs_own_tokens() -> None:
    bare = replace(BACKEND, attestation=Attestation(tpm=Tpm(ak="ecc-p256")))
    assert validate(Config((bare,)), attested=True) == [
        "backends[0].attestation.tpm.authorizerUrl: is required"
    ]


def test_advice() -> None:
    doubtful = replace(BACKEND, nexus_addresses=("http://a/",), tcp_ports=(9999,))
    assert validate(Config((doubtful,))) == []
    assert advise(Config((doubtful,))) == [
        'backends[0].nexusAddresses[0]: cannot be dialled: its scheme is "http"; write wss',
        "backends[0].tcpPorts: port 9999 has no entry in portMappings: its streams are refused",
    ]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a", "b"), "a.b"),
        (("a", 0, "b", 443, "c.test"), 'a[0].b[443]["c.test"]'),
    ],
)
def test_dotted(path: tuple[str | int, ...], text: str) -> None:
    assert dotted(path) == text
