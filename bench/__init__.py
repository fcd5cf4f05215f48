"""The benchmark: agents side by side in one run. ``python -m bench --help``; see BENCHMARKS.md."""

from __future__ import annotations


class Failed(Exception):
    """Something could not be measured; the text is for people."""


class WrongBytes(Failed):
    """Something else has arrived than was sent."""
