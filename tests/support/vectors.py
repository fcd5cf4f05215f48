"""Golden bytes of the wire, one file each: ``tests/vectors/{valid,invalid}/NNN-name.json``.

``hex`` holds the bytes, ``masked`` whether a client sent them. A valid one comes with the messages
in it, an invalid one with the close code and a part of the error's text.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


FOLDER = Path(__file__).resolve().parents[1] / "vectors"


@dataclasses.dataclass(frozen=True)
class Vector:
    """One file."""

    name: str
    data: bytes
    masked: bool
    messages: list[tuple[int, bytes]]
    close_code: int
    error: str
    body: dict[str, object] | None  #: of the control message in it

    def __str__(self) -> str:
        return self.name


def load(verdict: str, at_least: int) -> list[Vector]:
    """All vectors of a verdict; never fewer than there are known to be."""
    vectors = []
    for path in sorted((FOLDER / verdict).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        vectors.append(
            Vector(
                path.stem,
                bytes.fromhex(content["hex"]),
                content["masked"],
                [(opcode, bytes.fromhex(text)) for opcode, text in content.get("messages", [])],
                content.get("close_code", 0),
                content.get("error", ""),
                content.get("body"),
            )
        )
    assert len(vectors) >= at_least, f"only {len(vectors)} {verdict} vectors"
    return vectors


VALID = load("valid", 15)
INVALID = load("invalid", 18)
