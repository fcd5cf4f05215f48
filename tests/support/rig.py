"""Real stream pumps over a `Pair` of protocol cores and local services in memory.

    rig = Rig()
    user, pump, local = rig.open(b"hello")
    assert local.recv(100) == b"hello"

and real UDP flows with `Rig.open_flow`, whose local service is a datagram socket.

Only the link and the name look-up are stand-ins; time is the pair's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gevent
from gevent import socket
from gevent.event import Event

from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.flows import UdpFlow
from nexusg.agent.streams import StreamPump
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Backend, Config, Limits
from nexusg.protocol.messages import Reason
from nexusg.targets.memory import MemorySocket, memory_pair
from nexusg.targets.udp import UdpTarget
from tests.conftest import MS
from tests.support.pair import Pair, User


if TYPE_CHECKING:
    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.agent.session import Session
    from nexusg.protocol.stream import Stream
    from nexusg.targets.base import Target


class FakeLink:
    """A link whose room a test decides on."""

    def __init__(self) -> None:
        self.full = False
        self.room = Event()

    def flush(self) -> None:
        """The test moves the bytes."""

    def wait_for_room(self) -> None:
        """Wait until the test makes room, once. Blocks."""
        self.room.wait()
        self.room.clear()


class FakeConnector:
    """Gives the targets that a test has queued, or raises the errors it has queued."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.released: list[Stream] = []
        self.gate = Event()
        self.gate.set()

    def connect(self, stream: Stream) -> Any:
        """The next answer, once the gate is open. Blocks."""
        self.gate.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    connect_flow = connect

    def release(self, stream: Stream) -> None:
        """Keep that it was called."""
        self.released.append(stream)


class Rig:
    """What a pump needs around it. It is also the session that pumps see."""

    def __init__(self, limits: Limits = Limits(), **pair: Any) -> None:  # noqa: B008 - frozen
        self.name, self.backend = "s1", Backend("web")
        self.pair = Pair.established(**pair)
        self.events: list[LifecycleEvent] = []
        self.failures: list[BaseException] = []
        self.link = FakeLink()
        self.connector = FakeConnector()
        self.context = Context(
            config=Config(limits=limits),
            budget=Budget(limits.agent_buffer_bytes),
            tasks=Tasks("streams", self._failed),
            emit=self.events.append,
            task_failed=self._failed,
            clock=self.pair.clock,
        )
        self.pumps: list[Any] = []
        self.sockets: list[Any] = []
        self.pair.make_local = self._make_pump  # type: ignore[assignment]

    def names(self) -> dict[str, Any]:
        """The fields of a session in events."""
        return {"backend": "web", "relay": "wss://relay.test", "session": "s1"}

    def flush(self) -> None:
        """The test moves the bytes."""

    def open(
        self,
        first: bytes | None = b"",
        *,
        answer: Target | Exception | None = None,
        limit_bytes: int = 64 * 1024,
        user: User | None = None,
        **connect: Any,
    ) -> tuple[User, StreamPump, MemorySocket]:
        """Open a stream whose local service is the other end of a pair in memory. Blocks."""
        ours, theirs = memory_pair(limit_bytes)
        self.connector.answers.append(answer if answer is not None else cast("Target", ours))
        user, _ = self.pair.open(first, user=user, **connect)
        self.run()
        return user, self.pumps[-1], theirs

    def open_flow(
        self,
        first: bytes | None = b"",
        *,
        answer: UdpTarget | Exception | None = None,
        user: User | None = None,
        **connect: Any,
    ) -> tuple[User, UdpFlow, Any]:
        """Open a UDP flow whose local service is the other end of a socket pair. Blocks."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.settimeout(0)
        if answer is None:
            answer = UdpTarget(ours, "service:53", self.context.buffer)
        else:
            ours.close()
        self.connector.answers.append(answer)
        self.sockets.append(theirs)
        udp = {"transport": "udp", "hostname": "udp:53", "conn_port": 53, "is_tls": False}
        user, _ = self.pair.open(first, user=user, **{**udp, **connect})
        self.run()
        return user, self.pumps[-1], theirs

    def run(self) -> None:
        """Let greenlets and bytes move until nothing does. Blocks."""
        for _ in range(12):
            gevent.sleep(0)
            self.pair.pump()
        if self.sockets:  # which are only looked at when nothing else is to do
            gevent.sleep(MS)
            self.pair.pump()

    def advance(self, seconds: float) -> None:
        """Let time pass on the pair's clock. Blocks."""
        self.pair.advance(seconds)
        self.run()

    def named(self, name: str) -> list[Any]:
        """The events of one name so far."""
        return [event for event in self.events if event.name() == name]

    def closed(self) -> Any:
        """The one stream.closed event."""
        (event,) = self.named("stream.closed")
        return event

    def stop(self) -> None:
        """End everything. Blocks."""
        for pump in list(self.context.pumps):
            pump.finish(Reason.SHUTDOWN, "agent", "")
        assert self.context.tasks.kill(1)
        for unused in [*self.sockets, *self.connector.answers]:
            unused.close()
        assert not self.failures, self.failures
        assert self.context.budget.used_bytes == 0
        assert not self.context.pumps
        assert not len(self.context.flows)

    def _make_pump(self, stream: Stream) -> StreamPump | UdpFlow:
        kind = UdpFlow if stream.is_udp else StreamPump
        pump = kind(cast("Session", self), stream)
        self.pumps.append(pump)
        return pump

    def _failed(self, task: str, error: BaseException) -> None:
        self.failures.append(error)
