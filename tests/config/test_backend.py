"""A backend in its one form, and the rules over it (PROTOCOL.md section 10.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nexusg.config.attestation import Attestation
from nexusg.config.backend import (
    Backend,
    FlowControl,
    HealthChecks,
    RelayTls,
    UdpRoute,
)
from nexusg.config.destination import Destination, TlsTerminate
from nexusg.config.mapping import PortMapping
from nexusg.config.secret import Secret
from nexusg.config.socks5 import Socks5Auth
from nexusg.config.tpm import Tpm


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


def test_relays_must_be_named() -> None:
    assert texts(replace(MAPPED, nexus_addresses=())) == ["is required"]


TPM = replace(MAPPED, attestation=Attestation(tpm=Tpm("https://namek.test")))


def test_an_authorizer_names_hosts_and_relays() -> None:
    assert list(TPM.findings()) == []
    assert list(replace(TPM, hostnames=(), nexus_addresses=()).findings()) == []


def test_an_authorizer_grants_no_wishes() -> None:
    wishes = replace(TPM, tcp_ports=(22,), udp_routes=(UdpRoute(53),), weight=2)
    found = list(wishes.findings())
    assert [(one.path, one.fatal) for one in found] == [
        (("tcpPorts",), False),
        (("udpRoutes",), False),
        (("weight",), False),
    ]
    assert all(one.text.startswith("is not used with tpm: the authorizer ") for one in found)


def test_an_authorizer_allows_no_outbound_connections() -> None:
    [text] = texts(replace(TPM, socks5_listen_addr="127.0.0.1:1080"), fatal=False)
    assert text == "has no use with tpm: the authorizer allows no outbound connections"


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


def test_a_claimed_port_should_have_a_target() -> None:
    """Its route key stands for the host name, so other hosts of the port do not help it."""
    ports = {"tcp_ports": (25,), "udp_routes": (UdpRoute(25),)}

    def advice(mapping: PortMapping) -> list[str]:
        return texts(replace(MAPPED, **ports, port_mappings={25: mapping}), fatal=False)

    assert advice(PortMapping(default="a:1")) == []
    assert advice(PortMapping(hosts={"tcp:25": "unix:/run/x", "udp:25": "a:1"})) == []
    neither = 'port 25 has neither a default nor the host "{}:25" in portMappings: its streams are '
    assert advice(PortMapping(hosts={"a.test": "a:1"})) == [
        neither.format(kind) + "refused" for kind in ("tcp", "udp")
    ]
    assert advice(PortMapping(default="unix:/run/x")) == [
        "port 25 leads to a unix socket, which takes no UDP: its streams are refused"
    ]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (Destination(("unix:@x",)), "a unix socket, which takes no UDP: its streams are refused"),
        (Destination(("tls://a:1",)), "tls://, which takes no UDP: its streams are refused"),
        (Destination(("wsgi:a",)), "an application, which takes no UDP: its streams are refused"),
        (Destination(("a:1", "b:1")), "several targets, of which UDP uses the first"),
        (Destination(("a:1",), "v2"), "a destination with proxyProtocol, which is not sent"),
        (
            Destination(("a:1",), tls_terminate=TlsTerminate("a.pem")),
            "a destination with tlsTerminate, which does nothing for UDP",
        ),
    ],
)
def test_udp_goes_to_one_plain_address(to: Destination, said: str) -> None:
    mapped = replace(MAPPED, tcp_ports=(25,), port_mappings={25: PortMapping(to)})
    [text] = texts(replace(mapped, udp_routes=(UdpRoute(25),)), fatal=False)
    assert text.startswith(f"port 25 leads to {said}")


def test_a_mapped_port_should_exist() -> None:
    doubtful = replace(MAPPED, port_mappings={0: PortMapping(default="a:1")})
    assert texts(doubtful, fatal=False) == ["no stream has this port (1 to 65535)"]


OUT = replace(MAPPED, attestation=Attestation(outbound_allowed=True))
KNOWN = Socks5Auth("u", Secret("p"))


@pytest.mark.parametrize(
    ("backend", "exposed"),
    [
        (OUT, True),
        (replace(OUT, socks5_listen_addr="127.0.0.1:1080"), False),
        (replace(OUT, socks5_listen_addr=":1080"), True),
        (replace(OUT, socks5_listen_addr=":1080", socks5_allow_open=True), False),
        (replace(OUT, socks5_listen_addr=":1080", socks5_auth=KNOWN), False),
    ],
)
def test_an_exposed_socks5_server(backend: Backend, exposed: bool) -> None:
    """PROTOCOL.md section 11.4: an empty host is every interface."""
    assert backend.socks5_exposed is exposed
    said = texts(backend, fatal=False)
    assert (["would be open to other hosts" in text for text in said] == [True]) is (
        exposed and backend.socks5_listen_addr is not None
    )


def test_a_socks5_server_needs_the_claim() -> None:
    needing = replace(MAPPED, socks5_listen_addr="127.0.0.1:1080")
    [text] = texts(needing, fatal=False)
    assert text.startswith("needs attestation.outboundAllowed")
    assert not texts(replace(needing, attestation=Attestation(command="run")), fatal=False)
    assert not texts(replace(MAPPED, socks5_listen_addr="nowhere"), fatal=False)


def test_a_password_needs_a_server() -> None:
    [finding] = replace(OUT, socks5_auth=KNOWN).findings()
    assert (finding.path, finding.fatal) == (("socks5Auth",), False)
    assert not texts(replace(OUT, socks5_auth=KNOWN, socks5_listen_addr="unix:/a"), fatal=False)


def test_health_checks() -> None:
    assert HealthChecks(True, 0, -1) == HealthChecks()
    assert HealthChecks(False, 1.5, 2.5).inactivity_timeout_s == 1.5


def test_flow_control() -> None:
    assert FlowControl(0, -1, 0) == FlowControl()
    assert texts(FlowControl()) == []
    for bad in (FlowControl(max_buffer=40), FlowControl(40, 50), FlowControl(low_water_mark=48)):
        [text] = texts(bad)
        assert text.endswith("must hold")
