"""Has the device of a backend enrolled, and finds its relays if none are configured.

It runs beside the sessions, because the first enrolment may take a slow TPM longer than a token
may take. It must not know how a device enrols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.agent.device_events import DiscoveryFailed, RelaysDiscovered
from nexusg.agent.reconnect import ReconnectPolicy
from nexusg.errors import ConfigError, TokenError


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.context import Context
    from nexusg.agent.supervisor import Supervisor
    from nexusg.attest.tpm.provider import TpmTokenProvider
    from nexusg.config.model import Backend, Config


#: For one enrolment: making a key takes some TPMs half a minute.
ENROLMENT_S = 120.0
#: How often the authorizer is asked whether the relays are still the same.
REFRESH_S = 3600.0
#: The same while it names none and does not say when it will: 5 s, then twice as long each time.
EMPTY_FIRST_S, EMPTY_MAX_S = 5.0, 60.0


def require_relays(config: Config) -> None:
    """For agents whose tokens come from elsewhere. Raises ConfigError where relays are missing."""
    if bare := [backend.name for backend in config.backends if not backend.nexus_addresses]:
        names = ", ".join(map(repr, bare))
        raise ConfigError(
            [f"nexusAddresses is required with a token provider of one's own: {names}"]
        )


class Discovery:
    """``run`` is a greenlet of the agent. ``slots`` are the backend's, and change here."""

    def __init__(
        self,
        context: Context,
        backend: Backend,
        provider: TpmTokenProvider,
        slots: list[Supervisor],
        open_slot: Callable[[str], Supervisor],
    ) -> None:
        """``open_slot`` makes and starts the slot for one relay."""
        self.retired: set[Supervisor] = set()  #: they open no further session, and end some time
        self._context = context
        self._backend = backend
        self._provider = provider
        self._slots = slots
        self._open_slot = open_slot
        self._relays: dict[str, Supervisor] = {}
        self._policy = ReconnectPolicy(context.rng, context.clock)
        self._empty = 0
        self._wake = Event()

    def run(self) -> None:
        """Until there is nothing more to do, as when the relays are configured. Blocks."""
        while True:
            try:
                if self._backend.nexus_addresses:
                    self._provider.enroll(ENROLMENT_S)
                    return
                delay_s = self._found(self._provider.endpoints(ENROLMENT_S))
            except TokenError as error:
                delay_s = self._policy.delay_s(error)
                self._failed(error.code, str(error), delay_s)
            self._wake.clear()
            self._wake.wait(delay_s)

    def network_changed(self) -> None:
        """Try again now, if the last attempt has failed. Never blocks."""
        if not self._relays and self._policy.wake():
            self._wake.set()

    def _found(self, relays: tuple[str, ...]) -> float:
        """Serve ``relays``, and only these. How long until they are asked for again."""
        if not relays and not self._relays:
            self._empty += 1
            grown_s = min(EMPTY_FIRST_S * 2.0 ** min(self._empty - 1, 32), EMPTY_MAX_S)
            delay_s = self._provider.retry_after_s or grown_s
            self._failed("no_relays", "the authorizer names no relays yet", delay_s)
            return delay_s
        if relays and set(relays) != self._relays.keys():
            self._context.emit(RelaysDiscovered(backend=self._backend.name, relays=relays))
            for relay in self._relays.keys() - set(relays):
                self._retire(self._relays.pop(relay))
            for relay in relays:
                if relay not in self._relays:
                    slot = self._relays[relay] = self._open_slot(relay)
                    self._slots.append(slot)
        return REFRESH_S * (1 + self._context.rng())

    def _retire(self, slot: Supervisor) -> None:
        self.retired.add(slot)
        self._slots.remove(slot)
        slot.stop()

    def _failed(self, code: str, error: str, delay_s: float) -> None:
        if not (self._relays or self._backend.nexus_addresses):  # else the sessions tell
            self._context.emit(
                DiscoveryFailed(
                    backend=self._backend.name, code=code, error=error, retry_in_s=round(delay_s, 3)
                )
            )
