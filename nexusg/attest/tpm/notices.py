"""What a device with a TPM has to tell, as plain data: the agent makes events and figures of it.

It must not know who listens. No field ever holds a nonce, a quote or a token.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The authorizer knows this device now; ``re_enrolled`` if it had known it before."""

    device_id: str
    hostname: str
    identity_class: str
    re_enrolled: bool
    took_s: float


@dataclass(frozen=True, slots=True)
class EnrolmentFailed:
    """It does not; nobody tries again for ``retry_in_s``."""

    code: str
    error: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class Issued:
    """A token has come. ``quote_s`` of ``took_s`` were the TPM's."""

    stage: str
    took_s: float
    quote_s: float
    expires_in_s: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The authorizer gives this device no tokens any more; told once, until it gives one."""

    status: int
    error: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class Remark:
    """Something is not as it should be, and did not keep the device from going on."""

    text: str


@dataclass(frozen=True, slots=True)
class HostnamesMissing:
    """``hostnames`` are configured, and the tokens are for ``granted`` only."""

    hostnames: tuple[str, ...]
    granted: tuple[str, ...]


Notice = Enrolled | EnrolmentFailed | Issued | Refused | Remark | HostnamesMissing


@dataclass(slots=True)
class Figures:
    """How the device is doing. Times are unix seconds, 0 when there is none."""

    device_id: str = ""
    hostname: str = ""
    identity_class: str = ""
    enrolments: int = 0  #: since the start
    quote_s: float = 0.0  #: of the last one
    tokens: int = 0
    token_expires_at: float = 0.0  #: of the last one
    last_error: str = ""  #: why there was no token; empty again when there is one
