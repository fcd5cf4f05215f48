"""A backend in its one form, and the rules over it (PROTOCOL.md section 10.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nexusg.config.backend import (
    Backend,
    FlowControl,
    HealthChecks,
    PortMapping,
    RelayTls,
    UdpRoute,
)


if TYPE_CHECKING:
    from nexusg.config.setting import Settings

MAPPED = Backend(
    name="a",
    hostnames=("a.test",),
    nexus_addresses=("wss://a/",),
    port_mappings={443: PortMapping(default="127.0.0.1:80")},
)


def texts(block: Settings, fatal: bool = True) -> list[str]:
    return [one.text for one in block.findings() if one.fatal is fatal]


def test_one_form() -> None:
    backend = Backend(
        name="a",
        hostnames=["B.test", "a.test", "b.test.", "*.Bücher.test"],  # type: ignore[arg-type]
        tcp_ports=(25, 22, 25),
        udp_routes=[UdpRoute(53)],  # type: ignore[arg-type]
        nexus_addresses=(" wss://a/ ", "wss://a/"),
        weight=-3,
        socks5_listen_addr="",
    )
    assert backend.hostnames == ("b.test", "a.test", "*.xn--bcher-kva.test")
    assert backend.tcp_ports == (25, 22)
    assert backend.udp_routes == (UdpRoute(53),)
    assert backend.nexus_addresses == ("wss://a/", "wss://a/")
    assert (backend.weight, backend.socks5_listen_addr) == (1, None)


def test_defaults() -> None:
    assert MAPPED.weight == 1
    assert MAPPED.health_checks == HealthChecks(True, 60.0, 5.0)
    assert MAPPED.flow_control == FlowControl(48, 16, 64)
    assert MAPPED.tls == RelayTls(None, None, None, None)
    assert UdpRoute(53).flow_idle_timeout_s is None


def test_names_are_no_single_text() -> None:
    with pytest.raises(TypeError, match="list"):
        Backend(name="a", hostnames="a.test")  # type: ignore[arg-type]


def test_mappings_are_copied_and_frozen() -> None:
    mappings = {443: PortMapping(default="127.0.0.1:80")}
    backend = replace(MAPPED, port_mappings=mappings)
    mappings.clear()
    assert list(backend.port_mappings) == [443]
    with pytest.raises(TypeError):
        del backend.port_mappings[443]  # type: ignore[attr-defined]


def test_a_good_backend_has_no_findings() -> None:
    assert list(MAPPED.findings()) == []


def test_something_must_be_claimed() -> None:
    assert texts(replace(MAPPED, hostnames=())) == [
        "one of hostnames, tcpPorts and udpRoutes is required"
    ]
    assert texts(replace(MAPPED, hostnames=(), tcp_ports=(443,))) == []
    assert texts(replace(MAPPED, hostnames=(), udp_routes=(UdpRoute(443),))) == []


def test_a_udp_port_is_claimed_once() -> None:
    routes = (UdpRoute(53), UdpRoute(54), UdpRoute(53, 9))
    [finding] = (one for one in replace(MAPPED, udp_routes=routes).findings() if one.fatal)
    assert finding.path == ("udpRoutes", 2, "port")
    assert finding.text == "port 53 is listed twice"


def test_a_claimed_port_should_be_mapped() -> None:
    doubtful = replace(MAPPED, tcp_ports=(9999, 443), udp_routes=(UdpRoute(53),))
    assert texts(doubtful) == []
    assert texts(doubtful, fatal=False) == [
        "port 9999 has no entry in portMappings: its streams are refused",
        "port 53 has no entry in portMappings: its streams are refused",
    ]


def test_a_mapped_port_should_exist() -> None:
    doubtful = replace(MAPPED, port_mappings={0: PortMapping(default="a:1")})
    assert texts(doubtful, fatal=False) == ["no stream has this port (1 to 65535)"]


def test_port_mapping() -> None:
    mapping = PortMapping(default="", hosts={"A.test": "a:1", "a.test.": "b:1", "*.Ü.test": "c:1"})
    assert mapping.default is None
    assert dict(mapping.hosts) == {"a.test": "a:1", "*.xn--tda.test": "c:1"}
    assert texts(mapping) == []
    assert texts(PortMapping()) == ["a default target or hosts with targets are required"]
    assert texts(PortMapping(default="a:1")) == []


def test_health_checks() -> None:
    assert HealthChecks(True, 0, -1) == HealthChecks()
    assert HealthChecks(False, 1.5, 2.5).inactivity_timeout_s == 1.5


def test_flow_control() -> None:
    assert FlowControl(0, -1, 0) == FlowControl()
    assert texts(FlowControl()) == []
    for bad in (FlowControl(max_buffer=40), FlowControl(40, 50), FlowControl(low_water_mark=48)):
        [text] = texts(bad)
        assert text.endswith("must hold")


def test_relay_tls() -> None:
    assert RelayTls("", "", "", "") == RelayTls()
    assert texts(RelayTls(key_file="a.key")) == ["needs a certFile"]
    assert texts(RelayTls(cert_file="a.pem")) == []
    assert texts(RelayTls(cert_file="a.pem", key_file="a.key")) == []
