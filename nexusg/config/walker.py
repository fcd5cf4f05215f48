"""Walks the nodes of a file into the dataclasses of the model, and reports all it stumbles over.

It knows the declarations (``setting``), and no setting by name: what a few settings need beyond
their declaration comes in as ``folds``. Its messages name keys and places, and quote no value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from . import nodes
from .expand import Unexpandable, expand
from .model import Config
from .secret import Secret
from .setting import REQUIRED, Block, Kind, ListOf, MapOf, Settings, TextOr, settings_of


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from yaml import Node

    from .nodes import Mark
    from .report import Report
    from .setting import AnyKind, Setting
    from .validate import Path

    Entries = dict[Any, tuple[Node, Node]]

Fold = Callable[["Walker", dict[str, Any], Mapping[str, "Node"], "Path"], None]

_READERS: dict[Kind, Callable[[Node], Any]] = {
    Kind.TEXT: nodes.text_of,
    Kind.SECRET: nodes.text_of,
    Kind.INTEGER: nodes.integer_of,
    Kind.COUNT: nodes.count_of,
    Kind.NUMBER: nodes.number_of,
    Kind.BOOLEAN: nodes.boolean_of,
}
_STAND_INS: dict[AnyKind, Any] = {Kind.TEXT: "", Kind.INTEGER: 0}  # for what is required but wrong
_MAX_KEY = 40  # a longer key is no misspelt one, and may be anything


class Walker:
    """Makes dataclasses of nodes. Problems go to ``report``; what it returns then is incomplete.

    Each of ``folds`` is called before a block of its class is made, as ``fold(walker, values,
    nodes, path)`` with what was read so far by key. It changes ``values``, and may ``say`` things.
    """

    def __init__(
        self,
        report: Report,
        environ: Mapping[str, str],
        folds: Mapping[type[Settings], Fold],
        unneeded: frozenset[str] = frozenset(),
    ) -> None:
        """``unneeded`` are keys that may be absent, because the program knows better."""
        self._environ = environ
        self._report = report
        self._folds = folds
        self._unneeded = unneeded
        self._marks: dict[Path, Mark] = {(): nodes.Mark(1, 1)}
        self._failed: set[Path] = set()  # every path with a problem, and all above it
        self._guessed: set[Path] = set()  # whose absence means nothing, as when it is misspelt
        self._visited = 0

    def say(self, path: Path, text: str, *, mark: Mark | None = None, fatal: bool = True) -> None:
        """Report a problem or a warning, at ``mark`` or else where ``path`` is in the file."""
        heads = [path[:length] for length in range(len(path), -1, -1)]
        if fatal:
            self._failed.update(heads)
        self._report.add(
            mark or next(self._marks[head] for head in heads if head in self._marks),
            path,
            text,
            fatal=fatal,
        )

    def is_misspelt(self, path: Path) -> bool:
        """True if something is absent only because its key is misspelt."""
        return path in self._guessed

    def judge(self, setting: Setting, value: object, path: Path) -> None:
        """Say what the declaration of a setting has against a single value."""
        if problem := setting.problem_with(value):
            self.say(path, problem)
        elif advice := setting.advice_on(value):
            self.say(path, advice, fatal=False)

    def block(self, cls: type[Settings], node: Node | None, path: Path) -> Settings | None:
        """A ``cls`` made of a node, where None is an empty map. None if the node is no map."""
        known = [setting.key for setting in settings_of(cls)]
        if node is not None and not self._is_map(node, path, f" ({_some(known)})"):
            return None
        entries = self._entries(node, path, nodes.text_of, known.__contains__)
        if len(path) == 2 and path[0] == "backends" and "name" in entries:
            self._name_backend(path[1], entries["name"][1])
        for key in [key for key in entries if key not in known]:
            self._unknown_key(key, entries.pop(key), known, path)
        self._guessed.update((*path, key) for key in self._unneeded)
        values = {}
        for setting in settings_of(cls):
            here = (*path, setting.key)
            inner = entries[setting.key][1] if setting.key in entries else None
            if inner is None and here in self._guessed:
                continue
            value = self._value(setting, setting.kind, inner, here)
            if setting.missing(value) and here not in self._failed:
                self.say(here, "is required" if value is None else "must not be empty")
            if value is not None and (here not in self._failed or isinstance(value, Settings)):
                values[setting.key] = value
        if cls in self._folds:
            self._folds[cls](self, values, {key: pair[1] for key, pair in entries.items()}, path)
        return self._made(cls, values, path)

    def _made(self, cls: type[Settings], values: dict[str, Any], path: Path) -> Settings:
        arguments = {}
        for setting in settings_of(cls):
            if setting.field and setting.key in values:
                arguments[setting.field] = values[setting.key]
            elif setting.default is REQUIRED:
                arguments[setting.field] = _STAND_INS[setting.kind]
        instance = cls(**arguments)
        for finding in instance.findings():
            keys = finding.involves or finding.path[:1]
            involved = {(*path, *str(key).split(".")) for key in keys}
            if involved.isdisjoint(self._failed) and involved.isdisjoint(self._guessed):
                self.say(path + finding.path, finding.text, fatal=finding.fatal)
        return instance

    def _value(self, setting: Setting, kind: AnyKind, node: Node | None, path: Path) -> Any:
        """What a node says, None if it says nothing or nothing usable."""
        if node is not None:
            self._visit(node, path)
        if isinstance(kind, Block):
            return self.block(kind.cls, node, path)
        if node is None or (nodes.is_null(node) and path[-1] == setting.key):
            return None
        if isinstance(kind, TextOr):
            return self._text_or(setting, kind, node, path)
        if isinstance(kind, ListOf):
            return self._list(setting, kind, node, path)
        if isinstance(kind, MapOf):
            return self._map(setting, kind, node, path)
        return self._single(setting, kind, node, path)

    def _single(self, setting: Setting, kind: Kind, node: Node, path: Path) -> Any:
        try:
            value = _READERS[kind](node)
            if setting.expand:
                value = expand(value, self._environ)
        except (nodes.WrongType, Unexpandable) as error:
            self.say(path, str(error))
            return None
        self.judge(setting, value, path)
        return Secret(value) if kind is Kind.SECRET else value

    def _text_or(self, setting: Setting, kind: TextOr, node: Node, path: Path) -> Settings | None:
        if isinstance(node, yaml.MappingNode):
            return self.block(kind.cls, node, path)
        if isinstance(node, yaml.SequenceNode):
            self.say(path, f"must be a single value or a map, not {nodes.kind_of(node)}")
            return None
        short = next(one for one in settings_of(kind.cls) if one.key == kind.short)
        if not node.value and path[-1] == setting.key:
            return None
        values = {kind.short: (self._single(short, Kind.TEXT, node, path),)}
        return None if path in self._failed else self._made(kind.cls, values, path)

    def _list(self, setting: Setting, kind: ListOf, node: Node, path: Path) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self.say(path, f"must be a list, not {nodes.kind_of(node)}")
            return ()
        items = enumerate(node.value)
        return tuple(self._value(setting, kind.item, item, (*path, i)) for i, item in items)

    def _map(self, setting: Setting, kind: MapOf, node: Node, path: Path) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        if not self._is_map(node, path):
            return found
        check = kind.key_check or (lambda _key: None)
        entries = self._entries(node, path, _READERS[kind.key], lambda key: not check(key))
        forms: dict[Any, Mark] = {}
        for key, (key_node, value_node) in entries.items():
            mark = nodes.mark_of(key_node)
            if problem := check(key):
                self.say(path, f"a key {problem}", mark=mark)
                continue
            form = kind.form(key) if kind.form else key
            if form in forms:
                text = f"is the same as the key in line {forms[form].line}, which is used"
                self.say((*path, key), text, mark=mark, fatal=False)
            forms.setdefault(form, mark)
            found[key] = self._value(setting, kind.value, value_node, (*path, key))
        return found

    def _is_map(self, node: Node, path: Path, keys: str = "") -> bool:
        if isinstance(node, yaml.MappingNode) or nodes.is_null(node):
            return True
        self.say(path, f"must be a map{keys}, not {nodes.kind_of(node)}")
        return False

    def _entries(
        self,
        node: Node | None,
        path: Path,
        read_key: Callable[[Node], Any],
        may_show: Callable[[Any], bool],
        above: tuple[Node | None, ...] = (),
    ) -> Entries:
        """The keys of a map and their nodes. What ``<<`` brings in gives way to the map's own.

        ``above`` are the maps that this one is being merged into.
        """
        own: Entries = {}
        merged: list[Node] = []
        for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
            self._visit(key_node)
            if nodes.is_merge(key_node):
                is_list = isinstance(value_node, yaml.SequenceNode)
                merged += value_node.value if is_list else [value_node]
                continue
            try:
                key = read_key(key_node)
            except nodes.WrongType as error:
                self.say(path, f"a key {error}", mark=nodes.mark_of(key_node))
                continue
            if key in own:
                first = nodes.mark_of(own[key][0]).line
                place = (*path, key) if may_show(key) else path
                text = f"this key is already in line {first}"
                self.say(place, text, mark=nodes.mark_of(key_node))
            else:
                own[key] = (key_node, value_node)
        for source in merged:
            self._visit(source)
            if not isinstance(source, yaml.MappingNode) or source in (*above, node):
                self.say(path, "<< must name other maps", mark=nodes.mark_of(source))
                continue
            pairs = self._entries(source, path, read_key, may_show, (*above, node))
            for key, pair in pairs.items():
                own.setdefault(key, pair)
        return own

    def _unknown_key(
        self, key: str, pair: tuple[Node, Node], known: Sequence[str], path: Path
    ) -> None:
        mark, guess = nodes.mark_of(pair[0]), _guess(key, known)
        if guess:
            self._guessed.add((*path, guess))
        glued, colon, _ = key.partition(":")
        if colon and glued in known:
            self.say((*path, glued), "needs a space after the colon", mark=mark)
        elif not _may_show(key, guess) or (not guess and nodes.is_null(pair[1])):
            self.say(path, "unknown key, not shown because it may be a value", mark=mark)
        elif guess:
            self.say((*path, key), f"unknown key; did you mean {guess}?", mark=mark)
        else:
            self.say((*path, key), f"unknown key{_home(key)}", mark=mark)

    def _name_backend(self, index: str | int, node: Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            self._report.name_backend(index, node.value)

    def _visit(self, node: Node, path: Path | None = None) -> None:
        """Count a node, each time it is come to, and remember what is where."""
        self._visited += 1
        if self._visited > nodes.MAX_NODES:
            text = f"the aliases (*name) stand for more than {nodes.MAX_NODES} values"
            raise nodes.Broken(nodes.mark_of(node), text)
        if path is not None:
            self._marks[path] = nodes.mark_of(node)


def _some(known: Sequence[str]) -> str:
    return ", ".join((*known[:3], "…")[: len(known)])


def _folded(key: str) -> str:
    return re.sub(r"[-_]", "", key).lower()


def _guess(key: str, known: Sequence[str]) -> str | None:
    """The known key that ``key`` was meant to be."""
    folded = {_folded(name): name for name in known}
    matches = difflib.get_close_matches(_folded(key[:_MAX_KEY]), folded, n=1, cutoff=0.75)
    return folded[matches[0]] if matches else None


def _may_show(key: str, guess: str | None) -> bool:
    """False for a key that may hold a secret that slipped into its place."""
    if len(key) > _MAX_KEY or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", key):
        return False
    return key.isalpha() or len(key) <= len(guess or "") + 3


def _home(key: str) -> str:
    """The block that has this key, if there is one: of several that which is easiest to find."""
    found = [
        path
        for path, settings in _blocks(Config, "")
        if any(setting.key == key for setting in settings)
    ]
    if not found:
        return ""
    path = min(found, key=lambda path: path.count("."))
    return f"; it belongs {f'in {path}' if path else 'at the top of the file'}"


def _blocks(cls: type[Settings], path: str) -> Iterator[tuple[str, tuple[Setting, ...]]]:
    settings = settings_of(cls)
    yield path, settings
    for setting in settings:
        kind = setting.kind
        inner = (
            kind.item
            if isinstance(kind, ListOf)
            else kind.value
            if isinstance(kind, MapOf)
            else kind
        )
        if isinstance(inner, Block | TextOr):
            yield from _blocks(inner.cls, f"{path}.{setting.key}" if path else setting.key)
