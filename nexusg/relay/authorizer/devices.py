"""Which devices there are, and how they come in: the two steps of enrollment (TPM.md A.2, A.4).

It does not know HTTP. Identities are derived from the EK, so that an enrollment is never lost.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
from typing import TYPE_CHECKING

from nexusg.attest.tpm.names import device_id, slug
from nexusg.relay.authorizer import credential
from nexusg.relay.authorizer.keys import AttestationKey
from nexusg.relay.authorizer.quote import Quote
from nexusg.relay.authorizer.refusal import Refusal, internal
from nexusg.relay.authorizer.wire import Malformed


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nexusg.relay.authorizer.keys import EndorsementKey

PENDING_TTL_S = 300.0
PENDING_CAPACITY = 5000

ACTIVE, SUSPENDED, REVOKED = "active", "suspended", "revoked"


@dataclasses.dataclass(slots=True)
class Device:
    """One TPM. A new AK replaces the one before."""

    device_id: str
    hostname: str
    fingerprint: str
    key: AttestationKey
    os_version: str | None = None
    status: str = ACTIVE
    # Without authorities to trust, namek classes every device so.
    identity_class: str = "unverified"
    trust_level: str = "provisional"


@dataclasses.dataclass(frozen=True, slots=True)
class _Pending:
    """An enrollment between its two steps."""

    fingerprint: str
    key: AttestationKey
    secret: bytes = dataclasses.field(repr=False)
    expires_at: float = 0.0


class Registry:
    """The devices below ``base_domain``. ``clock`` gives unix seconds."""

    def __init__(
        self, base_domain: str, clock: Callable[[], float], capacity: int = PENDING_CAPACITY
    ) -> None:
        self.devices: dict[str, Device] = {}  #: by their id
        self._base_domain = base_domain
        self._clock = clock
        self._capacity = capacity
        self._pending: dict[str, _Pending] = {}  # by nonce, the oldest first

    def begin(self, endorsement: EndorsementKey, ak_params: bytes) -> tuple[str, bytes]:
        """The first step: a nonce in hex, and a credential that only this TPM can open.

        Raises Refusal.
        """
        device = self.devices.get(device_id(endorsement.fingerprint))
        if device is not None and device.status != ACTIVE:
            raise Refusal(409, "device already enrolled", reason=f"device is {device.status}")
        try:
            key = AttestationKey.parse(ak_params)
        except Malformed as error:
            raise internal(str(error)) from None
        self._sweep(endorsement.fingerprint)
        if len(self._pending) >= self._capacity:
            raise Refusal(503, "enrollment capacity reached")
        secret = os.urandom(credential.SECRET_BYTES)
        wire = credential.make(endorsement.public, key.name, secret)
        nonce = os.urandom(32).hex()
        expires_at = self._clock() + PENDING_TTL_S
        self._pending[nonce] = _Pending(endorsement.fingerprint, key, secret, expires_at)
        return nonce, wire

    def complete(
        self,
        nonce: str,
        secret: bytes,
        quote: str,
        pcr_values: Mapping[int, bytes],
        os_version: str | None = None,
    ) -> tuple[Device, bool]:
        """The second step: the device, and whether it was known before. Raises Refusal.

        Whatever comes of it, the nonce is used up.
        """
        pending = self._pending.pop(nonce, None)
        if pending is None or self._clock() > pending.expires_at:
            raise Refusal(400, "enrollment expired or not found")
        if not hmac.compare_digest(secret, pending.secret):
            raise Refusal(401, "credential verification failed")
        try:
            Quote.parse(quote).verify(pending.key, bytes.fromhex(nonce), pcr_values)
        except Malformed as error:
            raise Refusal(401, "quote verification failed", reason=str(error)) from None
        return self._enroll(pending, os_version)

    def authenticate(self, identity: str, nonce: bytes, quote: str) -> Device:
        """The device ``identity``, if it is one, may be, and proves it. Raises Refusal."""
        device = self.devices.get(identity)
        if device is None:
            raise Refusal(401, "device not found")
        if device.status != ACTIVE:
            raise Refusal(403, f"device is {device.status}")
        try:
            Quote.parse(quote).verify(device.key, nonce)
        except Malformed as error:
            raise Refusal(401, "tpm quote verification failed", reason=str(error)) from None
        return device

    def forget(self) -> None:
        """No device has ever been here."""
        self.devices.clear()
        self.forget_pending()

    def forget_pending(self) -> None:
        """Who has begun must begin again."""
        self._pending.clear()

    def _enroll(self, pending: _Pending, os_version: str | None) -> tuple[Device, bool]:
        identity = device_id(pending.fingerprint)
        device = self.devices.get(identity)
        if device is None:
            hostname = f"{slug(pending.fingerprint)}.{self._base_domain}"
            device = Device(identity, hostname, pending.fingerprint, pending.key, os_version)
            self.devices[identity] = device
            return device, False
        if device.status != ACTIVE:
            raise Refusal(409, "device already enrolled", reason=f"device is {device.status}")
        device.key = pending.key
        device.os_version = os_version
        return device, True

    def _sweep(self, fingerprint: str) -> None:
        """Drop what has expired, and what the same TPM has begun before."""
        now = self._clock()
        self._pending = {
            nonce: pending
            for nonce, pending in self._pending.items()
            if pending.fingerprint != fingerprint and pending.expires_at >= now
        }
