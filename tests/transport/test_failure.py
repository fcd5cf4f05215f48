"""What the operating system says, in codes and words."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from nexusg.transport.failure import connect_error, failure_code, words


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ENOENT, "refused"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EADDRNOTAVAIL, "unreachable"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.EACCES, "io"),
        (errno.EMFILE, "io"),
        (None, "io"),
    ],
)
def test_codes(number: int | None, code: str) -> None:
    error = OSError(number, "x") if number else OSError("x")
    assert failure_code(error) == code


def test_an_error_names_the_place_and_the_reason() -> None:
    error = connect_error("relay.example:443", ConnectionRefusedError(111, "Connection refused"))
    assert str(error) == "cannot connect to relay.example:443: Connection refused"
    assert error.code == "refused"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "secret.pem"),
            "No such file or directory",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (OSError(errno.EPIPE, ""), os.strerror(errno.EPIPE)),
        (OSError(), "OSError"),
    ],
)
def test_words(error: OSError, expected: str) -> None:
    assert words(error) == expected
