"""Makes a device known to its authorizer, once, and remembers it (TPM.md A.2, phases 1 and 2).

It must not know tokens. One enrolment at a time: within the process by a semaphore, on the machine
by the lock of the state directory. Losing the state costs nothing: the authorizer derives identity
and name from the endorsement key.
"""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gevent.lock import Semaphore

from nexusg.attest.tpm.device import AkBlobs
from nexusg.attest.tpm.notices import Enrolled, EnrolmentFailed, Remark
from nexusg.attest.tpm.pace import again
from nexusg.attest.tpm.state import Enrolment
from nexusg.errors import AuthorizerError, Retry, TokenError, TokenTimeout, TpmError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.attest.tpm.device import Endorsement, PytssDevice
    from nexusg.attest.tpm.namek import Device, NamekClient
    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.pace import Pace, Timing
    from nexusg.attest.tpm.state import TpmState
    from nexusg.config.tpm import Tpm


#: After a failed enrolment nobody tries again for 1 s, then twice as long each time, up to 60 s.
HOLD_FIRST_S, HOLD_MAX_S = 1.0, 60.0
#: After a refusal (suspended, revoked): only an operator can change that.
REFUSED_HOLD_S = 900.0
#: A device that was enrolled again within this is not enrolled again once more.
REPEAT_S = 600.0


def passing(error: TokenError) -> bool:
    """Whether the same may well succeed a moment later."""
    if isinstance(error, AuthorizerError):
        status = error.status
        unreachable = error.code == "authorizer_unreachable"
        return unreachable or status == 429 or (status is not None and status >= 500)
    return error.code == "tpm_io"


class Enroller:
    """Keeps the enrolment of one device. ``notify`` must not block."""

    def __init__(
        self,
        device: PytssDevice,
        client: NamekClient,
        state: TpmState,
        settings: Tpm,
        notify: Callable[[Notice], object],
        timing: Timing,
    ) -> None:
        self.current: Enrolment | None = None  #: with its key loaded
        self.count = 0  #: enrolments since the start
        self.retry_after_s: float | None = None  #: when to ask again for endpoints, if told
        self._device = device
        self._client = client
        self._state = state
        self._settings = settings
        self._notify = notify
        self._timing = timing
        self._turns = Semaphore()
        self._key: AkBlobs | None = None  # of this TPM, as far as is known
        self._key_of = ""  # the fingerprint of its endorsement key
        self._renewed_at = -float("inf")
        self._failures = 0
        self._hold_until = -float("inf")
        self._last: AuthorizerError | TpmError | None = None
        self._remarks: set[str] = set()

    def ensure(self, pace: Pace) -> Enrolment:
        """The enrolment: this one, that in the state directory, or a new one. Blocks.

        Raises TokenError.
        """
        if self.current is not None:
            return self.current
        with self._turn(pace):
            return self.current or self._obtain(pace, None)

    def renew(self, old: Enrolment, cause: AuthorizerError | TpmError, pace: Pace) -> Enrolment:
        """Another enrolment than ``old``, with which ``cause`` has happened. Blocks.

        Raises ``cause`` when that is no cure: it has been tried within REPEAT_S, and the key is
        there. Raises TokenError.
        """
        with self._turn(pace):
            if self.current is not old:  # somebody else was as quick
                return self.current or self._obtain(pace, old)
            if isinstance(cause, TpmError):
                self._key = None  # it is gone
            elif self._stored() in (None, old) and not self._may_repeat():
                raise cause
            self.current, before = None, self.count
            found = self._obtain(pace, old)
            if self.count > before:
                self._renewed_at = self._timing.clock()
            return found

    def update(self, found: Device, pace: Pace) -> None:
        """Remember what the authorizer says of the device now. Blocks. Raises TokenError."""
        with self._turn(pace):
            old = self.current
            if old is None:
                return
            new = dataclasses.replace(
                old,
                hostname=found.hostname,
                identity_class=found.identity_class,
                nexus_endpoints=found.nexus_endpoints,
            )
            if new != old:
                self.current = new
                self._replace(old, new, pace)

    def _may_repeat(self) -> bool:
        recent = self._timing.clock() - self._renewed_at < REPEAT_S
        return not recent and self._settings.enroll != "never"

    # Inside a turn ---------------------------------------------------------------------------

    @contextmanager
    def _turn(self, pace: Pace) -> Iterator[None]:
        if not self._turns.acquire(timeout=pace.step_s()):
            if self._last is not None:
                raise again(self._last)
            raise TokenTimeout(f"waited {pace.limit_s:g} s for the enrolment that is under way")
        try:
            yield
        finally:
            self._turns.release()

    def _obtain(self, pace: Pace, unfit: Enrolment | None) -> Enrolment:
        """Take what is stored, unless it is ``unfit``, or enrol, as often as there is time."""
        while True:
            self._hold(pace)
            try:
                found = self._adopt(unfit) or self._enroll_alone(unfit, pace)
            except (AuthorizerError, TpmError) as error:
                self._failed(error)
                if not passing(error):
                    raise
            else:
                self._failures, self._last = 0, None
                self.current = found
                return found

    def _hold(self, pace: Pace) -> None:
        wait_s = self._hold_until - self._timing.clock()
        if self._last is not None and wait_s > 0:
            pace.wait(wait_s, again(self._last))

    def _failed(self, error: AuthorizerError | TpmError) -> None:
        if error.retry is Retry.BARRED:
            hold_s = self._timing.jittered(REFUSED_HOLD_S)
        else:
            grown_s = min(HOLD_FIRST_S * 2.0 ** min(self._failures, 32), HOLD_MAX_S)
            hold_s = max(self._timing.jittered(grown_s), getattr(error, "retry_after_s", 0) or 0)
        self._failures += 1
        self._last = error
        self._hold_until = self._timing.clock() + hold_s
        self._notify(EnrolmentFailed(error.code, str(error), round(hold_s, 3)))

    def _stored(self) -> Enrolment | None:
        """What is in the state directory, if it is for this authorizer and kind of key."""
        stored = self._state.load()
        for text in (self._state.problem, self._state.note):
            if text is not None and text not in self._remarks:
                self._remark(text)
        wanted = (self._settings.authorizer_url, self._settings.ak)
        if stored is None or (stored.authorizer_url, stored.ak_kind) != wanted:
            return None
        return stored

    def _remark(self, text: str) -> None:
        self._remarks.add(text)
        self._notify(Remark(text))

    def _adopt(self, unfit: Enrolment | None) -> Enrolment | None:
        stored = self._stored()
        if stored is None or stored == unfit:
            return None
        key = AkBlobs(stored.ak_public, stored.ak_private)
        try:
            self._device.load_ak(key)
        except TpmError as error:
            if error.code != "tpm_cleared":
                raise
            return None  # the state of another TPM, or of this one before it was cleared
        self._key, self._key_of = key, stored.ek_fingerprint
        return stored

    def _enroll_alone(self, unfit: Enrolment | None, pace: Pace) -> Enrolment:
        if self._settings.enroll == "never":
            raise TokenError(
                f"this device is not enrolled with {self._settings.authorizer_url}, and enroll is "
                "never: run `nexusg tpm enroll`"
            )
        with self._state.lock(pace.step_s()):
            return self._adopt(unfit) or self._enroll(pace)

    def _enroll(self, pace: Pace) -> Enrolment:
        """Phases 1 and 2. An attempt that has failed is begun again from the first."""
        started = self._timing.clock()
        settings, device, client = self._settings, self._device, self._client
        endorsement = device.endorsement()
        key = self._load_key(endorsement)
        sent = None if settings.ek_cert == "never" else endorsement.certificate
        challenge = client.enroll_start(
            device.ak_params(),
            ek_public=endorsement.public_der,
            ek_certificate=sent,
            timeout_s=pace.step_s(),
        )
        secret = device.activate(challenge.credential)
        quote = device.quote(challenge.raw, settings.enroll_pcrs)
        answer = client.enroll_attest(
            challenge,
            secret,
            quote,
            os_version=settings.os_version,
            pcr_values=device.pcr_values(settings.enroll_pcrs) if settings.enroll_pcrs else None,
            timeout_s=pace.step_s(),
        )
        enrolment = _enrolment(settings, endorsement.fingerprint, key, answer)
        self.count += 1
        self.retry_after_s = answer.retry_after_s
        took_s = round(self._timing.clock() - started, 3)
        self._notify(
            Enrolled(
                answer.device_id, answer.hostname, answer.identity_class, answer.re_enrolled, took_s
            )
        )
        self._save(enrolment)
        return enrolment

    def _load_key(self, endorsement: Endorsement) -> AkBlobs:
        """The key there is, or a new one, loaded. Making one can take long on real hardware."""
        device, key = self._device, self._key
        if key is not None and self._key_of == endorsement.fingerprint:
            try:
                device.load_ak(key)
                return key
            except TpmError as error:
                if error.code != "tpm_cleared":
                    raise
        key = device.create_ak()
        device.load_ak(key)
        self._key, self._key_of = key, endorsement.fingerprint
        return key

    def _save(self, enrolment: Enrolment) -> None:
        try:
            self._state.save(enrolment)
        except TpmError as error:  # it serves this process all the same
            self._remark(f"the enrolment is not kept: {error}")

    def _replace(self, old: Enrolment, new: Enrolment, pace: Pace) -> None:
        try:
            with self._state.lock(pace.step_s()):
                if self._state.load() == old:  # else another process knows better
                    self._save(new)
        except TpmError as error:
            self._remark(f"the enrolment is not kept: {error}")


def _enrolment(settings: Tpm, fingerprint: str, key: AkBlobs, answer: Device) -> Enrolment:
    return Enrolment(
        authorizer_url=settings.authorizer_url or "",
        ek_fingerprint=fingerprint,
        ak_kind=settings.ak,
        ak_public=key.public,
        ak_private=key.private,
        device_id=answer.device_id,
        hostname=answer.hostname,
        identity_class=answer.identity_class,
        nexus_endpoints=answer.nexus_endpoints,
    )
