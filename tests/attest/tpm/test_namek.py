"""The authorizer's endpoints, spoken to over real sockets; its answers are scripted."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.attest.tpm.namek import (
    CALL_TIMEOUT_S,
    Challenge,
    Device,
    NamekClient,
    Nonce,
    NonceExpired,
    Proof,
)
from nexusg.errors import AuthorizerError, ConfigError, Retry
from tests.attest.tpm.doubles import DEVICE_ID, NONCE, Server, head, reply
from tests.conftest import MS
from tests.support.services import Service


if TYPE_CHECKING:
    from collections.abc import Iterator

QUOTE = "cXVvdGU" * 20
PROOF = Proof(DEVICE_ID, NONCE, QUOTE)
DEVICE = {
    "device_id": DEVICE_ID,
    "hostname": "slug.test",
    "identity_class": "verified",
    "trust_level": "high",
    "nexus_endpoints": ["wss://relay.test/connect"],
}


class Script(Server):
    """A server whose next answer a test sets, and what it was asked as the parts that count."""

    def answers(self, content: object, status: str = "200 OK", *lines: str) -> None:
        self.pieces = (reply(content, status, *lines),)

    @property
    def request(self) -> str:
        return self.asked.split(b" HTTP")[0].decode()

    @property
    def body(self) -> Any:
        return json.loads(self.asked.partition(b"\r\n\r\n")[2])

    @property
    def headers(self) -> list[str]:
        return self.asked.partition(b"\r\n\r\n")[0].decode().split("\r\n")


@pytest.fixture
def script() -> Script:
    """What the server does."""
    return Script()


@pytest.fixture
def client(script: Script) -> Iterator[NamekClient]:
    """A client of the server that follows the script."""
    with Service(script) as service:
        yield NamekClient(f"http://{service.target}")


def start(client: NamekClient, certificate: bytes | None = None) -> Challenge:
    return client.enroll_start(b"params", ek_public=b"key", ek_certificate=certificate)


class TestEnrollStart:
    @pytest.mark.parametrize(
        ("certificate", "sent"),
        [(None, {"ek_pub": "a2V5"}), (b"cert", {"ek_cert": "Y2VydA=="})],
    )
    def test_shows_the_keys(
        self, script: Script, client: NamekClient, certificate: bytes | None, sent: dict[str, str]
    ) -> None:
        script.answers({"nonce": "0f" * 32, "enc_credential": "AAE="})
        challenge = start(client, certificate)
        assert challenge == Challenge("0f" * 32, b"\0\1")
        assert challenge.raw == b"\x0f" * 32
        assert script.request == "POST /api/v1/devices/enroll"
        assert script.body == {**sent, "ak_params": "cGFyYW1z"}

    @pytest.mark.parametrize(
        "answer",
        [
            {"enc_credential": "AAE="},
            {"nonce": 5, "enc_credential": "AAE="},
            {"nonce": "0F" * 32, "enc_credential": "AAE="},
            {"nonce": "0f" * 31, "enc_credential": "AAE="},
        ],
    )
    def test_needs_a_nonce(self, script: Script, client: NamekClient, answer: Any) -> None:
        script.answers(answer)
        with pytest.raises(AuthorizerError, match="no usable nonce"):
            start(client)

    @pytest.mark.parametrize("credential", ["AAE", "A?==", "ä"])
    def test_needs_a_credential(self, script: Script, client: NamekClient, credential: str) -> None:
        script.answers({"nonce": "0f" * 32, "enc_credential": credential})
        with pytest.raises(AuthorizerError, match="no usable enc_credential"):
            start(client)


class TestEnrollAttest:
    CHALLENGE = Challenge("0f" * 32, b"\0\1")

    def test_shows_what_was_decrypted(self, script: Script, client: NamekClient) -> None:
        script.answers(DEVICE, "201 Created")
        device = client.enroll_attest(self.CHALLENGE, b"secret", QUOTE)
        assert device == Device(DEVICE_ID, "slug.test", "verified", ("wss://relay.test/connect",))
        assert script.request == "POST /api/v1/devices/enroll/attest"
        assert script.body == {"nonce": "0f" * 32, "secret": "c2VjcmV0", "quote": QUOTE}

    def test_says_more_if_asked_to(self, script: Script, client: NamekClient) -> None:
        script.answers({**DEVICE, "reenrolled": True, "nexus_endpoints": []})
        values = {0: bytes(32), 7: b"\xff" * 32}
        device = client.enroll_attest(
            self.CHALLENGE, b"secret", QUOTE, os_version="debian-12", pcr_values=values
        )
        assert device.re_enrolled
        assert script.body["os_version"] == "debian-12"
        assert script.body["pcr_values"] == {"0": "00" * 32, "7": "ff" * 32}

    @pytest.mark.parametrize(
        ("wait", "expected"),
        [(5, 5.0), (0, None), (-1, None), (True, None), ("5", None), (10**9, None), (None, None)],
    )
    def test_may_have_to_wait(
        self, script: Script, client: NamekClient, wait: object, expected: float | None
    ) -> None:
        script.answers({**DEVICE, "nexus_endpoints": None, "retry_after_seconds": wait})
        device = client.enroll_attest(self.CHALLENGE, b"secret", QUOTE)
        assert (device.nexus_endpoints, device.retry_after_s) == ((), expected)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("device_id", None),
            ("device_id", "../me"),
            ("hostname", "a b"),
            ("hostname", "a" * 254),
            ("hostname", ""),
            ("identity_class", "veri\nfied"),
            ("nexus_endpoints", "wss://relay.test"),
        ],
    )
    def test_needs_sense(
        self, script: Script, client: NamekClient, key: str, value: object
    ) -> None:
        script.answers({**DEVICE, key: value})
        with pytest.raises(AuthorizerError, match=f"no usable {key}"):
            client.enroll_attest(self.CHALLENGE, b"secret", QUOTE)

    def test_takes_only_relays_that_can_be_dialled_safely(
        self, script: Script, client: NamekClient
    ) -> None:
        good = ["wss://relay.test/connect", "ws://127.0.0.1:1/"]
        bad = ["ws://relay.test", "https://relay.test", "wss://", "wss://a\x7f.test", 5]
        script.answers({**DEVICE, "nexus_endpoints": bad + good})
        device = client.enroll_attest(self.CHALLENGE, b"secret", QUOTE)
        assert device.nexus_endpoints == tuple(good)


def test_nonce(script: Script, client: NamekClient) -> None:
    text = base64.urlsafe_b64encode(b"\xfb" * 32).decode().rstrip("=")
    script.answers({"nonce": text, "expires_at": "2026-11-24T00:00:00Z"})
    assert client.nonce() == Nonce(text, b"\xfb" * 32)
    assert script.request == "GET /api/v1/nonce"


@pytest.mark.parametrize("nonce", ["", NONCE + "n", NONCE[1:], NONCE[1:] + "=", NONCE[1:] + "\n"])
def test_nonces_that_are_none(script: Script, client: NamekClient, nonce: str) -> None:
    script.answers({"nonce": nonce})
    with pytest.raises(AuthorizerError, match="no usable nonce"):
        client.nonce()


@pytest.mark.parametrize(("stage", "number"), [("handshake", 0), ("attest", 1), ("reauth", 2)])
def test_token(script: Script, client: NamekClient, stage: str, number: int) -> None:
    script.answers({"token": "a.b.c"})
    assert client.token(stage, "session", PROOF) == "a.b.c"
    assert script.request == "POST /api/v1/tokens/nexus"
    assert script.body == {"stage": number, "session_nonce": "session"}
    proof = [f"X-Device-ID: {DEVICE_ID}", f"X-Nonce: {NONCE}", f"X-TPM-Quote: {QUOTE}"]
    assert set(proof) <= set(script.headers)


@pytest.mark.parametrize("token", [None, "", 5, "tökén"])
def test_tokens_that_are_none(script: Script, client: NamekClient, token: object) -> None:
    script.answers({"token": token, "more": 1})
    with pytest.raises(AuthorizerError, match="no usable token"):
        client.token("handshake", "", PROOF)


def test_me(script: Script, client: NamekClient) -> None:
    script.answers({**DEVICE, "custom_hostname": None, "status": "active"})
    assert client.me(PROOF).hostname == "slug.test"
    assert script.request == "GET /api/v1/devices/me"
    assert f"X-TPM-Quote: {QUOTE}" in script.headers


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "code", "retry"),
        [
            (400, "authorizer", Retry.TOKEN),
            (401, "authorizer", Retry.TOKEN),
            (403, "authorizer_refused", Retry.BARRED),
            (409, "authorizer_refused", Retry.BARRED),
            (429, "authorizer", Retry.TOKEN),
            (500, "authorizer", Retry.TOKEN),
        ],
    )
    def test_have_a_code(
        self, script: Script, client: NamekClient, status: int, code: str, retry: Retry
    ) -> None:
        script.answers({"error": "device is suspended"}, f"{status} Whatever")
        with pytest.raises(AuthorizerError, match=rf"status {status}: device is suspended") as one:
            client.me(PROOF)
        assert (one.value.code, one.value.status, one.value.retry) == (code, status, retry)
        assert one.value.retry_after_s is None

    @pytest.mark.parametrize(("asked", "wait_s"), [("7", 7.0), ("soon", None), ("9" * 9, 3600.0)])
    def test_say_when_to_come_back(
        self, script: Script, client: NamekClient, asked: str, wait_s: float | None
    ) -> None:
        script.answers({"error": "slow down"}, "429 Too Many Requests", f"Retry-After: {asked}")
        with pytest.raises(AuthorizerError) as failure:
            client.nonce()
        assert failure.value.retry_after_s == wait_s

    def test_tell_an_expired_nonce_apart(self, script: Script, client: NamekClient) -> None:
        script.answers({"error": "invalid or expired nonce"}, "401 Unauthorized")
        with pytest.raises(NonceExpired) as failure:
            client.token("attest", "session", PROOF)
        assert failure.value.status == 401

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"[" * 60000, b"\xff", b"{}"])
    @pytest.mark.parametrize("status", ["502 Bad Gateway", "200 OK"])
    def test_need_no_json(
        self, script: Script, client: NamekClient, body: bytes, status: str
    ) -> None:
        script.pieces = (head(status=status), body)
        with pytest.raises(AuthorizerError) as failure:
            client.nonce()
        number = int(status[:3])
        assert failure.value.status == (None if number == 200 else number)
        words = "answered /nonce without JSON" if number == 200 else "with status 502"
        assert str(failure.value).endswith(words)

    def test_are_redirects(self, script: Script, client: NamekClient) -> None:
        script.pieces = (head("Location: https://other.test", status="302 Found"),)
        with pytest.raises(AuthorizerError, match="302, a redirect, which is not followed"):
            client.nonce()

    def test_hold_no_secret(self, script: Script, client: NamekClient) -> None:
        """Whatever the server quotes, and in however long a text."""
        told = (
            f"{QUOTE[:10]}\n{QUOTE} {NONCE} my-session eyJhbGciOiJIUzI1NiJ9.e30.c2ln " + "x" * 900
        )
        script.answers({"error": told}, "400 Bad Request")
        with pytest.raises(AuthorizerError) as failure:
            client.token("attest", "my-session", PROOF)
        text = str(failure.value)
        for secret in (QUOTE, NONCE, "my-session", "eyJ"):
            assert secret not in text
        assert len(text) < 250
        assert text.isprintable()

    def test_come_when_nothing_does(self, script: Script, client: NamekClient) -> None:
        script._hold = True
        with pytest.raises(AuthorizerError, match=r"did not answer within 0\.01 s") as failure:
            client.nonce(10 * MS)
        assert failure.value.code == "authorizer_unreachable"


def test_no_request_takes_longer_than_its_share(client: NamekClient) -> None:
    asked: list[float] = []

    def call(*_: object, timeout_s: float, **__: object) -> None:
        asked.append(timeout_s)
        raise AuthorizerError("enough")

    client._http.call = call  # type: ignore[assignment]
    for timeout_s in (1.0, 100.0):
        with pytest.raises(AuthorizerError):
            client.me(PROOF, timeout_s)
    assert asked == [1.0, CALL_TIMEOUT_S]


@pytest.mark.parametrize("secret", [PROOF, Nonce(NONCE, b"raw!"), Challenge("0f" * 32, b"cred")])
def test_secrets_are_not_in_a_repr(secret: object) -> None:
    text = repr(secret)
    for part in (NONCE, QUOTE, "raw!", "cred", "0f0f"):
        assert part not in text.replace("credential", "")


def test_the_url_is_checked() -> None:
    with pytest.raises(ConfigError):
        NamekClient("http://namek.test")
