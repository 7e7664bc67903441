"""The loop of a batch: one model for all items, a ledger line before and after each of them.

An item that fails is told and the rest goes on; a signal ends the video that is being made and the
batch; a full disk ends the batch, since nothing else could be kept either.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.batch_items import ITEM_WORD, Item, has_video, is_ours
from streamdit_cli.errors import OutputError, Stopped, TerminalError
from streamdit_cli.ledger import Entry, Ledger, read_ledgers
from streamdit_cli.loaded_model import LoadedModel
from streamdit_cli.part import part_path, remove_leftover
from streamdit_cli.producing import Target, produce
from streamdit_cli.records import LineFile
from streamdit_cli.signals import Signals
from streamdit_model.errors import StreamDiTError

if TYPE_CHECKING:
    from streamdit_cli.model_source import FolderModel
    from streamdit_cli.open_weights import OpenModel
    from streamdit_cli.shards import Shard

__all__ = ["BatchRun", "duration_words", "make_batch"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
_LONGEST_PROMPT = 60  # letters shown


def make_batch(run: BatchRun, shard: Shard, json_path: str | None) -> bool:
    """Make what a batch has left to do.

    Args:
        run: planned.
        shard: this process's share, which has a ledger of its own.
        json_path: of the records for programs.

    Returns:
        Whether all videos of the share are there now.

    Raises:
        OutputError: the folder, the ledger or the records cannot be written, or another process
            makes this share.
        Stopped: a signal came; the video that was being made is ended properly.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run.folder} cannot be made: {error.strerror}") from error
    with ExitStack() as stack:
        records = LineFile("--json", json_path, overwrite=run.overwrite)
        stack.callback(records.close)
        signals = stack.enter_context(Signals())
        ledger = stack.enter_context(Ledger(run.folder, shard))
        about = {"output": str(run.folder), "shard": str(shard), "videos": len(run.ours)}
        records.write({"record": "header", **about, "to_make": len(run.todo)})
        ended = "complete"
        try:
            run.run(ledger, records, signals)
        except BaseException as error:
            ended = signals.name or type(error).__name__
            if not isinstance(error, Stopped):
                raise
            hint = "the same command goes on"
            raise Stopped(error.signal_number, run.words, hint) from None
        finally:
            counts = {"there": run.there, "made": run.made, "failed": run.failed, "busy": run.busy}
            records.write(
                {"record": "summary", "ended": ended, **counts, "output": str(run.folder)}
            )
    console.summary(f"{run.words} in {run.folder}")
    if run.failed_before:
        console.hint(f"{run.failed_before} failed before: --retry-failed tries them again")
    return run.there == len(run.ours)


@dataclass(kw_only=True)
class BatchRun:
    """The making of items, one after another.

    Args:
        folder: of the batch.
        ours: the items of this share, named.
        entries: of the ledgers, as they were when the items were named.
        source: of the model.
        loading: device, dtype and threads, as for `producing.produce`.
        codec, overwrite, quiet, no_skip, retry_failed: as the options say.

    Attributes:
        todo: items to be made now.
        there: videos that are there, whole.
        made, failed, busy: items made, failed, and left to another process, in this run.
        failed_before: items left out since they failed in an earlier run.
    """

    folder: Path
    ours: Sequence[Item]
    entries: Mapping[str, Entry]
    source: FolderModel | OpenModel
    loading: Mapping[str, Any]
    codec: str | None = None
    overwrite: bool = False
    quiet: bool = False
    no_skip: bool = False
    retry_failed: bool = False
    made: int = 0
    failed: int = 0
    busy: int = 0

    def __post_init__(self) -> None:
        states = {item.index: self._state(item) for item in self.ours}
        self.todo = [item for item in self.ours if states[item.index] == "make"]
        self.failed_before = sum(state == "failed before" for state in states.values())
        self.there = sum(item.is_made for item in self.ours if item not in self.todo)
        self._model = LoadedModel(self.source, [item.plan.texts for item in self.todo])
        self._frames, self._seconds = 0, 0.0

    @property
    def words(self) -> str:
        """How far it is, in words."""
        parts = [f"{self.there} of {len(self.ours)} videos are there"]
        failed = self.failed + self.failed_before
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{self.busy} left to another process"] if self.busy else []
        return ", ".join(parts)

    def _state(self, item: Item) -> str:
        """Return whether an item is `there`, `failed before`, or one to `make`."""
        if self.no_skip:
            return "make"
        if item.is_made:
            return "there"
        entry = self.entries.get(item.key)
        has_failed = entry is not None and entry.state == "failed"
        return "failed before" if has_failed and not self.retry_failed else "make"

    def show(self) -> None:
        """Print what would be made, on standard output, and make nothing."""
        width = max((len(item.name) for item in self.ours), default=0)
        lines = [
            f"{self._state(item):<13} {item.name:<{width}}  {item.plan.seconds:.1f} s  "
            f"seed {item.plan.wishes.seed}  {_shortened(item.prompt)}"
            for item in self.ours
        ]
        console.result("\n".join(lines))
        count = f"{len(self.todo)} of {len(self.ours)} videos would be made in {self.folder}"
        console.plain(f"{count}; nothing was made (--dry-run)")

    def run(self, ledger: Ledger, records: LineFile, signals: Signals) -> None:
        """Make all items.

        Args:
            ledger: of this share.
            records: for programs; a line for each item.
            signals: the first one ends the video and the batch.

        Raises:
            Stopped: a signal came.
            OutputError: the disk is full.
            WeightsError, DeviceError: the model cannot be loaded.
        """
        if self.todo:
            first = self.todo[0].plan
            console.status("loading the model ...")
            self._model.load(prompts=first.texts, size=first.wishes.size, **self.loading)
        for number, item in enumerate(self.todo, 1):
            if signals.received:
                raise Stopped(signals.received, "")
            place = f"[{number}/{len(self.todo)}{self._rest_words(number)}]"
            seed = item.plan.wishes.seed
            console.status(f"{place} {item.name}: {_shortened(item.prompt)}, seed {seed}")
            self._make(item, ledger, records, signals)

    def _make(self, item: Item, ledger: Ledger, records: LineFile, signals: Signals) -> None:
        """Make one item, and note in ledger and records what became of it."""
        path, began = self.folder / item.name, time.monotonic()
        about = {"line": item.line, "seed": item.plan.wishes.seed, "prompt": item.prompt}

        def note(record: str, **more: object) -> None:
            took = {} if record == "begun" else {"took": round(time.monotonic() - began, 3)}
            ledger.write(record, item.key, item.name, {**about, **more, **took})
            if record != "begun":
                line = {"index": item.index, "output": str(path), **about, **more, **took}
                records.write({"record": "item", "ended": record, **line})

        try:
            replaces = self._prepare(item, path)
        except OutputError as error:
            self.busy += 1
            console.warn(f"{item.name} is left out: {error}")
            line = {"index": item.index, "output": str(path), **about, "error": str(error)}
            records.write({"record": "item", "ended": "busy", **line})
            return
        if replaces is None:
            self.there += 1
            console.status(f"{item.name} was made by another run meanwhile")
            return
        note("begun")
        self._model.said = {ITEM_WORD: item.key}
        target = Target(name=str(path), codec=self.codec, overwrite=replaces, quiet=self.quiet)
        try:
            produce(item.plan.wishes, self._model, target, self.loading, signals)
        except Stopped:
            note("stopped", bytes=_size(path))
            raise
        except (TerminalError, StreamDiTError) as error:
            if _has_no_room(error):
                note("stopped", bytes=_size(path))
                raise
            self.failed += 1
            note("failed", bytes=_size(path), error=str(error))
            console.error(f"{item.name} (line {item.line}): {error}", error.hint)
            return
        except Exception as error:
            note("failed", bytes=_size(path), error=f"{type(error).__name__}: {error}"[:500])
            raise
        self.made += 1
        self.there += 1
        self._frames += item.plan.num_frames or 0
        self._seconds += time.monotonic() - began
        note("done", bytes=_size(path), num_frames=item.plan.num_frames)

    def _prepare(self, item: Item, path: Path) -> bool | None:
        """Clear away what a killed run left of an item.

        Returns:
            Whether a file is to be replaced; None when another run made the video meanwhile.

        Raises:
            OutputError: another process is making it, or took its name.
        """
        part = part_path(path)
        if part.exists():
            remove_leftover(part)
        if item.is_made or not path.exists():
            return item.is_made
        entries = read_ledgers(self.folder)  # other shares write theirs all the time
        if has_video(item, entries, self.folder):
            return None
        if not self.overwrite and not is_ours(item, entries, self.folder):
            raise OutputError("a file of that name was made meanwhile")
        return True

    def _rest_words(self, number: int) -> str:
        """Say what failed so far and how long the rest will take, where that is known."""
        words = f", {self.failed} failed" if self.failed else ""
        if self._frames:
            frames = sum(item.plan.num_frames or 0 for item in self.todo[number - 1 :])
            words += f", about {duration_words(frames * self._seconds / self._frames)} left"
        return words


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[: _LONGEST_PROMPT - 3]}..."


def duration_words(seconds: float) -> str:
    """Return a time to wait in words: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has_no_room(error: Exception) -> bool:
    """Whether the disk, not the item, is at fault."""
    cause = error.__cause__
    is_full = isinstance(cause, OSError) and cause.errno in _NO_ROOM
    return isinstance(error, OutputError) and is_full
