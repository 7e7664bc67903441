"""Dataclasses to plain tables and back, strictly: for `config.json` and for training recipes.

The dataclass is the schema. Nothing is guessed: an unknown key is refused with the nearest name, a
value of another type is refused with its place, and no value is converted except a whole number
where a float is wanted and a list where a tuple is wanted.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from streamdit_model.errors import ConfigError

__all__ = ["from_table", "to_table"]

_Config = TypeVar("_Config")
_LONGEST = 256  # entries of a list; a typing error must not fill the memory
_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def to_table(config: object) -> dict[str, Any]:
    """Return a dataclass as a table of plain values; every field is in it, tuples become lists."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_table(
    kind: type[_Config], table: object, where: str = "", largest: int = 2**63 - 1
) -> _Config:
    """Make a dataclass from a table.

    Args:
        kind: the dataclass; its fields are bool, int, float, str, None, words (Literal), tuples,
            other dataclasses, or unions of these.
        table: keys are field names; fields with a default may be missing.
        where: the table's name in messages, "" for the outermost.
        largest: bound of the size of whole numbers.

    Raises:
        ConfigError: the table does not fit; the message names the key and what is allowed.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where or 'configuration'} is {_shown(table)}; it must be a table")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in table:
        if key not in fields:
            raise ConfigError(f"unknown key {_shown(f'{prefix}{key}')}; {_nearest(key, fields)}")
    hints = get_type_hints(kind)
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(hints[name], table[name], prefix + name, largest)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} is missing")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error), error.hint) from None


def _value(hint: Any, value: object, where: str, largest: int) -> Any:
    """Return a value that fits a type, or refuse it."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), value, where, largest)
    if origin is tuple:
        return _tuple(get_args(hint), value, where, largest)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_table(hint, value, where, largest)
    if not _fits(hint, value, largest):
        limit = f" of at most {largest}" if hint is int and type(value) is int else ""
        raise ConfigError(f"{where} is {_shown(value)}; it must be {_words(hint)}{limit}")
    return float(value) if hint is float else value  # type: ignore[arg-type]


def _fits(hint: Any, value: object, largest: int) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is types.NoneType:
        return value is None
    assert hint in _WORDS, f"{hint} is no type of a configuration"
    if hint is int or (hint is float and type(value) is int):
        return type(value) is int and abs(value) <= largest
    return type(value) is hint and (hint is not float or math.isfinite(value))  # type: ignore[arg-type]


def _union(hints: tuple[Any, ...], value: object, where: str, largest: int) -> Any:
    if value is None and types.NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not types.NoneType]
    if len(others) == 1:
        return _value(others[0], value, where, largest)
    for hint in others:
        if _fits(hint, value, largest):
            return float(value) if hint is float else value  # type: ignore[arg-type]
    allowed = " or ".join(_words(hint) for hint in hints)
    raise ConfigError(f"{where} is {_shown(value)}; it must be {allowed}")


def _tuple(hints: tuple[Any, ...], value: object, where: str, largest: int) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {_shown(value)}; it must be a list")
    if len(value) > _LONGEST:
        raise ConfigError(f"{where} has {len(value)} entries, at most {_LONGEST} are allowed")
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{where} has {len(value)} entries; it must have {len(hints)}")
    items = zip(hints, value, strict=True)
    return tuple(
        _value(hint, item, f"{where}[{index}]", largest) for index, (hint, item) in enumerate(items)
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(_shown(choice) for choice in get_args(hint))
    return "null" if hint is types.NoneType else _WORDS[hint]


def _shown(value: object) -> str:
    """Return a value for a message: short, control characters escaped, as JSON would say it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else value[:77] + "...")
    if isinstance(value, (Mapping, list, tuple)):
        return "a table" if isinstance(value, Mapping) else "a list"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    return ascii(value)[:80]


def _nearest(key: object, names: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(key)[:80], names, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed are {', '.join(names)}"
