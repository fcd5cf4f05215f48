"""Which destinations of a backend have a pool, and what is told and asked of it."""

from __future__ import annotations

from typing import Any

import pytest

from nexusg.agent.lifecycle import TargetDown, TargetUp
from nexusg.agent.pools import Pools
from nexusg.agent.stats import TargetStats
from nexusg.config.model import (
    Backend,
    Destination,
    PortMapping,
    TargetHealth,
    TlsTerminate,
    UdpRoute,
)
from nexusg.errors import TargetError
from nexusg.targets.certificates import Certificates
from tests.support.clock import FakeClock
from tests.support.rig import Rig


BOTH = ("127.0.0.1:1", "127.0.0.1:2")
ERROR = TargetError("target 127.0.0.1:1: refused", "refused")


class Made:
    """The pools of a backend, on a clock and with events of the test's."""

    def __init__(self, mappings: dict[int, PortMapping], **backend: Any) -> None:
        rig = Rig()
        self.events, self.failures = rig.events, rig.failures
        self.clock = rig.context.clock = FakeClock()
        usual = {"hostnames": ("app.example.com",), "port_mappings": mappings}
        self.pools = Pools(rig.context, Backend("web", **{**usual, **backend}), Certificates())

    def names(self) -> list[str]:
        """The targets in the figures."""
        return [one.target for one in self.pools.stats()]


def test_a_single_target_has_none() -> None:
    destination = Destination(targets=BOTH[:1])
    made = Made({443: PortMapping(destination)})
    assert made.pools.of(destination) is None
    assert (made.pools.checks, made.names()) == ([], [])


def test_several_have_one() -> None:
    destination = Destination(targets=BOTH)
    made = Made({443: PortMapping(destination)})
    pool = made.pools.of(destination)
    assert pool is not None
    assert [one.target for one in pool.members] == list(BOTH)
    assert len(made.pools.checks) == 1


def test_a_single_one_that_is_to_be_checked_has_one() -> None:
    destination = Destination(targets=BOTH[:1], health=TargetHealth(path="/healthz"))
    made = Made({443: PortMapping(hosts={"app.example.com": destination})})
    assert made.pools.of(destination) is not None
    assert len(made.pools.checks) == 1


def test_hosts_share_their_targets() -> None:
    """Also if each has a certificate of its own; but not if they are reached in another way."""
    one = Destination(targets=BOTH)
    two = Destination(targets=BOTH, tls_terminate=TlsTerminate("two.pem"))
    other = Destination(targets=BOTH, proxy_protocol="v2")
    hosts = {"one.example.com": one, "two.example.com": two}
    made = Made({443: PortMapping(other, hosts), 8443: PortMapping(one)})
    of = made.pools.of
    assert of(one) is of(two) is not None
    assert of(other) is not of(one)
    assert len(made.pools.checks) == 2
    assert made.names() == [*BOTH, *BOTH]


@pytest.mark.parametrize(
    ("backend", "pools"),
    [
        ({"hostnames": ()}, 0),
        ({"hostnames": (), "tcp_ports": (53,)}, 1),
        ({}, 1),  # as with HTTP/3
    ],
)
def test_udp_has_no_pool(backend: dict[str, Any], pools: int) -> None:
    """Nothing can be found out about its services by connecting to them."""
    mapping = PortMapping(
        Destination(targets=BOTH), {"udp:53": Destination(targets=(*BOTH, "127.0.0.1:3"))}
    )
    made = Made({53: mapping}, udp_routes=(UdpRoute(53),), **backend)
    assert len(made.pools.checks) == pools


def test_a_mapping_without_a_default() -> None:
    destination = Destination(targets=BOTH)
    made = Made({443: PortMapping(hosts={"app.example.com": destination})})
    assert made.names() == list(BOTH)


def test_what_is_told() -> None:
    destination = Destination(targets=BOTH, health=TargetHealth(failures=1))
    made = Made({443: PortMapping(destination)})
    pool = made.pools.of(destination)
    assert pool is not None
    member = pool.members[0]
    member.connections = 3
    pool.checked(member, ERROR)
    pool.checked(member, ERROR)
    made.clock.advance(2.5)
    assert list(made.pools.stats()) == [
        TargetStats("web", BOTH[0], False, 3, str(ERROR), 2.5),
        TargetStats("web", BOTH[1], True, 0, "", 0.0),
    ]
    pool.checked(member, None)
    down, up = made.events
    assert isinstance(down, TargetDown)
    assert (down.backend, down.target, down.error) == ("web", BOTH[0], str(ERROR))
    assert (down.streams, down.level) == (3, "warning")
    assert isinstance(up, TargetUp)
    assert (up.backend, up.target, up.down_s, up.level) == ("web", BOTH[0], 2.5, "info")


def test_a_bug_in_a_check_is_reported() -> None:
    made = Made({443: PortMapping(Destination(targets=BOTH))})
    error = ZeroDivisionError()
    made.pools.checks[0]._failed(error)
    assert made.failures == [error]
