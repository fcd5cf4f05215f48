"""The agent as a library: its life, its end in every way, its figures, and forks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket
from gevent.event import Event

from nexusg.agent import agent as agent_module
from nexusg.agent.agent import Agent
from nexusg.attest.base import Stage, Token
from nexusg.attest.tpm.provider import TpmTokenProvider
from nexusg.config.model import (
    Attestation,
    Backend,
    Config,
    Destination,
    PortMapping,
    Reconnect,
    Shutdown,
)
from nexusg.config.tpm import Tpm
from nexusg.errors import ConfigError
from nexusg.protocol.messages import Reason
from nexusg.targets.memory import memory_pair
from nexusg.version import __version__
from tests.conftest import MS
from tests.support.relayed import make_token
from tests.support.running import HEAD, Running, WatchedAgent, make_config, read_exactly
from tests.support.services import echo, hold


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.attest.base import TokenRequest
    from nexusg.relay.server import DevRelay

AMPLE_S = 5.0

#: Nobody listens there, and the port is not given out by the system.
NOWHERE = "ws://127.0.0.1:9/connect"


BY_TPM = Attestation(tpm=Tpm(authorizer_url="https://namek.test", state_dir="/nowhere"))


def nowhere(**options: Any) -> Config:
    """A configuration whose relay is not there."""
    usual: dict[str, Any] = {
        "name": "web",
        "hostnames": ("app.example.com",),
        "nexus_addresses": (NOWHERE,),
        "attestation": Attestation(command="false"),
        "port_mappings": {443: PortMapping(default="127.0.0.1:9")},
    }
    return Config(backends=(Backend(**{**usual, **options}),))


def sign(request: TokenRequest) -> str:
    """A provider that a relay of `Running` accepts."""
    nonce = request.nonce if request.stage is not Stage.HANDSHAKE else None
    return make_token(session_nonce=nonce)


def names(agent: WatchedAgent) -> list[str]:
    """What happened, in order."""
    return [event.name() for event in agent.events]


# Making ----------------------------------------------------------------------------------------


def test_a_configuration_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="attestation"):
        Agent(nowhere(attestation=Attestation()))
    with pytest.raises(ConfigError, match="portMappings"):
        Agent(nowhere(port_mappings={}))


def test_what_the_program_provides_need_not_be_configured() -> None:
    Agent(nowhere(attestation=Attestation()), token_provider=sign)
    Agent(nowhere(port_mappings={}), connect_handler=lambda _: None)
    Agent(nowhere(port_mappings={}), connect_handler=[lambda _: None])
    with pytest.raises(ConfigError):
        Agent(nowhere(port_mappings={}), token_provider=sign)


def test_relays_are_needed_unless_a_tpm_finds_them() -> None:
    found = nowhere(attestation=BY_TPM, nexus_addresses=())
    Agent(found)
    with pytest.raises(ConfigError, match="nexusAddresses is required with a token provider"):
        Agent(found, token_provider=sign)


def test_a_provider_that_is_none() -> None:
    with pytest.raises(TypeError, match="token provider"):
        Agent(nowhere(), token_provider=42)  # type: ignore[arg-type]


def test_making_one_opens_nothing() -> None:
    agent = Agent(nowhere())
    assert not agent.running
    assert agent.outcome == ""
    assert not agent.join(0)
    with pytest.raises(RuntimeError, match="never started"):
        agent.stats()
    agent.stop()


# Life ------------------------------------------------------------------------------------------


def test_from_start_to_stop(running: Running) -> None:
    relay = running.relay()
    agent = running.agent(relay)
    assert agent.running
    agent.wait("session.connected")
    agent.stop()
    assert not agent.running
    assert agent.outcome == "stopped"
    assert agent.join(0)
    assert names(agent) == [
        "agent.started",
        "session.connecting",
        "session.connected",
        "agent.stopping",
        "session.closed",
        "agent.stopped",
    ]
    started = agent.named("agent.started")[0]
    assert (started.version, started.backends, started.sessions) == (__version__, ("web",), 1)
    assert agent.named("agent.stopping")[0].grace_s == 30
    assert agent.named("agent.stopped")[0].cut == 0
    assert relay.agents == ()


def test_starting_twice(running: Running) -> None:
    agent = running.connected(running.relay())
    with pytest.raises(RuntimeError, match="running already"):
        agent.start()
    assert agent.running


def test_stopping_twice(running: Running) -> None:
    agent = running.connected(running.relay())
    agent.stop()
    agent.stop()
    assert len(agent.named("agent.stopping")) == 1


def test_starting_again(running: Running) -> None:
    """With the same handlers and settings, and new figures."""
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    running.talk(relay)
    agent.stop()
    assert agent.stats().streams_total == 1
    agent.start()
    agent.wait("session.connected", 2)
    assert agent.outcome == ""
    assert not agent.join(0)
    assert running.talk(relay, b"again") == b"again"
    assert agent.stats().streams_total == 1
    assert agent.stats().connects == 1


def test_as_a_context(running: Running) -> None:
    relay = running.relay()
    with WatchedAgent(make_config([relay])) as agent:
        agent.wait("session.connected")
    assert agent.outcome == "stopped"


def test_two_agents_side_by_side(running: Running) -> None:
    """They share nothing."""
    relay = running.relay()
    one, other = running.connected(relay), running.connected(relay)
    one.stop()
    assert other.running
    assert len(relay.agents) == 1


def test_the_subscriber_may_be_missing(running: Running) -> None:
    relay = running.relay()
    with Agent(make_config([relay])):
        assert relay.wait_agents(1)


# Stopping --------------------------------------------------------------------------------------


def test_everybody_waits_for_the_end(running: Running) -> None:
    """A second call ends the grace, and both return when it is over."""
    relay = running.relay()
    agent = running.connected(relay, target=running.service(hold).target)
    running.user(relay)
    agent.wait("stream.connected")
    joined = Greenlet.spawn(agent.join)
    first = Greenlet.spawn(agent.stop)
    agent.wait("agent.stopping")
    assert not first.ready()
    assert not agent.join(MS)
    agent.stop()
    assert agent.outcome == "stopped"
    gevent.joinall([first, joined], timeout=AMPLE_S, raise_error=True)
    assert joined.value is True
    assert agent.named("agent.stopped")[0].cut == 1
    assert agent.named("stream.closed")[0].reason == "shutdown"


def test_who_gives_up_waiting_does_not_end_the_stop(running: Running) -> None:
    """An interrupted stop must not leave an agent that is neither running nor stopped."""
    relay = running.relay()
    service = running.service(hold)
    agent = running.connected(relay, target=service.target)
    user = running.user(relay)
    agent.wait("stream.connected")
    with pytest.raises(TimeoutError), gevent.Timeout(2 * MS, TimeoutError()):
        agent.stop()
    assert agent.running
    user.close()
    assert agent.join(AMPLE_S)
    assert agent.named("agent.stopped")[0].cut == 0


def test_the_configured_grace_counts(running: Running) -> None:
    relay = running.relay()
    shutdown = Shutdown(grace_s=20 * MS, idle_s=60)
    agent = running.connected(
        relay, target=running.service(hold).target, settings={"shutdown": shutdown}
    )
    running.user(relay)
    agent.wait("stream.connected")
    agent.stop()
    assert agent.named("agent.stopped")[0].cut == 1


def test_stopped_while_it_connects(running: Running) -> None:
    """Whatever the slot is doing, it ends, and nothing is left behind (tidy_greenlets)."""
    waiting = Event()

    def never(_: TokenRequest) -> str:
        waiting.set()
        Event().wait()
        return ""

    agent = running.agent(running.relay(), token_provider=never)
    waiting.wait()
    agent.stop()
    assert names(agent) == [
        "agent.started",
        "session.connecting",
        "agent.stopping",
        "agent.stopped",
    ]


def test_stopped_by_the_event_handler(running: Running) -> None:
    """It returns at once, and the handler still hears of the end."""
    agents: list[WatchedAgent] = []
    running_after: list[bool] = []

    def on_event(event: LifecycleEvent) -> None:
        if event.name() == "session.connected":
            agents[0].stop()
            running_after.append(agents[0].running)

    agents.append(running.agent(running.relay(), on_event=on_event, start=False))
    agents[0].start()
    assert agents[0].join(AMPLE_S)
    assert running_after == [True]
    assert names(agents[0])[-1] == "agent.stopped"


def test_stopped_by_a_connect_handler(running: Running) -> None:
    """Its own stream goes on within the grace."""
    relay = running.relay()
    service = running.service(echo)
    agents: list[WatchedAgent] = []

    def handler(_: object) -> None:
        agents[0].stop()

    agents.append(running.connected(relay, target=service.target, connect_handler=handler))
    assert running.talk(relay, b"hello") == b"hello"
    assert agents[0].join(AMPLE_S)
    assert agents[0].named("agent.stopped")[0].cut == 0
    assert agents[0].named("stream.closed")[0].reason == "normal"


@pytest.mark.parametrize("stage", [Stage.HANDSHAKE, Stage.ATTEST])
def test_stopped_by_the_token_provider(running: Running, stage: Stage) -> None:
    agents: list[WatchedAgent] = []

    def provider(request: TokenRequest) -> str:
        if request.stage is stage:
            agents[0].stop()
        return sign(request)

    agents.append(running.agent(running.relay(), token_provider=provider, start=False))
    agents[0].start()
    assert agents[0].join(AMPLE_S)
    assert agents[0].outcome == "stopped"


def test_a_bug_in_the_stop_does_not_make_it_hang(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(agent_module, "drain", bug)
    monkeypatch.setattr(agent_module, "CLEANUP_S", 20 * MS)
    agent = running.connected(running.relay())
    agent.stop()
    assert not agent.running
    assert agent.named("task.failed")[0].task == "stop"
    assert agent.named("agent.stopped")[0].cut == 0


def test_a_handler_that_hangs_does_not_make_it_hang(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "CLEANUP_S", 20 * MS)
    agent = running.agent(running.relay(), on_event=lambda _: Event().wait())
    agent.stop(0)
    assert agent.outcome == "stopped"


# Giving up -------------------------------------------------------------------------------------


def test_credentials_that_are_refused(running: Running) -> None:
    """The setting giveUpAfterRejections ends the agent, with an outcome of its own."""
    relay = running.relay(secret="another secret, and just as long as it should be")
    agent = running.agent(relay, settings={"reconnect": Reconnect(give_up_after_rejections=2)})
    assert agent.join(AMPLE_S)
    assert agent.outcome == "refused"
    rejections = agent.named("session.rejected")
    assert [event.attempts for event in rejections] == [1, 2]
    assert [event.retry_in_s is None for event in rejections] == [False, True]
    assert "signature is invalid" in rejections[0].reason
    agent.stop()
    assert agent.outcome == "refused"


def test_refused_while_stopping(running: Running) -> None:
    """Then it is stopping already."""
    agent = running.connected(running.relay())
    stopping = Greenlet.spawn(agent.stop)
    agent.wait("agent.stopping")
    agent._refused()
    stopping.get(timeout=AMPLE_S)
    assert len(agent.named("agent.stopping")) == 1


@pytest.mark.parametrize("how", ["bug", "kill"])
def test_a_slot_does_not_die_unseen(
    running: Running, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An agent without its sessions must not look like one that runs."""
    agent = running.connected(running.relay())
    slot = agent._slots[0]
    if how == "bug":

        def bug(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(slot, "_closed", bug)
        monkeypatch.setattr(slot, "_failed", bug)
        slot.session.close("a test")
    else:
        slot.task.kill(block=False)
    assert agent.join(AMPLE_S)
    assert agent.outcome == "failed"
    (failed,) = agent.named("task.failed")
    assert failed.task == "session"
    assert ("ZeroDivisionError: a bug" if how == "bug" else "has ended") in failed.error


def test_a_failed_task_is_told_without_its_variables(running: Running) -> None:
    """Section 9: a token must not get into a log through a traceback."""

    def bug(*_: object) -> None:
        token = "eyJhbGciOiJIUzI1NiJ9"
        raise ZeroDivisionError(len(token))

    agent = running.connected(running.relay())
    agent._side_tasks.spawn("a task", bug)
    failed = agent.wait("task.failed")
    assert (failed.task, failed.error) == ("a task", "ZeroDivisionError: 20")
    assert "raise ZeroDivisionError(len(token))" in failed.traceback
    assert "20" in failed.traceback
    assert "token = 'eyJ" not in failed.traceback


# Handlers, providers, network ------------------------------------------------------------------


def test_handlers_may_be_added(running: Running) -> None:
    """Also while it runs; the newest is asked first."""
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    assert running.talk(relay, b"mapped") == b"mapped"

    def handler(_: object) -> object:
        ours, theirs = memory_pair()
        theirs.send(b"by hand")
        theirs.close()
        return ours

    agent.add_connect_handler(handler)
    assert read_exactly(running.user(relay), 100) == b"by hand"


def test_the_programs_provider_takes_the_place_of_the_settings(running: Running) -> None:
    asked: list[Stage] = []

    def provider(request: TokenRequest) -> Token:
        asked.append(request.stage)
        return Token(sign(request))

    running.connected(running.relay(), token_provider=provider)
    assert asked == [Stage.HANDSHAKE, Stage.ATTEST]


def test_what_the_command_complains_about(running: Running) -> None:
    attestation = {
        "command": "/bin/sh",
        "args": ("-c", "echo oh no >&2; exit 3"),
        "hmac_secret": None,
    }
    agent = running.agent(running.relay(), attestation=attestation)
    agent.wait("session.failed")
    stderr = agent.named("token.stderr")[0]
    assert (stderr.backend, stderr.line) == ("web", "oh no")
    assert "exited with status 3" in agent.named("session.failed")[0].error


def test_a_network_change_reaches_every_slot(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusg.agent.reconnect.BACKOFF_FIRST_S", 100.0)
    monkeypatch.setattr("nexusg.agent.reconnect.BACKOFF_MAX_S", 100.0)
    relay = running.relay()
    away = {"nexus_addresses": (relay.url, NOWHERE)}
    agent = running.agent(relay, backend=away)
    agent.wait("session.connected")
    agent.wait("session.failed")
    agent._network_changed("eth0: up")
    agent.wait("session.failed", 2)
    assert agent.named("network.changed")[0].detail == "eth0: up"


def test_a_socks_listener_lives_as_long_as_the_agent(running: Running) -> None:
    """The rest is in test_socks.py."""
    listen = {"socks5_listen_addr": "127.0.0.1:0"}
    agent = running.connected(running.relay(), backend=listen)
    host, port = agent.wait("socks.listening").address.split(":")
    address = (host, int(port))
    socket.create_connection(address).close()
    agent.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


# Figures ---------------------------------------------------------------------------------------


def test_figures_of_a_running_agent(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    user = running.user(relay, b"hello")
    read_exactly(user, len(HEAD) + 5)
    stats = agent.stats(streams=True)
    assert (stats.connects, stats.streams_active, stats.streams_total) == (1, 1, 1)
    (session,) = stats.sessions
    assert (session.backend, session.relay, session.state) == ("web", relay.url, "open")
    assert (session.session, session.streams) == ("s1", 1)
    (stream,) = stats.streams
    assert stream.bytes_in == stream.bytes_out == len(HEAD) + 5
    assert stats.bytes_received > stream.bytes_in
    assert agent.stats().streams == ()
    assert agent.stats().worker is None


def test_the_figures_of_one_of_several_processes() -> None:
    with Agent(nowhere(), worker=1) as agent:
        assert agent.stats().worker == 1


def test_figures_after_the_end(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    running.talk(relay)
    agent.stop()
    stats = agent.stats(streams=True)
    assert stats.streams_active == 0
    assert stats.streams_closed == {"normal": 1}
    assert stats.sessions[0].state == "disconnected"
    assert stats.bytes_received > len(HEAD)


# Devices ---------------------------------------------------------------------------------------


class FakeDevice(TpmTokenProvider):
    """Signs tokens, and names the relays that a test has set."""

    def __init__(self, *relays: DevRelay) -> None:
        self.relays = tuple(relay.url for relay in relays)

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        return Token(sign(request))

    def invalidate(self) -> None:
        """Nothing is kept."""

    def endpoints(self, timeout_s: float) -> tuple[str, ...]:
        return self.relays


def test_relays_that_a_device_finds(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are served as if they were configured, until they are named no more."""
    relay, other = running.relay(), running.relay()
    device = FakeDevice(relay, other)
    monkeypatch.setattr(agent_module.Devices, "provider", lambda *_: device)
    agent = running.agent(
        relay,
        other,
        target=running.service(echo).target,
        backend={"nexus_addresses": (), "attestation": BY_TPM},
    )
    agent.wait("session.connected", 2)
    agent._network_changed("a test")
    assert running.talk(other, b"hello") == b"hello"
    device.relays = (relay.url,)
    agent._discoveries[0]._wake.set()
    agent.wait("relays.discovered", 2)
    other.drop_agents()
    agent.wait_until(lambda: len(agent.stats().sessions) == 1)
    assert running.talk(relay, b"hello") == b"hello"
    assert agent.outcome == ""


# Targets ---------------------------------------------------------------------------------------


def test_targets_are_listed() -> None:
    """Those of several, before the first stream too."""
    to = Destination(targets=("127.0.0.1:9", "unix:/nowhere"))
    agent = Agent(nowhere(port_mappings={443: PortMapping(to)}))
    agent.start()
    targets = agent.stats().targets
    assert [(one.backend, one.target, one.up) for one in targets] == [
        ("web", "127.0.0.1:9", True),
        ("web", "unix:/nowhere", True),
    ]
    agent.stop(0)


def test_files_of_tls_that_cannot_be_loaded_are_told_of(running: Running) -> None:
    agent = running.agent(running.relay())
    agent._certificate_failed("cannot read certFile app.pem: gone")
    told = agent.wait("certificate.failed")
    assert (told.error, told.level) == ("cannot read certFile app.pem: gone", "error")


# Forks -----------------------------------------------------------------------------------------
# What a real child does is tested in tests/e2e/test_fork.py; here is what it does in which order.


@pytest.fixture
def in_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which this process looks like a child of itself."""

    def fork() -> None:
        monkeypatch.setattr(agent_module, "os", SimpleNamespace(getpid=lambda: os.getpid() + 1))
        agent_module._after_fork_in_child()

    return fork


def test_in_a_child_the_agent_is_not_running(
    running: Running, in_child: Callable[[], None]
) -> None:
    """Nothing is said to the relay, and every greenlet ends."""
    relay = running.relay()
    listen = {"socks5_listen_addr": "127.0.0.1:0"}
    agent = running.connected(relay, target=running.service(hold).target, backend=listen)
    agent.wait("socks.listening")
    running.user(relay)
    agent.wait("stream.connected")
    session = agent._slots[0].session
    written = session.link.bytes_out
    in_child()
    assert not agent.running
    assert agent.join(0)
    assert session.link.bytes_out == written
    agent.stop()
    for tasks in (agent._side_tasks, agent._slot_tasks, agent._context.tasks):
        assert tasks.join(AMPLE_S)
    assert not agent._context.pumps
    assert not agent.named("task.failed")


def test_in_a_child_it_can_be_started_again_at_once(
    running: Running, in_child: Callable[[], None]
) -> None:
    """What was the parent's ends a moment later; what is the child's must not."""
    relay = running.relay()
    agent = running.connected(relay)
    old = agent._slot_tasks
    in_child()
    agent.start()
    agent.wait("session.connected", 2)
    assert old.join(AMPLE_S)
    assert agent.running
    agent.stop()


def test_a_fork_while_it_connects(running: Running, in_child: Callable[[], None]) -> None:
    agent = running.agent(running.relay())
    in_child()
    assert agent._slot_tasks.join(AMPLE_S)
    assert not agent.running


def test_a_child_forgets_streams_whose_session_is_gone(
    running: Running, in_child: Callable[[], None]
) -> None:
    """They may outlive it by a moment, while the local service takes the rest."""
    relay = running.relay()
    agent = running.connected(relay, target=running.service(hold).target)
    running.user(relay)
    agent.wait("stream.connected")
    (pump,) = agent._context.pumps
    in_child()
    pump.finish(Reason.SHUTDOWN, "agent", "")
    assert agent._context.tasks.join(AMPLE_S)


def test_a_fork_does_not_concern_what_is_not_running(in_child: Callable[[], None]) -> None:
    agent = Agent(nowhere())
    in_child()
    assert not agent.join(0)
