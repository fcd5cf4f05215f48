"""A belt for log lines: nothing that looks like a secret gets through, whoever put it there.

Events hold no secrets; this is for what comes from elsewhere, such as the records of libraries.
It must not know events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


REDACTED = "[redacted]"

# How a name ends that holds a secret, in snake_case and camelCase: access_token, hmacSecret.
_SECRET_KEY = re.compile(
    r"(token|jwt|secret|password|passwd|passphrase|authorization|cookie|credentials?|"
    r"(api|private|secret)[-_]?key)s?$",
    re.IGNORECASE,
)

# A JWT begins as '{"', '{ ' or '{' and a line end do in base64. The stricter cousin of
# attest.redact: host names of three long labels are common in logs, and must stay readable.
# A capital is in every such beginning, which host names do not have.
_JWT = re.compile(r"(?<![\w-])ey[JAI][\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*", re.ASCII)

# What is assigned to a secret's name within a text. "token: expired" is prose and stays.
_ASSIGNED = re.compile(
    r"""\b(authorization["']?\s*[:=]\s*["']?(?:\w+\s+)?)[^\s"',;]+"""  # a header
    r"""|\b((?:\w+[-_])?(?:password|passwd|secret|token)=)[^\s"'&,;]+"""  # a query, an option
    r"""|((["'])\w*(?:password|passwd|secret|token)\4\s*:\s*(["'])).*?\5""",  # JSON, a repr
    re.IGNORECASE,
)

# One of these is in every text that any of the expressions above finds something in.
_HINTS = (
    *("eyj", "eya", "eyi"),
    *("token", "jwt", "secret", "passw", "passphrase", "authorization", "cookie", "credential"),
    *("key",),
)

_MAX_DEPTH = 8  # deeper values are shown as "…"; it also ends a structure that holds itself


def redact_fields(_logger: object, _method: str, fields: Any) -> Any:
    """A structlog processor: the fields with everything secret replaced, at any depth."""
    return _mapping(fields, _MAX_DEPTH)


def suspicious(line: str) -> bool:
    """Whether there may be anything to redact in a whole line, names of fields included."""
    return any(map(line.lower().__contains__, _HINTS))


def redact_text(text: str) -> str:
    """``text`` without tokens and without what is assigned to a secret's name."""
    text = _JWT.sub(REDACTED, text)
    return _ASSIGNED.sub(_keep_name, text)


def _keep_name(found: re.Match[str]) -> str:
    name = found[1] or found[2] or found[3]
    return f"{name}{REDACTED}{found[5] or ''}"


def _mapping(fields: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
    return {
        key: REDACTED if _is_secret(key, value) else _value(value, depth - 1)
        for key, value in fields.items()
    }


def _is_secret(key: object, value: object) -> bool:
    if value is None or isinstance(value, bool):  # "has_secret" says nothing
        return False
    return isinstance(key, str) and _SECRET_KEY.search(key) is not None


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "backslashreplace"))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth <= 0:
        return "…"
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_value(item, depth - 1) for item in value]
    return redact_text(str(value))
