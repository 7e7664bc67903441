"""The errors of the terminal: user files, output, downloads and signals.

`app.main` is the only place that turns any error into an exit code.
"""

from __future__ import annotations

__all__ = [
    "DownloadError",
    "InputError",
    "MissingWeights",
    "OutputError",
    "Stopped",
    "TerminalError",
    "UsageError",
    "is_out_of_memory",
]


class TerminalError(Exception):
    """Base of the command line's own errors.

    Args:
        message: one line, what is wrong and what is allowed.
        hint: one line, what to type next; empty when there is nothing to add.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(TerminalError):
    """An option with a value that is not allowed: exit code 2."""


class InputError(TerminalError):
    """An input video or a prompt file that cannot be read: exit code 4."""


class DownloadError(TerminalError):
    """A download that was refused, is offline or has the wrong checksum: exit code 5."""


class MissingWeights(TerminalError):
    """A model that is known by name but has no weights on this machine: exit code 5."""


class OutputError(TerminalError):
    """An output that exists, is locked, or cannot be written: exit code 6."""


class Stopped(TerminalError):
    """The run was ended by a signal; what was made is kept: exit code 128 + signal."""

    def __init__(self, signal_number: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a CPU torch says so only in the words of a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
