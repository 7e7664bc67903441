"""What became of prompts: said to people, and kept beside the video as a script; watchers.

A change of prompt has two receipts: `applied`, with the first chunk it reaches, and `complete`,
with the first chunk made wholly under it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import InputError, OutputError
from streamdit_cli.records import LineFile, Records
from streamdit_cli.script import event_record

if TYPE_CHECKING:
    from streamdit_model.prompt_timeline import PromptEvent, Receipt
    from streamdit_model.stream import VideoChunk

__all__ = ["PromptLog", "Receipts", "prompt_log_path"]

# A larger video is not written anew only to hold its prompts; they stay in the file beside it.
# Choice: a signal must end a run within two seconds, and a slow disk writes 100 MB in one.
LARGEST_REWRITTEN = 100_000_000  # bytes


def prompt_log_path(video: str) -> Path:
    """Return the file of prompts beside a video: `out.mp4` has `out.prompts.jsonl`."""
    return Path(video).with_suffix(".prompts.jsonl")


class Receipts:
    """Says on standard error, and in the records, what became of every change of prompt; a watcher.

    Args:
        records: of the video.
        is_live: whether prompts come meanwhile; then the first one is said too, since somebody may
            have typed it.
        clock: the time in seconds; tests pass their own.
    """

    def __init__(
        self,
        records: Records | None = None,
        *,
        is_live: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._is_live = is_live
        self._clock = clock
        self._began = clock()
        self._changes: set[PromptEvent] = set()

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Start the clock."""
        self._began = self._clock()

    def chunk(self, chunk: VideoChunk) -> None:
        """Say the receipts of a chunk, but not those of the prompt it all began with."""
        for receipt in chunk.receipts:
            is_change = self._is_live or receipt.event.position != (-1, 0)
            if receipt.kind == "applied" and is_change:
                self._changes.add(receipt.event)
            if receipt.event in self._changes:
                self._say(receipt, chunk)
            if receipt.kind == "complete":  # and those before it are overtaken
                self._changes = {event for event in self._changes if _follows(event, receipt.event)}

    def _say(self, receipt: Receipt, chunk: VideoChunk) -> None:
        """Say and record one receipt."""
        wall = self._clock() - self._began
        words = receipt.event.prompt or "no prompt"
        console.status(
            f"prompt {receipt.kind} at {receipt.seconds:.1f} s of video, "
            f"{wall:.1f} s after the start: {words}"
        )
        if self._records is not None:
            about = {"kind": receipt.kind, "seconds": receipt.seconds, "chunk": receipt.chunk}
            times = {"wall_seconds": round(wall, 3), "time": round(time.time(), 3)}
            event = receipt.event.to_record()
            event["at"] = event.pop("seconds")
            self._records.prompt({**about, **times, **event}, chunk.first_frame)

    def reached(self, num_frames: int) -> None:
        """Nothing: what was made is said."""

    def end(self) -> None:
        """Nothing is left to say."""

    def close(self) -> None:
        """Nothing is held."""


def _follows(event: PromptEvent, other: PromptEvent) -> bool:
    """Whether an event that was applied came after another one."""
    return (event.position or (-1, 0)) > (other.position or (-1, 0))


class PromptLog:
    """Writes the prompts of a live video beside it, one line each as it is applied; a watcher.

    The file is a script: with it the same frames are made again.

    Args:
        video: the file of the video.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists or cannot be written.
    """

    def __init__(self, video: str, *, overwrite: bool) -> None:
        self._path = prompt_log_path(video)
        self._file = LineFile("the prompts", str(self._path), overwrite=overwrite)
        self._events: list[PromptEvent] = []

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Nothing has to be known."""

    def chunk(self, chunk: VideoChunk) -> None:
        """Write the prompts that were applied with a chunk."""
        for receipt in chunk.receipts:
            if receipt.kind == "applied":
                self._events.append(receipt.event)
                self._file.write(event_record(receipt.event))

    def reached(self, num_frames: int) -> None:
        """Nothing: a script may know more than the video shows."""

    def end(self) -> None:
        """Nothing is left to write."""

    def close(self) -> None:
        """Close the file, and remove it where it holds nothing."""
        self._file.close()
        if not self._events:
            self._path.unlink(missing_ok=True)

    def embed(self, video: Path) -> None:
        """Put the prompts into a finished video; where that cannot be, say so and leave it.

        Args:
            video: complete, under its final name.
        """
        from streamdit_cli.plan import timeline_words
        from streamdit_cli.video import probe, rewrite_metadata

        if not self._events:
            return
        try:
            if video.stat().st_size > LARGEST_REWRITTEN:
                console.status(f"{video} is large: its prompts are in {self._path} only")
                return
            record = probe(video).record
            record["prompt"] = " | ".join(event.prompt or "" for event in self._events)
            pairs = [(event.prompt or "", event.seconds) for event in self._events]
            record["prompts"] = json.dumps(pairs)
            record["timeline"] = timeline_words(self._events)
            rewrite_metadata(video, record)
        except (OSError, InputError, OutputError) as error:
            console.warn(f"the prompts stay in {self._path} only: {error}")
