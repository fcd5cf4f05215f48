"""What the operating system says about connecting, in words and codes of our own.

OS errors are mapped here only. It does not know for whom a connection was made: dialling a relay
turns a ConnectError into DialFailed, dialling a target turns it into TargetError.
"""

from __future__ import annotations

import errno
import os


_CODES = {
    errno.ECONNREFUSED: "refused",
    errno.ENOENT: "refused",  # no unix socket there, so nobody listens
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EAFNOSUPPORT: "unreachable",  # a kernel without IPv6
    errno.EHOSTDOWN: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


class ConnectError(Exception):
    """No connection. ``code`` is ``refused``, ``unreachable``, ``dns``, ``timeout`` or ``io``."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def connect_error(place: str, error: OSError) -> ConnectError:
    """The ConnectError for an OS error met while connecting to ``place``."""
    return ConnectError(f"cannot connect to {place}: {words(error)}", failure_code(error))


def failure_code(error: OSError) -> str:
    """The code word for an OS error."""
    return _CODES.get(error.errno or 0, "io")


def words(error: OSError) -> str:
    """The system's words for an error, without its number and without file names."""
    if error.strerror:
        return error.strerror
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
