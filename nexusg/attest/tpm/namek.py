"""What namek, the authorizer for devices with a TPM, is asked and how it answers.

The endpoints of its version 1 (paths below /api/v1). It must not know TPMs, state or retries: each
method is one request. Nothing that is secret gets into an error: no nonce, quote, credential or
token, not even if the server quotes it back.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexusg.attest.redact import REDACTED, redact
from nexusg.attest.tpm.http import HttpClient
from nexusg.config.checks import relay_address
from nexusg.errors import AuthorizerError
from nexusg.transport.upgrade import retry_after_s


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nexusg.attest.tpm.http import Answer


#: For one request. A token may take 8 s, so one that hangs leaves time for another.
CALL_TIMEOUT_S = 5.0
#: Characters of the server's own words that go into an error.
ERROR_TEXT_CHARS = 160
#: Endpoints and names that are taken from one answer.
MAX_ITEMS = 64

#: The stages in namek's numbers.
STAGES = {"handshake": 0, "attest": 1, "reauth": 2}

_REFUSED = (403, 409)  # the device is suspended or revoked: its operator must act
_NONCE = re.compile(r"[A-Za-z0-9_-]{43}")  # base64url of 32 bytes; it goes into a header
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._*-]{1,253}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OPAQUE = re.compile(r"[A-Za-z0-9+/=_-]{32,}")  # no word of any language


class NonceExpired(AuthorizerError):
    """The nonce was too old, used or unknown: another one will do."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """A nonce as received, for the header, and decoded, for the quote."""

    text: str = field(repr=False)
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Phase 1 of an enrollment: what only the owner of the endorsement key can decrypt."""

    nonce: str = field(repr=False)
    credential: bytes = field(repr=False)

    @property
    def raw(self) -> bytes:
        """The nonce for the quote."""
        return bytes.fromhex(self.nonce)


@dataclass(frozen=True, slots=True)
class Proof:
    """Who asks: the device, a fresh nonce, and the quote over it."""

    device_id: str
    nonce: str = field(repr=False)
    quote: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Device:
    """What the authorizer knows about this device. ``retry_after_s`` only without endpoints."""

    device_id: str
    hostname: str
    identity_class: str
    nexus_endpoints: tuple[str, ...]
    re_enrolled: bool = False
    retry_after_s: float | None = None


class NamekClient:
    """Asks one authorizer. See `HttpClient` for the arguments.

    Every method blocks for at most ``timeout_s``, and never longer than CALL_TIMEOUT_S, and raises
    AuthorizerError.
    """

    def __init__(
        self, url: str, ca_file: str | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._http = HttpClient(url, ca_file, environ)

    def enroll_start(
        self,
        ak_params: bytes,
        *,
        ek_public: bytes,
        ek_certificate: bytes | None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Challenge:
        """Phase 1: show the keys. The certificate stands for the public key if there is one."""
        request = {"ak_params": _b64(ak_params)}
        if ek_certificate is None:
            request["ek_pub"] = _b64(ek_public)
        else:
            request["ek_cert"] = _b64(ek_certificate)
        body = self._post("/devices/enroll", request, timeout_s=timeout_s)
        try:
            credential = base64.b64decode(_text(body, "enc_credential"), validate=True)
        except ValueError:
            raise self._malformed("enc_credential") from None
        return Challenge(self._matched(body, "nonce", _HEX), credential)

    def enroll_attest(
        self,
        challenge: Challenge,
        secret: bytes,
        quote: str,
        *,
        os_version: str | None = None,
        pcr_values: Mapping[int, bytes] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Device:
        """Phase 2: show what was decrypted. Any outcome uses the challenge up."""
        body: dict[str, Any] = {"nonce": challenge.nonce, "secret": _b64(secret), "quote": quote}
        if os_version:
            body["os_version"] = os_version
        if pcr_values:
            body["pcr_values"] = {str(pcr): value.hex() for pcr, value in pcr_values.items()}
        known = (challenge.nonce, body["secret"], quote)
        return self._device(
            self._post("/devices/enroll/attest", body, secrets=known, timeout_s=timeout_s)
        )

    def nonce(self, timeout_s: float = CALL_TIMEOUT_S) -> Nonce:
        """A nonce for one request, good for 60 s."""
        body = self._call("GET", "/nonce", {}, b"", (), timeout_s)
        text = self._matched(body, "nonce", _NONCE)
        return Nonce(text, base64.urlsafe_b64decode(text + "="))

    def token(
        self,
        stage: str,
        session_nonce: str,
        proof: Proof,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> str:
        """A token for ``stage``, unchecked."""
        body = {"stage": STAGES[stage], "session_nonce": session_nonce}
        answer = self._post("/tokens/nexus", body, proof, (session_nonce,), timeout_s)
        token = _text(answer, "token")
        if not token or not token.isascii():
            raise self._malformed("token")
        return token

    def me(self, proof: Proof, timeout_s: float = CALL_TIMEOUT_S) -> Device:
        """What the authorizer knows about the device now."""
        secrets = (proof.nonce, proof.quote)
        return self._device(
            self._call("GET", "/devices/me", _headers(proof), b"", secrets, timeout_s)
        )

    # Requests and answers --------------------------------------------------------------------

    def _post(
        self,
        path: str,
        body: Mapping[str, object],
        proof: Proof | None = None,
        secrets: Iterable[str] = (),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        headers = {} if proof is None else _headers(proof)
        known = (*secrets, *headers.values())
        return self._call("POST", path, headers, json.dumps(body).encode(), known, timeout_s)

    def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Iterable[str],
        timeout_s: float,
    ) -> dict[str, Any]:
        answer = self._http.call(
            method,
            f"/api/v1{path}",
            headers=headers,
            body=body,
            timeout_s=min(timeout_s, CALL_TIMEOUT_S),
        )
        content = _json(answer.body)
        if answer.status not in (200, 201):
            raise self._error(answer, content, secrets)
        if not content:
            raise AuthorizerError(f"{self._http.place} answered {path} without JSON")
        return content

    def _error(
        self, answer: Answer, content: Mapping[str, Any], secrets: Iterable[str]
    ) -> AuthorizerError:
        status, text = answer.status, _text(content, "error")
        message = f"{self._http.place} answered with status {status}"
        if 300 <= status < 400:
            message += ", a redirect, which is not followed"
        elif text:
            message += f": {_fit_for_a_log(text, secrets)}"
        if status == 401 and text.lower().strip() == "invalid or expired nonce":
            return NonceExpired(message, status=status)
        code = "authorizer_refused" if status in _REFUSED else "authorizer"
        asked = answer.headers.get("retry-after")
        wait_s = None if asked is None else retry_after_s(asked, time.time())
        return AuthorizerError(message, code, status, wait_s)

    def _device(self, body: Mapping[str, Any]) -> Device:
        try:
            device_id = str(uuid.UUID(_text(body, "device_id")))
        except ValueError:
            raise self._malformed("device_id") from None
        endpoints = body.get("nexus_endpoints") or []
        if not isinstance(endpoints, list):
            raise self._malformed("nexus_endpoints")
        wait = body.get("retry_after_seconds")
        return Device(
            device_id=device_id,
            hostname=self._matched(body, "hostname", _NAME),
            identity_class=self._matched(body, "identity_class", _WORD),
            nexus_endpoints=tuple(
                url for url in endpoints[:MAX_ITEMS] if isinstance(url, str) and _dialable(url)
            ),
            re_enrolled=body.get("reenrolled") is True,
            retry_after_s=float(wait) if type(wait) is int and 0 < wait <= 3600 else None,
        )

    def _matched(self, body: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
        text = _text(body, key)
        if not form.fullmatch(text):
            raise self._malformed(key)
        return text

    def _malformed(self, key: str) -> AuthorizerError:
        return AuthorizerError(f"{self._http.place} sent no usable {key}")


def _headers(proof: Proof) -> dict[str, str]:
    return {
        "X-Device-ID": proof.device_id,
        "X-Nonce": proof.nonce,
        "X-TPM-Quote": proof.quote,
    }


def _dialable(url: str) -> bool:
    """Whether a relay can be dialled there without telling the token to everybody."""
    return url.isprintable() and relay_address(url) is None


def _json(body: bytes) -> dict[str, Any]:
    """An object, or ``{}`` for anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(body: Mapping[str, Any], key: str) -> str:
    """A member that is a text, or an empty one."""
    value = body.get(key)
    return value if isinstance(value, str) else ""


def _fit_for_a_log(text: str, secrets: Iterable[str]) -> str:
    """The server's words: one line, short, without what it was told and without any code."""
    text = _OPAQUE.sub(REDACTED, redact(text, secrets))
    return "".join(char if char.isprintable() else " " for char in text)[:ERROR_TEXT_CHARS]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
