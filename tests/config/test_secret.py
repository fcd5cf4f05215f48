"""A secret shows itself to nobody who does not ask for it."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import pytest

from nexusg.config.secret import Secret


SECRET = Secret("hunter2")


@dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize(
    "shown",
    [
        repr(SECRET),
        str(SECRET),
        f"{SECRET}",
        f"{SECRET:.3}",
        f"{SECRET!r}",
        "%s" % SECRET,  # noqa: UP031 - one more way
        repr(Holder(SECRET)),
        repr([SECRET]),
    ],
)
def test_no_text_shows_it(shown: str) -> None:
    assert "********" in shown
    assert "hunter2" not in shown
    assert "hun" not in shown


def test_the_mask_has_one_length() -> None:
    assert str(Secret("")) == str(Secret("a" * 100))


def test_reveal() -> None:
    assert SECRET.reveal() == "hunter2"


def test_equality_is_of_the_text() -> None:
    assert Secret("hunter2") == SECRET
    assert Secret("hunter3") != SECRET
    assert Secret("ü\ud800") == Secret("ü\ud800")
    assert SECRET != "hunter2"
    assert len({SECRET, Secret("hunter2"), Secret("other")}) == 2


def test_truth_is_of_the_text() -> None:
    assert SECRET
    assert not Secret("")


def test_copies_are_the_same_object() -> None:
    assert copy.copy(SECRET) is SECRET
    assert copy.deepcopy([SECRET])[0] is SECRET


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Holder(SECRET), protocol)


def test_it_is_no_json() -> None:
    with pytest.raises(TypeError):
        json.dumps({"secret": SECRET})
