"""Names of the files of a batch: a template with a few fields, and what a name may be.

A template is the user's, a prompt may be a stranger's: of a prompt only a slug comes into a name,
and a name is one plain name inside the output folder on every system.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath

from streamdit_cli.errors import UsageError
from streamdit_cli.output import CONTAINERS, is_reserved, slug_of
from streamdit_cli.schema import nearest

__all__ = ["DEFAULT_TEMPLATE", "FIELDS", "NameTemplate", "check_file_name", "unique_name"]

DEFAULT_TEMPLATE = "{index:04d}-{slug}.mp4"
FIELDS = ("index", "line", "seed", "slug", "stem", "model")
LONGEST_NAME = 200  # bytes; file systems take 255, and `.part` and a number must fit
_NUMBERS = {"index", "line", "seed"}
# A doubled brace, a field with a width, or a brace that is neither.
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}:]*)(?::([^{}]*))?\}|[{}]")
_WIDTH = re.compile(r"0?[1-9]?[0-9]d?")
_FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')


class NameTemplate:
    """Makes names such as `{index:04d}-{slug}.mp4`.

    Args:
        text: with fields of `FIELDS` in braces; a number may have a width, `{index:04d}`.

    Raises:
        UsageError: an unknown field, another format, or text that no name can have.

    Choice: not `str.format`, which reaches into objects (`{slug.__class__}`) and makes a name of
    any length (`{index:9999999}`).
    """

    def __init__(self, text: str) -> None:
        self._parts: list[str | tuple[str, Callable[[object], str]]] = []
        place = 0
        for found in _TOKEN.finditer(text):
            self._parts.append(text[place : found.start()])
            self._parts.append(_part(text, found))
            place = found.end()
        self._parts.append(text[place:])
        check_file_name(self.name(dict.fromkeys(FIELDS, 1)), f"--name {text!r}")

    def name(self, values: Mapping[str, object]) -> str:
        """Return the name of a video.

        Args:
            values: of `FIELDS`; numbers are whole, text becomes a slug.
        """
        return "".join(
            part if isinstance(part, str) else part[1](values[part[0]]) for part in self._parts
        )


def _part(text: str, found: re.Match[str]) -> str | tuple[str, Callable[[object], str]]:
    """Return a brace of the text, or a field and how it is written."""
    token, field, width = found[0], found[1], found[2]
    if token in ("{{", "}}"):
        return token[0]
    if field is None:
        raise UsageError(f"--name {text!r} has a single {token}", "write a brace as {{ or }}")
    if field not in FIELDS:
        raise UsageError(f"--name: there is no field {field[:40]!r}; {nearest(field, FIELDS)}")
    if width is None:
        return field, (str if field in _NUMBERS else lambda value: slug_of(str(value)))
    if field not in _NUMBERS or not _WIDTH.fullmatch(width):
        message = f"--name: {token[:40]!r} is not a number with a width"
        raise UsageError(message, "write {index:04d}, or {slug} without a width")
    digits, fill = int(width.rstrip("d")), "0" if width.startswith("0") else " "
    if fill == " ":
        raise UsageError(f"--name: {token[:40]!r} would put blanks into names", "{index:04d}")
    return field, lambda value: str(value).rjust(digits, fill)


def check_file_name(name: str, what: str) -> str:
    """Return a name that is one plain video file on every system, or refuse it.

    Args:
        name: of the file, without a folder.
        what: the message calls it.

    Raises:
        UsageError: a path, a reserved name, a character that some system does not take, too long,
            or no known container.
    """
    found = _FORBIDDEN.search(name)
    if found is not None:
        kind = "is a path" if found[0] in "/\\" else f"has the character {found[0]!r}"
        raise UsageError(f"{what} {kind}; a name is a plain one, inside the output folder")
    path = PurePath(name)
    if path.suffix.lower() not in CONTAINERS:
        raise UsageError(
            f"{what} does not end in {', '.join(CONTAINERS)}", "write it as in {slug}.mp4"
        )
    if name[0] in ".- " or path.stem.endswith((".part", ".", " ")):
        raise UsageError(f"{what} begins or ends in what a name cannot: {name[:60]!r}")
    if is_reserved(name.split(".")[0].strip()):
        raise UsageError(f"{what} is a device on Windows: {name[:60]!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not Unicode text") from None
    if size > LONGEST_NAME:
        raise UsageError(f"{what} has {size} bytes; at most {LONGEST_NAME} are allowed")
    return name


def unique_name(name: str, taken: dict[str, int]) -> str:
    """Return the name, with `-2`, `-3` ... where it is taken, and take it.

    Args:
        name: a checked one.
        taken: names in lower case, since some systems tell no case apart, each with the number
            that was given last; is changed.
    """
    path, free = PurePath(name), name
    while free.lower() in taken:
        taken[name.lower()] = number = taken.get(name.lower(), 1) + 1
        free = f"{path.stem}-{number}{path.suffix}"
    taken[free.lower()] = 1
    return free
