"""An agent that proves itself with a software TPM: authorizer, relay, traffic, and failures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, sleep

from nexusg.config.tpm import Tpm
from nexusg.relay.authorizer.server import Authorizer
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, HOST, SECRET
from tests.support.running import HEAD, Running, WatchedAgent, read_exactly
from tests.support.services import echo
from tests.support.swtpm import swtpm


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.swtpm import Swtpm

__all__ = ["swtpm"]


def soon(span_s: float) -> float:
    """A jitter that takes nearly all of the interval away: it is five times the span."""
    return 10 * MS - 5 * span_s


class World:
    """A relay, an authorizer that knows its secret, and agents whose device has a TPM."""

    def __init__(self, running: Running, folder: Path, chip: Swtpm) -> None:
        self.running = running
        self.folder = folder
        self.swtpm = chip
        self.relay: DevRelay = running.relay(jitter=soon)
        self.target = running.service(echo).target
        self.authorizer = self.start()
        self.url = self.authorizer.url

    def start(self, port: int = 0) -> Authorizer:
        """An authorizer that has every token renewed as soon as possible."""
        authorizer = Authorizer(
            SECRET,
            "devices.test",
            listen=("127.0.0.1", port),
            hostnames=(HOST,),
            nexus_endpoints=(self.relay.url,),
            reauth_interval_s=1,
            limits=None,
            on_log=lambda *_: None,
        )
        authorizer.start()
        return authorizer

    def agent(self, *, found: bool = False, **options: Any) -> WatchedAgent:
        """An agent; with ``found`` the authorizer has to tell it the relay."""
        settings = Tpm(
            authorizer_url=self.url,
            tcti=self.swtpm.tcti,
            ak="ecc-p256",
            state_dir=str(self.folder / "state"),
        )
        backend = options.pop("backend", {})
        if found:
            backend["nexus_addresses"] = ()
        return self.running.agent(
            self.relay,
            target=self.target,
            attestation={"hmac_secret": None, "tpm": settings},
            backend=backend,
            **options,
        )

    def restart_authorizer(self) -> None:
        """It has forgotten every device, and makes the same secret its own again. Blocks."""
        self.authorizer.stop()
        self.authorizer = self.start(int(self.url.rpartition(":")[2]))


@pytest.fixture
def world(
    running: Running,
    tmp_path: Path,
    swtpm: Swtpm,
) -> Iterator[World]:
    world = World(running, tmp_path, swtpm)
    yield world
    world.authorizer.stop()


@pytest.mark.parametrize("found", [False, True], ids=["configured", "discovered"])
def test_a_session_re_attests_under_traffic(world: World, found: bool) -> None:
    agent = world.agent(found=found)
    agent.wait("session.connected")
    user = world.running.user(world.relay)
    read_exactly(user, len(HEAD))
    while len(agent.named("reauth.completed")) < 3:
        data = os.urandom(100_000)
        sender = Greenlet.spawn(user.sendall, data)
        assert read_exactly(user, len(data)) == data
        sender.get(timeout=AMPLE_S)
    assert "agent.renewed" in [event for event, _ in world.relay.logged]  # type: ignore[attr-defined]
    assert not agent.named("session.lost")
    (enrolled,) = agent.named("device.enrolled")
    assert enrolled.hostname.endswith(".devices.test")
    assert {event.stage for event in agent.named("token.issued")} == {
        *("handshake", "attest", "reauth")
    }
    assert len(agent.named("relays.discovered")) == found
    (device,) = agent.stats().devices
    assert (device.device_id, device.enrolments) == (enrolled.device_id, 1)
    assert device.quote_s > 0
    assert device.token_expires_at > enrolled.at
    assert not device.last_error


def test_an_authorizer_that_is_restarted(world: World) -> None:
    """The session goes on; its next token needs an enrolment, and it is there in time."""
    agent = world.agent()
    agent.wait("reauth.completed")
    world.authorizer.policy.reauth_interval_s = 0
    world.restart_authorizer()
    agent.wait("device.enrolled", 2)
    completed = len(agent.named("reauth.completed"))
    agent.wait("reauth.completed", completed + 2)
    assert world.running.talk(world.relay, b"hello") == b"hello"
    assert not agent.named("session.lost")


def test_an_authorizer_that_is_away(world: World) -> None:
    """The relay's patience is longer than its absence."""
    agent = world.agent()
    agent.wait("reauth.completed")
    port = int(world.url.rpartition(":")[2])
    known = world.authorizer._registry
    world.authorizer.stop()
    agent.wait_until(lambda: agent.stats().devices[0].last_error or agent.named("reauth.started"))
    sleep(20 * MS)
    world.authorizer = world.start(port)
    world.authorizer._api._registry = world.authorizer._registry = known
    completed = len(agent.named("reauth.completed"))
    agent.wait("reauth.completed", completed + 1)
    assert not agent.named("session.lost")
    assert len(agent.named("device.enrolled")) == 1


def test_a_tpm_that_is_restarted(world: World) -> None:
    agent = world.agent()
    agent.wait("reauth.completed")
    world.swtpm.restart()
    completed = len(agent.named("reauth.completed"))
    agent.wait("reauth.completed", completed + 2)
    assert not agent.named("session.lost")
    assert len(agent.named("device.enrolled")) == 1


def test_a_device_that_is_suspended(world: World) -> None:
    """The session ends when it has to renew itself; nobody is in a hurry to try again."""
    world.authorizer.policy.reauth_interval_s = 0
    agent = world.agent()
    agent.wait("session.connected")
    world.authorizer.suspend(world.authorizer.device_ids[0])
    agent._devices._providers[0][1].invalidate()
    world.relay.drop_agents()
    failed = agent.wait("session.failed")
    assert failed.code == "authorizer_refused"
    assert failed.retry_in_s >= 900
    (refused,) = agent.named("device.refused")
    assert "device is suspended" in refused.error


def test_relays_that_come_late_and_go(world: World) -> None:
    other = world.running.relay()
    world.authorizer.policy.nexus_endpoints = ()
    agent = world.agent(found=True)
    failed = agent.wait("discovery.failed")
    assert (failed.code, failed.retry_in_s) == ("no_relays", 5.0)
    assert agent.stats().sessions == ()
    (discovery,) = agent._discoveries
    world.authorizer.policy.nexus_endpoints = (world.relay.url, other.url)
    discovery._wake.set()
    agent.wait("session.connected", 2)
    world.authorizer.policy.nexus_endpoints = (world.relay.url,)
    discovery._wake.set()
    agent.wait("relays.discovered", 2)
    other.drop_agents()
    agent.wait_until(lambda: len(agent.stats().sessions) == 1)
    assert world.running.talk(world.relay, b"hello") == b"hello"
    assert agent.running
    agent.stop(0)
    assert agent.outcome == "stopped"


def test_names_that_are_not_granted(world: World) -> None:
    agent = world.agent(backend={"hostnames": (HOST, "else.example.com")})
    missing = agent.wait("hostnames.missing")
    assert missing.hostnames == ("else.example.com",)
    assert HOST in missing.granted
    agent.wait("session.connected")
    assert world.running.talk(world.relay, b"hello") == b"hello"
