"""``nexusg demo --tpm``: an agent that proves itself with a TPM, and all it needs for that.

The TPM is a software one, and the authorizer and the relay are those for development.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING

from nexusg.agent.agent import Agent
from nexusg.attest.tpm.device import PytssDevice
from nexusg.config.loader import loads
from nexusg.relay.authorizer.server import Authorizer
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig

from . import demo_client
from .demo_parts import (
    CONNECT_S,
    GRACE_YAML,
    INTRODUCTION,
    Steps,
    Unexpected,
    free_port,
    summary,
)
from .demo_service import DemoService
from .demo_swtpm import SoftwareTpm
from .example import HTTP_PORT, HUB_PORT


if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gevent.event import Event

    from .demo_parts import Watch

#: The device's name becomes <20 characters>.localhost: always this machine (RFC 6761 6.3).
BASE_DOMAIN = "localhost"
AK = "ecc-p256"
RENEWALS = 2
#: At first, so that re-attestations can be watched; and then, so that they are no nuisance.
REAUTH_S, LATER_REAUTH_S = 1, 60
REAUTH_TIMEOUT_S = 10.0


class TpmDemo:
    """The parts, started one by one, and what is said about each. ``stop`` ends every wait."""

    def __init__(self, folder: Path, watch: Watch, stop: Event) -> None:
        self._folder = folder
        self._watch = watch
        self._stop = stop
        stop.rawlink(lambda _: watch.changed.set())
        self._say = Steps()
        self._refusal = ""  # the authorizer's last, with the reason that only its log has
        self._hostname = ""

    def show(self, stack: contextlib.ExitStack) -> bool:
        """Start everything, to be ended by ``stack``, and try it out; whether it works.

        Blocks. Raises TpmError when software is missing; the text names its packages.
        """
        print(INTRODUCTION)
        tpm = stack.enter_context(SoftwareTpm(self._folder))
        self._introduce(tpm)
        secret = secrets.token_urlsafe(32)
        relay = stack.enter_context(self._relay(secret))
        self._say.step("relay", f"waits for agents at {relay.url}")
        self._say.more("and takes whoever has a token of the authorizer")
        authorizer = stack.enter_context(
            Authorizer(
                secret,
                BASE_DOMAIN,
                nexus_endpoints=[relay.url],
                reauth_interval_s=REAUTH_S,
                on_log=self._note,
            )
        )
        self._say.step(
            "authorizer", f"in place of namek, for development only, at {authorizer.url}"
        )
        service = stack.enter_context(DemoService(self._certificate_file()))
        self._say.step("service", f"a web service at {service.http}")
        [port] = relay.public_ports
        assert relay.ca_file is not None
        text = self._agent_yaml(tpm.tcti, authorizer.url, relay.ca_file, port, service.http)
        stack.enter_context(Agent(loads(text).config, on_event=self._watch))
        return self._follow(authorizer, port)

    def _follow(self, authorizer: Authorizer, port: int) -> bool:
        """Tell what becomes of the agent; whether it works, as far as it was let. Blocks."""
        watch = self._watch
        if not self._until(watch.connected.is_set, CONNECT_S):
            problem = watch.problem or self._refusal or "no answer"
            return self._ended("agent", f"could not connect: {problem}")
        self._say.step("enrolled", f"as {self._hostname}")
        self._say.more("only the TPM that has the key could open what the authorizer made for it")
        self._say.step("agent", f"has connected service and relay ({watch.how})")
        self._say.more("for each token its TPM has signed a nonce of the authorizer")
        try:
            reply = demo_client.fetch(self._hostname, port)
            self._say.step("HTTP", f"http://{self._hostname}:{port}/ says {summary(reply)}")
        except (*demo_client.FAILURES, Unexpected) as error:
            return self._ended("request", f"failed: {error}")
        for number in range(RENEWALS):
            if not self._until(lambda: len(watch.renewals) > number, REAUTH_TIMEOUT_S):  # noqa: B023
                problem = self._refusal or "the relay has not asked"
                return self._ended("reauth", f"failed: {problem}")
            took_ms = watch.renewals[number] * 1000
            self._say.step("reauth", f"the relay has asked again: a new quote, {took_ms:.0f} ms")
        authorizer.policy.reauth_interval_s = LATER_REAUTH_S
        print("\nTry it yourself:")
        print(f"  curl -H 'Host: {self._hostname}' http://127.0.0.1:{port}/")
        print(f"  or open http://{self._hostname}:{port}/ in a browser", flush=True)
        return True

    def _ended(self, who: str, what: str) -> bool:
        """Say what does not work, unless that is because the command was stopped: that is fine."""
        if not self._stop.is_set():
            self._say.step(who, what)
        return self._stop.is_set()

    def _introduce(self, tpm: SoftwareTpm) -> None:
        """Say who the TPM is, and find out on the way whether it can be used. Raises TpmError."""
        device = PytssDevice(tpm.tcti, AK)
        try:
            fingerprint = device.endorsement().fingerprint
        finally:
            device.close()
        self._say.step("TPM", f"a software TPM at {tpm.tcti}")
        self._say.more(f"its endorsement key is {fingerprint[:20]}…")

    def _relay(self, secret: str) -> DevRelay:
        return DevRelay(
            RelayConfig(
                secret=secret,
                hub=("127.0.0.1", free_port(HUB_PORT)),
                public_ports=(free_port(HTTP_PORT),),
                certificates=self._folder,
                on_log=lambda _event, _fields: None,  # this command says what happens
            )
        )

    def _certificate_file(self) -> Path:
        from nexusg.relay.certs import CERTIFICATE_FILE  # needs the extra, as the relay has said

        return self._folder / CERTIFICATE_FILE

    def _agent_yaml(self, tcti: str, authorizer: str, ca_file: Path, port: int, to: str) -> str:
        """The agent's configuration: relays and host names come from the authorizer."""
        state_dir = str(self._folder / "tpm-enrolment")
        tpm = {"authorizerUrl": authorizer, "tcti": tcti, "stateDir": state_dir, "ak": AK}
        lines = [
            "backends:",
            "  - name: demo",
            f"    attestation: {json.dumps({'tpm': tpm}, ensure_ascii=False)}",
            f"    tls: {json.dumps({'caFile': str(ca_file)}, ensure_ascii=False)}",
            f"    portMappings: {{{port}: {{default: {json.dumps(to)}}}}}",
        ]
        return "\n".join(lines) + f"\n{GRACE_YAML}"

    def _note(self, event: str, fields: Mapping[str, object]) -> None:
        """What the authorizer logs."""
        if event == "authorizer.enrolled":
            self._hostname = str(fields["hostname"])
        elif event == "authorizer.refused":
            self._refusal = f"the authorizer refused: {fields['why']}"

    def _until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for the agent until ``true()``; False when that takes too long or is stopped."""
        changed, deadline = self._watch.changed, time.monotonic() + timeout_s
        while not true() and not self._stop.is_set():
            changed.clear()
            left_s = max(deadline - time.monotonic(), 0.0)
            if not changed.wait(left_s):
                break
        return true()
