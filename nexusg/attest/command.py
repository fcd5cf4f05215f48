"""Runs a command that prints a token: its environment, its output (PROTOCOL.md section 9.2).

It must not know how a process is run and killed, nor when a token is wanted.
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from typing import TYPE_CHECKING

import gevent

from nexusg.attest.base import Token
from nexusg.attest.process import Process
from nexusg.attest.redact import redact
from nexusg.errors import TokenError, TokenTimeout


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nexusg.attest.base import TokenRequest


#: ``timeoutSeconds`` when it is not configured, as in the reference agent.
DEFAULT_TIMEOUT_S = 15.0

#: How much of a line of stderr goes into an error, which is one line of a log itself.
ERROR_DETAIL_CHARS = 200


class CommandProvider:
    """A TokenProvider that runs ``command`` with ``args``, without a shell, for each token.

    ``env`` is added to the environment of this process, and the NEXUS_ variables to both. No
    call takes longer than ``timeout_s``; then the command's process group is killed.
    ``on_stderr`` is given each line of the command's stderr, without tokens and without any of
    ``secrets``; it must not block.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        on_stderr: Callable[[str], None] | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        self._argv = (command, *args)
        self._env = dict(env or {})
        self._timeout_s = timeout_s
        self._on_stderr = on_stderr
        self._secrets = tuple(secrets)

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks. Only in the thread of gevent's main hub."""
        where = f"the attestation command {self._argv[0]} ({request.stage.value})"
        limit_s = max(0.0, min(timeout_s, self._timeout_s))
        late = TokenTimeout(f"{where} did not finish within {limit_s:g} s")
        process = Process(self._argv, os.environ | self._env | variables(request))
        try:
            with gevent.Timeout(limit_s, late):
                status = process.run()
        except TokenTimeout:
            self._report(process.stderr)
            raise
        except TokenError as error:
            raise TokenError(f"{where} failed: {error}") from None
        except OSError as error:
            raise TokenError(f"{where} cannot be run: {error.strerror}") from error
        except ValueError:  # its text quotes what cannot be encoded
            raise TokenError(f"{where} cannot be run: bad argument or variable") from None
        if status != 0:
            raise TokenError(
                f"{where} {_ending(status)}{self._first(self._report(process.stderr))}"
            )
        return self._parse(where, process)

    def invalidate(self) -> None:
        """Nothing is kept."""

    def _parse(self, where: str, process: Process) -> Token:
        try:
            token = parse_output(process.stdout)
        except TokenError as error:
            self._report(process.stderr)
            raise TokenError(f"{where}: {error}") from None
        # A token need not look like one, but here it is known.
        self._report(process.stderr, token.value)
        return token

    def _report(self, stderr: bytes, *tokens: str) -> list[str]:
        """Hand on what was printed on stderr, and return it: lines that are fit for a log."""
        text = redact(stderr.decode(errors="replace"), (*self._secrets, *tokens))
        lines = [_printable(line) for line in text.splitlines() if line.strip()]
        if self._on_stderr is not None:
            for line in lines:
                self._on_stderr(line)
        return lines

    @staticmethod
    def _first(lines: list[str]) -> str:
        return f": {lines[0][:ERROR_DETAIL_CHARS]}" if lines else ""


def variables(request: TokenRequest) -> dict[str, str]:
    """The nine NEXUS_ variables; none is ever missing, an empty list is an empty value."""
    return {
        "NEXUS_ATTESTATION_STAGE": request.stage.value,
        "NEXUS_SESSION_NONCE": request.nonce,
        "NEXUS_BACKEND_NAME": request.backend,
        "NEXUS_HOSTNAMES": ",".join(request.hostnames),
        "NEXUS_WEIGHT": str(request.weight),
        "NEXUS_TCP_PORTS": _ports(request.tcp_ports),
        "NEXUS_UDP_ROUTES": ",".join(
            str(route.port)
            if route.flow_idle_timeout_s is None
            else f"{route.port}:{route.flow_idle_timeout_s}"
            for route in request.udp_routes
        ),
        "NEXUS_OUTBOUND_ALLOWED": "true" if request.outbound_allowed else "false",
        "NEXUS_ALLOWED_OUTBOUND_PORTS": _ports(request.allowed_outbound_ports),
    }


def _ports(ports: Iterable[int]) -> str:
    return ",".join(map(str, ports))


def parse_output(output: bytes) -> Token:
    """Read a command's stdout: a JSON object with token and expiry, or a token in the first line.

    Raises:
        TokenError: there is no token in it. The message does not quote the output.
    """
    try:
        text = output.decode().strip()
    except UnicodeDecodeError:  # not chained: it holds the output
        raise TokenError("the output is not UTF-8") from None
    if not text:
        raise TokenError("the output is empty")
    if not text.startswith("{"):
        return Token.parse(text.partition("\n")[0])
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):  # not chained, likewise
        raise TokenError("the output begins as a JSON object but is not one") from None
    token, expiry = answer.get("token"), answer.get("expiry")
    if not isinstance(token, str) or not token.strip():
        raise TokenError('the output has no "token"')
    return Token.parse(token, parse_expiry(expiry) if isinstance(expiry, str) else None)


_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?(?:[Zz]|([+-]\d\d:\d\d))", re.ASCII
)


def parse_expiry(text: str) -> float | None:
    """Read an RFC 3339 time as unix seconds; None for anything else (PROTOCOL.md section 9.2)."""
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, fraction, offset = match.groups()
    try:
        # Put into the one form that Python 3.10 reads as well.
        moment = datetime.fromisoformat(f"{day}T{clock}{offset or '+00:00'}")
    except ValueError:
        return None
    return moment.timestamp() + float(fraction or 0)


def _ending(status: int) -> str:
    if status > 0:
        return f"exited with status {status}"
    return f"was killed by signal {-status}"


def _printable(line: str) -> str:
    """A log is read in a terminal, which obeys control characters."""
    return "".join(char if char.isprintable() else " " for char in line).strip()
