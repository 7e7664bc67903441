"""How far a download is, in our own words and in place of the Hub library's bars."""

from __future__ import annotations

from typing import Any

from streamdit_cli.cache import size_words
from streamdit_cli.console import Progress

__all__ = ["Transfer", "bar_class"]


class Transfer(Progress):
    """Bytes that have arrived: `3.2 GB of 14.7 GB  85.1 MB/s  2:15 left`.

    Args:
        total: bytes of all files.
    """

    def __init__(self, total: int) -> None:
        super().__init__(None, 1.0)
        self._bytes = total
        self._done = 0

    @property
    def done(self) -> int:
        """Bytes that have arrived so far."""
        return self._done

    def add(self, count: float) -> None:
        """Say that bytes have arrived, or, with a negative number, that some were lost."""
        self._done += int(count)
        self.update(max(self._done, 1))

    def _line(self, step_ms: float | None) -> str:
        """Return the line; a time only once there is a rate."""
        del step_ms
        parts = [f"{size_words(self._done)} of {size_words(self._bytes)}"]
        (start, before), (end, now) = self._marks[0], self._marks[-1]
        if end > start and now > before:
            rate = (now - before) / (end - start)
            left = max(0, int((self._bytes - self._done) / rate))
            minutes, seconds = divmod(left, 60)
            parts += [f"{size_words(int(rate))}/s", f"{minutes}:{seconds:02d} left"]
        return "  ".join(parts)


def bar_class(transfer: Transfer) -> type:
    """Return a class that the Hub's library can use as a progress bar; all of them feed one line.

    Args:
        transfer: what counts.
    """

    class Bar:
        """What the library calls of a progress bar, and no more."""

        def __init__(self, *_: Any, initial: float = 0, total: float | None = None, **__: Any):
            self.n = initial
            self.total = total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            """Count bytes that are on the disk."""
            self.n += n or 0
            transfer.add(n or 0)

        def update_transfer(self, n: float) -> None:
            """Bytes on the wire are not shown: they may be fewer, where blocks are known."""

        def set_postfix_str(self, *_: object, **__: object) -> None:
            """Speed is computed here."""

        set_transfer_postfix_str = set_postfix_str
        refresh = set_description = set_description_str = close = set_postfix_str

    return Bar
