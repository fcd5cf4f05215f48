"""An authorizer without sockets, and devices with a software TPM that talk to it."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.relay.authorizer.api import Api
from nexusg.relay.authorizer.devices import Registry
from nexusg.relay.authorizer.limits import Limiter, Limits
from nexusg.relay.authorizer.nonces import Nonces
from nexusg.relay.authorizer.tokens import Policy
from tests.support.clock import FakeClock
from tests.support.softtpm import ECC, RSA, SoftTpm


if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "what the relay knows, and it is long enough"
ENROLL, ATTEST = "/api/v1/devices/enroll", "/api/v1/devices/enroll/attest"
NONCE, TOKEN, ME = "/api/v1/nonce", "/api/v1/tokens/nexus", "/api/v1/devices/me"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=")


class Reply:
    """A reply; ``body`` is the JSON of it."""

    def __init__(self, status: str, headers: Mapping[str, str], content: bytes) -> None:
        self.status = int(status.split()[0])
        self.headers = headers
        self.content = content

    def __repr__(self) -> str:
        return f"{self.status} {self.content!r}"

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and error text."""
        return self.status, self.body["error"]


class Site:
    """The endpoints with all they need, asked by WSGI."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = FakeClock(1_700_000_000.75)
        self.policy = Policy(SECRET, ("shop.example.org",), ("wss://relay.example.com/connect",))
        self.registry = Registry("devices.example.com", self.clock)
        self.nonces = Nonces(self.clock)
        self.log: list[tuple[str, Mapping[str, object]]] = []
        limiter = Limiter(limits, self.clock)
        note = lambda event, **fields: self.log.append((event, fields))  # noqa: E731
        self.api = Api(self.policy, self.registry, self.nonces, limiter, self.clock, note)

    @property
    def why(self) -> object:
        """The reason that was logged for the last refusal."""
        return next(fields["why"] for event, fields in reversed(self.log) if "why" in fields)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("POST", path, json.dumps(body).encode(), headers)

    def ask(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str] | None = None
    ) -> Reply:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "REMOTE_ADDR": "192.0.2.7",
            "CONTENT_LENGTH": str(len(content)) if content else "",
            "wsgi.input": io.BytesIO(content),
        }
        for name, value in (headers or {}).items():
            environ["HTTP_" + name.upper().replace("-", "_")] = value
        started: list[Any] = []
        answer = b"".join(self.api(environ, lambda *what: started.extend(what)))
        return Reply(started[0], dict(started[1]), answer)


class Client:
    """A device of ``site``; it does everything right unless told otherwise."""

    def __init__(self, site: Site, tpm: SoftTpm) -> None:
        self.site = site
        self.tpm = tpm
        self.device_id = ""

    def begin(self, **changes: object) -> Reply:
        given = {"ek_pub": b64(self.tpm.ek_public), "ak_params": b64(self.tpm.ak_params)}
        return self.site.post(ENROLL, {**given, **changes})

    def complete(self, begun: Reply, **changes: object) -> Reply:
        nonce = begun.body["nonce"]
        given = {
            "nonce": nonce,
            "secret": b64(self.tpm.activate(base64.b64decode(begun.body["enc_credential"]))),
            "quote": self.tpm.quote(bytes.fromhex(nonce)),
        }
        return self.site.post(ATTEST, {**given, **changes})

    def enroll(self) -> Reply:
        reply = self.complete(self.begin())
        self.device_id = reply.body["device_id"]
        return reply

    def headers(self, **quoting: Any) -> dict[str, str]:
        """What proves a request: costs a nonce and a quote."""
        nonce = self.site.get(NONCE).body["nonce"]
        return {
            "X-Device-ID": self.device_id,
            "X-Nonce": nonce,
            "X-TPM-Quote": self.tpm.quote(b64url(nonce), **quoting),
        }

    def token(self, stage: object = 0, session_nonce: object = "") -> Reply:
        body = {"stage": stage, "session_nonce": session_nonce}
        return self.site.post(TOKEN, body, self.headers())


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(params=[RSA, ECC])
def client(site: Site, request: pytest.FixtureRequest) -> Client:
    """One that has not enrolled yet."""
    return Client(site, SoftTpm(request.param))


@pytest.fixture
def enrolled(site: Site) -> Client:
    client = Client(site, SoftTpm(ECC))
    assert client.enroll().status == 201
    return client
