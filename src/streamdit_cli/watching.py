"""What looks at a video while it is made, beside its writer: watchers, opened before the model.

A watcher gets the frames of every chunk, is told which of them reached their place, and is ended at
every ordered end. What it holds open is let go of on every way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from streamdit_cli.errors import UsageError

if TYPE_CHECKING:
    from streamdit_cli.console import Progress
    from streamdit_cli.records import Records
    from streamdit_model.stream import VideoChunk

__all__ = ["Watcher", "Watchers", "open_watchers"]


class Watcher(Protocol):
    """Looks at one video."""

    def begin(self, fps: float, progress: Progress) -> None:
        """Learn the frames of a second and where the progress is shown."""

    def chunk(self, chunk: VideoChunk) -> None:
        """Look at a chunk as it left the stream."""

    def reached(self, num_frames: int) -> None:
        """Learn that the first frames of the video have reached the file or the reader."""

    def end(self) -> None:
        """Finish, after the last frame that will reach the file or the reader."""

    def close(self) -> None:
        """Let go of everything; called on every way out, also when nothing was begun."""


class Watchers:
    """Several watchers as one; a context manager that closes them all.

    Args:
        watchers: each open already.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)

    def add(self, watcher: Watcher) -> None:
        """Take one more, which is open already and closed with the others."""
        self._watchers = (*self._watchers, watcher)

    def begin(self, fps: float, progress: Progress) -> None:
        """Begin all of them."""
        for watcher in self._watchers:
            watcher.begin(fps, progress)

    def chunk(self, chunk: VideoChunk) -> None:
        """Show a chunk to all of them."""
        for watcher in self._watchers:
            watcher.chunk(chunk)

    def reached(self, num_frames: int) -> None:
        """Tell all of them how many frames have reached their place."""
        for watcher in self._watchers:
            watcher.reached(num_frames)

    def end(self, num_frames: int) -> None:
        """End all of them, though one may fail; the error of the first one is raised.

        Args:
            num_frames: that reached the file or the reader in the end.
        """
        with ExitStack() as stack:
            for watcher in reversed(self._watchers):
                stack.callback(watcher.end)
                stack.callback(watcher.reached, num_frames)

    def __enter__(self) -> Watchers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.callback(watcher.close)


def open_watchers(
    *,
    health: str | None,
    contact_sheet: str | None,
    preview: bool,
    quiet: bool,
    overwrite: bool,
    records: Records | None = None,
    prompt_log: Watcher | None = None,
    is_live: bool = False,
) -> Watchers:
    """Open what the options of a command ask for.

    Args:
        health: where the records of `--health` go.
        contact_sheet: the file of `--contact-sheet`.
        preview: whether pictures are shown in the terminal.
        quiet: whether nothing is shown there.
        overwrite: replace existing files.
        records: where receipts of prompts go, beside standard error.
        prompt_log: keeps the prompts of a live video; open already.
        is_live: whether prompts come while the video is made.

    Raises:
        UsageError: a preview that cannot be shown, or a sheet that is no PNG.
        OutputError: a file exists or cannot be written.
    """
    from streamdit_cli.contact_sheet import ContactSheet
    from streamdit_cli.health_log import HealthLog
    from streamdit_cli.preview import Preview
    from streamdit_cli.receipts import Receipts

    watchers: list[Watcher] = [Receipts(records, is_live=is_live)]
    if prompt_log is not None:
        watchers.append(prompt_log)
    try:
        if preview and quiet:
            raise UsageError("--preview and --quiet exclude each other")
        if preview:
            watchers.append(Preview())
        if health is not None:
            watchers.append(HealthLog(health, overwrite=overwrite))
        if contact_sheet is not None:
            watchers.append(ContactSheet(contact_sheet, overwrite=overwrite))
    except BaseException:
        with Watchers(watchers):
            raise
    return Watchers(watchers)
