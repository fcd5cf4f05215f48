"""Every error's text is a finished log line, and its class says how to go on."""

from __future__ import annotations

import inspect

import pytest

from nexusg import errors
from nexusg.errors import (
    AuthorizerError,
    ConfigError,
    DialFailed,
    LocalProtocolError,
    NexusgError,
    NoRoute,
    ProtocolError,
    Rejected,
    RemoteProtocolError,
    Retry,
    SessionLost,
    TargetError,
    TokenError,
    TokenTimeout,
    TpmError,
    UpgradeRefused,
)


@pytest.mark.parametrize(
    ("error", "text", "code", "retry"),
    [
        (ConfigError(["a: wrong", "b: wrong"]), "a: wrong\nb: wrong", "config", None),
        (LocalProtocolError("not now"), "not now", "protocol", None),
        (RemoteProtocolError("bad frame"), "bad frame", "protocol", None),
        (DialFailed("refused by x", "refused"), "refused by x", "refused", Retry.BACKOFF),
        (UpgradeRefused(503, "HTTP 503"), "HTTP 503", "http_status", Retry.BACKOFF),
        (UpgradeRefused(429, "HTTP 429", 9.0), "HTTP 429", "http_status", Retry.RATE_LIMITED),
        (UpgradeRefused(401, "HTTP 401"), "HTTP 401", "http_status", Retry.REJECTED),
        (UpgradeRefused(403, "HTTP 403"), "HTTP 403", "http_status", Retry.REJECTED),
        (
            Rejected("attest", "token is expired", 1008),
            "the relay rejected the attest token: token is expired",
            "rejected",
            Retry.REJECTED,
        ),
        (
            Rejected("handshake"),
            "the relay rejected the handshake token without giving a reason",
            "rejected",
            Retry.REJECTED,
        ),
        (SessionLost("gone", "eof"), "gone", "eof", Retry.LOST),
        (TokenError("no token"), "no token", "token", Retry.TOKEN),
        (TokenTimeout("too slow"), "too slow", "token_timeout", Retry.TOKEN),
        (TpmError("no TPM"), "no TPM", "tpm", Retry.TOKEN),
        (TpmError("no TPM", "tpm_missing"), "no TPM", "tpm_missing", Retry.TOKEN),
        (AuthorizerError("HTTP 500", status=500), "HTTP 500", "authorizer", Retry.TOKEN),
        (
            AuthorizerError("HTTP 403", "authorizer_refused", 403),
            "HTTP 403",
            "authorizer_refused",
            Retry.BARRED,
        ),
        (NoRoute("no mapping"), "no mapping", "no_route", None),
        (TargetError("refused", "refused"), "refused", "refused", None),
    ],
)
def test_text_code_and_retry(error: NexusgError, text: str, code: str, retry: Retry | None) -> None:
    """What a log line and the reconnect policy need of each error."""
    assert str(error) == text
    assert error.code == code
    assert getattr(error, "retry", None) is retry


def test_every_class_is_in_the_tree_of_the_docstring() -> None:
    """The docstring is the map, and maps must be complete."""
    assert errors.__doc__ is not None
    classes = [
        item
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, NexusgError)
    ]
    assert len(classes) >= 14
    assert [cls.__name__ for cls in classes if cls.__name__ not in errors.__doc__] == []


def test_the_root_of_protocol_errors_is_never_raised() -> None:
    """Whose fault it is must always be said."""
    with pytest.raises(TypeError, match="LocalProtocolError or RemoteProtocolError"):
        ProtocolError("whose?")


def test_details_are_kept() -> None:
    """What the code decides on is in attributes, never in the text."""
    assert RemoteProtocolError("too big", 1009).close_code == 1009
    assert UpgradeRefused(429, "slow down", 7.5).retry_after_s == 7.5
    refusal = AuthorizerError("slow down", "authorizer_refused", 429, 3.0)
    assert (refusal.status, refusal.retry_after_s) == (429, 3.0)
    assert Rejected("attest", "why", 1008).close_code == 1008
    assert SessionLost("closed", "closed", 1001).close_code == 1001
    assert ConfigError(["x"]).problems == ("x",)
