"""Connections that an agent asks for: checks, the dial, and then a `User` (PROTOCOL.md 11.3).

The checks, their order and their words are those of the real relay, which tells an agent no more
about a failed dial than that it failed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nexusg.protocol.credit import WINDOW
from nexusg.protocol.lanes import Lane
from nexusg.protocol.messages import NIL_ID, Control, Event, encode_control, format_id
from nexusg.relay.user import User
from nexusg.transport.connect import connect_tcp, join_host_port
from nexusg.transport.failure import ConnectError


if TYPE_CHECKING:
    from nexusg.relay.claims import Claims
    from nexusg.relay.link import Link
    from nexusg.relay.shared import Shared
    from nexusg.relay.verify import Rules


MAX_TARGET_CHARS = 260

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BRACKETED = re.compile(r"\[([^\[\]]+)\]:([^:\[\]]+)")
_PLAIN = re.compile(r"([^:\[\]]+):([^:\[\]]+)")


class NotMade(Exception):
    """The relay does not make a connection; the text is what the agent is told."""


class Outbound:
    """The connections of one agent."""

    def __init__(self, shared: Shared, link: Link) -> None:
        self._shared = shared
        self._link = link
        self._count = 0  # established and being dialled

    def request(self, client_id: bytes, target: str) -> None:
        """Answer an outbound_connect, in a task of its own if there is something to dial."""
        limit = self._shared.config.max_outbound
        try:
            host, port = check(target, self._shared.rules, self._link.claims)
            if 0 <= limit <= self._count:
                raise NotMade("outbound connection limit exceeded")
            if client_id == NIL_ID:
                raise NotMade("missing client ID")
        except NotMade as error:
            self._refuse(client_id, target, str(error))
            return
        self._count += 1
        task = self._shared.tasks.spawn("outbound", self._serve, client_id, host, port)
        task.rawlink(self._ended)  # even if it is killed before it has begun

    def _ended(self, _task: object) -> None:
        self._count -= 1

    def _serve(self, client_id: bytes, host: str, port: int) -> None:
        link, target = self._link, join_host_port(host, port)
        try:
            sock = connect_tcp(host, port, self._shared.config.outbound_dial_timeout_s)
        except ConnectError:
            self._refuse(client_id, target, "dial failed")
            return
        try:
            if not link.session.established:
                return
            name = format_id(client_id)
            if client_id in link.session.streams:
                text = f"registration failed: client ID {name} already exists"
                self._refuse(client_id, target, text)
                return
            self._shared.log("outbound.connected", target=target, stream=name, agent=link.peer)
            result = Event.OUTBOUND_RESULT.value
            success = Control(result, client_id, success=True, credits=WINDOW)
            User(self._shared, link, sock, half_close=True, outbound=True).run(success, b"")
        finally:
            sock.close()

    def _refuse(self, client_id: bytes, target: str, reason: str) -> None:
        link = self._link
        self._shared.log("outbound.refused", target=target, reason=reason, agent=link.peer)
        if link.session.established:
            result = Control(Event.OUTBOUND_RESULT.value, client_id, reason=reason)
            link.session.send(Lane.CONTROL, encode_control(result))
            link.flush()


def check(target: str, rules: Rules, claims: Claims) -> tuple[str, int]:
    """Host and port of ``target`` if the relay would dial it. Raises NotMade."""
    if not rules.allow_outbound:
        raise NotMade("outbound connections not allowed")
    if not claims.outbound_allowed:
        raise NotMade("outbound connections not allowed for this backend")
    if len(target) > MAX_TARGET_CHARS:
        raise NotMade("target address too long")
    if _CONTROLS.search(target):
        raise NotMade("target address contains control characters")
    match = _BRACKETED.fullmatch(target) or _PLAIN.fullmatch(target)
    if match is None:
        raise NotMade("invalid target address")
    host, digits = match.groups()
    port = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else 0
    if not 0 < port < 65536:
        raise NotMade("invalid target port")
    if rules.outbound_ports and port not in rules.outbound_ports:
        raise NotMade(f"outbound port {port} not allowed")
    if claims.outbound_ports and port not in claims.outbound_ports:
        raise NotMade(f"outbound port {port} not allowed for this backend")
    return host, port
