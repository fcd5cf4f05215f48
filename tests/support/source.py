"""The package's own source as syntax trees, for the tests about its layers and its shape."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nexusg"


class Module(NamedTuple):
    """One source file."""

    name: str  #: dotted, without ``.__init__``
    package: str  #: where ``from .`` points in it
    path: Path  #: below the root
    text: str
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the package; never empty, or a test of them would mean nothing."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        relative = path.relative_to(ROOT)
        package = ".".join(relative.parent.parts)
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        found.append(Module(name, package, relative, text, ast.parse(text, str(relative))))
    assert len(found) > 10, f"only {len(found)} modules below {PACKAGE}"
    return tuple(found)


def assert_none(found: list[str]) -> None:
    """Fail with all of ``found``, one a line; pytest would shorten a list."""
    assert not found, "\n".join(["found:", *found])
