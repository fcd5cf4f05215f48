"""Declaring a setting once is enough for everybody who needs to know it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import TYPE_CHECKING

import pytest

from nexusg.config.setting import (
    REQUIRED,
    Block,
    Finding,
    Kind,
    MapOf,
    Setting,
    Settings,
    block,
    listed,
    setting,
    settings_of,
    unique,
)


if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Inner(Settings):
    size: int = setting("size", Kind.INTEGER, 3, "The size.")

    def __post_init__(self) -> None:
        self._above_zero("size")


@dataclass(frozen=True, slots=True)
class Outer(Settings):
    name: str = setting("name", Kind.TEXT, REQUIRED, "The name.", needed=True)
    inner: Inner = block("inner", Inner, "The inner one.")  # noqa: RUF009 - a field
    table: Mapping[str, str] = setting("table", MapOf(Kind.TEXT, Kind.TEXT), {}, "", show=False)
    word: str = setting(
        "word",
        Kind.TEXT,
        "a",
        "A word.",
        choices=("a", "b"),
        also=Setting("wordFile", Kind.TEXT, None, "A file with the word."),
    )


def test_fields_have_their_defaults() -> None:
    outer = Outer("x")
    assert (outer.inner, outer.table, outer.word) == (Inner(3), {}, "a")
    assert Outer("x").table is not outer.table
    with pytest.raises(TypeError, match="name"):
        Outer()
    with pytest.raises(FrozenInstanceError):
        outer.word = "b"  # type: ignore[misc]


def test_values_can_be_hidden_from_repr() -> None:
    assert "hunter2" not in repr(Outer("x", table={"a": "hunter2"}))


def test_settings_of() -> None:
    found = settings_of(Outer)
    assert [(one.key, one.field) for one in found] == [
        ("name", "name"),
        ("inner", "inner"),
        ("table", "table"),
        ("word", "word"),
        ("wordFile", ""),
    ]
    assert found[1].kind == Block(Inner)
    assert settings_of(Outer) is found


def test_missing() -> None:
    needed, free = settings_of(Outer)[0], settings_of(Outer)[3]
    nothing: list[object] = [None, "", (), {}]
    something: list[object] = ["a", (1,), {1: 2}, 0, False]
    assert all(map(needed.missing, nothing))
    assert not any(map(needed.missing, something))
    assert not free.missing(None)


def test_choices_and_checks() -> None:
    word = settings_of(Outer)[3]
    assert word.problem_with("b") is None
    assert word.problem_with("c") == "must be one of a, b"
    assert word.advice_on("c") is None
    checked = Setting("x", Kind.TEXT, "", "", check="not {}".format, advice="rather not {}".format)
    assert (checked.problem_with("y"), checked.advice_on("z")) == ("not y", "rather not z")


def test_zero_means_the_default() -> None:
    assert [Inner(size).size for size in (-1, 0, 1)] == [3, 3, 1]


def test_no_findings_by_default() -> None:
    assert list(Outer("x").findings()) == []
    assert Finding(("a",), "text") == (("a",), "text", True, ())


def test_listed_and_unique() -> None:
    assert listed(iter("ab")) == ("a", "b")
    with pytest.raises(TypeError, match="not one text"):
        listed("ab")
    assert unique([2, 1, 2]) == (2, 1)
