"""A pipe, a FIFO or a device that takes video bytes as they are made.

Standard output is put aside before anything else can write to it: after `open_stdout` the process'
own file descriptor 1 is its standard error, so the pipe carries nothing but video. A write can be
given up, so that a signal ends the run although the reader has stopped reading. This file knows
bytes, never frames.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

from streamdit_cli.errors import OutputError, UsageError

__all__ = ["GaveUp", "Pipe", "is_direct", "open_direct", "open_stdout"]

# Seconds that a frame already begun may take beyond the time given to `Pipe.hurry`.
FRAME_GRACE = 0.5
# How often a blocked write looks at the clock, in seconds.
GLANCE = 0.1
# A ready pipe takes this many bytes without blocking; a file takes any number.
PIPE_STEP = getattr(select, "PIPE_BUF", 512)
FILE_STEP = 1 << 20
TERMINAL_HINT = "write a file: -o out.mp4; or play it: streamdit generate ... -o - | mpv -"


class GaveUp(Exception):
    """The reader did not take what was left in the time that a signal allowed."""


class Pipe:
    """An open descriptor that takes bytes in order.

    Args:
        descriptor: where to write; closed by `close`.
        name: what messages call it.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        self._deadline: float | None = None
        self._poll = _poll(descriptor)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._step = FILE_STEP if is_file or self._poll is None else PIPE_STEP

    @property
    def is_late(self) -> bool:
        """True when the time given to `hurry` is over: begin no further frame."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def hurry(self, seconds: float) -> None:
        """Give the reader this many seconds from now, and `FRAME_GRACE` for a frame begun."""
        self._deadline = time.monotonic() + seconds

    def write(self, data: bytes) -> int:
        """Write all of it, waiting for a slow reader.

        Raises:
            BrokenPipeError: the reader has closed its end.
            OSError: the device is full or failed.
            GaveUp: the time given to `hurry` is over.
        """
        rest = memoryview(data).cast("B")
        while rest:
            self._wait()
            rest = rest[os.write(self._descriptor, rest[: self._step]) :]
        return len(data)

    def close(self) -> None:
        """Close the descriptor; the reader sees the end of the video."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wait(self) -> None:
        """Return when some bytes can be written without blocking."""
        while self._poll is not None and not self._poll.poll(GLANCE * 1000):
            if self._deadline is not None and time.monotonic() >= self._deadline + FRAME_GRACE:
                raise GaveUp


def _poll(descriptor: int) -> select.poll | None:
    """A poll object for one descriptor; None where the platform has none (writes then block)."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


def open_stdout() -> Pipe:
    """Take standard output for video; whatever else writes to it afterwards goes to stderr.

    Raises:
        UsageError: standard output is a terminal.
        BrokenPipeError: standard output is closed.
    """
    try:
        descriptor = os.dup(1)
    except OSError as error:
        raise BrokenPipeError(errno.EPIPE, "standard output is closed") from error
    if os.isatty(descriptor):
        os.close(descriptor)
        raise UsageError("video cannot be written to a terminal", hint=TERMINAL_HINT)
    try:
        os.dup2(2, 1)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
    return Pipe(descriptor, "standard output")


def is_direct(path: Path) -> bool:
    """Whether a path names something that is there and takes bytes in order, not a file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def open_direct(path: Path) -> Pipe:
    """Open a FIFO or a character device; a FIFO waits here for its reader.

    Raises:
        UsageError: it is a terminal.
        OutputError: it cannot be opened for writing.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    if os.isatty(descriptor):
        os.close(descriptor)
        raise UsageError("video cannot be written to a terminal", hint=TERMINAL_HINT)
    return Pipe(descriptor, str(path))
