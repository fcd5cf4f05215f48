"""YAML text to nodes, within bounds, and what a node says. Knows no setting.

Only the first document counts. Anchors, aliases and merge keys work as in Go's yaml.v3. A message
about broken YAML never quotes the text, because the text may be a secret.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml
from yaml import Node

from .checks import AUTO


Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may lack libyaml

# The deepest path of a real file (the TLS of a target under hosts) has eight levels. CSafeLoader
# composes recursively in C and ends the process somewhere between 20 000 and 100 000 levels.
MAX_DEPTH = 50
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
# What an alias stands for counts each time: this ends "billion laughs". A 1 MiB file has about
# 70 000 nodes if it holds nothing but host names and targets.
MAX_NODES = 100_000

_STANDARD = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
_TRUE = frozenset(("true", "yes", "on", "y"))
_FALSE = frozenset(("false", "no", "off", "n"))
_INTEGER = re.compile(r"[-+]?(0b[01]+|0x[0-9a-f]+|0o?[0-7]+|[1-9][0-9]*|0)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_INT64 = 2**63  # where the reference's integers end
_MAX_DIGITS = 80  # 64 binary ones and some zeros; int() may refuse thousands
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")  # neither a file name nor an environment can hold it

_BAD_CHARACTER = "YAML syntax: this character is not allowed"
_HINTS = (  # part of a parser's message, and the mistake that it usually means
    ("tab character", "indent with spaces"),
    ("cannot start any token", "indent with spaces; quote a value that begins with @, ` or %"),
    ("undefined alias", "quote a value that begins with *"),
    ("tag handle", "quote a value that begins with !"),
    ("mapping values", 'quote a value that holds ": ", and check the indentation'),
    ("could not find expected ':'", "check that each key ends with a colon and a space"),
    ("block mapping", "check the indentation"),
)


class Mark(NamedTuple):
    """A place in the file; both count from 1."""

    line: int
    column: int


class Broken(Exception):
    """The text is no YAML that could be read. The message is finished but for the file's name."""

    def __init__(self, mark: Mark, text: str) -> None:
        super().__init__(text)
        self.mark = mark


class WrongType(Exception):
    """A node does not say what it was asked for. The message does not quote it."""


def mark_of(node: Node) -> Mark:
    """Where a node begins."""
    return _mark(node.start_mark)


def compose(text: str) -> Node | None:
    """The root of the first document, None if there is no document. Raises Broken."""
    if unusable := _UNUSABLE.search(text):
        raise Broken(_place(text, unusable.start()), _BAD_CHARACTER)
    try:
        _check_depth(text)
        loader = Loader(text)
        try:
            return loader.get_node() if loader.check_node() else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None  # the cause quotes the text
    except yaml.reader.ReaderError as error:
        raise Broken(_place(text, error.position), _BAD_CHARACTER) from None


def kind_of(node: Node) -> str:
    """What the node is, in a word for people."""
    if isinstance(node, yaml.ScalarNode):
        return "empty" if is_null(node) else "a single value"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a map"


def is_null(node: Node) -> bool:
    """True for ``~``, ``null`` and nothing at all."""
    return bool(node.tag == _STANDARD + "null")


def is_merge(key: Node) -> bool:
    """True for a plain ``<<``."""
    return bool(key.tag == _STANDARD + "merge")


def text_of(node: Node) -> str:
    """A scalar of any type as it is written. Raises WrongType."""
    if not isinstance(node, yaml.ScalarNode):
        raise WrongType(f"must be a single value, not {kind_of(node)}")
    if is_null(node):
        return ""
    if node.tag.removeprefix(_STANDARD) not in _SCALARS:
        raise WrongType("has a tag, which means nothing here; quote a value that begins with !")
    value: str = node.value
    if _UNUSABLE.search(value):
        raise WrongType("holds a character that is not allowed")
    return value


def integer_of(node: Node) -> int:
    """A plain integer, in the notations of YAML 1.1 and 1.2. Raises WrongType."""
    text = _plain(node, "a whole number").replace("_", "").lower()
    if _INTEGER.fullmatch(text):
        octal = re.sub(r"^([-+]?)0(?=[0-7])", r"\g<1>0o", text)
        value = int(octal, 0) if len(octal) < _MAX_DIGITS else _INT64
    elif _NUMBER.fullmatch(text) and float(text).is_integer():
        value = int(float(text))
    else:
        raise WrongType("must be a whole number")
    if not -_INT64 <= value < _INT64:
        raise WrongType("is too large")
    return value


def count_of(node: Node) -> int | str:
    """A plain integer, or "auto". Raises WrongType."""
    if text_of(node) == AUTO:
        return AUTO
    wanted = f"a whole number or {AUTO}"
    _plain(node, wanted)
    try:
        return integer_of(node)
    except WrongType:
        raise WrongType(f"must be {wanted}") from None


def number_of(node: Node) -> float:
    """A plain number. Raises WrongType."""
    text = _plain(node, "a number")
    if _INTEGER.fullmatch(text.replace("_", "").lower()):
        return float(integer_of(node))  # "010" is the same as for an integer
    if _NUMBER.fullmatch(text):
        return float(text)
    raise WrongType("must be a number")


def boolean_of(node: Node) -> bool:
    """A boolean in any of YAML 1.1's spellings. Raises WrongType."""
    word = text_of(node).lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise WrongType("must be true or false")


def _plain(node: Node, wanted: str) -> str:
    """The text of a scalar without quotes. Raises WrongType."""
    text = text_of(node)
    if isinstance(node, yaml.ScalarNode) and node.style:
        raise WrongType(f"must be {wanted}: remove the quotes")
    return text


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Broken(_mark(event.start_mark), _TOO_DEEP)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentEndEvent):
            return


def _syntax_error(error: yaml.MarkedYAMLError) -> Broken:
    if "nesting depth" in (error.problem or ""):  # of libyaml itself, where it has a limit
        return Broken(_mark(error.problem_mark), _TOO_DEEP)
    problem = re.sub(r"(alias|handle|anchor) .*", r"\1", error.problem or "cannot be read")
    text = f"YAML syntax: {problem}"
    if error.context and error.context_mark:
        text += f", {error.context} that begins in line {error.context_mark.line + 1}"
    hints = [hint for part, hint in _HINTS if part in text]
    return Broken(_mark(error.problem_mark), "; ".join([text, *hints[:1]]))


def _place(text: str, position: int) -> Mark:
    return Mark(text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position))


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
