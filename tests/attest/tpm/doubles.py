"""What stands in for an authorizer, a TPM and a state directory, each for tests of one part."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gevent

from nexusg.attest.tpm.device import AkBlobs, Endorsement
from nexusg.attest.tpm.namek import Challenge, Device, Nonce
from nexusg.attest.tpm.pace import Timing
from nexusg.errors import TpmError
from tests.attest.doubles import jwt
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEVICE_ID = "0b1c2d3e-4f50-5a6b-8c7d-9e0fa1b2c3d4"
NONCE = "n" * 43


class Server:
    """Answers each connection with ``pieces``, sent one by one; keeps what it was asked."""

    def __init__(self, *pieces: bytes, hold: bool = False, context: Any = None) -> None:
        self.asked = b""
        self.pieces = pieces
        self._hold = hold
        self._context = context

    def __call__(self, sock: Any) -> None:
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True)
        self.asked = self._request(sock)
        for piece in self.pieces:
            sock.sendall(piece)
            gevent.sleep(0)
        if self._hold:
            sock.recv(1)
        sock.close()

    @staticmethod
    def _request(sock: Any) -> bytes:
        request = bytearray()
        while b"\r\n\r\n" not in request:
            request += sock.recv(4096)
        heading, _, body = bytes(request).partition(b"\r\n\r\n")
        for line in heading.decode().lower().split("\r\n"):
            if line.startswith("content-length:"):
                while len(body) < int(line.partition(":")[2]):
                    body += sock.recv(4096)
        return heading + b"\r\n\r\n" + body


def head(*lines: str, status: str = "200 OK") -> bytes:
    """The head of an HTTP answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def reply(content: object, status: str = "200 OK", *lines: str) -> bytes:
    """An HTTP answer with JSON in it."""
    body = json.dumps(content).encode()
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


class FakeTime:
    """A clock that only sleeping moves, and no chance."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None  #: what happens while one sleeps
        self.timing = Timing(self.clock, self.clock, self._sleep, lambda: 0.5)

    def _sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.clock.advance(delay_s)
        self.meanwhile()


class FakeTpm:
    """A device whose keys are numbered. Errors in ``fails``, by method, are raised once each."""

    def __init__(self) -> None:
        self.fingerprint = "fingerprint-1"
        self.certificate: bytes | None = b"certificate"
        self.fails: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.loaded: AkBlobs | None = None
        self.known: set[bytes] = set()

    def create_ak(self) -> AkBlobs:
        self._called("create_ak")
        key = AkBlobs(b"??public-%d" % len(self.known), b"private")
        self.known.add(key.public)
        return key

    def load_ak(self, blobs: AkBlobs) -> None:
        self._called("load_ak")
        if blobs.public not in self.known:
            raise TpmError("the TPM does not know this key", "tpm_cleared")
        self.loaded = blobs

    def ak_params(self) -> bytes:
        assert self.loaded is not None
        return self.loaded.public[2:]

    def endorsement(self) -> Endorsement:
        self._called("endorsement")
        return Endorsement(b"public", self.fingerprint, self.certificate)

    def activate(self, wire: bytes) -> bytes:
        self._called("activate")
        return b"secret of " + wire

    def quote(self, nonce: bytes, pcrs: Sequence[int] = ()) -> str:
        self._called("quote")
        if self.loaded is None or self.loaded.public not in self.known:
            raise TpmError("the TPM does not know this key", "tpm_cleared")
        return f"quote over {list(pcrs)} of {nonce[:1]!r}"

    def pcr_values(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        return dict.fromkeys(pcrs, bytes(32))

    def close(self) -> None:
        self.calls.append("close")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.fails.get(name):
            raise self.fails[name].pop(0)


class FakeNamek:
    """An authorizer that agrees with everything, but for the errors in ``fails``, by method."""

    def __init__(self) -> None:
        self.fails: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.seen: dict[str, Any] = {}
        self.device = Device(DEVICE_ID, "slug.test", "verified", ("wss://relay.test/connect",))
        self.tokens: list[str] = []
        self.claims: dict[str, Any] = {"exp": 9e9, "hostnames": ["slug.test", "*.slug.test"]}

    def enroll_start(self, ak_params: bytes, **options: Any) -> Challenge:
        self._called("enroll_start", ak_params=ak_params, **options)
        return Challenge("ab" * 32, b"credential")

    def enroll_attest(
        self, challenge: Challenge, secret: bytes, quote: str, **options: Any
    ) -> Device:
        self._called("enroll_attest", secret=secret, quote=quote, **options)
        return self.device

    def nonce(self, timeout_s: float) -> Nonce:
        self._called("nonce", timeout_s=timeout_s)
        return Nonce(NONCE, bytes(32))

    def token(self, stage: str, session_nonce: str, proof: Any, timeout_s: float) -> str:
        self._called("token", stage=stage, proof=proof, timeout_s=timeout_s)
        if self.tokens:
            return self.tokens.pop(0)
        return jwt(**self.claims, session_nonce=session_nonce, jti=len(self.calls))

    def me(self, proof: Any, timeout_s: float) -> Device:
        self._called("me", proof=proof, timeout_s=timeout_s)
        return self.device

    def count(self, name: str) -> int:
        """How often a method was called."""
        return self.calls.count(name)

    def _called(self, name: str, **seen: Any) -> None:
        self.calls.append(name)
        self.seen.update(seen)
        if self.fails.get(name):
            raise self.fails[name].pop(0)
