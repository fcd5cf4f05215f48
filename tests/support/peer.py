"""One agent session against a relay that a test plays step by step, over a socket pair.

    bench = Bench(monkeypatch)
    bench.start()
    bench.peer.accept()
    bench.peer.say_close(1012, "restart")
    assert bench.end().code == "closed"

The session, its link, its core and its pumps are the real ones; what dials is not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from gevent import Greenlet, Timeout, sleep, socket
from gevent.event import Event

from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.session import Session
from nexusg.agent.tasks import Tasks
from nexusg.attest.base import Stage, Token
from nexusg.config.model import Backend, Config
from nexusg.protocol.events import Closed
from nexusg.protocol.messages import Control
from nexusg.protocol.messages import Event as ControlEvent
from nexusg.protocol.relay_events import TokenReceived
from nexusg.protocol.relay_session import RelaySession
from nexusg.targets.memory import MemorySocket, memory_pair
from nexusg.transport.channel import Channel
from nexusg.transport.dial import Upgraded
from tests.conftest import MS
from tests.support.pair import NONCE, User
from tests.support.relayed import AMPLE_S
from tests.support.rig import FakeConnector


if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from nexusg.agent.connector import Connector
    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.attest.base import TokenRequest
    from nexusg.protocol.relay_events import RelayEvent
    from nexusg.protocol.relay_stream import RelayStream

RELAY = "wss://relay.test/connect"


class StubProvider:
    """Gives a token for each request, or raises what the test has queued for its stage."""

    def __init__(self) -> None:
        self.requests: list[tuple[TokenRequest, float]] = []
        self.errors: dict[Stage, list[Exception]] = {stage: [] for stage in Stage}
        self.tokens: dict[Stage, str] = {stage: f"{stage.value} token" for stage in Stage}
        self.gates: dict[Stage, Event] = {stage: Event() for stage in Stage}
        self.invalidated = 0
        for gate in self.gates.values():
            gate.set()

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks until the gate of the stage is open."""
        self.requests.append((request, timeout_s))
        self.gates[request.stage].wait()
        if self.errors[request.stage]:
            raise self.errors[request.stage].pop(0)
        return Token(self.tokens[request.stage])

    def invalidate(self) -> None:
        """See TokenProvider."""
        self.invalidated += 1


class Peer:
    """The relay's end: a `RelaySession` that says only what a test makes it say."""

    def __init__(self) -> None:
        self.theirs, self.sock = socket.socketpair()
        self.core = RelaySession(now=time.monotonic())
        self.events: list[RelayEvent] = []
        self.eof = False
        self._ids = 0
        self._changed = Event()
        self._reader = Greenlet.spawn(self._read)

    def stop(self) -> None:
        """Vanish."""
        self._reader.kill()
        self.sock.close()
        self.theirs.close()

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds; it is asked after everything received. Blocks."""
        try:
            with Timeout(AMPLE_S):
                while not condition():
                    self._changed.clear()
                    self._changed.wait()
        except Timeout:
            raise AssertionError(f"never came true; events: {self.events}") from None

    def wait_token(self, stage: str) -> str:
        """The token of that stage. Blocks."""
        self.wait(lambda: self._tokens(stage))
        return self._tokens(stage)[0]

    def wait_close(self) -> Closed:
        """The agent's close frame, also behind a token that was never judged. Blocks."""
        if self.core.held:
            self.events += self.core._release(time.monotonic())
            self._changed.set()
        self.wait(lambda: self._closes() or self.eof)
        return self._closes()[0]

    def challenge(self) -> None:
        """Take the handshake token. Blocks."""
        self.wait_token("handshake")
        self.events += self.core.challenge(NONCE, time.monotonic())
        self.flush()

    def accept(self) -> None:
        """Take both tokens, and let the agent know. Blocks."""
        self.challenge()
        self.wait_token("attest")
        self.events += self.core.accept(time.monotonic())
        self.flush()

    def reauth(self, nonce: str) -> None:
        """Ask for a fresh token."""
        self.core.reauth_challenge(nonce, time.monotonic())
        self.flush()

    def reject(self, reason: str) -> None:
        """Refuse the newest token."""
        self.core.reject(reason)
        self.flush()

    def say_close(self, code: int, reason: str = "") -> None:
        """Send a close frame."""
        self.core.close(code, reason)
        self.flush()

    def say(self, data: bytes) -> None:
        """Send these bytes, whatever they are."""
        self.sock.sendall(data)

    def hang_up(self) -> None:
        """End of file, without a close frame."""
        self.sock.shutdown(socket.SHUT_WR)

    def open(self, first: bytes | None = b"", **connect: Any) -> User:
        """Announce a stream, and send ``first`` unless it is None."""
        self._ids += 1
        usual: dict[str, Any] = {
            "event": ControlEvent.CONNECT.value,
            "client_id": self._ids.to_bytes(16, "big"),
            "conn_port": 443,
            "client_ip": "192.0.2.7:50000",
            "hostname": "app.example.com",
            "credits": 64,
        }
        user = User()
        stream = self.core.open(Control(**{**usual, **connect}), user)
        user.stream = cast("RelayStream", stream)
        if first is not None:
            user.stream.send(first)
        self.flush()
        return user

    def flush(self) -> None:
        """Send what the core has committed. Blocks."""
        while output := self.core.take_output():
            self.sock.sendall(output)
        self._changed.set()

    def _tokens(self, stage: str) -> list[str]:
        found = [event for event in self.events if isinstance(event, TokenReceived)]
        return [event.token for event in found if event.stage == stage]

    def _closes(self) -> list[Closed]:
        return [event for event in self.events if isinstance(event, Closed)]

    def _read(self) -> None:
        try:
            while count := self.sock.recv_into(self.core.buffer()):
                self.events += self.core.receive(count, time.monotonic())
                self.flush()
                while self.core.held:  # until the test has judged the token
                    self._changed.wait()
                    self._changed.clear()
        except OSError:
            pass
        self.eof = True
        self._changed.set()


class Bench:
    """A session that is about to run, everything around it, and what came of it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        backend: Backend | None = None,
        config: Config | None = None,
    ) -> None:
        self.peer = Peer()
        self.leftover = b""
        self.dialled = 0
        self.dial_error: Exception | None = None
        self.provider = StubProvider()
        self.connector = FakeConnector()
        self.events: list[LifecycleEvent] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.changed = Event()
        self.context = Context(
            config=config or Config(),
            budget=Budget(1 << 20),
            tasks=Tasks("streams", self._failed),
            emit=self._emit,
            task_failed=self._failed,
        )
        self.session = Session(
            self.context,
            backend or Backend("web", hostnames=("app.example.com",)),
            self.provider,
            cast("Connector", self.connector),
            RELAY,
            "s1",
        )
        self._greenlet: Any = None
        monkeypatch.setattr("nexusg.agent.session.open_link", self._open_link)

    def start(self) -> Any:
        """Run the session in a greenlet, which is returned."""
        self._greenlet = Greenlet.spawn(self._run)
        return self._greenlet

    def connect(self) -> Session:
        """Run it until the relay has accepted. Blocks."""
        self.start()
        self.peer.accept()
        self.wait("session.connected")
        return self.session

    def end(self) -> Any:
        """What `Session.run` raised, None if it returned. Blocks."""
        return self._greenlet.get(timeout=AMPLE_S)

    def named(self, name: str) -> list[Any]:
        """The events of one name so far."""
        return [event for event in self.events if event.name() == name]

    def wait(self, name: str, count: int = 1) -> Any:
        """Wait for the ``count``-th event of that name, and return it. Blocks."""
        try:
            with Timeout(AMPLE_S):
                while len(self.named(name)) < count:
                    self.changed.clear()
                    self.changed.wait()
        except Timeout:
            raise AssertionError(f"no {name}; events: {self.events}") from None
        return self.named(name)[count - 1]

    def until(self, condition: Callable[[], object]) -> None:
        """Let the session run until ``condition()`` holds. Blocks."""
        with Timeout(AMPLE_S, AssertionError("never came true")):
            while not condition():
                sleep(0.1 * MS)

    def open(
        self, first: bytes | None = b"", target: Any = None, **connect: Any
    ) -> tuple[User, MemorySocket]:
        """Open a stream whose local service is the other end of a pair in memory. Blocks."""
        ours, theirs = memory_pair()
        self.connector.answers.append(cast("Any", target or ours))
        return self.peer.open(first, **connect), theirs

    def stop(self) -> None:
        """End everything; nothing may be left over. Blocks."""
        if self._greenlet is not None:
            self._greenlet.kill(timeout=AMPLE_S)
            assert self.session.tasks.join(AMPLE_S), self.session.tasks
        self.context.tasks.kill(AMPLE_S)
        self.peer.stop()
        assert not self.failures, self.failures
        assert self.context.budget.used_bytes == 0

    def _run(self) -> Any:
        try:
            return self.session.run()
        except Exception as error:  # what it raises is what tests look at
            return error

    def _open_link(self, *_: object, **__: object) -> Upgraded:
        self.dialled += 1
        if self.dial_error is not None:
            raise self.dial_error
        return Upgraded(Channel(self.peer.theirs), self.leftover, "192.0.2.1:443", "TLSv1.3", False)

    def _emit(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        self.changed.set()

    def _failed(self, task: str, error: BaseException) -> None:
        self.failures.append((task, error))
