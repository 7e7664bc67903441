"""A script: which prompt holds from which second of a video on, and how one becomes the next.

Three forms say the same. TOML has a `[[stage]]` for each prompt, JSON lines an object with the same
keys, and in a prompt `[0s: a red star] [3s: a blue ring]` is enough. A stage has `prompt` and, as
it likes, `seconds` (its length) or `at` (the second it begins), `transition`, `transition_seconds`,
and `position`, the exact place in a stream, which the log of a live video has. This file knows
words and times, never models.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from streamdit_cli.errors import InputError, TerminalError, UsageError
from streamdit_cli.prompts import check_prompt, equal_parts
from streamdit_model.errors import ConfigError
from streamdit_model.prompt_timeline import TRANSITIONS, PromptEvent

__all__ = [
    "Script",
    "Stage",
    "event_record",
    "parse_inline",
    "parse_script",
    "parse_stages",
    "read_script",
]

KEYS = ("prompt", "seconds", "at", "transition", "transition_seconds", "position")
LARGEST_FILE = 10 * 1024 * 1024  # bytes
MOST_STAGES = 10_000
LONGEST = 366 * 24 * 3600.0  # seconds
_CLOSE = 1e-6  # seconds
_LAST_PLACE = 2**53  # of a position; JSON readers agree on whole numbers up to here
_TIME = r"(\d{1,8}(?:\.\d{1,6})?)\s*([smh])"
_MARK = re.compile(rf"\[\s*{_TIME}\s*(?:-\s*{_TIME}\s*)?:", re.ASCII | re.IGNORECASE)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER = re.compile(r"\s*\[\[\s*(?:stage|\"stage\"|'stage')\s*\]\]")
_HINT = 'a stage is: [[stage]] prompt = "a red star" seconds = 3'


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One prompt of a script, as it was written; None is what was not said.

    Args:
        prompt: the words.
        at: second of video at which it begins.
        seconds: its length.
        transition, transition_seconds: as in `PromptEvent`.
        position: (chunk, micro step), as in `PromptEvent`.
    """

    prompt: str
    at: float | None = None
    seconds: float | None = None
    transition: str | None = None
    transition_seconds: float | None = None
    position: tuple[int, int] | None = None

    def event(
        self, at: float, transition: str | None, transition_seconds: float | None
    ) -> PromptEvent:
        """Return the stage as an event at a second, with what stands for what was not said."""
        said = {
            "transition": self.transition or transition,
            "transition_seconds": transition_seconds
            if self.transition_seconds is None
            else self.transition_seconds,
        }
        said = {key: value for key, value in said.items() if value is not None}
        return PromptEvent(self.prompt, at, position=self.position, **said)


@dataclass(frozen=True)
class Script:
    """Stages in the order of their times; either all of them have a time or none has.

    Attributes:
        stages: at least one.
    """

    stages: tuple[Stage, ...]

    @property
    def prompts(self) -> list[str]:
        """The words of the stages."""
        return [stage.prompt for stage in self.stages]

    @property
    def is_timed(self) -> bool:
        """Whether the stages have times; else they share the length equally."""
        return self.stages[0].at is not None

    @property
    def seconds(self) -> float | None:
        """Length of the video where the last stage has one, else None."""
        last = self.stages[-1]
        return None if last.at is None or last.seconds is None else last.at + last.seconds

    def events(
        self,
        seconds: float,
        *,
        transition: str | None = None,
        transition_seconds: float | None = None,
    ) -> list[PromptEvent]:
        """Return the events of a video.

        Args:
            seconds: its length; infinite only with times.
            transition, transition_seconds: of the stages after the first that say none.

        Raises:
            UsageError: stages without times in a stream without end.
        """
        if self.is_timed:
            times = [stage.at or 0.0 for stage in self.stages]
        else:
            times = [at for _, at in equal_parts(self.prompts, seconds)]
        how = (transition, transition_seconds)
        return [  # the first one follows nothing
            stage.event(at, *(how if index else (None, None)))
            for index, (stage, at) in enumerate(zip(self.stages, times, strict=True))
        ]


def event_record(event: PromptEvent) -> dict[str, Any]:
    """Return an event as one line of a script, with only what is not left as it is."""
    record: dict[str, Any] = {"prompt": event.prompt or "", "at": event.seconds}
    if event.transition != "replace":
        record["transition"] = event.transition
    if event.transition == "blend":
        record["transition_seconds"] = event.transition_seconds
    if event.position is not None:
        record["position"] = list(event.position)
    return record


def read_script(name: str) -> Script:
    """Read a script from a file, or from standard input if the name is `-`.

    Raises:
        InputError: it cannot be read, or `parse_script` refuses it.
    """
    if name == "-":
        return _read(sys.stdin.buffer if sys.stdin else None, "standard input")
    try:
        with open(Path(name), "rb") as file:
            return _read(file, name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"script {name} cannot be read: {reason}") from error


def _read(file: BinaryIO | None, name: str) -> Script:
    data = b"" if file is None else file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise InputError(f"{name} is larger than {LARGEST_FILE} bytes")
    return parse_script(data, name)


def parse_script(data: bytes, name: str) -> Script:
    """Read a script, JSON lines where its first sign is `{`, else TOML.

    Args:
        data: UTF-8 text.
        name: what messages call it.

    Raises:
        InputError: text, keys, values or times that no script can have; names the line.
    """
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        found = _json_stages(data, name)
    else:
        found = _toml_stages(data, name)
    return _script(found, name)


def parse_stages(stages: Sequence[Any], name: str) -> Script:
    """Read a script from a list of stages, as it stands in a video.

    Raises:
        InputError: as `parse_script`.
    """
    return _script([(f"{name} stage {n}", stage) for n, stage in enumerate(stages, 1)], name)


def _script(found: Sequence[tuple[str, Any]], name: str) -> Script:
    """Check stages, each with the words for its place."""
    if not found:
        raise InputError(f"{name} holds no stage", _HINT)
    if len(found) > MOST_STAGES:
        raise InputError(f"{name} has more than {MOST_STAGES} stages")
    stages = [_stage(fields, where) for where, fields in found]
    return Script(_timed(stages, [where for where, _ in found], InputError))


def parse_inline(text: str) -> Script | None:
    """Read the inline form in a prompt; None where there is none.

    Words before the first bracket hold from the start; `[0s-3s: ...]` also says where it ends.

    Raises:
        UsageError: a bracket that is not closed, words between brackets, or times out of order.
    """
    mark = _MARK.search(text)
    if mark is None:
        return None
    stages, places = [], []
    if text[: mark.start()].strip():
        stages.append(Stage(prompt=check_prompt(text[: mark.start()], UsageError, "the prompt")))
        stages[0] = replace(stages[0], at=0.0)
        places.append("the prompt before the first bracket")
    while mark is not None:
        place = f"the stage {mark.group()}...]"
        close = text.find("]", mark.end())
        if close < 0 or "[" in text[mark.end() : close]:
            raise UsageError(f"{place} has no closing bracket", 'write -p "[0s: A] [3s: B]"')
        at, end = (_inline_time(*mark.group(*pair)) for pair in ((1, 2), (3, 4)))
        if at is None or (end is not None and end <= at):
            raise UsageError(f"{place} ends before it begins")
        words = check_prompt(text[mark.end() : close], UsageError, place)
        stages.append(Stage(prompt=words, at=at, seconds=None if end is None else end - at))
        places.append(place)
        rest = text[close + 1 :].lstrip()
        mark = _MARK.match(rest)
        if mark is None and rest:
            raise UsageError(f"{rest[:40]!r} stands after {place} and belongs to no stage")
        text = rest
    return Script(_timed(stages, places, UsageError))


def _inline_time(number: str | None, unit: str | None) -> float | None:
    """Return seconds of `3`, `s`; None of nothing."""
    return None if number is None or unit is None else float(number) * _UNITS[unit.lower()]


def _toml_stages(data: bytes, name: str) -> list[tuple[str, Any]]:
    """Return each stage of a TOML file with the words for its place."""
    from streamdit_cli.presets import nearest, parse_toml

    table = parse_toml(data, name, kind=InputError)
    for key in table:
        if key != "stage":
            raise InputError(f"{name}: unknown key {key!r}; {nearest(key, ['stage'])}", _HINT)
    stages = table.get("stage", [])
    if not isinstance(stages, list):
        raise InputError(f"{name}: stage must be a list of tables", _HINT)
    lines = data.decode("utf-8-sig").splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if _HEADER.match(line)]
    if len(numbers) != len(stages):  # written in another way: only their order is known
        return [(f"{name} stage {index}", stage) for index, stage in enumerate(stages, 1)]
    return [(f"{name} line {n}", stage) for n, stage in zip(numbers, stages, strict=True)]


def _json_stages(data: bytes, name: str) -> list[tuple[str, Any]]:
    """Return each stage of JSON lines with the words for its place."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line} is not UTF-8 text") from None
    stages: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if len(stages) > MOST_STAGES:
            break
        where = f"{name} line {number}"
        try:
            stages.append((where, json.loads(line, object_pairs_hook=_no_key_twice)))
        except RecursionError:
            raise InputError(f"{where}: lists within lists, too deep to read") from None
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}", "one stage a line") from None
    return stages


def _no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands there twice")
    return table


def _stage(fields: Any, where: str) -> Stage:
    """Check keys and values of one stage."""
    from streamdit_cli.presets import nearest

    if not isinstance(fields, dict):
        raise InputError(f"{where}: a stage must be a table, not {str(fields)[:40]!r}", _HINT)
    for key in fields:
        if key not in KEYS:
            raise InputError(f"{where}: unknown key {key[:80]!r}; {nearest(key, KEYS)}")
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise InputError(f"{where}: prompt must be text", _HINT)
    transition = fields.get("transition")
    if transition is not None and transition not in TRANSITIONS:
        allowed = ", ".join(TRANSITIONS)
        raise InputError(f"{where}: transition {transition!r} is not known; allowed: {allowed}")
    times = {key: _time(fields, key, where) for key in ("at", "seconds", "transition_seconds")}
    if times["seconds"] == 0:
        raise InputError(f"{where}: seconds must be more than 0")
    return Stage(
        prompt=check_prompt(prompt, InputError, f"{where}: prompt"),
        transition=transition,
        position=_position(fields.get("position"), where),
        **times,
    )


def _time(fields: dict[str, Any], key: str, where: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LONGEST:
        shown = str(value)[:40] if is_number and abs(value) < 1e300 else repr(value)[:40]
        raise InputError(f"{where}: {key} must be seconds from 0 to {LONGEST:.0f}, not {shown}")
    return float(value)


def _position(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    if not is_pair or not all(abs(number) < _LAST_PLACE for number in value):
        raise InputError(f"{where}: position must be [chunk, micro step]")
    try:
        return PromptEvent(None, position=(value[0], value[1])).position
    except ConfigError as error:
        raise InputError(f"{where}: {error}") from None


def _timed(
    stages: Sequence[Stage], places: Sequence[str], kind: type[TerminalError]
) -> tuple[Stage, ...]:
    """Give each stage its `at`, from the length of the one before where it has none.

    Raises:
        InputError: or `kind`; times that are missing, out of order, or contradict each other.
    """
    if all(stage.at is None and stage.seconds is None for stage in stages):
        return tuple(stages)
    timed: list[Stage] = []
    end: float | None = 0.0
    for stage, where in zip(stages, places, strict=True):
        if stage.at is None and end is None:
            hint = "give it `at`, or the stage before it `seconds`"
            raise kind(f"{where}: nothing says when the stage begins", hint)
        at = stage.at if stage.at is not None else end
        assert at is not None
        before = timed[-1] if timed else None
        if before is not None and before.at is not None:
            is_late = at > before.at or (at == before.at and stage.position is not None)
            if not is_late:
                raise kind(
                    f"{where}: at {at:g} s is not after the {before.at:g} s of the one before"
                )
        if timed and end is not None and abs(at - end) > _CLOSE:
            raise kind(f"{where}: at {at:g} s, but the stage before it ends at {end:g} s")
        timed.append(replace(stage, at=at))
        end = None if stage.seconds is None else at + stage.seconds
    return tuple(timed)
