"""How a setting is declared: one ``setting(...)`` on a dataclass field says all there is to say.

The loader, the rules for a Config made in Python, conf/reference.yaml and the table of the README
are all drawn from these declarations. This file knows no setting and no YAML.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar


_DECLARATION = "setting"  # key in a field's metadata

REQUIRED: Any = object()  #: stands for the default of a field that must be given

T = TypeVar("T")

Check = Callable[[Any], str | None]  #: says what is wrong with a value, or None


class Kind(enum.Enum):
    """What a single value is. The value of each is the word that the documentation uses."""

    TEXT = "text"
    SECRET = "secret"
    INTEGER = "integer"
    COUNT = "integer or auto"
    NUMBER = "number"
    BOOLEAN = "true or false"


class ListOf(NamedTuple):
    """A list of values of one kind; a tuple in the model."""

    item: Kind | Block


class MapOf(NamedTuple):
    """A map with free keys. ``form`` is how keys are compared, if not as they are written;
    ``key_check`` says what is wrong with one."""

    key: Kind  # TEXT or INTEGER
    value: Kind | Block | TextOr
    form: Callable[[str], str] | None = None
    key_check: Check | None = None


class Block(NamedTuple):
    """A map with the settings of ``cls`` as its keys."""

    cls: type[Settings]


class TextOr(NamedTuple):
    """A block, or a plain text in its place: the one item of the list ``short``."""

    cls: type[Settings]
    short: str


AnyKind = Kind | ListOf | MapOf | Block | TextOr


class Finding(NamedTuple):
    """What a rule over several settings has to say. ``path`` is relative to the rule's block.

    A warning is not ``fatal``. ``involves`` are the keys the rule looked at, dotted if they are in
    an inner block: if one of them could not be read, the finding says nothing new.
    """

    path: tuple[str | int, ...]
    text: str
    fatal: bool = True
    involves: tuple[str, ...] = ()


class Settings:
    """Root of the blocks of settings, all of them frozen dataclasses."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def findings(self) -> Iterator[Finding]:
        """What is wrong or doubtful about settings that are fine one by one."""
        return iter(())

    def _set(self, **values: Any) -> None:
        """Give fields their one form, while the object is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _above_zero(self, *names: str) -> None:
        """Zero and less stand for the default."""
        for name in names:
            if getattr(self, name) <= 0:
                self._set(**{name: self.__dataclass_fields__[name].default})


def listed(values: Iterable[T]) -> tuple[T, ...]:
    """A tuple of the values. One text is not taken for the list of its characters."""
    if isinstance(values, str):
        raise TypeError("a list of values is needed here, not one text")
    return tuple(values)


def unique(values: Iterable[T]) -> tuple[T, ...]:
    """Duplicates count once, in their first order."""
    return tuple(dict.fromkeys(values))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of the configuration file.

    ``check`` and ``advice`` look at each single value (of a list or map, too): the first finds
    what is fatal, the second what deserves a warning. ``expand`` allows ``${NAME}`` in the values.
    ``needed`` means that the value may not be empty. ``example`` is YAML for the reference file,
    where the default would say too little: as a comment, unless it is ``usual`` or needed. ``also``
    is a second key for the same field, which the loader folds into it.
    """

    key: str
    kind: AnyKind
    default: Any
    doc: str
    unit: str = ""
    needed: bool = False
    choices: tuple[str, ...] = ()
    check: Check | None = None
    advice: Check | None = None
    expand: bool = False
    example: str = ""
    usual: bool = False
    also: Setting | None = None
    field: str = ""  # the dataclass field; empty for an ``also``

    def missing(self, value: object) -> bool:
        """True if the setting must be given and this value says nothing."""
        return self.needed and (value is None or value in ("", (), {}))

    def problem_with(self, value: object) -> str | None:
        """What makes this single value unusable."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        return self.check(value) if self.check else None

    def advice_on(self, value: object) -> str | None:
        """What is doubtful about this single value."""
        return self.advice(value) if self.advice else None


def setting(
    key: str, kind: AnyKind, default: Any, doc: str, *, show: bool = True, **rest: Any
) -> Any:
    """A dataclass field that is a setting. ``rest`` goes to Setting; ``show=False`` hides the
    value from ``repr()``."""
    declared = Setting(key, kind, default, doc, **rest)
    options: dict[str, Any] = {"repr": show, "metadata": {_DECLARATION: declared}}
    if isinstance(kind, Block):
        options["default_factory"] = kind.cls
    elif isinstance(kind, MapOf):
        options["default_factory"] = dict
    elif default is not REQUIRED:
        options["default"] = default
    return dataclasses.field(**options)


def block(key: str, cls: type[Settings], doc: str, *, usual: bool = True) -> Any:
    """A field that holds another block, by default one with the defaults of all its settings."""
    return setting(key, Block(cls), None, doc, usual=usual)


_KNOWN: dict[type[Settings], tuple[Setting, ...]] = {}


def settings_of(cls: type[Settings]) -> tuple[Setting, ...]:
    """The settings of a block in the order of their declaration, each ``also`` behind its owner."""
    if cls not in _KNOWN:
        found = []
        for field in dataclasses.fields(cls):
            declared: Setting = field.metadata[_DECLARATION]
            found.append(dataclasses.replace(declared, field=field.name))
            if declared.also is not None:
                found.append(declared.also)
        _KNOWN[cls] = tuple(found)
    return _KNOWN[cls]
