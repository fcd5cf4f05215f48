"""Is a Config usable? For configurations made in Python; the loader applies the same rules with
the line and column of each value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nexusg.errors import ConfigError

from .attestation import TOKEN_SOURCES
from .checks import quoted
from .setting import Block, Finding, ListOf, MapOf, Settings, TextOr, settings_of


if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import Config
    from .setting import AnyKind, Setting

    Path = tuple[str | int, ...]


def validate(config: Config, *, attested: bool = False, mapped: bool = False) -> list[str]:
    """What makes ``config`` unusable, one finished line per problem; empty if nothing does.

    ``attested`` says that the program provides the tokens itself, ``mapped`` that it finds the
    targets: what the configuration says about these may then be missing.
    """
    return [
        f"{dotted(found.path)}: {found.text}"
        for found in _block(config, ())
        if found.fatal
        and not (attested and found.involves == TOKEN_SOURCES)
        and not (mapped and found.path[-1] == "portMappings")
    ]


def require_valid(config: Config, *, attested: bool = False, mapped: bool = False) -> None:
    """Raise ConfigError with all that ``validate`` finds."""
    if problems := validate(config, attested=attested, mapped=mapped):
        raise ConfigError(problems)


def advise(config: Config) -> list[str]:
    """What is doubtful about ``config``, one finished line each."""
    return [
        f"{dotted(found.path)}: {found.text}" for found in _block(config, ()) if not found.fatal
    ]


def dotted(path: Path) -> str:
    """A path as people write it: ``backends[0].portMappings[443].hosts["a.test"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif text and not part.isidentifier():
            text += f"[{quoted(part)}]"
        else:
            text += f".{part}" if text else part
    return text


def _block(instance: Settings, path: Path) -> Iterator[Finding]:
    for setting in settings_of(type(instance)):
        if setting.field:
            place = (*path, setting.key)
            value = getattr(instance, setting.field)
            if setting.missing(value):
                yield Finding(place, "is required")
            else:
                yield from _value(setting, setting.kind, value, place)
    for finding in instance.findings():
        yield finding._replace(path=path + finding.path)


def _value(setting: Setting, kind: AnyKind, value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(kind, Block | TextOr):
        if value is not None:
            yield from _block(value, path)
    elif isinstance(kind, ListOf):
        for index, item in enumerate(value):
            yield from _value(setting, kind.item, item, (*path, index))
    elif isinstance(kind, MapOf):
        for key, item in value.items():
            if kind.key_check and (problem := kind.key_check(key)):
                yield Finding(path, f"a key {problem}")
            yield from _value(setting, kind.value, item, (*path, key))
    elif value is not None:
        if problem := setting.problem_with(value):
            yield Finding(path, problem)
        elif advice := setting.advice_on(value):
            yield Finding(path, advice, fatal=False)
