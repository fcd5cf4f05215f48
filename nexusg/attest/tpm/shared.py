"""One identity for each TPM and state directory in a process, however many backends have it.

It knows how the parts of a device are put together, and nothing of what they do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nexusg.attest.cache import HandshakeCache
from nexusg.attest.tpm.device import PytssDevice
from nexusg.attest.tpm.enrolment import Enroller
from nexusg.attest.tpm.issuer import TokenIssuer
from nexusg.attest.tpm.namek import NamekClient
from nexusg.attest.tpm.pace import Timing
from nexusg.attest.tpm.provider import TpmTokenProvider
from nexusg.attest.tpm.state import TpmState
from nexusg.errors import AuthorizerError, ConfigError, TokenTimeout


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.attest.tpm.notices import Notice
    from nexusg.config.tpm import Tpm

#: Handshake tokens are kept for this long, or until 5 s before they expire, 25 s with namek.
CACHE_S = 60.0


class Identity:
    """A device: its TPM, its state, its authorizer, and who uses it."""

    def __init__(
        self,
        settings: Tpm,
        *,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        ended: Callable[[Identity], object] = lambda _: None,
    ) -> None:
        """``ended`` is called when nobody uses it any more."""
        self.settings = settings
        self._ended = ended
        self._users: list[Callable[[Notice], object]] = []
        self._device = PytssDevice(settings.tcti, settings.ak)
        client = NamekClient(settings.authorizer_url or "", settings.ca_file)
        state = TpmState(settings.state_dir)
        self.enroller = Enroller(self._device, client, state, settings, self._tell, timing)
        self.issuer = TokenIssuer(self.enroller, self._device, client, self._tell, timing)
        #: A TokenProvider that keeps the handshake token.
        self.tokens = HandshakeCache(self.issuer, CACHE_S, clock=timing.wall)

    def join(self, notify: Callable[[Notice], object]) -> None:
        """One more user; the first of them is told what happens."""
        self._users.append(notify)

    def leave(self, notify: Callable[[Notice], object]) -> None:
        """One user less; the last one closes the TPM. Blocks."""
        self._users.remove(notify)
        if not self._users:
            self._ended(self)
            self._device.close()

    def endpoints(self, timeout_s: float) -> tuple[str, ...]:
        """The relays of the device, as the authorizer names them now. Blocks. Raises TokenError.

        Those of the state file serve while the authorizer cannot be reached.
        """
        enrolled_before = self.enroller.count
        known = self.issuer.enroll(timeout_s)
        if self.enroller.count > enrolled_before:
            return known.nexus_endpoints  # just heard
        try:
            return self.issuer.me(timeout_s).nexus_endpoints
        except (AuthorizerError, TokenTimeout):
            if not known.nexus_endpoints:
                raise
            return known.nexus_endpoints

    def _tell(self, notice: Notice) -> None:
        if self._users:
            self._users[0](notice)


_identities: dict[str, Identity] = {}  # by state directory
_pid = 0


def provider(settings: Tpm, notify: Callable[[Notice], object]) -> TpmTokenProvider:
    """A provider for one backend, over the identity that all with these settings share.

    Raises ConfigError when another identity has the same state directory.
    """
    global _pid
    if _pid != os.getpid():  # a fork: the parent's TPM connection and greenlets are not ours
        _identities.clear()
        _pid = os.getpid()
    identity = _identities.get(settings.state_dir)
    if identity is None:
        identity = _identities[settings.state_dir] = Identity(settings, ended=_forget)
    elif identity.settings != settings:
        raise ConfigError([f"tpm: {settings.state_dir} is in use with other settings"])
    return TpmTokenProvider(identity, notify)


def _forget(identity: Identity) -> None:
    if _identities.get(identity.settings.state_dir) is identity:
        del _identities[identity.settings.state_dir]
