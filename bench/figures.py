"""Statistics of a few repeats: medians, spread, and ratios pair by pair. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Spread:
    """What the repeats of one figure gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """``values`` over ``reference``, repeat by repeat, for the repeats that both have.

    A machine that slows down for a while slows both of a pair, so their ratio spreads less than
    either (HOTPATH: the same code varies by 25 to 30 % between runs).
    """
    common = sorted(values.keys() & reference.keys())
    return [values[one] / reference[one] for one in common if reference[one]]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of ``values`` lies; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def shown(value: float) -> str:
    """Three digits that matter, thousands apart; more digits would be noise."""
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{int(round(value, -digits)):,}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value else "0"
