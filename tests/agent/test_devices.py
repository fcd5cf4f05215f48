"""From what a device tells to events, and from its figures to statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nexusg.agent import devices as module
from nexusg.agent.device_events import DeviceEnrolled
from nexusg.agent.devices import Devices
from nexusg.agent.stats import DeviceStats
from nexusg.attest.hmac import HmacProvider
from nexusg.attest.tpm import notices
from nexusg.attest.tpm.provider import TpmTokenProvider
from nexusg.config.model import Attestation, Backend
from nexusg.config.secret import Secret
from nexusg.config.tpm import Tpm


if TYPE_CHECKING:
    from pathlib import Path

    from nexusg.agent.lifecycle import LifecycleEvent


def ignore(_: str) -> None:
    """No line of any command is expected."""


@pytest.fixture
def events() -> list[LifecycleEvent]:
    return []


@pytest.fixture
def devices(events: list[LifecycleEvent]) -> Devices:
    return Devices(events.append)


def backend(folder: Path) -> Backend:
    settings = Tpm(authorizer_url="https://namek.test", state_dir=str(folder))
    return Backend("web", attestation=Attestation(tpm=settings))


def test_a_device(devices: Devices, events: list[LifecycleEvent], tmp_path: Path) -> None:
    provider = devices.provider(backend(tmp_path), ignore)
    assert isinstance(provider, TpmTokenProvider)
    assert devices.stats() == (DeviceStats("web", "", "", "", 0, 0.0, 0, 0.0, ""),)
    provider._notify(notices.Enrolled("id", "slug.test", "verified", True, 1.5))
    (event,) = events
    assert event == DeviceEnrolled(
        at=event.at,
        backend="web",
        device_id="id",
        hostname="slug.test",
        identity_class="verified",
        re_enrolled=True,
        took_s=1.5,
    )
    devices.close()
    assert provider._closed


def test_no_device(devices: Devices) -> None:
    attestation = Attestation(hmac_secret=Secret("x" * 32))
    provider: Any = devices.provider(Backend("web", attestation=attestation), ignore)
    assert isinstance(provider._provider, HmacProvider)
    assert devices.stats() == ()
    devices.close()


def test_lines_of_a_command_go_their_own_way(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(module, "provider_for", lambda _, **options: seen.update(options))
    devices.provider(Backend("web"), ignore)
    assert seen["on_stderr"] is ignore
