"""Lines that somebody types or writes while a video is made: a terminal, a FIFO, a growing file.

A thread reads them and hands each over as text; it looks at its place often enough to end within a
moment, and holds no lock that could keep the process from ending. Lines that are no text, or are
far too long, are named and left out. The terminal's own settings are never touched.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from streamdit_cli.errors import InputError, UsageError

__all__ = ["LineSource", "check_line_source"]

LONGEST_LINE = 64 * 1024  # bytes
STANDARD_INPUT = "-"
# How often a place without new bytes is looked at, in seconds.
_GLANCE = 0.1
_STEP = 1 << 16


def check_line_source(name: str) -> None:
    """Refuse a place that lines cannot come from, before anything is loaded.

    Args:
        name: a FIFO, a device, a file that grows, or `-` for standard input.

    Raises:
        UsageError: standard input is closed.
        InputError: there is nothing of that name, or it is a folder.
    """
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise UsageError("standard input is closed, so no prompt can come from it")
        return
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = f"make it first: mkfifo {name}"
        raise InputError(f"prompts cannot come from {name}: {reason}", hint) from error
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise InputError(f"prompts cannot come from {name}: it is neither a FIFO nor a file")


class LineSource:
    """Hands over the lines of one place as they come, from a thread of its own.

    A FIFO whose writer has gone waits for the next one, and one that was made anew is opened anew.
    Of the lines that a file holds at the beginning only the last one counts; it is then followed as
    it grows, and read from its start again when it was cut.

    Args:
        name: as in `check_line_source`.
        on_line: takes a line without its end; may wait, and then nothing more is read.
        on_end: told that nothing more will come, which only standard input says.
        on_problem: told in words what was left out.
    """

    def __init__(
        self,
        name: str,
        *,
        on_line: Callable[[str], None],
        on_end: Callable[[], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._name = name
        self._on_line, self._on_end, self._on_problem = on_line, on_end, on_problem
        self._is_stopping = threading.Event()
        self._rest = b""
        self._is_too_long = False
        self._thread = threading.Thread(target=self._run, name="prompts", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more; what waits for a line on another system ends with the process."""
        self._is_stopping.set()

    def _run(self) -> None:
        """The thread."""
        try:
            if self._name == STANDARD_INPUT:
                self._read_stdin()
            else:
                self._follow(Path(self._name))
        except (OSError, ValueError) as error:
            self._on_problem(f"no more prompts come from {self._name}: {error}")
        if not self._is_stopping.is_set():
            self._on_end()

    def _read_stdin(self) -> None:
        """Read standard input to its end."""
        descriptor = sys.stdin.fileno()
        while self._wait(descriptor):
            data = os.read(descriptor, _STEP)
            if not data:
                self._finish_line()
                return
            self._take(data)

    def _follow(self, path: Path) -> None:
        """Read what is at a path as it comes, until stopped."""
        descriptor = self._open(path)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._take_last_line(descriptor)
            while not self._is_stopping.is_set():
                data = os.read(descriptor, _STEP) if self._wait(descriptor) else b""
                if data:
                    self._take(data)
                    continue
                is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
                if not is_file:  # the writer has gone, so a line that it began has no end
                    self._finish_line()
                elif os.fstat(descriptor).st_size < os.lseek(descriptor, 0, os.SEEK_CUR):
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    self._rest = b""
                self._is_stopping.wait(_GLANCE)
                if not _is_same(path, descriptor) and path.exists():
                    os.close(descriptor)
                    descriptor = self._open(path)
                    self._rest = b""
        finally:
            os.close(descriptor)

    def _open(self, path: Path) -> int:
        """Open without waiting for a writer."""
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))

    def _wait(self, descriptor: int) -> bool:
        """Return when there are bytes or an end to read; False when stopped."""
        if not hasattr(select, "poll"):
            return not self._is_stopping.is_set()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not self._is_stopping.is_set():
            if poll.poll(_GLANCE * 1000):
                return True
        return False

    def _take_last_line(self, descriptor: int) -> None:
        """Hand over the last line that a file already holds."""
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(0, size - LONGEST_LINE), os.SEEK_SET)
        data = bytearray()
        while part := os.read(descriptor, _STEP):
            data += part
        *lines, self._rest = bytes(data).split(b"\n")
        spoken = [line for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
        if spoken and not spoken[-1].lstrip().startswith(b":"):
            self._hand_over(spoken[-1])

    def _take(self, data: bytes) -> None:
        """Hand over the lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._is_too_long:  # its end: what was too long is over
                self._is_too_long = False
            else:
                self._hand_over(line)
        if len(self._rest) > LONGEST_LINE:
            if not self._is_too_long:
                self._on_problem(f"a line of more than {LONGEST_LINE} bytes was left out")
            self._rest, self._is_too_long = b"", True

    def _finish_line(self) -> None:
        """Hand over a line that has no end."""
        rest, self._rest = self._rest, b""
        if rest and not self._is_too_long:
            self._hand_over(rest)
        self._is_too_long = False

    def _hand_over(self, line: bytes) -> None:
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            self._on_problem("a line that is not UTF-8 text was left out")
            return
        if text and not text.startswith("#") and not self._is_stopping.is_set():
            self._on_line(text)


def _is_same(path: Path, descriptor: int) -> bool:
    """Whether a path still means an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
