"""A destination in its one form, and the rules over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nexusg.config.destination import Destination, TargetHealth, TlsTerminate
from nexusg.config.tls import TargetTls


if TYPE_CHECKING:
    from nexusg.config.setting import Settings


def found(block: Settings) -> list[tuple[tuple[str | int, ...], bool, str]]:
    return [(one.path, one.fatal, one.text) for one in block.findings()]


def test_defaults() -> None:
    made = Destination(("a:1",))
    assert (made.proxy_protocol, made.connect_timeout_s) == ("off", 10.0)
    assert made.tls == TargetTls(None, None, None, None, True)
    assert made.tls_terminate == TlsTerminate(None, None, "1.2")
    assert made.health == TargetHealth(None, None, 5.0, 2.0, 2)
    assert found(made) == []


def test_one_form() -> None:
    made = Destination(["b:1", "a:1", "b:1"], connect_timeout_s=0)  # type: ignore[arg-type]
    assert (made.targets, made.name) == (("b:1", "a:1"), "b:1, a:1")
    assert made.connect_timeout_s == 10.0
    assert len({made, Destination(("b:1", "a:1"))}) == 1
    assert TlsTerminate("", "") == TlsTerminate()
    assert TargetHealth("", "") == TargetHealth()


def test_targets_are_no_single_text() -> None:
    with pytest.raises(TypeError, match="list"):
        Destination("a:1")  # type: ignore[arg-type]


def test_something_must_be_reached() -> None:
    assert found(Destination(proxy_protocol="v2")) == [
        ((), True, "a target or targets are required")
    ]


@pytest.mark.parametrize(
    ("targets", "doubtful"), [(("wsgi:a",), True), (("a:1", "wsgi:a"), True), (("a:1",), False)]
)
def test_an_application_needs_no_header(targets: tuple[str, ...], doubtful: bool) -> None:
    paths = [(path, fatal) for path, fatal, _ in found(Destination(targets, "v1"))]
    assert paths == [(("proxyProtocol",), False)] * doubtful
    assert found(Destination(targets)) == []


def test_tls_is_for_targets_that_speak_it() -> None:
    tls = TargetTls(server_name="a")
    assert found(Destination(("a:1", "tls://a:1"), tls=tls)) == []
    assert found(Destination(("a:1",), tls=tls)) == [
        (("tls",), False, "is not used, because no target begins with tls://")
    ]


def test_a_single_target_is_asked_for_a_path() -> None:
    often, path = TargetHealth(interval_s=3), TargetHealth("/ok")
    assert found(Destination(("a:1", "b:1"), health=often)) == []
    assert found(Destination(("a:1",), health=path)) == []
    assert found(Destination(("a:1",), health=often)) == [
        (("health",), False, "is not used, because there is one target and no path")
    ]


def test_termination() -> None:
    assert not TlsTerminate()
    assert TlsTerminate("a.pem")
    assert found(TlsTerminate()) == found(TlsTerminate("a.pem", "a.key", "1.3")) == []
    assert found(TlsTerminate(key_file="a.key")) == [(("keyFile",), True, "needs a certFile")]
    assert found(TlsTerminate(min_version="1.3")) == [((), True, "needs a certFile")]


def test_health() -> None:
    assert found(TargetHealth()) == found(TargetHealth("/", "a.test", 1.0, 1.0)) == []
    assert found(TargetHealth(interval_s=1.5)) == [
        (("timeoutSeconds",), True, "must not be above intervalSeconds (1.5)")
    ]
    assert found(TargetHealth(host="a.test")) == [
        (("host",), False, "is not used, because there is no path")
    ]
