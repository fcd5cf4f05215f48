"""YAML text to nodes, within bounds, and the values that nodes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config import nodes
from nexusg.config.nodes import Broken, Mark, WrongType


if TYPE_CHECKING:
    from collections.abc import Callable

LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]


@pytest.fixture(params=LOADERS)
def any_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml and without."""
    monkeypatch.setattr(nodes, "Loader", request.param)


def node(text: str) -> yaml.Node:
    found = nodes.compose(text)
    assert found is not None
    return found


@pytest.mark.usefixtures("any_loader")
class TestCompose:
    """Text to nodes."""

    def test_first_document_only(self) -> None:
        assert node("a: 1\n---\nb: [").value[0][0].value == "a"

    @pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff", "\n \n"])
    def test_no_document(self, text: str) -> None:
        assert nodes.compose(text) is None

    @pytest.mark.parametrize("text", ["---\n", "~", "null", "--- # nothing\n---\na: 1"])
    def test_null(self, text: str) -> None:
        assert nodes.is_null(node(text))

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("a: [", 1, "begins in line"),
            ("a: 1\nb: 'hunter2\n", 2, "begins in line 2"),
            ("a: 1\n\tb: 1", 2, "indent with spaces"),
            ("a: @hunter2", 1, "quote a value that begins with @"),
            ("a: *hunter2", 1, r"undefined alias; quote a value that begins with \*$"),
            ("a: !hunter2!x y", 1, "undefined tag handle.*quote a value that begins with !"),
            ("a: hunter2: b", 1, 'quote a value that holds ": "'),
            ("a:\n  b: 1\n c: 1", 3, "check the indentation"),
            ("a: \x01", 1, "character"),
            ("a\nb:\n\x00", 3, "character"),
            ("a: \ud800", 1, "character"),
        ],
    )
    def test_broken(self, text: str, line: int, said: str) -> None:
        with pytest.raises(Broken, match=said) as caught:
            nodes.compose(text)
        # The end of an unfinished text may be counted as a line of its own.
        assert caught.value.mark.line in (line, line + 1)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    @pytest.mark.parametrize("text", ["[", "- ", "{a: ", "? "])
    def test_too_deep(self, text: str) -> None:
        with pytest.raises(Broken, match="nested deeper than 50 levels"):
            nodes.compose(text * 100_000)

    def test_deep_enough(self) -> None:
        node("[" * nodes.MAX_DEPTH + "]" * nodes.MAX_DEPTH)
        node("- []\n" * 1000)

    def test_marks_count_from_one(self) -> None:
        [(key, value)] = node("\n\n  ä: b").value
        assert nodes.mark_of(key) == Mark(3, 3)
        assert nodes.mark_of(value) == Mark(3, 6)

    def test_merge_keys(self) -> None:
        keys = [key for key, _ in node("a: &a {}\n<<: *a\n'<<': 1").value]
        assert [nodes.is_merge(key) for key in keys] == [False, True, False]

    def test_kinds(self) -> None:
        kinds = [nodes.kind_of(node(text)) for text in ("a", "~", "[]", "{}")]
        assert kinds == ["a single value", "empty", "a list", "a map"]


def test_an_error_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise yaml.MarkedYAMLError

    monkeypatch.setattr(yaml, "parse", fail)
    with pytest.raises(Broken, match=r"^YAML syntax: cannot be read$") as caught:
        nodes.compose("a")
    assert caught.value.mark == Mark(1, 1)


@pytest.mark.usefixtures("any_loader")
class TestValues:
    """Nodes to values."""

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a b", "a b"),
            ("'a'", "a"),
            ("1.10", "1.10"),
            ("12:30:45", "12:30:45"),
            ("0x10", "0x10"),
            ("yes", "yes"),
            ("2020-01-01", "2020-01-01"),
            ("true", "true"),
            ("~", ""),
            ("'~'", "~"),
            ("=", "="),
            ("<<", "<<"),
            ("!!str 12", "12"),
            ("|\n a\n b\n", "a\nb\n"),
        ],
    )
    def test_text(self, text: str, value: str) -> None:
        assert nodes.text_of(node(text)) == value

    @pytest.mark.parametrize("text", ["[hunter2]", "{hunter2: 1}", "!hunter2", "!hunter2 a"])
    def test_no_text(self, text: str) -> None:
        with pytest.raises(WrongType) as caught:
            nodes.text_of(node(text))
        assert "hunter2" not in str(caught.value)

    def test_characters_that_no_environment_can_hold(self) -> None:
        with pytest.raises(WrongType, match="character"):
            nodes.text_of(node('"a\\0"'))

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0", 0),
            ("443", 443),
            ("-1", -1),
            ("+1", 1),
            ("1_000", 1000),
            ("0x1bb", 443),
            ("0X1BB", 443),
            ("0o17", 15),
            ("017", 15),
            ("-017", -15),
            ("0_17", 15),
            ("00", 0),
            ("0b11", 3),
            ("1e3", 1000),
            ("15.0", 15),
            ("08", 8),  # no octal number, so a decimal one, as in Go
            ("9223372036854775807", 2**63 - 1),
            ("-9223372036854775808", -(2**63)),
        ],
    )
    def test_integer(self, text: str, value: int) -> None:
        assert nodes.integer_of(node(text)) == value

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("'443'", "remove the quotes"),
            ("heavy", "whole number"),
            ("1.5", "whole number"),
            ("12:30", "whole number"),
            ("true", "whole number"),
            ("~", "whole number"),
            ("0x_", "whole number"),
            ("_", "whole number"),
            (".inf", "whole number"),
            ("1e400", "whole number"),
            ("[1]", "single value"),
            ("9223372036854775808", "too large"),
            ("1e300", "too large"),
            ("9" * 5000, "too large"),
        ],
    )
    def test_no_integer(self, text: str, said: str) -> None:
        with pytest.raises(WrongType, match=said):
            nodes.integer_of(node(text))

    @pytest.mark.parametrize(("text", "value"), [("4", 4), ("auto", "auto"), ("'auto'", "auto")])
    def test_count(self, text: str, value: int | str) -> None:
        assert nodes.count_of(node(text)) == value

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("many", "must be a whole number or auto$"),
            ("9" * 20, "must be a whole number or auto$"),
            ("'4'", "must be a whole number or auto: remove the quotes$"),
            ("[auto]", "single value"),
        ],
    )
    def test_no_count(self, text: str, said: str) -> None:
        with pytest.raises(WrongType, match=said):
            nodes.count_of(node(text))

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("15", 15.0),
            ("0.5", 0.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("-1", -1.0),
            ("1e-1", 0.1),
            ("1_0", 10.0),
            ("0x10", 16.0),
            ("010", 8.0),
            ("0", 0.0),
        ],
    )
    def test_number(self, text: str, value: float) -> None:
        assert nodes.number_of(node(text)) == value

    @pytest.mark.parametrize("text", ["soon", ".inf", ".nan", "1:30", "~", "0.5.1", "5s"])
    def test_no_number(self, text: str) -> None:
        with pytest.raises(WrongType, match="must be a number"):
            nodes.number_of(node(text))

    def test_no_quoted_number(self) -> None:
        with pytest.raises(WrongType, match="must be a number: remove the quotes"):
            nodes.number_of(node("'1.5'"))

    @pytest.mark.parametrize("text", ["true", "True", "yes", "ON", "y", "'yes'"])
    def test_true(self, text: str) -> None:
        assert nodes.boolean_of(node(text)) is True

    @pytest.mark.parametrize("text", ["false", "FALSE", "no", "Off", "n"])
    def test_false(self, text: str) -> None:
        assert nodes.boolean_of(node(text)) is False

    @pytest.mark.parametrize("text", ["1", "0", "maybe", "~", "''"])
    def test_no_boolean(self, text: str) -> None:
        with pytest.raises(WrongType, match="must be true or false"):
            nodes.boolean_of(node(text))


@given(
    st.text("0123456789_.-+exobaf: '", max_size=12).map("x".join)
    | st.text("0123456789_.-+exobaf", max_size=12),
    st.sampled_from([nodes.integer_of, nodes.number_of, nodes.boolean_of, nodes.text_of]),
)
def test_a_scalar_is_read_or_refused(text: str, reader: Callable[[yaml.Node], Any]) -> None:
    try:
        found = nodes.compose(text)
        if found is not None:
            reader(found)
    except (Broken, WrongType):
        pass
