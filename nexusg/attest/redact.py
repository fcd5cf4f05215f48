"""Takes tokens and secrets out of text that is about to be logged.

It must not know where the text comes from.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterable


REDACTED = "[redacted]"

#: Shorter "secrets" are left alone: they protect nothing, and taking out every "1" ruins the text.
MIN_SECRET_CHARS = 4

# A JWT is three base64url parts. Host names and file names are, too; so either each part is long,
# or the first one begins as '{"', '{ ' or '{' and a line end do in base64, which also finds the
# five parts of an encrypted token and one that was cut short. The look-behind keeps the search
# linear: without it a long run of letters is tried from each of them.
_JWT = re.compile(
    r"(?<![\w-])(?:"
    r"e(?:y[AI-L]|wo|w0|wk)[\w-]{5,}(?:\.[\w-]*){1,4}"
    r"|[\w-]{8,}(?:\.[\w-]{8,}){2,}"
    r")",
    re.ASCII,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace every one of ``secrets``, and whatever looks like a JWT, by ``[redacted]``."""
    # The longest first: one secret may be part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, REDACTED)
    return _JWT.sub(REDACTED, text)
