"""A stream that is spoken to while it runs: every line is its new prompt, `:words` are commands.

The lines come from threads of their own (`line_source.py`); a prompt goes to the stream at once,
and what has to happen between two chunks is done by the thread that reads the stream.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import TerminalError, UsageError
from streamdit_cli.line_source import LineSource
from streamdit_cli.prompts import check_prompt
from streamdit_cli.schema import nearest
from streamdit_model.errors import ConfigError
from streamdit_model.prompt_timeline import PromptEvent

if TYPE_CHECKING:
    from streamdit_model.stream import Stream, VideoChunk
    from streamdit_model.stream_state import StreamState

__all__ = ["COMMANDS", "LiveStream"]

COMMANDS = {
    ":help": "this list",
    ":pause": "make no more frames for now",
    ":resume": "go on",
    ":save FILE": "save the state of the stream as it is after the last chunk",
    ":stats": "how far the video is, how fast, and under which prompt",
    ":quit": "end the video properly",
}
# Prompts that wait for their turn, before no more lines are read.
MOST_WAITING = 8
_GLANCE = 0.05  # seconds


class LiveStream:
    """A stream and those who speak to it; to be read like the stream itself, in one thread.

    Where all sources have ended and the stream has no end of its own, it ends after the last
    prompt has been applied, since nothing else would end it.

    Args:
        stream: not read yet.
        fps: frames a second.
        is_endless: whether the stream has no end of its own.
        transition, transition_seconds: of the prompts that come; None is as in `PromptEvent`.
        is_truncated: whether the model reads only a part of a prompt.
        is_stopping: whether a signal has come.
        clock: the time in seconds.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        fps: float,
        is_endless: bool,
        transition: str | None = None,
        transition_seconds: float | None = None,
        is_truncated: Callable[[str], bool] = lambda prompt: False,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._fps = fps
        self._is_endless = is_endless
        said = {"transition": transition, "transition_seconds": transition_seconds}
        self._how = {key: value for key, value in said.items() if value is not None}
        self._is_truncated = is_truncated
        self._is_stopping = is_stopping
        self._clock = clock
        self._began = clock()
        self._sources: list[LineSource] = []
        self._open_sources = 0
        self._waiting: deque[str] = deque()  # prompts that were not applied yet
        self._saves: deque[Path] = deque()
        self._is_paused = False
        self._is_over = False
        self._last: VideoChunk | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=9)

    @property
    def plan(self) -> dict[str, str]:
        """As of the stream."""
        return self._stream.plan

    def log(self) -> list[PromptEvent]:
        """As of the stream."""
        return self._stream.log()

    def state(self) -> StreamState:
        """As of the stream."""
        return self._stream.state()

    def listen(self, names: Sequence[str]) -> None:
        """Begin to take lines from places, see `LineSource`."""
        for name in names:
            source = LineSource(
                name,
                on_line=self.hear,
                on_end=self._one_ended,
                on_problem=lambda words: console.warn(words),
            )
            self._sources.append(source)
        self._open_sources = len(self._sources)
        for source in self._sources:
            source.start()

    def __iter__(self) -> LiveStream:
        return self

    def __next__(self) -> VideoChunk:
        """Return the next chunk; waits while paused."""
        self._save_all()
        while self._is_paused and not self._has_ended():
            time.sleep(_GLANCE)
            self._save_all()
        if self._has_ended():
            self.close()
            raise StopIteration
        chunk = next(self._stream)
        self._last = chunk
        self._marks.append((self._clock(), chunk.first_frame + len(chunk.frames)))
        for receipt in chunk.receipts:
            words = receipt.event.prompt
            if receipt.kind == "applied" and self._waiting and self._waiting[0] == words:
                self._waiting.popleft()
        return chunk

    def close(self) -> None:
        """End the stream, and listen no more."""
        self._is_over = True
        for source in self._sources:
            source.stop()
        self._stream.close()

    def hear(self, line: str) -> None:
        """Take one line: a prompt, or a command; waits while many prompts wait."""
        if line.startswith(":"):
            self._obey(line)
            return
        try:
            prompt = check_prompt(line, UsageError, "the prompt")
            event = PromptEvent(prompt, **self._how)
            if self._is_truncated(prompt):
                console.warn(f"the model reads only a part of the prompt {prompt!r}")
        except (TerminalError, ConfigError) as error:
            console.warn(f"{error}; the prompt stays as it is")
            return
        while len(self._waiting) >= MOST_WAITING and not self._has_ended():
            time.sleep(_GLANCE)
        self._waiting.append(prompt)  # before the stream has it, since its receipt may come at once
        try:
            self._stream.prompt(event)
        except RuntimeError:
            if not self._is_over:  # else the stream was closed meanwhile, and nobody waits for it
                raise

    def _obey(self, line: str) -> None:
        """Do what a command says, or note it for the thread that reads the stream."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        known = [form.split()[0] for form in COMMANDS]
        if word not in known:
            console.warn(f"there is no command {word}; {nearest(word, known)}")
        elif (word == ":save") != bool(rest):
            console.warn(f"{word} takes {'the name of a file' if word == ':save' else 'no words'}")
        elif word == ":save":
            self._saves.append(Path(rest))
        elif word in (":pause", ":resume"):
            self._is_paused = word == ":pause"
            console.status("paused; :resume goes on" if self._is_paused else "going on")
        elif word == ":quit":
            self._is_over = True
        elif word == ":stats":
            console.plain(self._stats())
        else:
            console.plain("every line is the new prompt, and these are commands:")
            for form, meaning in COMMANDS.items():
                console.plain(f"  {form:<11} {meaning}")

    def _stats(self) -> str:
        """Return `12.5 s of video, 16.0 FPS (1.00x realtime), under 'a red star'`."""
        chunk = self._last
        if chunk is None:
            return "no frame has been made yet"
        frames = chunk.first_frame + len(chunk.frames)
        parts = [f"{frames / self._fps:.1f} s of video in {self._clock() - self._began:.1f} s"]
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        if end > start:
            rate = (last - first) / (end - start)
            parts.append(f"{rate:.1f} FPS ({rate / self._fps:.2f}x realtime)")
        parts.append("without a prompt" if chunk.prompt is None else f"under {chunk.prompt!r}")
        if self._waiting:
            parts.append(f"{len(self._waiting)} prompts wait")
        return ", ".join([*parts, "paused"] if self._is_paused else parts)

    def _save_all(self) -> None:
        """Save the states that were asked for; what cannot be saved is said and ends nothing."""
        while self._saves:
            path = self._saves.popleft()
            if self._last is None:
                console.warn(f"{path}: no frame has been made yet, so there is no state")
                continue
            if path.exists() or path.is_symlink():
                console.warn(f"{path} exists; no state was saved")
                continue
            try:
                self._stream.save_state(path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                console.warn(f"{path} cannot be written: {reason}")
                continue
            frames = self._last.first_frame + len(self._last.frames)
            console.status(f"the state after {frames / self._fps:.1f} s is saved in {path}")

    def _one_ended(self) -> None:
        """Note that a source has ended."""
        self._open_sources -= 1
        if self._open_sources == 0:
            how = (
                "the video ends, as nothing else would end it" if self._is_endless else "it goes on"
            )
            console.status(f"no more prompts can come: {how}")

    def _has_ended(self) -> bool:
        """Whether no further chunk is wanted."""
        is_left_alone = bool(self._sources) and self._open_sources == 0 and self._is_endless
        is_done = is_left_alone and not self._waiting
        return self._is_over or is_done or self._is_stopping()
