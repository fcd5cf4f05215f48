"""What systemd is told about this process: that it is ready, how it is, that it is alive.

This is the protocol of sd_notify(3): datagrams of ``NAME=value`` lines to a socket that the
environment names. It needs no hub, so that the process above several workers can use it, too, and
it must know neither agents nor workers.
"""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING

from gevent.monkey import get_original


if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

#: How often the status is looked after when no watchdog asks for more. A person reads it.
STATUS_S = 5.0
#: A status is one line of ``systemctl status``.
STATUS_CHARS = 300

_socket = get_original("socket", "socket")  # a send that never waits has no use for a hub


class Notifier:
    """Tells the service manager about this process. False if there is none that listens.

    ``address`` is a path, or ``@name`` for an abstract one. After ``watchdog_s`` without a `beat`
    the manager takes the process for dead. What cannot be delivered is told again with the next
    beat: nothing here ever waits, and nothing raises when the manager is gone.
    """

    def __init__(self, address: str = "", watchdog_s: float = math.inf) -> None:
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._told = ["", ""]  # what has been delivered: the state, the status
        # Kept open: when the process has run out of descriptors, it must not look dead as well.
        self._socket: Any = _socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None

    @classmethod
    def found(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """The one that the environment asks for.

        It is taken out of there: no other program, such as the command for tokens, is meant.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        limit_us, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        watched = _is_positive(limit_us) and pid in ("", str(os.getpid()))
        return cls(address, int(limit_us) / 1e6 if watched else math.inf)

    def __bool__(self) -> bool:
        return self._socket is not None

    @property
    def every_s(self) -> float:
        """How often `beat` is to be called: twice in the time after which it would be missed."""
        return min(self.watchdog_s / 2, STATUS_S)

    def beat(self, status: str, *, stopping: bool = False) -> None:
        """Say that the process is alive, what it does, and, if that is news, how it is."""
        state, status = "STOPPING=1" if stopping else "READY=1", _line(status)
        lines = []
        if self._told[0] != state:
            lines.append(state)
        if self._told[1] != status:
            lines.append(f"STATUS={status}")
        if not math.isinf(self.watchdog_s):
            lines.append("WATCHDOG=1")
        if lines and self._send("\n".join(lines)):
            self._told = [state, status]

    def end(self, why: str) -> None:
        """Say why the process is about to end; it is what stays to be seen. Then be silent."""
        self.beat(why, stopping=True)
        self.close()

    def close(self) -> None:
        """Say nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:  # the manager is gone, or has too much to read already
            return False
        return True


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= STATUS_CHARS else f"{text[: STATUS_CHARS - 1]}…"
