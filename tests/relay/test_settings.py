from __future__ import annotations

import dataclasses

import pytest

from nexusg.relay.settings import Habits, RelayConfig


def test_good_manners_are_the_default() -> None:
    habits = dataclasses.asdict(Habits())
    ending = habits.pop("ending")
    assert not any(habits.values())
    assert ending.value == "eof"


def test_nothing_shows_the_secret() -> None:
    assert "hush" not in repr(RelayConfig(secret="hush"))


def test_every_port_may_be_any_free_one() -> None:
    config = RelayConfig(secret="")
    assert (config.hub, config.public_ports) == (("127.0.0.1", 0), (0,))


@pytest.mark.parametrize("span_s", [0.0, 2.0])
def test_jitter_stays_within_its_span(span_s: float) -> None:
    assert all(0 <= RelayConfig(secret="").jitter(span_s) <= span_s for _ in range(20))
