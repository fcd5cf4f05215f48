"""The endpoints, with namek's requests, replies, error texts, and order of checks (TPM.md A.2).

It knows HTTP, and no cryptography. Nothing in it blocks.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from nexusg.relay.authorizer import nonces, tokens
from nexusg.relay.authorizer.keys import EndorsementKey
from nexusg.relay.authorizer.refusal import Refusal
from nexusg.relay.authorizer.wire import Malformed, from_base64


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nexusg.relay.authorizer.devices import Device, Registry
    from nexusg.relay.authorizer.limits import Limiter
    from nexusg.relay.authorizer.nonces import Nonces
    from nexusg.relay.authorizer.tokens import Policy

    Environ = dict[str, Any]
    Answer = tuple[int, dict[str, Any]]

BODY_MAX_BYTES = 1 << 20
NO_ENDPOINTS_RETRY_S = 5
PCR_COUNT = 24

_HEX_DIGEST = re.compile("[0-9a-fA-F]{64}")


class Api:
    """The WSGI application. ``log`` is told the event and its fields."""

    def __init__(
        self,
        policy: Policy,
        registry: Registry,
        issued: Nonces,
        limiter: Limiter,
        clock: Callable[[], float],
        log: Callable[..., None],
    ) -> None:
        self._policy = policy
        self._registry = registry
        self._nonces = issued
        self._limiter = limiter
        self._clock = clock
        self._log = log
        self._endpoints: dict[tuple[str, str], Callable[[Environ], Answer]] = {
            ("POST", "/api/v1/devices/enroll"): self._enroll,
            ("POST", "/api/v1/devices/enroll/attest"): self._attest,
            ("GET", "/api/v1/nonce"): self._nonce,
            ("POST", "/api/v1/tokens/nexus"): self._token,
            ("GET", "/api/v1/devices/me"): self._me,
            ("GET", "/health"): lambda _: (200, {"status": "ok"}),
            ("GET", "/ready"): lambda _: (200, {"status": "ready"}),
        }

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        endpoint = self._endpoints.get((method, path))
        headers = [("X-Request-ID", str(uuid.uuid4()))]
        if endpoint is None:
            start("404 Not Found", [("Content-Type", "text/plain"), *headers])
            return [b"404 page not found"]
        try:
            status, answer = endpoint(environ)
        except Refusal as refusal:
            self._log("authorizer.refused", path=path, status=refusal.status, why=refusal.reason)
            status, answer = refusal.status, {"error": refusal.text}
            if refusal.retry_after_s is not None:
                headers.append(("Retry-After", str(refusal.retry_after_s)))
        headers.append(("Content-Type", "application/json; charset=utf-8"))
        start(f"{status} {HTTPStatus(status).phrase}", headers)
        return [json.dumps(answer).encode()]

    # For everybody --------------------------------------------------------------------------

    def _enroll(self, environ: Environ) -> Answer:
        self._limiter.public("enrollment", environ["REMOTE_ADDR"])
        body = _body(environ, "ak_params")
        certificate, public = _text(body, "ek_cert"), _text(body, "ek_pub")
        if not certificate and not public:
            raise Refusal(400, "either ek_cert or ek_pub is required")
        if certificate:
            source, kind = EndorsementKey.from_certificate, "ek_cert"
        else:
            source, kind = EndorsementKey.from_public, "ek_pub"
        der, ak_params = _bytes(body, kind), _bytes(body, "ak_params")
        nonce, credential = self._registry.begin(source(der), ak_params)
        return 200, {"nonce": nonce, "enc_credential": _base64(credential)}

    def _attest(self, environ: Environ) -> Answer:
        self._limiter.public("enrollment", environ["REMOTE_ADDR"])
        body = _body(environ, "nonce", "secret", "quote")
        secret = _bytes(body, "secret")
        values = _pcr_values(body)
        device, known = self._registry.complete(
            _text(body, "nonce"),
            secret,
            _text(body, "quote"),
            values,
            _text(body, "os_version") or None,
        )
        self._log(
            "authorizer.enrolled", device=device.device_id, hostname=device.hostname, again=known
        )
        names = ("device_id", "hostname", "identity_class", "trust_level")
        answer = {name: getattr(device, name) for name in names}
        answer["nexus_endpoints"] = list(self._policy.nexus_endpoints)
        if known:
            answer["reenrolled"] = True
        if not self._policy.nexus_endpoints:
            answer["retry_after_seconds"] = NO_ENDPOINTS_RETRY_S
        return (200 if known else 201), answer

    def _nonce(self, environ: Environ) -> Answer:
        self._limiter.public("nonce", environ["REMOTE_ADDR"])
        nonce, expires_at = self._nonces.issue()
        moment = dt.datetime.fromtimestamp(expires_at, dt.timezone.utc).isoformat()
        return 200, {"nonce": nonce, "expires_at": moment.replace("+00:00", "Z")}

    # For devices ----------------------------------------------------------------------------

    def _token(self, environ: Environ) -> Answer:
        device = self._authenticated(environ, "device_write")
        body = _body(environ)
        stage, session_nonce = body.get("stage", 0), _text(body, "session_nonce")
        if type(stage) is not int or stage not in (0, 1, 2):
            raise Refusal(400, "invalid request body", reason="stage is not 0, 1 or 2")
        if stage and not session_nonce:
            raise Refusal(400, "session_nonce required for stage 1 and 2")
        policy, now = self._policy, self._clock()
        claims = tokens.claims(policy, device.device_id, device.hostname, stage, session_nonce, now)
        self._log("authorizer.token_issued", device=device.device_id, stage=stage)
        return 200, {"token": tokens.signed(claims, policy.secret)}

    def _me(self, environ: Environ) -> Answer:
        device = self._authenticated(environ, "device_read")
        return 200, {
            "device_id": device.device_id,
            "hostname": device.hostname,
            "custom_hostname": None,
            "alias_domains": list(self._policy.hostnames),
            "status": device.status,
            "identity_class": device.identity_class,
            "trust_level": device.trust_level,
            "issuer_fingerprint": None,
            "os_version": device.os_version,
            "account_id": None,
            "recovery_status": None,
            "nexus_endpoints": list(self._policy.nexus_endpoints),
        }

    def _authenticated(self, environ: Environ, kind: str) -> Device:
        """The device that sends this request. Whatever comes of it, its nonce is used up."""
        names = ("HTTP_X_DEVICE_ID", "HTTP_X_NONCE", "HTTP_X_TPM_QUOTE")
        identity, nonce, quote = (environ.get(name, "") for name in names)
        if not (identity and nonce and quote):
            raise Refusal(401, "missing authentication headers")
        try:
            identity = str(uuid.UUID(identity))
        except ValueError:
            raise Refusal(401, "invalid device id") from None
        self._nonces.consume(nonce)
        device = self._registry.authenticate(identity, nonces.raw(nonce), quote)
        self._limiter.device(kind, device.device_id)
        return device


def _body(environ: Environ, *required: str) -> dict[str, Any]:
    """The request's JSON object, with a non-empty text in each of ``required``. Raises Refusal."""
    try:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = json.loads(environ["wsgi.input"].read(min(size, BODY_MAX_BYTES)))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "invalid request body", reason="the body is no JSON object")
    for name in required:
        if not _text(body, name):
            raise Refusal(400, "invalid request body", reason=f"{name} is missing")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str | None):
        raise Refusal(400, "invalid request body", reason=f"{name} is no text")
    return value or ""


def _bytes(body: dict[str, Any], name: str) -> bytes:
    try:
        return from_base64(_text(body, name))
    except Malformed:
        raise Refusal(400, f"invalid {name} encoding") from None


def _pcr_values(body: dict[str, Any]) -> dict[int, bytes]:
    values = body.get("pcr_values")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(one, str) for one in values.values()):
        raise Refusal(400, "invalid request body", reason="pcr_values is no object of texts")
    found = {}
    for key, value in values.items():
        if not (key.isascii() and key.isdigit()) or int(key[:4]) >= PCR_COUNT:
            raise Refusal(400, "invalid pcr_values key: must be 0-23")
        if not _HEX_DIGEST.fullmatch(value):
            raise Refusal(
                400, "invalid pcr_values: each value must be 64 hex chars (32 bytes SHA-256)"
            )
        found[int(key)] = bytes.fromhex(value)
    return found


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
