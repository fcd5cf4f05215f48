"""Collects what is wrong or doubtful in a configuration file, and makes the finished lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .checks import quoted
from .validate import dotted


if TYPE_CHECKING:
    from .nodes import Mark
    from .validate import Path


MAX_LINES = 100  # nobody reads more, and an alias can repeat one mistake 100 000 times


class _Entry(NamedTuple):
    mark: Mark
    path: Path
    text: str


class Report:
    """The problems and warnings of one file, each with its place. ``name`` is the file's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._backends: dict[str | int, str] = {}
        self._problems: list[_Entry] = []
        self._warnings: list[_Entry] = []

    def __len__(self) -> int:
        """How many problems there are."""
        return len(self._problems)

    def name_backend(self, index: str | int, name: str) -> None:
        """From the name a reader knows a backend better than from its number."""
        self._backends[index] = name

    def add(self, mark: Mark, path: Path, text: str, *, fatal: bool = True) -> None:
        """Note a problem, or a warning if it is not ``fatal``."""
        (self._problems if fatal else self._warnings).append(_Entry(mark, path, text))

    def problems(self) -> list[str]:
        """The finished lines of all problems, in the order of the file."""
        return self._lines(self._problems)

    def warnings(self) -> list[str]:
        """The finished lines of all warnings, in the order of the file."""
        return self._lines(self._warnings)

    def _lines(self, entries: list[_Entry]) -> list[str]:
        found = sorted(entries, key=lambda entry: entry.mark)
        lines = list(dict.fromkeys(self._line(*entry) for entry in found[:MAX_LINES]))
        if len(found) > MAX_LINES:
            lines.append(f"{self.name}: and {len(found) - MAX_LINES} more")
        return lines

    def _line(self, mark: Mark, path: Path, text: str) -> str:
        place = f"{self.name}:{mark.line}:{mark.column}:"
        if path[:1] == ("backends",) and path[1:2] and path[1] in self._backends:
            place += f" backends[{path[1]}] {quoted(self._backends[path[1]])}:"
            path = path[2:]
        return f"{place} {dotted(path)}: {text}" if path else f"{place} {text}"
