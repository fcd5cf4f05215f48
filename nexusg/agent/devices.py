"""The devices with a TPM of one agent: what they tell becomes events, how they do becomes figures.

It must not know how a device gets its tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from nexusg.agent import device_events as events
from nexusg.agent.stats import DeviceStats
from nexusg.attest.select import provider_for
from nexusg.attest.tpm import notices


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.attest.base import TokenProvider
    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.provider import TpmTokenProvider
    from nexusg.config.model import Backend

_EVENTS: dict[type[Notice], type[events.DeviceEvent]] = {
    notices.Enrolled: events.DeviceEnrolled,
    notices.EnrolmentFailed: events.EnrolmentFailed,
    notices.Issued: events.TokenIssued,
    notices.Refused: events.DeviceRefused,
    notices.Remark: events.DeviceWarning,
    notices.HostnamesMissing: events.HostnamesMissing,
}


class Devices:
    """Makes the providers of an agent's backends, and keeps those that are devices."""

    def __init__(self, emit: Callable[[LifecycleEvent], object]) -> None:
        self._emit = emit
        self._providers: list[tuple[str, TpmTokenProvider]] = []  # with the backend's name

    def provider(self, backend: Backend, on_stderr: Callable[[str], None]) -> TokenProvider:
        """The provider that ``backend`` asks for; see `provider_for`. Raises ConfigError."""

        def on_notice(notice: Notice) -> None:
            self._emit(_EVENTS[type(notice)](backend=backend.name, **dataclasses.asdict(notice)))

        provider = provider_for(backend, on_stderr=on_stderr, on_notice=on_notice)
        if backend.attestation.tpm:
            device: TpmTokenProvider = provider  # type: ignore[assignment]  # it says so
            self._providers.append((backend.name, device))
        return provider

    def stats(self) -> tuple[DeviceStats, ...]:
        """How each of them is doing."""
        return tuple(
            DeviceStats(backend=name, **dataclasses.asdict(provider.figures()))
            for name, provider in self._providers
        )

    def close(self) -> None:
        """Let go of the TPMs. Blocks."""
        for _, provider in self._providers:
            provider.close()
