from __future__ import annotations

import base64
import builtins
import http.client
import json
import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gevent
import pytest
from gevent import socket

from nexusg.errors import ConfigError
from nexusg.relay import verify
from nexusg.relay.authorizer import faults
from nexusg.relay.authorizer.limits import Limits, Rate
from nexusg.relay.authorizer.server import Authorizer
from tests.relay.authorizer.conftest import ATTEST, ENROLL, ME, NONCE, SECRET, TOKEN, b64, b64url
from tests.support.certs import Authority
from tests.support.clock import FakeClock
from tests.support.softtpm import ECC, SoftTpm


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Greenlets

    StartAuthorizer = Callable[..., Authorizer]

DOMAIN = "devices.example.com"


@pytest.fixture
def start() -> Iterator[StartAuthorizer]:
    """Starts authorizers that end with the test."""
    started = []

    def start(**settings: Any) -> Authorizer:
        authorizer = Authorizer(SECRET, DOMAIN, **settings)
        authorizer.start()
        started.append(authorizer)
        return authorizer

    yield start
    for authorizer in started:
        authorizer.stop()


class Talk:
    """One kept-alive HTTP connection to an authorizer."""

    def __init__(self, authorizer: Authorizer, context: ssl.SSLContext | None = None) -> None:
        where = urlsplit(authorizer.url)
        assert where.hostname
        if context is None:
            self.connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
        else:
            self.connection = http.client.HTTPSConnection(
                where.hostname, where.port, timeout=5, context=context
            )

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the reply."""
        content = None if body is None else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request("GET" if body is None else "POST", path, content, named)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read()), response.headers

    def enroll(self, tpm: SoftTpm) -> tuple[int, Any]:
        given = {"ek_pub": b64(tpm.ek_public), "ak_params": b64(tpm.ak_params)}
        _, begun, _ = self.ask(ENROLL, given)
        secret = tpm.activate(base64.b64decode(begun["enc_credential"]))
        quote = tpm.quote(bytes.fromhex(begun["nonce"]))
        answer = {"nonce": begun["nonce"], "secret": b64(secret), "quote": quote}
        status, body, _ = self.ask(ATTEST, answer)
        return status, body

    def proof(self, tpm: SoftTpm, device_id: str) -> dict[str, str]:
        nonce = self.ask(NONCE)[1]["nonce"]
        quote = tpm.quote(b64url(nonce))
        return {"X_Device_ID": device_id, "X_Nonce": nonce, "X_TPM_Quote": quote}

    def token(self, tpm: SoftTpm, device_id: str) -> tuple[int, Any]:
        return self.ask(TOKEN, {"stage": 0}, **self.proof(tpm, device_id))[:2]


def test_the_whole_story(start: StartAuthorizer) -> None:
    clock, tpm = FakeClock(1_700_000_000), SoftTpm(ECC)
    authorizer = start(
        nexus_endpoints=["wss://r.example.com/connect"],
        hostnames=["shop.example.org"],
        reauth_interval_s=3,
        reauth_grace_s=2,
        clock=clock,
    )
    with Talk(authorizer) as talk:
        status, device = talk.enroll(tpm)
        assert status == 201
        assert authorizer.device_ids == (device["device_id"],)
        status, answer = talk.token(tpm, device["device_id"])
        assert status == 200
    claims = verify.handshake(answer["token"], verify.Rules(SECRET), clock())
    names = {device["hostname"], "shop.example.org"}
    assert claims.hostnames == names | {f"*.{name}" for name in names}
    assert (claims.reauth_interval_s, claims.reauth_grace_s) == (3, 2)
    assert claims.status_uri == authorizer.url.replace("http:", "https:") + "/health"
    assert authorizer.requests[-2:] == (("GET", NONCE), ("POST", TOKEN))


def test_over_tls(start: StartAuthorizer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authorizer = start(tls=authority.server_context())
    assert authorizer.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    with Talk(authorizer, context) as talk:
        assert talk.ask("/health")[:2] == (200, {"status": "ok"})


def test_a_client_that_does_not_trust_it(
    start: StartAuthorizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    authorizer = start(tls=Authority(tmp_path).server_context())
    context = ssl.create_default_context()
    with Talk(authorizer, context) as talk, pytest.raises(ssl.SSLCertVerificationError):
        talk.ask("/health")
    gevent.idle()
    assert capfd.readouterr().err == ""


def test_it_says_what_it_is(start: StartAuthorizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    authorizer = start()
    with Talk(authorizer) as talk:
        talk.ask(ME)
    first, second = caplog.records
    assert (first.levelname, second.levelname) == ("WARNING", "INFO")
    assert first.getMessage().startswith(f"authorizer.started url={authorizer.url} notice=for dev")
    assert second.getMessage() == (
        f"authorizer.refused path={ME} status=401 why=missing authentication headers"
    )


def test_it_can_be_quiet(start: StartAuthorizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    events = []
    start(on_log=lambda event, _fields: events.append(event))
    assert events == ["authorizer.started"]
    with Talk(start()) as talk:
        talk.ask(ME)
    assert len(caplog.records) == 1


def test_a_port_that_is_taken(start: StartAuthorizer) -> None:
    where = ("127.0.0.1", urlsplit(start().url).port)
    with pytest.raises(ConfigError, match=r"^cannot listen on 127\.0\.0\.1:\d+: .*in use"):
        start(listen=where)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "nexusg.relay.authorizer.api":
            raise ImportError
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'nexusg\[relay\]'"):
        Authorizer(SECRET, DOMAIN).start()


def test_one_that_was_never_started_can_be_stopped() -> None:
    Authorizer(SECRET, DOMAIN).stop()


def test_as_a_context_manager() -> None:
    with Authorizer(SECRET, DOMAIN) as authorizer:
        port = urlsplit(authorizer.url).port
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_stopping_ends_connections(start: StartAuthorizer) -> None:
    authorizer = start()
    with Talk(authorizer) as talk:
        talk.ask("/health")
        authorizer.stop()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            talk.ask("/health")


# What tests do to it --------------------------------------------------------------------------


def test_the_next_requests_fail(start: StartAuthorizer) -> None:
    authorizer = start()
    authorizer.fail_next(NONCE, 429, headers={"Retry-After": "9"}, times=2)
    authorizer.fail_next(NONCE, 200, body=b'"garbage"')
    with Talk(authorizer) as talk:
        assert talk.ask("/health")[0] == 200
        status, body, headers = talk.ask(NONCE)
        assert (status, body) == (429, {"error": "too many requests"})
        assert headers["Retry-After"] == "9"
        assert headers["X-Request-ID"]
        assert talk.ask(NONCE)[0] == 429
        assert talk.ask(NONCE)[:2] == (200, "garbage")
        assert "nonce" in talk.ask(NONCE)[1]


def test_faults_can_be_taken_back(start: StartAuthorizer) -> None:
    authorizer = start()
    authorizer.fail_next(NONCE, 503, times=100)
    authorizer.work_again()
    with Talk(authorizer) as talk:
        assert talk.ask(NONCE)[0] == 200


def test_garbage(start: StartAuthorizer, capfd: pytest.CaptureFixture[str]) -> None:
    authorizer = start()
    authorizer.behave_next(NONCE, faults.garbage)
    with Talk(authorizer) as talk, pytest.raises(http.client.BadStatusLine):
        talk.ask(NONCE)
    assert capfd.readouterr().err == ""


def test_hanging_up(start: StartAuthorizer) -> None:
    authorizer = start()
    authorizer.behave_next(NONCE, faults.hang_up)
    with Talk(authorizer) as talk, pytest.raises(http.client.RemoteDisconnected):
        talk.ask(NONCE)


def test_silence_ends_with_the_authorizer(
    start: StartAuthorizer, capfd: pytest.CaptureFixture[str]
) -> None:
    authorizer = start()
    authorizer.behave_next(NONCE, faults.silent)
    with Talk(authorizer) as talk:
        talk.connection.request("GET", NONCE)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            talk.connection.getresponse()
        authorizer.stop()
        talk.connection.sock.settimeout(5)
        assert talk.connection.sock.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_a_flood_and_a_drip(start: StartAuthorizer) -> None:
    authorizer = start()
    authorizer.behave_next(NONCE, faults.drip(0.001))
    authorizer.behave_next(NONCE, faults.flood)
    with Talk(authorizer) as talk:
        talk.connection.request("GET", NONCE)
        response = talk.connection.getresponse()
        assert response.read(3) == b"{  "
    with Talk(authorizer) as talk:
        talk.connection.request("GET", NONCE)
        assert len(talk.connection.getresponse().read()) >= 10_000_000


def test_an_error_of_its_own_is_a_500(start: StartAuthorizer, tidy_greenlets: Greenlets) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    authorizer = start()
    authorizer.behave_next(NONCE, broken)
    with Talk(authorizer) as talk:
        talk.connection.request("GET", NONCE)
        assert talk.connection.getresponse().status == 500
    [failure] = tidy_greenlets.failures
    assert "ZeroDivisionError" in failure
    tidy_greenlets.failures.clear()


def test_devices_lose_their_rights(start: StartAuthorizer) -> None:
    authorizer, tpm = start(), SoftTpm(ECC)
    with Talk(authorizer) as talk:
        [device_id] = [talk.enroll(tpm)[1]["device_id"]]
        authorizer.suspend(device_id)
        assert talk.token(tpm, device_id) == (403, {"error": "device is suspended"})
        authorizer.revoke(device_id)
        assert talk.token(tpm, device_id) == (403, {"error": "device is revoked"})
        authorizer.forget_devices()
        assert talk.token(tpm, device_id) == (401, {"error": "device not found"})
        assert talk.enroll(tpm)[0] == 201


def test_a_restart_changes_the_secret(start: StartAuthorizer) -> None:
    authorizer, tpm = start(), SoftTpm(ECC)
    with Talk(authorizer) as talk:
        device_id = talk.enroll(tpm)[1]["device_id"]
        proof = talk.proof(tpm, device_id)
        secret = authorizer.rotate_secret()
        assert secret == authorizer.policy.secret != SECRET
        refusal = (401, {"error": "invalid or expired nonce"})
        assert talk.ask(TOKEN, {"stage": 0}, **proof)[:2] == refusal
        token = talk.token(tpm, device_id)[1]["token"]
    now = authorizer._clock()
    verify.handshake(token, verify.Rules(secret), now)
    with pytest.raises(verify.Refused):
        verify.handshake(token, verify.Rules(SECRET), now)


def test_limits(start: StartAuthorizer) -> None:
    with Talk(start(limits=Limits(nonce_each=Rate(0.01, 1)))) as talk:
        assert [talk.ask(NONCE)[0] for _ in range(2)] == [200, 429]
    with Talk(start(limits=None, clock=FakeClock())) as talk:
        assert {talk.ask(NONCE)[0] for _ in range(120)} == {200}
