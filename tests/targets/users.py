"""Users who are to be connected, and users who speak TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent import ssl

from nexusg.targets.request import ConnectRequest


if TYPE_CHECKING:
    from nexusg.targets.base import Target

USER = ConnectRequest(
    backend="web",
    client_id="01234567-89ab-cdef-0011-223344556677",
    hostname="app.example.com",
    original_hostname="app.example.com",
    port=443,
    client_ip="192.0.2.7",
    client_port=50000,
    is_tls=True,
    transport="tcp",
)

_RECORD_BYTES = 16 * 1024


def user(**known: Any) -> ConnectRequest:
    """A request with these members."""
    members = {name: getattr(USER, name) for name in ConnectRequest.__slots__}
    return ConnectRequest(**{**members, **known})


class TlsUser:
    """The user's side of TLS over a target that speaks the server's.

    It is a target itself, for plain text, so that the contract can be checked through both. Like
    the real ones it takes nothing that the other side has not taken.
    """

    def __init__(self, target: Target, context: ssl.SSLContext, name: str = "localhost") -> None:
        self.name = target.name
        self.target = target
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._cipher = b""
        self._kept_back = 0
        self._ended = False

    def __repr__(self) -> str:
        return f"<TlsUser of {self.target!r}>"

    def shake_hands(self) -> TlsUser:
        """Do it, as far as the user is concerned. Blocks."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.receive()
            else:
                self.flush()
                return self

    def flush(self) -> None:
        """Have everything taken that is encrypted. Blocks."""
        while not self._push():
            self._cipher = self._cipher[self.target.send(self._cipher) :]

    def receive(self) -> None:
        """Wait for something. Blocks."""
        while (data := self.target.try_read(64 * 1024)) is None:
            self.target.wait_readable()
        assert data, "the end came without an end of TLS"
        self._incoming.write(data)

    def try_send(self, data: memoryview | bytes) -> int:
        if not len(data) or not self._push():
            self.target.try_send(b"")
            return 0
        taken, self._kept_back = self._kept_back, 0
        while taken < len(data):
            taken += self.tls.write(data[taken : taken + _RECORD_BYTES])
            if not self._push():
                self._kept_back = 1
                return taken - 1
        return taken

    def send(self, data: memoryview | bytes) -> int:
        while not (taken := self.try_send(data)) and len(data):
            self._cipher = self._cipher[self.target.send(self._cipher) :]
        return taken

    def try_read(self, limit: int) -> bytes | None:
        while True:
            try:
                return self.tls.read(limit)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                data = self.target.try_read(64 * 1024)
                if data is None:
                    return None
                assert data, "the end came without an end of TLS"
                self._incoming.write(data)

    def wait_readable(self) -> None:
        if not self.tls.pending():
            self.target.wait_readable()

    def unsent_bytes(self) -> int:
        return self.target.unsent_bytes()

    def shutdown_write(self) -> None:
        """Say the end within TLS, and only there."""
        if self._ended:
            return
        self._ended = True
        kept = self._incoming.read()
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._incoming.write(kept)
        try:
            self.flush()
        except OSError:
            pass

    def close(self) -> None:
        self.target.close()

    def _push(self) -> bool:
        self._cipher += self._outgoing.read()
        if self._cipher:
            self._cipher = self._cipher[self.target.try_send(self._cipher) :]
        return not self._cipher
