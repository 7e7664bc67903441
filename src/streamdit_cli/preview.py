"""A small picture of the video in the terminal, above the progress: two pixels in a character.

The upper half block has the colour of the upper pixel on the colour of the lower one. A picture is
shown a few times a second at most; it goes where the live line goes, to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_model.stream import VideoChunk

__all__ = ["Preview", "half_blocks"]

PAUSE = 0.2  # seconds between two pictures
LARGEST = (64, 20)  # columns, lines
_BLOCK = "\u2580"

Pixel = Sequence[int]


class Preview:
    """Shows the newest frame of a video beside its progress; a watcher.

    Args:
        clock: the time in seconds; tests pass their own.

    Raises:
        UsageError: standard error is no terminal that can show it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        reason = console.why_no_picture()
        if reason:
            raise UsageError(f"--preview needs a terminal: {reason}", "leave out --preview")
        self._clock = clock
        self._shown_at = float("-inf")
        self._progress: console.Progress | None = None

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Learn where pictures are shown."""
        self._progress = progress

    def chunk(self, chunk: VideoChunk) -> None:
        """Show the last frame of a chunk with the next live line."""
        now = self._clock()
        if self._progress is None or now - self._shown_at < PAUSE:
            return
        self._shown_at = now
        columns, lines, has_all_colours = console.picture_room()
        room = min(columns, LARGEST[0]), min(lines, LARGEST[1])
        pixels = _shrunk(chunk.frames[-1], *room)
        self._progress.show_picture(half_blocks(pixels, has_all_colours=has_all_colours))

    def reached(self, num_frames: int) -> None:
        """Nothing: a frame that was made may be shown."""

    def end(self) -> None:
        """Nothing: the progress takes its picture away."""

    def close(self) -> None:
        """Nothing is held."""


def _shrunk(frame: Tensor, columns: int, lines: int) -> list[list[list[int]]]:
    """Return the pixels of a frame that fits: rows of (R, G, B), an even number of rows.

    A character is taken to be twice as high as wide, so that pixels are square.
    """
    from torch.nn import functional

    height, width = frame.shape[:2]
    scale = min(columns / width, 2 * lines / height)
    size = (max(1, round(height * scale / 2)) * 2, max(1, round(width * scale)))
    pixels = functional.adaptive_avg_pool2d(frame.permute(2, 0, 1).float(), size)
    return pixels.permute(1, 2, 0).round().int().tolist()


def half_blocks(rows: Sequence[Sequence[Pixel]], *, has_all_colours: bool) -> list[str]:
    """Return lines for a terminal, each ending in the ordinary colours.

    Args:
        rows: an even number, of (R, G, B) from 0 to 255 each.
        has_all_colours: whether the terminal knows 24 bits of colour; else the cube of 216.
    """
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        line, last = "", ""
        for above, below in zip(upper, lower, strict=True):
            colours = f"\x1b[38;{_code(above, has_all_colours)};48;{_code(below, has_all_colours)}m"
            line += _BLOCK if colours == last else colours + _BLOCK
            last = colours
        lines.append(line + "\x1b[0m")
    return lines


def _code(pixel: Pixel, has_all_colours: bool) -> str:
    """Return a colour as the parameters of an escape sequence."""
    if has_all_colours:
        return "2;" + ";".join(str(value) for value in pixel)
    red, green, blue = (round(value / 255 * 5) for value in pixel)
    return f"5;{16 + 36 * red + 6 * green + blue}"
