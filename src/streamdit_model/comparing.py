"""The same network on several ways to a video, in turns, so that a busy machine slows all of them.

Each way keeps its own running stream of latents; a turn advances it by whole chunks. Nothing is
decoded, since that takes all of them the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from streamdit_model import timings
from streamdit_model.flops import count_flops
from streamdit_model.measuring import Subject, chunk_frames, new_denoiser, synchronize
from streamdit_model.recut import baseline, without_context

if TYPE_CHECKING:
    from streamdit_model.stream_stages import Denoiser

__all__ = ["OURS", "compare"]

OURS = "streamdit"
TURNS = 6
SETTLING_CHUNKS = 2  # of every way: its start, and one more


@dataclass
class _Way:
    """One way: its model, its running stream, and what its turns took."""

    subject: Subject
    denoiser: Denoiser
    frame_ms: list[float] = field(default_factory=list)
    chunk_ms: list[float] = field(default_factory=list)

    @property
    def chunk_frames(self) -> int:
        """Video frames of a chunk."""
        return chunk_frames(self.subject.model)

    def turn(self, seconds: float) -> None:
        """Make chunks for a while, at least one."""
        device = self.subject.model.device
        synchronize(device)
        began, chunks = time.perf_counter(), 0
        while not chunks or time.perf_counter() - began < seconds:
            self.denoiser.next()
            chunks += 1
        synchronize(device)
        taken = 1000 * (time.perf_counter() - began)
        self.chunk_ms.append(taken / chunks)
        self.frame_ms.append(taken / chunks / self.chunk_frames)


@torch.inference_mode()
def compare(
    subject: Subject,
    kinds: Sequence[str],
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make video by the model's own way and by baselines, in turns.

    Args:
        subject: what is measured; a context of past frames is left out on every way.
        kinds: baselines, see `baselines.baseline`.
        seconds: for all turns together; every turn makes at least one chunk.
        say: told what is being done.

    Returns:
        By name, `streamdit` first: `partition`, `chunk_frames`, `calls_per_chunk`, `ms_per_frame`
        and `chunk_ms` (median over the turns), `spread` (half of the distance between the slowest
        and the fastest turn, over the median), `gflop_per_frame` (counted); and of a baseline
        `ratio` (its ms per frame over ours, turn by turn: median, low, high) and `flop_ratio`.
    """
    models = {OURS: without_context(subject.model)}
    models |= {kind: baseline(subject.model, kind) for kind in kinds}
    ways, gflops = {}, {}
    for name, model in models.items():
        say(f"compare: {name}, its start")
        one = replace(subject, model=model)
        ways[name] = _Way(one, new_denoiser(one))
        for _ in range(SETTLING_CHUNKS - 1):
            ways[name].denoiser.next()
        counted = count_flops(ways[name].denoiser.next).flops
        gflops[name] = counted / ways[name].chunk_frames / 1e9
    for number in range(TURNS):
        say(f"compare: turn {number + 1} of {TURNS}")
        for way in ways.values():
            way.turn(seconds / TURNS / len(ways))
    return {
        name: _record(way, ways[OURS], gflops[name], gflops[OURS]) for name, way in ways.items()
    }


def _record(way: _Way, ours: _Way, gflops: float, our_gflops: float) -> dict[str, Any]:
    """Return what was found of one way."""
    partition = way.subject.model.config.partition
    letters = {
        "K": partition.num_reference,
        "N": partition.num_chunks,
        "c": partition.chunk_size,
        "s": partition.micro_steps,
    }
    record: dict[str, Any] = {
        "partition": ",".join(f"{letter}={value}" for letter, value in letters.items()),
        "chunk_frames": way.chunk_frames,
        "calls_per_chunk": partition.micro_steps,
        "turns": len(way.frame_ms),
        "ms_per_frame": timings.median(way.frame_ms),
        "spread": timings.half_spread(way.frame_ms),
        "chunk_ms": timings.median(way.chunk_ms),
        "gflop_per_frame": gflops,
    }
    if way is not ours:
        record["ratio"] = timings.ratio(way.frame_ms, ours.frame_ms)
        record["flop_ratio"] = gflops / our_gflops
    return record
