"""What happens to the devices with a TPM behind the backends, as typed events (see `lifecycle`).

A device that several backends share is told of under the name of the first. No field ever holds a
nonce, a quote or a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nexusg.agent.lifecycle import LifecycleEvent


@dataclass(frozen=True, kw_only=True)
class DeviceEvent(LifecycleEvent):
    """Something about the device of a backend."""

    backend: str


@dataclass(frozen=True, kw_only=True)
class DeviceEnrolled(DeviceEvent):
    """The authorizer knows this device now; ``re_enrolled`` if it had known it before."""

    device_id: str
    hostname: str
    identity_class: str
    re_enrolled: bool
    took_s: float


@dataclass(frozen=True, kw_only=True)
class EnrolmentFailed(DeviceEvent):
    """The authorizer does not know this device, so there are no tokens."""

    level: ClassVar[str] = "error"

    code: str
    error: str
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class DeviceRefused(DeviceEvent):
    """The authorizer gives it no tokens any more: it is suspended or revoked. Told once."""

    level: ClassVar[str] = "error"

    status: int
    error: str
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class DeviceWarning(DeviceEvent):
    """Something is not as it should be, such as a damaged state file; the device goes on."""

    level: ClassVar[str] = "warning"

    text: str


@dataclass(frozen=True, kw_only=True)
class TokenIssued(DeviceEvent):
    """A token has come. ``quote_s`` of ``took_s`` were the TPM's."""

    level: ClassVar[str] = "debug"

    stage: str
    took_s: float
    quote_s: float
    expires_in_s: float | None


@dataclass(frozen=True, kw_only=True)
class HostnamesMissing(DeviceEvent):
    """These are configured, but the authorizer has granted others only; it decides."""

    level: ClassVar[str] = "warning"

    hostnames: tuple[str, ...]
    granted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RelaysDiscovered(DeviceEvent):
    """The authorizer names these relays, and others than before."""

    relays: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DiscoveryFailed(DeviceEvent):
    """The authorizer names no relay, or cannot be asked; the backend has no session yet."""

    level: ClassVar[str] = "warning"

    code: str
    error: str
    retry_in_s: float
