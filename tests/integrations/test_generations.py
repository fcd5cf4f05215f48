from __future__ import annotations

import os

from nexusg.integrations.generations import Generations


def test_at_first_there_is_nobody() -> None:
    page = Generations()
    assert (page.announced, page.settled, page.takeovers) == (0, 0, 0)


def test_the_youngest_counts() -> None:
    """Whichever comes last."""
    page = Generations()
    for age in (3, 5, 4):
        page.announce(age)
    for age in (2, 4, 3):
        page.take_over(age)
    assert (page.announced, page.settled, page.takeovers) == (5, 4, 3)


def test_one_that_has_gone_takes_nothing_over() -> None:
    page = Generations()
    page.settle(6)
    page.settle(5)
    assert (page.settled, page.takeovers) == (6, 0)


def test_what_a_child_says_is_heard() -> None:
    page = Generations()
    child = os.fork()
    if child == 0:
        page.announce(7)
        page.take_over(7)
        os._exit(0)
    os.waitpid(child, 0)
    assert (page.announced, page.settled, page.takeovers) == (7, 7, 1)


def test_pages_are_apart() -> None:
    one, other = Generations(), Generations()
    one.announce(1)
    assert other.announced == 0
