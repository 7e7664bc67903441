"""Measuring whole streams, as users run them: rate, arrivals, memory, and what a person waits for.

All threads of a stream run, and nothing waits for a clock. Where the frames go, and how much memory
the process has, the caller says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from streamdit_model.measuring import FEWEST_CHUNKS, PROMPTS, SKIPPED_CHUNKS, Sink, Subject
from streamdit_model.stream import VideoChunk

__all__ = ["Switch", "Whole", "first_frame_seconds", "stream_fps", "switch_prompt"]


@dataclass(kw_only=True)
class Whole:
    """What a whole stream showed after its first chunks.

    Args:
        frames: video frames made.
        seconds: in which they were made.
        arrivals: when each chunk reached the reader, in seconds.
        memory: bytes in use at each of them, of a GPU or of the process; empty where unknown.
        peak: the largest number of bytes ever in use; None where unknown.
    """

    frames: int
    seconds: float
    arrivals: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    peak: int | None = None

    @property
    def fps(self) -> float:
        """Video frames a second."""
        return self.frames / self.seconds


@dataclass(frozen=True, kw_only=True)
class Switch:
    """How long a prompt took that came while a stream ran, read as fast as it was made.

    Args:
        applied, complete: seconds from the call to the arrival of the first chunk that was touched
            by the new prompt, and of the first made wholly under it.
        applied_video, complete_video: seconds of video that were shown between.
    """

    applied: float
    applied_video: float
    complete: float
    complete_video: float


def stream_fps(
    subject: Subject,
    seconds: float,
    *,
    write: Sink | None = None,
    end: Callable[[], None] | None = None,
    memory: Callable[[], int | None] = lambda: None,
) -> Whole:
    """Read a whole stream, with all its threads.

    Args:
        subject: what is measured.
        seconds: how long to go on; at least `FEWEST_CHUNKS` chunks are made.
        write: takes the frames of every chunk, and may make the reader wait.
        end: returns when all of them have reached their place; the time counts until then.
        memory: bytes that the process has; on a CUDA GPU those of the GPU are noted instead.
    """
    found, device = Whole(frames=0, seconds=0.0), subject.model.device
    if device.type == "cuda":
        memory = lambda: torch.cuda.memory_allocated(device)  # noqa: E731
    with subject.stream() as stream:
        for chunk in stream:
            if write is not None:
                write(chunk.frames)
            _note(found, chunk, memory())
            done = len(found.arrivals) - 1
            if done >= FEWEST_CHUNKS and found.arrivals[-1] - found.arrivals[0] >= seconds:
                break
        if end is not None:
            end()
        until = found.arrivals[-1] if end is None else time.perf_counter()
    found.seconds = until - found.arrivals[0]
    return found


def _note(found: Whole, chunk: VideoChunk, memory: int | None) -> None:
    """Note the arrival of a chunk; the last one that is skipped starts the clock."""
    if chunk.number < SKIPPED_CHUNKS - 1:
        return
    if found.arrivals:
        found.frames += len(chunk.frames)
    found.arrivals.append(time.perf_counter())
    if memory is not None:
        found.memory.append(memory)


def first_frame_seconds(subject: Subject, encode: Sink) -> float:
    """Return how long a new stream takes until its first frame, (1, height, width, 3), is encoded.

    Args:
        subject: what is measured.
        encode: takes the frame.
    """
    began = time.perf_counter()
    with subject.stream() as stream:
        encode(next(stream).frames[:1])
        return time.perf_counter() - began


def switch_prompt(subject: Subject) -> Switch | None:
    """Change the prompt of a running stream and wait until all of it follows.

    Returns:
        None where the change was not complete within three buffers of chunks.
    """
    config = subject.model.config
    patience = 3 * config.partition.num_chunks + 8
    applied: tuple[float, float] | None = None
    with subject.stream() as stream:
        shown = [next(stream) for _ in range(SKIPPED_CHUNKS)][-1]
        asked, end = time.perf_counter(), shown.first_frame + len(shown.frames)
        stream.prompt(PROMPTS[1])
        for _ in range(patience):
            chunk = next(stream)
            kinds = {r.kind for r in chunk.receipts if r.event.prompt == PROMPTS[1]}
            passed = time.perf_counter() - asked, (chunk.first_frame - end) / config.fps
            if applied is None and "applied" in kinds:
                applied = passed
            if "complete" in kinds and applied is not None:
                return Switch(
                    applied=applied[0],
                    applied_video=applied[1],
                    complete=passed[0],
                    complete_video=passed[1],
                )
    return None
