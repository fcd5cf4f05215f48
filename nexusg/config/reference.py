"""Writes conf/reference.yaml and the table of the README from the declarations of the model.

``python -m nexusg.config.reference`` prints the YAML, with ``--markdown`` the table.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from .model import Config
from .setting import REQUIRED, Block, Kind, ListOf, MapOf, TextOr, settings_of


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .setting import AnyKind, Setting, Settings


WIDTH = 100
MIB = 1024 * 1024

_MARGIN = 16  # what the deepest comments are indented by
_KEY = "443"  # of the example of a map with blocks, which are the port mappings

_INTRODUCTION = """\
Every setting of nexusg: its default, or an example where a value is required.
Comments are examples of what may be left out. Durations are in seconds.
Written by: python -m nexusg.config.reference

${{NAME}} and ${{NAME:-default}} stand for environment variables in {expanding}.
"$${{" means a "${{" that is none.
"""


def reference_yaml() -> str:
    """The text of conf/reference.yaml."""
    keys = [setting.key for _, setting in _all_settings(Config, "") if setting.expand]
    expanding = ", ".join(dict.fromkeys(keys))
    introduction = _INTRODUCTION.format(expanding=expanding).splitlines()
    lines = [line for text in introduction for line in textwrap.wrap(text, WIDTH - 2) or [""]]
    head = [f"# {line}".rstrip() for line in lines]
    return "\n".join([*head, *_block_lines(Config, space=True)]) + "\n"


def reference_markdown() -> str:
    """The table of all settings for the README. Blocks are in the paths of their settings."""
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for path, setting in _all_settings(Config, ""):
        if not isinstance(setting.kind, Block):
            default = f"`{_default(setting)}`" if _default(setting) else ""
            value = _choices(setting) or _with_unit(setting, _kind(setting.kind))
            cells = (f"`{path}`", value, "required" if setting.needed else default, setting.doc)
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _block_lines(cls: type[Settings], *, space: bool = False) -> Iterator[str]:
    for setting in settings_of(cls):
        if space:
            yield ""
        yield from _comment(setting)
        yield from _setting_lines(setting)


def _comment(setting: Setting) -> list[str]:
    facts = [_choices(setting), _with_unit(setting, ""), "required" if setting.needed else ""]
    notes = ", ".join(filter(None, facts))
    text = f"{setting.doc} ({notes})" if notes else setting.doc
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - _MARGIN)]


def _setting_lines(setting: Setting) -> list[str]:
    """``key: value``, as a comment if the setting is best left out."""
    kind = setting.kind
    if isinstance(kind, Block):
        lines = [f"{setting.key}:", *_indented(_block_lines(kind.cls))]
    elif isinstance(kind, ListOf) and isinstance(kind.item, Block):
        lines = [f"{setting.key}:", "  -", *_indented(_block_lines(kind.item.cls), 4)]
    elif isinstance(kind, MapOf) and isinstance(kind.value, Block):
        lines = [f"{setting.key}:", f"  {_KEY}:", *_indented(_block_lines(kind.value.cls), 4)]
    elif isinstance(kind, MapOf) and isinstance(kind.value, TextOr):
        keys = _indented(iter(setting.example.splitlines()))
        lines = [f"{setting.key}:", *keys, *_indented(_block_lines(kind.value.cls), 4)]
    else:
        lines = [f"{setting.key}: {_default(setting) or setting.example}"]
    active = setting.needed or setting.usual or _default(setting)
    return lines if active else [f"# {line}" for line in lines]


def _indented(lines: Iterator[str], by: int = 2) -> list[str]:
    return [" " * by + line for line in lines]


def _default(setting: Setting) -> str:
    """The default as YAML; "" if there is none, or nothing to see."""
    value: Any = setting.default
    if value is REQUIRED or value is None or value in ("", (), {}):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def _choices(setting: Setting) -> str:
    *most, last = setting.choices or ("",)
    return f"{', '.join(most)} or {last}" if most else last


def _with_unit(setting: Setting, text: str) -> str:
    unit = setting.unit
    if unit == "bytes" and setting.default % MIB == 0:
        unit = f"bytes; {setting.default // MIB} MiB"
    return ", ".join(filter(None, (text, unit)))


def _kind(kind: AnyKind) -> str:
    """What a value is, in words."""
    if isinstance(kind, TextOr):
        return "text or block"
    if isinstance(kind, ListOf):
        return "list" if isinstance(kind.item, Block) else f"list of {kind.item.value}s"
    if isinstance(kind, MapOf):
        if isinstance(kind.value, TextOr):
            return "map of texts or blocks"
        return "map by port" if isinstance(kind.value, Block) else f"map of {kind.value.value}s"
    assert isinstance(kind, Kind)  # the table has no rows for plain blocks
    return kind.value


def _all_settings(cls: type[Settings], path: str) -> Iterator[tuple[str, Setting]]:
    for setting in settings_of(cls):
        place, kind = path + setting.key, setting.kind
        yield place, setting
        if isinstance(kind, Block):
            yield from _all_settings(kind.cls, f"{place}.")
        elif isinstance(kind, ListOf) and isinstance(kind.item, Block):
            yield from _all_settings(kind.item.cls, f"{place}[].")
        elif isinstance(kind, MapOf) and isinstance(kind.value, Block | TextOr):
            yield from _all_settings(kind.value.cls, f"{place}.*.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the reference."""
    parser = argparse.ArgumentParser(prog="python -m nexusg.config.reference")
    parser.add_argument("--markdown", action="store_true", help="the table of the README")
    markdown = parser.parse_args(arguments).markdown
    print(reference_markdown() if markdown else reference_yaml(), end="")


if __name__ == "__main__":
    main()
