"""A file of prompts for `batch`: text, JSONL or CSV in, checked lines out.

Text has one prompt a line, `#` begins a comment, and options may follow a prompt: `--d 5` as in
musubi-tuner, or by their long names. JSONL and CSV have the long names as keys. All lines are
checked before any error is told, so that a file is mended once.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import typer

from streamdit_cli.errors import InputError, TerminalError, UsageError
from streamdit_cli.options import parse_guidance, parse_seconds, parse_seed
from streamdit_cli.prompts import check_prompt
from streamdit_cli.schema import nearest
from streamdit_cli.video_options import parse_size

__all__ = ["MOST_LINES", "PromptLine", "read_batch_file", "refuse_lines"]

LARGEST_FILE = 64 * 2**20  # bytes
MOST_LINES = 100_000
MOST_SHOWN = 5
_LONGEST_VALUE = 100  # letters of a value that is no text
# Letters of musubi-tuner; its width and height are one size here.
_LETTERS = {
    "d": "seed",
    "f": "num_frames",
    "g": "guidance_scale",
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
}
_STEPS_OR_SEED = "--s is not taken: seed or steps? a seed is --d, and a model has its own steps"
_INLINE = re.compile(r"(?:^|\s)--(?=[A-Za-z])")
_OPTION = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)(?:\s*=\s*|\s+|$)(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One video of a prompt file.

    Args:
        number: of its line, from 1; of a CSV row the line it ends on.
        prompts: at least one; several share the length.
        settings: fields of `plan.Wishes` that this line says itself, and `output`, a file name.
    """

    number: int
    prompts: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_batch_file(name: str) -> list[PromptLine]:
    """Read a file of prompts.

    Args:
        name: a path, or `-` for standard input: JSONL when it begins with `{`, else text.

    Raises:
        UsageError: a kind of file that is not known.
        InputError: it cannot be read, is too large, is not UTF-8 text, holds no prompt, or has
            lines that are wrong: the first of them are shown with their numbers.
    """
    title = "standard input" if name == "-" else name
    suffix = Path(name).suffix.lower()
    if suffix == ".json":
        raise UsageError(f"{name} is not a prompt file", "write one JSON object a line, in .jsonl")
    text = _read_text(name, title)
    is_jsonl = suffix == ".jsonl" or (name == "-" and text.lstrip().startswith("{"))
    read = _read_csv if suffix == ".csv" else _read_jsonl if is_jsonl else _read_txt
    lines: list[PromptLine] = []
    wrong: list[tuple[int, str]] = []
    for number, parse in read(text, title):
        try:
            lines.append(parse())
        except TerminalError as error:
            wrong.append((number, str(error)))
        except typer.BadParameter as error:
            wrong.append((number, error.message))
    refuse_lines(title, wrong)
    if not lines:
        raise InputError(f"{title} holds no prompt", "one prompt a line; # begins a comment")
    return lines


def refuse_lines(title: str, wrong: Sequence[tuple[int, str]]) -> None:
    """Say what is wrong with which lines of a file; nothing where none is.

    Raises:
        InputError: with the first line; where there are more, the first five are shown before.
    """
    if not wrong:
        return
    number, message = wrong[0]
    if len(wrong) == 1:
        raise InputError(f"{title} line {number}: {message}")
    from streamdit_cli import console

    for line, text in wrong[:MOST_SHOWN]:
        console.plain(f"{title} line {line}: {text}")
    raise InputError(
        f"{len(wrong)} lines of {title} are wrong, the first is line {number}",
        "nothing was made; mend them and run the same command again",
    )


_Parse = Callable[[], PromptLine]


def _read_text(name: str, title: str) -> str:
    """Return the text of a file with plain line ends."""
    try:
        if name == "-":
            data = _read_bytes(sys.stdin.buffer if sys.stdin else None)
        else:
            with open(name, "rb") as file:
                data = _read_bytes(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prompt file {title} cannot be read: {reason}") from error
    if len(data) > LARGEST_FILE:
        raise InputError(f"{title} is larger than {LARGEST_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{title} line {line} is not UTF-8 text") from None
    text = text.replace("\r\n", "\n")
    if text.count("\n") > MOST_LINES:
        raise InputError(f"{title} has more than {MOST_LINES} lines")
    return text


def _read_bytes(file: BinaryIO | None) -> bytes:
    return b"" if file is None else file.read(LARGEST_FILE + 1)


def _read_txt(text: str, title: str) -> Iterable[tuple[int, _Parse]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, lambda number=number, line=line: _from_text(number, line)


def _from_text(number: int, line: str) -> PromptLine:
    """Read `a red star --d 5 --n blur`."""
    prompt, *options = _INLINE.split(line)
    said: dict[str, str] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        word, value = (found[1], found[2].strip()) if found else (option.split()[0], "")
        if word in ("s", "steps"):
            raise InputError(_STEPS_OR_SEED)
        key = _LETTERS.get(word) or word.replace("-", "_").lower()
        if key not in _PARSERS and key not in ("width", "height"):
            known = [*(f"--{letter}" for letter in _LETTERS), *map(_option, _PARSERS)]
            raise InputError(f"unknown option --{word}; {nearest(f'--{word}', known)}")
        if not value:
            raise InputError(f"--{word} has no value")
        if key in said:
            raise InputError(f"--{word} stands there twice")
        said[key] = value
    return _prompt_line(number, [prompt], said)


def _read_jsonl(text: str, title: str) -> Iterable[tuple[int, _Parse]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, lambda number=number, line=line: _from_json(number, line)


def _from_json(number: int, line: str) -> PromptLine:
    """Read `{"prompt": "a red star", "seed": 5}`."""
    try:
        said = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise InputError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise InputError('not a JSON object; write {"prompt": "a red star"}')
    prompts = said.pop("prompt", None)
    if not isinstance(prompts, list):
        prompts = [prompts]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError('the prompt is no text; write {"prompt": "a red star"}')
    settings: dict[str, str] = {}
    for key, value in said.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{key} must be text or a number, not {json.dumps(value)[:40]}")
        settings[_key(key)] = str(value)
    return _prompt_line(number, prompts, settings)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) != len(pairs):
        raise ValueError("a key stands there twice")
    return said


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _read_csv(text: str, title: str) -> Iterable[tuple[int, _Parse]]:
    """Read rows under a heading; a file whose heading is wrong has no rows."""
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        heading = next(rows, [])
        keys = ["prompt" if name.strip() == "prompt" else _key(name.strip()) for name in heading]
    except (csv.Error, InputError) as error:
        raise InputError(f"{title} line 1: {error}") from None
    if "prompt" not in keys or len(set(keys)) != len(keys):
        hint = "its first line names the columns: prompt,seed,seconds"
        what = "a column twice" if "prompt" in keys else "no column prompt"
        raise InputError(f"{title} line 1 has {what}", hint)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(f"{title} line {rows.line_num}: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            number = rows.line_num
            yield number, lambda number=number, row=row: _from_cells(number, keys, row)


def _from_cells(number: int, keys: list[str], row: list[str]) -> PromptLine:
    if len(row) > len(keys):
        raise InputError(f"{len(row)} cells under {len(keys)} columns; quote text with a comma")
    said = {key: cell for key, cell in zip(keys, row, strict=False) if cell.strip()}
    return _prompt_line(number, [said.pop("prompt", "")], said)


def _key(name: str) -> str:
    """Return the name of a setting, written with hyphens or underscores.

    Raises:
        InputError: it is not known; the nearest one is named.
    """
    key = name.replace("-", "_")
    if key not in _PARSERS:
        raise InputError(f"unknown key {name[:80]!r}; {nearest(key, ['prompt', *_PARSERS])}")
    return key


def _prompt_line(number: int, prompts: Sequence[str], said: dict[str, str]) -> PromptLine:
    """Parse the values of a line.

    Raises:
        InputError, typer.BadParameter: a prompt or a value that is not allowed.
    """
    if ("width" in said) != ("height" in said):
        raise InputError("--w and --h belong together")
    if "width" in said:
        if "size" in said:
            raise InputError("--size and --w --h exclude each other")
        said["size"] = f"{said.pop('width')}x{said.pop('height')}"
    if "seconds" in said and "num_frames" in said:
        raise InputError("seconds and num_frames exclude each other")
    checked = tuple(check_prompt(prompt, InputError, "the prompt") for prompt in prompts)
    settings = {key: _parsed(key, value) for key, value in said.items()}
    return PromptLine(number=number, prompts=checked, settings=settings)


def _parsed(key: str, value: str) -> Any:
    if key not in ("negative_prompt", "output") and len(value) > _LONGEST_VALUE:
        raise InputError(f"{_option(key)} is a value of {len(value)} letters")
    try:
        return _PARSERS[key](value)
    except typer.BadParameter as error:
        raise InputError(f"{_option(key)}: {error.message}") from None


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _parse_length(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds == float("inf"):
        raise typer.BadParameter("a video of a batch has an end")
    return seconds


def _parse_frames(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12 and int(digits) > 0):
        raise typer.BadParameter(f"{text!r} is not a number of frames, at least 1")
    return int(digits)


def _parse_start(text: str) -> str:
    if text.strip() not in ("ramp", "clip"):
        raise typer.BadParameter(f"{text!r} is not a start; allowed: ramp, clip")
    return text.strip()


def _parse_negative(text: str) -> str:
    return check_prompt(text, InputError, "the negative prompt")


_PARSERS: dict[str, Callable[[str], Any]] = {
    "seed": parse_seed,
    "seconds": _parse_length,
    "num_frames": _parse_frames,
    "size": parse_size,
    "guidance_scale": parse_guidance,
    "negative_prompt": _parse_negative,
    "start": _parse_start,
    "output": str.strip,
}
