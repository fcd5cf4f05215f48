"""TLS towards relays and local services: what the settings mean together."""

from __future__ import annotations

import pytest

from nexusg.config.tls import ClientTls, RelayTls, TargetTls


def found(settings: ClientTls) -> list[tuple[tuple[object, ...], bool, str]]:
    return [(finding.path, finding.fatal, finding.text) for finding in settings.findings()]


@pytest.mark.parametrize("kind", [RelayTls, TargetTls])
def test_a_certificate_and_its_key(kind: type[ClientTls]) -> None:
    assert kind("", "", "", "") == kind(None, None, None, None) == kind()
    assert found(kind()) == found(kind(cert_file="a.pem")) == []
    assert found(kind(cert_file="a.pem", key_file="a.key")) == []
    assert found(kind(key_file="a.key")) == [(("keyFile",), True, "needs a certFile")]


def test_a_service_that_is_not_verified() -> None:
    [(path, fatal, text)] = found(TargetTls(verify=False))
    assert (path, fatal) == (("verify",), False)
    assert "can answer in its place" in text
