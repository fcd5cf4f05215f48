from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.routing import Pool, Pools


@pytest.mark.parametrize(
    ("weights", "shares"),
    [  # PROTOCOL.md section 14, measured over 24 connections
        ([1, 1], [12, 12]),
        ([1, 3], [6, 18]),
        ([2, 1, 1], [12, 6, 6]),
        ([1, 5], [4, 20]),
    ],
)
def test_measured_shares(weights: list[int], shares: list[int]) -> None:
    pool: Pool[str] = Pool()
    for number, weight in enumerate(weights):
        pool.add(str(number), weight)
    assert len(pool) == len(weights)
    picked = Counter(pool.pick() for _ in range(24))
    assert [picked[str(number)] for number in range(len(weights))] == shares


def test_the_sequence_steps_down_by_the_common_divisor() -> None:
    pool: Pool[str] = Pool()
    pool.add("a", 4)
    pool.add("b", 2)
    assert "".join(pool.pick() or "-" for _ in range(6)) == "aabaab"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_whole_round_gives_everybody_their_weight(weights: list[int]) -> None:
    pool: Pool[int] = Pool()
    for number, weight in enumerate(weights):
        pool.add(number, weight)
    picked = Counter(pool.pick() for _ in range(sum(weights)))
    assert picked == Counter(dict(enumerate(weights)))


def test_an_empty_pool_has_nobody() -> None:
    pool: Pool[str] = Pool()
    assert pool.pick() is None
    pool.add("a", 1)
    pool.add("a", 1)
    pool.remove("a")
    assert pool.pick() is None


@pytest.fixture
def pools() -> Pools[str]:
    pools: Pools[str] = Pools()
    pools.add("exact", ["a.example.com", "tcp:5432"], 1)
    pools.add("wild", ["*.example.com"], 1)
    pools.add("odd", ["*.com", "*"], 1)
    return pools


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("a.example.com", "exact"),
        ("b.example.com", "wild"),
        ("tcp:5432", "exact"),
        ("tcp:5433", None),
        ("example.com", None),
        ("x.b.example.com", None),  # one label only
        (".example.com", None),
        ("*.example.com", None),
        ("*", None),
        ("a.com", None),
        ("", None),
    ],
)
def test_names(pools: Pools[str], name: str, backend: str | None) -> None:
    assert pools.pick(name) == backend


def test_an_exact_pool_that_is_empty_hides_the_wildcard(pools: Pools[str]) -> None:
    pools.remove("exact")
    assert pools.pick("a.example.com") is None


def test_the_same_backend_twice_counts_twice(pools: Pools[str]) -> None:
    pools.add("other", ["a.example.com"], 1)
    pools.add("exact", ["a.example.com"], 1)
    assert Counter(pools.pick("a.example.com") for _ in range(6)) == {"exact": 4, "other": 2}
