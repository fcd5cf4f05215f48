"""Statistics of a few repeats."""

from __future__ import annotations

import pytest

from bench.figures import Spread, percentile, ratios, shown


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert Spread.of([5, 1, 9]) == Spread(5, 1, 9)
    assert Spread.of([2, 4]) == Spread(3, 2, 4)


def test_ratios_are_made_pair_by_pair() -> None:
    """The machine was half as fast in repeat 1; the ratio does not see it."""
    assert ratios({0: 200, 1: 100}, {0: 100, 1: 50}) == [2, 2]


def test_a_repeat_without_its_pair_has_no_ratio() -> None:
    assert ratios({0: 8, 2: 6}, {0: 4, 1: 5, 2: 0}) == [2]


@pytest.mark.parametrize(("part", "expected"), [(0, 1), (0.5, 51), (0.99, 100), (1, 100)])
def test_percentiles(part: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), part) == expected


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 0.5) == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1 230"),
        (23_456, "23 500"),
        (9_999, "10 000"),
    ],
)
def test_three_digits_are_shown(value: float, expected: str) -> None:
    assert shown(value) == expected
