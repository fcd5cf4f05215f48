"""References to environment variables, and dollar signs that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config.expand import Unexpandable, expand, is_expanded


ENVIRON = {"NAME": "value", "_a1": "x", "EMPTY": "", "NESTED": "${NAME}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NAME}", "value"),
        ("a${NAME}b${_a1}c", "avaluebxc"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${NAME:-other}", "value"),
        ("${UNSET:-other $x}", "other $x"),
        ("${UNSET:-}", ""),
        ("${NESTED}", "${NAME}"),  # once is enough
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        # a Go client's file means what it says
        ("$", "$"),
        ("$NAME", "$NAME"),
        ("pa$$word$", "pa$$word$"),
        ("{NAME}", "{NAME}"),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text, ENVIRON) == expected


def test_an_unset_variable_is_named() -> None:
    with pytest.raises(Unexpandable, match=r"^UNSET is not set in the environment") as caught:
        expand("hunter2${UNSET}", ENVIRON)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["${", "${}", "${1a}", "${NAME", "${NA ME}", "${NAME:x}", "a${b-c"]
)
def test_a_reference_that_is_none(text: str) -> None:
    with pytest.raises(Unexpandable, match="that is no") as caught:
        expand("hunter2" + text, ENVIRON)
    assert "hunter2" not in str(caught.value)


def test_is_expanded() -> None:
    assert is_expanded("a${NAME}")
    assert is_expanded("${NAME:-x}")
    assert not is_expanded("$${NAME} $NAME ${")


@given(st.text("$${}:-aN"))
def test_any_text_expands_or_says_why(text: str) -> None:
    try:
        expand(text, {"a": "1", "N": "2"})
    except Unexpandable:
        assert "${" in text
    else:
        assert "${" in text or expand(text, {}) == text
