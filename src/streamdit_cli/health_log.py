"""The health of a video in words and JSON lines: while it is made, and of a file that there is.

`streamdit_model.health` judges; this file knows where frames come from and where records go.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import deque
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.errors import InputError
from streamdit_cli.records import LineFile
from streamdit_model.errors import ConfigError

if TYPE_CHECKING:
    from streamdit_model.health import Health, HealthSummary, HealthWindow
    from streamdit_model.stream import VideoChunk

__all__ = ["HealthLog", "describe_health"]

_UNKNOWN_FPS = 25.0
_MOST_ROWS = 40


class HealthLog:
    """Writes a JSON line for each window of 4 s and one for the whole; a watcher.

    A window is recorded when its last frame has reached the file or the reader.

    Args:
        path: a file, or `-` for standard error.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists or cannot be written.
    """

    def __init__(self, path: str, *, overwrite: bool) -> None:
        self._file = LineFile("--health", path, overwrite=overwrite)
        self._health: Health | None = None
        self._pending: deque[HealthWindow] = deque()
        self._reached = 0

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Learn the frames of a second."""
        from streamdit_model.health import Health

        self._health = Health(fps)

    def chunk(self, chunk: VideoChunk) -> None:
        """Judge the windows that end with this chunk."""
        if self._health is not None:
            frames = chunk.frames
            self._pending += self._health.update(frames, prompt=chunk.prompt, is_border=True)

    def reached(self, num_frames: int) -> None:
        """Record the windows among the first frames."""
        self._reached = num_frames
        while self._pending and _last_frame(self._pending[0]) <= num_frames:
            self._file.write(_record(self._pending.popleft()))

    def end(self) -> None:
        """Record the last window and the whole, and say it in one line."""
        if self._health is None:
            return
        self._pending += self._health.finish()
        self.reached(self._reached)
        summary = self._health.summary()
        self._file.write({"record": "summary", **_rounded(asdict(summary))})
        console.summary(f"health: {_words(summary)}")
        self._health = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def describe_health(
    path: Path,
) -> tuple[str, dict[str, Any], list[str], list[list[str]]]:
    """Watch a video file to its end, in constant memory but for the records.

    Prompt changes and chunk borders are known of videos that this tool made; elsewhere every frame
    is one scene up to the next cut, and seams are not looked for.

    Returns:
        A title, a record, columns and rows: all windows, or where they are many those with flags.

    Raises:
        InputError: the file cannot be read or holds no video.
    """
    from streamdit_cli.video import probe, read_video
    from streamdit_model.health import Health

    video = probe(path)
    fps = video.fps if video.fps > 0 else _UNKNOWN_FPS
    events = _prompt_events(video.record)
    chunk_frames = _chunk_frames(video.record)
    health, progress = Health(fps), console.Progress(video.seconds, fps, is_made=False)
    windows = []
    try:
        for number, frame in enumerate(read_video(path)):
            windows += health.update(
                frame[None],
                prompt=_prompt_at(number / fps, events),
                is_border=chunk_frames is not None and number % chunk_frames == 0,
            )
            progress.update(number + 1)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error
    finally:
        progress.close()
    windows += health.finish()
    summary = health.summary()
    record = {
        "kind": "health",
        "path": str(path),
        "fps": fps,
        "chunk_frames": chunk_frames,
        "summary": _rounded(asdict(summary)),
        "windows": [_rounded(asdict(window)) for window in windows],
    }
    shown = windows
    if len(windows) > _MOST_ROWS:
        shown = [window for window in windows if window.flags][:_MOST_ROWS]
    columns = ["at", "begins with", "luma", "saturation", "motion", "sharpness", "seam", "flags"]
    return f"{path}: {_words(summary)}", record, columns, [_row(window) for window in shown]


def _last_frame(window: HealthWindow) -> int:
    """Return the number of the frame after a window."""
    return window.first_frame + window.num_frames


def _record(window: HealthWindow) -> dict[str, object]:
    """Return a window as one JSON line."""
    return {"record": "window", **_rounded(asdict(window))}


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the same with four digits after the point."""
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in fields.items()
    }


def _words(summary: HealthSummary) -> str:
    """Return `60.0 s, 1 cut, 4 prompt changes: frozen in 2 windows from 12.0 s`."""
    parts = [f"{summary.seconds:.1f} s"]
    for count, word in ((summary.num_cuts, "cut"), (summary.num_prompt_changes, "prompt change")):
        if count:
            parts.append(f"{count} {word}{'s' if count > 1 else ''}")
    found = [
        f"{flag} in {count} window{'s' if count > 1 else ''} from {first:.1f} s"
        for (flag, count), first in zip(
            summary.flagged_windows.items(), summary.first_seconds.values(), strict=True
        )
    ]
    return f"{', '.join(parts)}: {'; '.join(found) or 'nothing found'}"


def _row(window: HealthWindow) -> list[str]:
    """Return a window for people."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return [
        f"{window.seconds:.1f} s",
        window.begins_with,
        f"{window.luma:.1f}",
        f"{window.saturation:.1f}",
        number(window.motion),
        number(window.sharpness),
        number(window.seam),
        ", ".join(window.flags) or "-",
    ]


def _prompt_events(record: dict[str, str]) -> list[tuple[str, float]]:
    """Return the prompts of a video with their seconds in order; none where it tells none."""
    try:
        events = json.loads(record.get("prompts", ""))
        found = [(str(prompt), float(seconds)) for prompt, seconds in events]
    except (ValueError, TypeError, RecursionError, OverflowError):
        return []
    is_timed = all(math.isfinite(seconds) for _, seconds in found)
    return sorted(found, key=itemgetter(1)) if is_timed else []


def _prompt_at(seconds: float, events: list[tuple[str, float]]) -> str | None:
    """Return the prompt at a time; None before the first one."""
    place = bisect_right(events, seconds, key=itemgetter(1))
    return events[place - 1][0] if place else None


def _chunk_frames(record: dict[str, str]) -> int | None:
    """Return the frames of a chunk, where the record of a video tells."""
    words = record.get("chunk_frames", "")
    is_number = words.isascii() and words.isdigit() and len(words) < 10
    return (int(words) or None) if is_number else None
