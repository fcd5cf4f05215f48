"""``${NAME}`` and ``${NAME:-default}`` in the few settings that allow them.

``$${`` stands for a literal ``${``. Every other dollar sign is just that, so the secrets of a Go
client's file mean here what they mean there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Mapping


_REFERENCE = re.compile(
    r"(?P<literal>\$\$\{)|\$\{((?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<or>:-(?P<default>[^}]*))?\})?"
)


class Unexpandable(Exception):
    """A reference that cannot be replaced. The message holds no part of the text but a name."""


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace the references to environment variables. Raises Unexpandable.

    As in a shell, the default counts if the variable is unset or empty.
    """

    def replaced(match: re.Match[str]) -> str:
        if match["literal"]:
            return "${"
        name = match["name"]
        if not name:
            raise Unexpandable('holds a "${" that is no ${NAME}; a literal one is written "$${"')
        if match["or"]:
            return environ.get(name) or match["default"]
        if name not in environ:
            raise Unexpandable(
                f'{name} is not set in the environment; a literal "${{" is written "$${{"'
            )
        return environ[name]

    return _REFERENCE.sub(replaced, text)


def is_expanded(text: str) -> bool:
    """True if part of the text comes from the environment."""
    return any(match["name"] for match in _REFERENCE.finditer(text))
