"""Which prompt every latent frame sees at every micro step, and what is reported about it.

A timeline takes prompt events, scripted or live, applies each between two micro steps, and answers
for the frames present: which prompts, and with what weight. It knows no tensors and starts no
threads. A position is (chunk, micro step): the number of the chunk that is emitted next, and the
step within its cycle; chunk -1 is the warm-up, whose steps are counted from the stream's start.

Paper: section 8 and Fig. 11 (the prompt callback), Fig. 12 (a change in the middle of a stream).
Choice: three transitions where the paper has one (`replace`), and a log of positions, so that a
live session can be played again exactly.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from streamdit_model.errors import ConfigError

__all__ = ["TRANSITIONS", "FramePrompts", "PromptEvent", "PromptTimeline", "Receipt"]

TRANSITIONS = ("replace", "chunks", "blend")
START = (-1, 0)  # position of the first micro step of a stream
_NO_EVENT = -1  # serial of the frames made before any event
_MIXED = -2  # owner of a chunk that saw more than one event


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """A change of prompt.

    Args:
        prompt: the words; None is no prompt.
        seconds: video time of a scripted event; it applies at the cycle whose emitted chunk starts
            at or after it. Not used of a live event, which applies as soon as it is encoded.
        transition: `replace` changes the prompt of the whole buffer, `chunks` that of the frames
            not yet begun, `blend` moves the whole buffer over, one step a chunk. At second 0
            nothing has been made, so every transition is a replacement.
        transition_seconds: length of a blend in seconds of video; 0 is a replacement.
        position: (chunk, micro step) at which the event was applied, as in a log; it wins over
            `seconds`, so that a log can be played again exactly.

    Raises:
        ConfigError: an empty prompt, an unknown transition, or a time that is not 0 or more.
    """

    prompt: str | None
    seconds: float = 0.0
    transition: str = "replace"
    transition_seconds: float = 2.0
    position: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError("the prompt is empty", hint="use None for no prompt")
        if self.transition not in TRANSITIONS:
            raise ConfigError(
                f"transition {self.transition!r} is not one of {', '.join(TRANSITIONS)}"
            )
        for name in ("seconds", "transition_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value} of a prompt event is not 0 or more")
        if self.position is not None:
            chunk, micro_step = (int(number) for number in self.position)
            if chunk < -1 or micro_step < 0:
                raise ConfigError(f"position {self.position} of a prompt event is before the start")
            object.__setattr__(self, "position", (chunk, micro_step))

    def to_record(self) -> dict[str, Any]:
        """Return the event as a JSON-able record; `PromptEvent(**record)` is its inverse."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a prompt event, reported with the chunk at which it holds.

    Args:
        event: the event, with its position.
        kind: `applied`, with the next chunk to be emitted when the event took effect; `complete`,
            with the first chunk denoised wholly under its prompt. An event that is overtaken by
            another one is never complete.
        chunk: number of that chunk.
        seconds: video time at which that chunk starts.
    """

    event: PromptEvent
    kind: Literal["applied", "complete"]
    chunk: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FramePrompts:
    """The prompts that the frames of a window see at one micro step.

    Args:
        prompts: the distinct prompts seen, None for no prompt.
        first: index into `prompts` of every frame.
        second: index of the prompt that a blend moves to; None outside a blend.
        weight: share of `second` in [0, 1).
    """

    prompts: tuple[str | None, ...]
    first: tuple[int, ...]
    second: int | None = None
    weight: float = 0.0


class PromptTimeline:
    """Prompt events in, the prompt of every frame out.

    One thread advances a timeline; others may add live events and take its record.

    Args:
        events: scripted events; one with a position applies exactly there, the others by time.
        chunk_seconds: length of an emitted chunk in seconds of video.
        missing_seconds: by how much the first chunk is shorter than the others.
    """

    def __init__(
        self,
        events: Sequence[PromptEvent],
        *,
        chunk_seconds: float,
        missing_seconds: float = 0.0,
    ) -> None:
        self._chunk_seconds = chunk_seconds
        self._missing_seconds = missing_seconds
        self._lock = threading.Lock()
        self._scripted = deque(sorted(events, key=self._due))
        self._live: deque[PromptEvent] = deque()
        self._log: list[PromptEvent] = []
        # (first frame, serial of its event), oldest first; the first one reaches back for ever
        self._segments: list[tuple[int, int]] = [(0, _NO_EVENT)]
        self._blend: tuple[int, int, int] | None = None  # serial, first cycle, steps
        self._weight = 0.0
        self._owners: dict[int, int] = {}  # first frame of a chunk -> the one event it saw
        self._applied: list[int] = []
        self._incomplete: list[int] = []

    def add(self, event: PromptEvent) -> None:
        """Add a live event, to be applied as soon as its prompt is encoded."""
        with self._lock:
            self._live.append(event)

    def log(self) -> list[PromptEvent]:
        """Return the events applied so far, each with its position, in order."""
        with self._lock:
            return list(self._log)

    def upcoming(self, count: int) -> list[str | None]:
        """Return the prompts of the next scripted events, so that they can be encoded ahead."""
        with self._lock:
            return [event.prompt for event in list(self._scripted)[:count]]

    def advance(
        self,
        position: tuple[int, int],
        fresh_frame: int,
        *,
        is_ready: Callable[[str | None], bool],
        wait: Callable[[str | None], object],
    ) -> None:
        """Apply what is due before the micro step at a position.

        Args:
            position: (chunk, micro step); never earlier than the last one.
            fresh_frame: the first latent frame that no micro step has touched yet.
            is_ready: says whether a prompt is encoded; live events wait for their turn.
            wait: returns once a prompt is encoded; the stream waits for scripted events.
        """
        self._move_blend(position)
        while self._scripted and self._due(self._scripted[0]) <= position:
            wait(self._scripted[0].prompt)
            self._apply(self._scripted, position, fresh_frame)
        while self._live and is_ready(self._live[0].prompt):
            self._apply(self._live, position, fresh_frame)

    def observe(self, chunks: Sequence[int]) -> None:
        """Note that a micro step was made of these chunks under the prompts of now.

        Args:
            chunks: first latent frame of each chunk whose latents the step makes.
        """
        for frame in chunks:
            serial = _MIXED if self._blend is not None else self._serial(frame)
            if self._owners.setdefault(frame, serial) != serial:
                self._owners[frame] = _MIXED

    def view(self, first_frame: int, num_frames: int) -> FramePrompts:
        """Return what the frames of a window see now; earlier frames are forgotten."""
        while len(self._segments) > 1 and self._segments[1][0] <= first_frame:
            del self._segments[0]
        frames = range(first_frame, first_frame + num_frames)
        seen = [self._prompt(self._serial(frame)) for frame in frames]
        blended = [] if self._blend is None else [self._prompt(self._blend[0])]
        prompts = tuple(dict.fromkeys(seen + blended))
        first = tuple(prompts.index(prompt) for prompt in seen)
        if not blended:
            return FramePrompts(prompts, first)
        return FramePrompts(prompts, first, prompts.index(blended[0]), self._weight)

    def emit(self, chunk: int, first_frame: int) -> tuple[str | None, list[Receipt]]:
        """Close the cycle of a chunk: the prompt it was made under, and what holds from it on.

        Args:
            chunk: its number.
            first_frame: its first latent frame.

        Returns:
            The prompt with the most weight at its last micro step, and the receipts.
        """
        owner = self._owners.pop(first_frame, _MIXED)
        receipts = [self._receipt(serial, "applied", chunk) for serial in self._applied]
        self._applied.clear()
        if owner in self._incomplete:
            receipts.append(self._receipt(owner, "complete", chunk))
            self._incomplete = [serial for serial in self._incomplete if serial > owner]
        blended = self._blend is not None and self._weight >= 0.5
        serial = self._blend[0] if self._blend and blended else self._serial(first_frame)
        return self._prompt(serial), receipts

    def cut(self) -> dict[str, Any]:
        """Return what is needed to go on between two cycles, JSON-able, of constant size."""
        return {
            "segments": [list(segment) for segment in self._segments],
            "blend": None if self._blend is None else list(self._blend),
            "owners": [list(owner) for owner in self._owners.items()],
            "incomplete": list(self._incomplete),
            "log_length": len(self._log),
        }

    def record(self, cut: dict[str, Any] | None) -> dict[str, Any]:
        """Return a JSON-able record of the timeline at an earlier cut.

        Events applied since then stay in it with their positions, the others as they are.

        Args:
            cut: what `cut` returned at that place; None for the start of the stream.
        """
        with self._lock:
            events = {"log": self._log, "scripted": self._scripted, "live": self._live}
            records = {name: [e.to_record() for e in group] for name, group in events.items()}
        return {"cut": cut, **records}

    @classmethod
    def from_record(
        cls, record: dict[str, Any], *, chunk_seconds: float, missing_seconds: float = 0.0
    ) -> PromptTimeline:
        """Return the timeline that goes on from a record."""
        log, scripted, live = (
            [PromptEvent(**event) for event in record[name]] for name in ("log", "scripted", "live")
        )
        cut = record["cut"]
        applied = 0 if cut is None else cut["log_length"]
        timeline = cls(
            log[applied:] + scripted, chunk_seconds=chunk_seconds, missing_seconds=missing_seconds
        )
        timeline._live.extend(live)
        timeline._log = log[:applied]
        if cut is not None:
            timeline._segments = [(frame, serial) for frame, serial in cut["segments"]]
            timeline._blend = None if cut["blend"] is None else tuple(cut["blend"])
            timeline._owners = dict(cut["owners"])
            timeline._incomplete = list(cut["incomplete"])
        return timeline

    def _due(self, event: PromptEvent) -> tuple[int, int]:
        """Return the first position at which a scripted event applies."""
        if event.position is not None:
            return event.position
        if event.seconds == 0:
            return START
        chunks = (event.seconds + self._missing_seconds) / self._chunk_seconds
        return math.ceil(chunks - 1e-9), 0

    def _starts_at(self, chunk: int) -> float:
        """Return the video time at which a chunk starts."""
        return max(0.0, chunk * self._chunk_seconds - self._missing_seconds)

    def _apply(self, queue: deque[PromptEvent], position: tuple[int, int], fresh: int) -> None:
        """Let the first event of a queue take effect, and log it."""
        if self._blend is not None:  # at most two prompts at once: a blend jumps to its end
            self._replace(self._blend[0])
        cycle = max(position[0], 0)
        serial = len(self._log)
        with self._lock:
            event = queue.popleft()
            seconds = self._starts_at(cycle) if queue is self._live else event.seconds
            self._log.append(replace(event, position=position, seconds=seconds))
        self._applied.append(serial)
        if event.transition != "chunks":  # every chunk present will see the new prompt
            self._incomplete.clear()
        self._incomplete.append(serial)
        steps = math.ceil(event.transition_seconds / self._chunk_seconds - 1e-9)
        if event.transition == "chunks" and position != START:
            self._segments.append((fresh, serial))
        elif event.transition == "blend" and position != START and steps > 1:
            self._blend = (serial, cycle, steps)
            self._move_blend(position)
        else:
            self._replace(serial)

    def _replace(self, serial: int) -> None:
        self._segments = [(0, serial)]
        self._blend = None

    def _move_blend(self, position: tuple[int, int]) -> None:
        """Set the weight of a blend, one step higher each cycle; at 1 it is over."""
        if self._blend is not None:
            serial, start, steps = self._blend
            self._weight = (max(position[0], 0) - start + 1) / steps
            if self._weight >= 1:
                self._replace(serial)

    def _serial(self, frame: int) -> int:
        """Return the serial of the event whose prompt a frame follows, apart from a blend."""
        for first, serial in reversed(self._segments):
            if first <= frame:
                return serial
        return self._segments[0][1]

    def _prompt(self, serial: int) -> str | None:
        return None if serial == _NO_EVENT else self._log[serial].prompt

    def _receipt(self, serial: int, kind: Literal["applied", "complete"], chunk: int) -> Receipt:
        return Receipt(self._log[serial], kind, chunk, self._starts_at(chunk))
