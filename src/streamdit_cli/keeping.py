"""The state of a stream beside its video: written on the way and at the end, and gone on from.

A state that is written holds exactly for the frames that are there: it is cut to the frame when the
video ends inside a chunk. It is written whole or not at all. What it is about (the words of the
command line that made it) stands in it, so that nothing needs to be said again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.errors import InputError, OutputError, UsageError
from streamdit_cli.part import remove_state, state_path
from streamdit_cli.video import probe

if TYPE_CHECKING:
    from streamdit_cli.live import LiveStream
    from streamdit_cli.segments import SegmentWriter
    from streamdit_cli.writer import Writer
    from streamdit_model.prompt_timeline import PromptEvent
    from streamdit_model.stream import Stream, VideoChunk
    from streamdit_model.stream_state import StreamState

__all__ = ["Keeping", "Kept", "StateKeeper", "read_kept", "state_at"]

# Chunks that may have left the stream and not reached the file: one in the encoder, one in its
# queue, one that waits for it, and one that was written last; and seconds of video that a full disk
# may cost beside them, since a file is whole up to its last key frame.
RECENT_CHUNKS = 4
RECENT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How a stream is kept, as the options say.

    Args:
        save_state: the file of the state.
        save_every: seconds of video between two writes of it.
        full_state: a rolling model's whole context is in it.
        segment: seconds of each file.
        metadata: whether a video says what it was made from.
        words: how the command line named the model and the size, to be found again in the state.
    """

    save_state: Path | None = None
    save_every: float | None = None
    full_state: bool = False
    segment: float | None = None
    metadata: bool = True
    words: Mapping[str, Any] = field(default_factory=dict)

    def keeps_part(self, kind: str) -> bool:
        """Whether a video of this kind can be gone on with by `--continue`.

        Raises:
            UsageError: the state is to be saved on the way, and there is no place for it.
        """
        from streamdit_cli.output import GROWING

        if self.save_every is None:
            return False
        if kind in GROWING and self.segment is None:
            return True
        if self.save_state is None:
            message = "--save-every alone needs one file that can be gone on with"
            raise UsageError(message, f"add --save-state FILE, or write {', '.join(GROWING)}")
        return False


@dataclass(frozen=True)
class Kept:
    """A state in a file: what it holds in short, and the state itself."""

    path: Path
    state: StreamState

    @property
    def settings(self) -> dict[str, Any]:
        """Seed, length, start, guidance and negative prompt of the stream."""
        return self.state[1]["settings"]

    @property
    def plan(self) -> dict[str, str]:
        """What decides about the bits beside seed, prompts and model."""
        return self.state[1]["plan"]

    @property
    def fingerprint(self) -> str:
        """The hash of the model; see `stream_state.model_fingerprint`."""
        return self.state[1]["model"]

    @property
    def about(self) -> dict[str, Any]:
        """What the command line was that made the stream."""
        return self.state[1]["about"]

    @property
    def num_frames(self) -> int:
        """Frames of the stream that were made."""
        return self.state[1]["frames"]

    @property
    def prompts(self) -> list[tuple[str, float]]:
        """The prompt that holds now and those to come, with their seconds in the stream."""
        events = self._events()
        now = [(prompt, 0.0) for prompt, _ in events[: self._applied()][-1:]]
        return now + events[self._applied() :]

    @property
    def history(self) -> list[tuple[str, float]]:
        """All prompts of the stream with their seconds."""
        return self._events()

    def _events(self) -> list[tuple[str, float]]:
        timeline = self.state[1]["timeline"]
        events = [*timeline["log"], *timeline["scripted"], *timeline["live"]]
        return [(event["prompt"] or "", event["seconds"]) for event in events]

    def _applied(self) -> int:
        cut = self.state[1]["timeline"]["cut"]
        return 0 if cut is None else cut["log_length"]

    def with_prompts(self, events: Sequence[PromptEvent], *, fps: float) -> StreamState:
        """Return the state with other prompts from here on.

        Args:
            events: each with its second from here.
            fps: frames a second.
        """
        tensors, record = self.state
        here = self.num_frames / fps
        moved = (replace(event, seconds=here + event.seconds) for event in events)
        scripted = [event.to_record() for event in moved]
        timeline = record["timeline"]
        timeline = {**timeline, "log": timeline["log"][: self._applied()], "live": []}
        return tensors, {**record, "timeline": {**timeline, "scripted": scripted}}


def read_kept(path: Path) -> Kept:
    """Read a state.

    Raises:
        InputError: it cannot be read.
        WeightsError: it is damaged or no state.
    """
    from streamdit_model.stream_state import load_state

    if not path.is_file():
        hint = "generate --save-state FILE writes one"
        raise InputError(f"there is no state {path}", hint)
    try:
        return Kept(path, load_state(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def state_at(num_frames: int, chunk: VideoChunk, state: StreamState) -> StreamState:
    """Return the state of a stream after so many frames.

    Args:
        num_frames: of the stream; all of those before the chunk and some or all of its own.
        chunk: of the stream.
        state: after it.
    """
    import torch

    tensors, record = state
    rest = chunk.frames[num_frames - chunk.first_frame :]
    if not len(rest):
        return state
    if "rest" in tensors:
        rest = torch.cat([rest, tensors["rest"]])
    record = {**record, "frames": num_frames, "rest_prompt": chunk.prompt}
    return {**tensors, "rest": rest.clone()}, record


class StateKeeper:
    """A watcher that writes the state of the stream.

    Args:
        path: of `--save-state`; None is nowhere.
        part: the video in the making, with the state that `--continue` goes on from beside it; None
            where there is none.
        seconds: of video between two writes; None is only at the end.
        older: the unfinished video that `part` goes on with; removed when that one holds more.
        overwrite: replace an existing file at `path`.

    Raises:
        OutputError: the file exists or its folder does not.
    """

    def __init__(
        self,
        path: Path | None,
        part: Path | None,
        seconds: float | None,
        *,
        older: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self._older = older
        self._path, self._part, self._seconds = path, part, seconds
        self._every: int | None = None
        self._recent: deque[tuple[VideoChunk, StreamState]] = deque()
        self._due: deque[tuple[int, StreamState]] = deque()
        self._due_part: deque[tuple[int, StreamState]] = deque()
        self._stream: Stream | LiveStream | None = None
        if path is not None and path.is_dir():
            raise OutputError(f"--save-state {path} is a folder, not a file name")
        if path is not None and not path.parent.is_dir():
            hint = f"make it first: mkdir -p {path.parent}"
            raise OutputError(f"--save-state {path}: its folder does not exist", hint)
        if path is not None and path.exists() and not overwrite:
            hint = "another name, or replace it with -y"
            raise OutputError(f"--save-state {path} exists", hint)

    def watch(
        self,
        stream: Stream | LiveStream,
        writer: Writer | SegmentWriter,
        about: Mapping[str, Any],
        first_frame: int,
    ) -> None:
        """Learn what is watched, before its first chunk.

        Args:
            stream: whose state is kept.
            writer: of its video.
            about: what is to be found in the state again, JSON-able.
            first_frame: of the stream in the video.
        """
        self._stream, self._writer, self._about = stream, writer, dict(about)
        self._first_frame = first_frame
        self._initial = stream.state()

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Learn the frames of a second."""
        self._fps = fps
        self._every = None if self._seconds is None else max(1, round(self._seconds * fps))

    def chunk(self, chunk: VideoChunk) -> None:
        """Take the state after a chunk."""
        assert self._stream is not None
        due = self._marks(chunk)
        if not due and self._path is None:
            return
        state = self._stream.state()
        if self._path is not None:
            self._recent.append((chunk, state))
            most = RECENT_CHUNKS + math.ceil(RECENT_SECONDS * self._fps / len(chunk.frames))
            while len(self._recent) > most:
                self._recent.popleft()
        for num_frames in due:
            pair = (num_frames, state_at(num_frames, chunk, state))
            self._due += [pair] if self._path is not None else []
            self._due_part += [pair] if self._part is not None else []

    def reached(self, num_frames: int) -> None:
        """Write what holds for the frames that are there."""
        while self._due and self._due[0][0] <= num_frames:
            self._write(self._path, self._due.popleft()[1])
        safe = 0 if self._stream is None else self._first_frame + self._writer.frames_kept
        while len(self._recent) > 1 and self._recent[1][0].first_frame < safe:
            self._recent.popleft()
        while self._due_part and self._due_part[0][0] <= safe:
            self._write(self._part and state_path(self._part), self._due_part.popleft()[1])

    def end(self) -> None:
        """Write the state at the end of the video; one for a part file that has its name goes.

        Raises:
            OutputError: the state cannot be written.
        """
        if self._stream is None:
            return
        if self._part is not None and not self._part.exists():
            self._remove_old(self._part)
        if self._path is None:
            return
        made = self._first_frame + self._writer.frames_kept
        state = self._final(made)
        if state is None:
            console.warn(f"--save-state {self._path}: the last frames are not known; older or none")
            return
        self._write(self._path, state)
        console.status(f"state after {made / self._fps:.1f} s of the stream -> {self._path}")

    def close(self) -> None:
        """Let go of the stream."""
        self._stream = None

    def _remove_old(self, part: Path) -> None:
        """Remove the states of a video that has its name, and the older video it goes on with."""
        remove_state(part)
        if self._older is None or not self._older.exists():
            return
        frames = probe(self._older).num_frames
        if self._writer.frames_kept < frames:
            console.warn(f"{self._older} stays: it holds {frames} frames, more than the new video")
            return
        self._older.unlink()
        remove_state(self._older)

    def _marks(self, chunk: VideoChunk) -> list[int]:
        """Return the frames, of those that a chunk ends or goes through, where states are due."""
        if self._every is None:
            return []
        first, every = chunk.first_frame - self._first_frame, self._every
        last = first + len(chunk.frames)
        marks = range((first // every + 1) * every, last + 1, every)
        return [self._first_frame + mark for mark in marks]

    def _final(self, made: int) -> StreamState | None:
        """Return the state after the frames that are there; None where it is not known any more."""
        if made == self._initial[1]["frames"]:
            return self._initial
        for chunk, state in self._recent:
            if chunk.first_frame < made <= chunk.first_frame + len(chunk.frames):
                return state_at(made, chunk, state)
        return None

    def _write(self, path: Path | None, state: StreamState) -> None:
        from streamdit_model.stream_state import save_state

        assert path is not None
        tensors, record = state
        try:
            save_state(path, (tensors, {**record, "about": self._about}))
        except OSError as error:
            raise OutputError(f"state {path}: {error.strerror or error}") from error
