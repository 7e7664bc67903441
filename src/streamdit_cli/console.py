"""Everything a human sees: status lines, warnings, errors, tables and live progress.

All of it goes to standard error, except `result` and `table`, which commands that make no video use
to print what they were asked for on standard output. Text is never read as markup and is cleaned of
control characters here, so no prompt, file name or metadata can move the cursor or hide words.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.cells import set_cell_size
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

__all__ = [
    "Progress",
    "configure",
    "detail",
    "error",
    "hint",
    "picture_room",
    "plain",
    "result",
    "safe",
    "status",
    "summary",
    "table",
    "warn",
    "why_no_picture",
]

# Zero width joiners are part of scripts and emoji and cannot hide or reorder words.
_ALLOWED_FORMAT = {0x200C, 0x200D}
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_PLAIN_LINE_SECONDS = 5.0
_LIVE_LINE_SECONDS = 0.1
_RECENT_SECONDS = 4.0

_settings = {"quiet": False, "verbose": False, "typed": False}
_live_line: list[Progress] = []


def safe(text: object) -> str:
    r"""Write control, bidirectional and surrogate characters as `\xNN` or `\uNNNN`.

    Applying it twice changes nothing more, and every function here applies it to all it prints.

    Args:
        text: any outside value: a file name, a prompt, metadata, an exception.

    Returns:
        One line that can be printed on any terminal.
    """
    return "".join(_visible(character) for character in str(text))


def _visible(character: str) -> str:
    """Return the character itself, or its escape when a terminal would act on it."""
    if " " <= character <= "~":
        return character
    point = ord(character)
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES or point in _ALLOWED_FORMAT:
        return character
    if 0xDC80 <= point <= 0xDCFF:  # a byte that was not UTF-8, as Python keeps it
        point -= 0xDC00
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def configure(*, quiet: bool = False, verbose: bool = False, typed: bool = False) -> None:
    """Set how much is said from now on; warnings and errors are always said.

    What the library logs is said here too: its warnings as warnings, the rest as details.

    Args:
        quiet: no status lines, no progress, no summary.
        verbose: also the lines of `detail`.
        typed: somebody types in this terminal, so no progress is shown over the line typed.
    """
    _settings.update(quiet=quiet, verbose=verbose, typed=typed)
    library = logging.getLogger("streamdit_model")
    library.setLevel(logging.INFO if verbose else logging.WARNING)
    if not any(isinstance(handler, _LogHandler) for handler in library.handlers):
        library.addHandler(_LogHandler())


def status(text: object) -> None:
    """Say what is being done, on standard error."""
    if not _settings["quiet"]:
        _say(text)


def detail(text: object) -> None:
    """Say more about it, on standard error, with `--verbose` only."""
    if _settings["verbose"] and not _settings["quiet"]:
        _say(text)


def summary(text: object) -> None:
    """Say in one line what was made, on standard error."""
    if not _settings["quiet"]:
        _say(text, style="bold")


def warn(text: object) -> None:
    """Say what may surprise, on standard error, also when quiet."""
    _say(text, label="warning:", label_style="yellow")


def error(text: object, hint_text: object = "") -> None:
    """Say what went wrong and, if known, what to type next, on standard error."""
    _say(text, label="error:", label_style="bold red")
    if hint_text:
        hint(hint_text)


def hint(text: object) -> None:
    """Say what to type next, on standard error, also when quiet."""
    _say(text, label="hint:", label_style="cyan")


def plain(text: object) -> None:
    """Write a line as it is, on standard error, also when quiet."""
    _say(text)


def result(text: object) -> None:
    """Print the answer a command was asked for, line by line, on standard output."""
    lines = (safe(line) for line in str(text).split("\n"))
    _write(sys.stdout, "\n".join(lines) + "\n")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, stderr: bool = False
) -> None:
    """Print a table, on standard output.

    Args:
        title: one line above it; empty for none.
        columns: headings; all empty for a table without.
        rows: as many cells a row as there are columns.
        stderr: print on standard error instead, in commands that make video.
    """
    grid = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        grid.add_column(Text(safe(column)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(safe(cell)) for cell in row))
    stream = sys.stderr if stderr else sys.stdout
    heading = _render(stream, Text(safe(title), style="bold")) if title else ""
    _write(stream, heading + _render(stream, grid))


def _say(text: object, *, label: str = "", label_style: str = "", style: str = "") -> None:
    """Write one line to standard error, over the live line if there is one."""
    line = Text(f"{label} " if label else "", style=label_style)
    line.append(safe(text), style=style or None)
    for progress in _live_line:
        progress.clear()
    _write(sys.stderr, _render(sys.stderr, line))


def _render(stream: TextIO | None, renderable: Text | Table) -> str:
    """Return the characters for a stream: colours only on a terminal that wants them."""
    buffer = io.StringIO()
    is_terminal = _is_terminal(stream)
    width = None if is_terminal else 10_000
    console = RichConsole(
        file=buffer, force_terminal=is_terminal, width=width, markup=False, highlight=False
    )
    console.print(renderable, soft_wrap=isinstance(renderable, Text))
    text = buffer.getvalue()
    if is_terminal or isinstance(renderable, Text):
        return text
    return "\n".join(line.rstrip() for line in text.split("\n"))  # a table fills its last column


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def why_no_picture() -> str:
    """Say why no picture can be shown on standard error; empty where one can."""
    encoding = getattr(sys.stderr, "encoding", None) or ""
    if not _is_terminal(sys.stderr):
        return "standard error is none"
    if os.environ.get("TERM") in (None, "", "dumb"):
        return "TERM names one without colours"
    if os.environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    return "" if encoding.lower().startswith("utf") else f"its encoding {encoding} has no blocks"


def picture_room() -> tuple[int, int, bool]:
    """Return the columns and lines that a picture may have, and whether colours have 24 bits."""
    terminal = RichConsole(file=sys.stderr)
    is_full = terminal.color_system == "truecolor"
    return max(1, terminal.width - 1), max(1, terminal.height - 3), is_full


def _write(stream: TextIO | None, text: str) -> None:
    """Write and flush; a closed standard error must not end a run, a closed output must."""
    if stream is None:
        return
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        if stream is sys.stdout:
            raise


class Progress:
    """How far a video is: one live line on a terminal, a plain line each few seconds elsewhere.

    Args:
        total_seconds: length of the whole video in seconds; None or infinite for a stream
            without end.
        fps: frames in one second of the video.
        quiet: show nothing; times are measured all the same.
        is_made: whether the video is being made, so that the wait for its first frame matters.
        clock: the time in seconds; tests pass their own.
    """

    def __init__(
        self,
        total_seconds: float | None,
        fps: float,
        quiet: bool = False,
        *,
        is_made: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = None if total_seconds in (None, float("inf")) else total_seconds
        self._fps = fps
        self._quiet = quiet or _settings["quiet"] or _settings["typed"]
        self._is_made = is_made
        self._clock = clock
        self._is_live = _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._started = clock()
        self._marks: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] = (self._started, 0)
        self._shown_at = float("-inf")
        self._picture: list[str] = []
        self._lines_above = 0  # of the picture that is on the screen
        if self._is_live and not self._quiet:
            _live_line.append(self)

    @property
    def first_frame_seconds(self) -> float | None:
        """Seconds from the making of this object to the first frame; None before it."""
        return None if self._first is None else self._first[0] - self._started

    @property
    def frames_per_second(self) -> float | None:
        """Frames a second after the first ones arrived; None until there are two arrivals."""
        if self._first is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    @property
    def realtime_factor(self) -> float | None:
        """Seconds of video made in a second; above 1 the stream can be watched as it comes."""
        rate = self.frames_per_second
        return None if rate is None else rate / self._fps

    def update(self, frames: int, *, step_ms: float | None = None) -> None:
        """Say how far the video is.

        Args:
            frames: video frames done so far, in all.
            step_ms: milliseconds of one denoising step, shown with `--verbose`.
        """
        now = self._clock()
        self._last = (now, frames)
        if self._first is None and frames > 0:
            self._first = self._last
        self._marks.append(self._last)
        while now - self._marks[0][0] > _RECENT_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        pause = _LIVE_LINE_SECONDS if self._is_live else _PLAIN_LINE_SECONDS
        if not self._quiet and self._first is not None and now - self._shown_at >= pause:
            self._shown_at = now
            self._show(self._line(step_ms))

    def show_picture(self, lines: list[str]) -> None:
        """Show lines above the live line, from its next update on, as they are.

        Args:
            lines: made by this program alone, colours included; narrower than the terminal.
        """
        self._picture = lines

    def clear(self) -> None:
        """Take the live line away so that another line can be written in its place."""
        if self._shown_at > float("-inf"):
            self._shown_at = float("-inf")
            _write(sys.stderr, f"{self._up()}\x1b[J" if self._lines_above else "\r\x1b[2K")
            self._lines_above = 0

    def close(self) -> None:
        """End the live line; to be called on every way out."""
        if self in _live_line:
            self.clear()
            _live_line.remove(self)

    def _line(self, step_ms: float | None) -> str:
        """Return `12.5/60.0 s  15.9 FPS  1.0x realtime  first frame 0.62 s`."""
        done = self._last[1] / self._fps
        length = f"{done:.1f} s" if self._total is None else f"{done:.1f}/{self._total:.1f} s"
        parts = [length]
        (start, start_frames), (end, end_frames) = self._marks[0], self._marks[-1]
        if end > start:
            rate = (end_frames - start_frames) / (end - start)
            parts += [f"{rate:.1f} FPS", f"{rate / self._fps:.2f}x realtime"]
        if self._is_made and self.first_frame_seconds is not None:
            parts.append(f"first frame {self.first_frame_seconds:.2f} s")
        if step_ms is not None and _settings["verbose"]:
            parts.append(f"step {step_ms:.0f} ms")
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        """Write the line in place on a terminal, else as a line of its own."""
        if not self._is_live:
            _write(sys.stderr, line + "\n")
            return
        width = max(RichConsole(file=io.StringIO()).width - 1, 10)
        start = self._up() + "".join(f"{row}\x1b[K\n" for row in self._picture)
        self._lines_above = len(self._picture)
        _write(sys.stderr, start + "\r\x1b[2K" + set_cell_size(line, width).rstrip())

    def _up(self) -> str:
        """Return what moves the cursor to the start of the picture, or of the line."""
        return f"\r\x1b[{self._lines_above}A" if self._lines_above else ""


class _LogHandler(logging.Handler):
    """Say the library's log records."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        say = warn if record.levelno >= logging.WARNING else detail
        say(record.getMessage())
