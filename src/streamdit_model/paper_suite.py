"""The paper's claims at the scale of the shapes world, side by side on the same captions and seeds.

Every way to make long video is one `Way`: which model, how its buffer is cut or which baseline, and
what a latent frame costs. Baselines that have settings are tried in all of them on a few other
captions first, and only the best is compared.

Paper: tables 2 and 3, and the ablations of section 6. Choice: the verifier of the shapes world in
place of VBench.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import Tensor

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.baselines import extend_clips, run_queue
from streamdit_model.errors import ConfigError
from streamdit_model.evaluation import StreamScore, evaluation_clips, judge_streams, report
from streamdit_model.gamma import apply_gamma
from streamdit_model.latent_streams import decode_latents, side_by_side, stream_latents
from streamdit_model.partition import Partition
from streamdit_model.shapes import Clip
from streamdit_model.weights import Model

__all__ = ["Way", "best_way", "clip_ways", "paper_ways", "queue_ways", "score_way", "suite_report"]

CHUNK_SIZES = (1, 2, 4, 8)
OVERLAPS = (2, 4, 8)
PILOT_PROMPTS = 8  # on which the settings of a baseline are tried
PILOT_SEED = 4_000_003

Latents = Callable[[Sequence[str], Sequence[int]], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to make streams.

    Args:
        name: for people.
        model: whose network and autoencoder.
        calls: network calls for one latent frame, a call being one window of the buffer's length;
            guidance counts twice.
        border_frames: video frames from one border to the next.
        latents: prompts and seeds to clean latents, without end.
    """

    name: str
    model: Model
    calls: float
    border_frames: int
    latents: Latents


def buffer_way(name: str, model: Model, partition: Partition, *, start: str) -> Way:
    """Return the moving buffer, cut by a partition."""
    cut = replace(model, config=replace(model.config, partition=partition))

    def latents(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Tensor]:
        return stream_latents(cut, prompts, seeds, 2**31, start=start)

    calls = partition.micro_steps / partition.chunk_size
    frames = partition.chunk_size * TIME_FACTOR
    return Way(
        name=name,
        model=cut,
        calls=calls * _cost(model),
        border_frames=frames,
        latents=latents,
    )


def queue_ways(model: Model) -> list[Way]:
    """Return the diagonal queue of FIFO-Diffusion in its settings: one or two parts, look-ahead."""
    window = model.config.partition.buffer_length
    ways = []
    for parts in (1, 2):
        for look_ahead in (False, True):
            tau = _levels(model, parts * window)

            def latents(
                prompts: Sequence[str],
                seeds: Sequence[int],
                tau: Tensor = tau,
                look_ahead: bool = look_ahead,
            ) -> Iterator[Tensor]:
                run = side_by_side(model, prompts, seeds)
                return run_queue(
                    run.velocity, run.noise, run.text, tau=tau, window=window, look_ahead=look_ahead
                )

            words = ", look-ahead" if look_ahead else ""
            ways.append(
                Way(
                    name=f"FIFO-style, {parts * window} steps{words}",
                    model=model,
                    calls=parts * (1 + look_ahead) * _cost(model),
                    border_frames=TIME_FACTOR,
                    latents=latents,
                )
            )
    return ways


def clip_ways(model: Model, steps: int) -> list[Way]:
    """Return clip after clip in its settings: how many latent frames each hands to the next.

    Args:
        model: of the network.
        steps: of each clip.
    """
    window = model.config.partition.buffer_length
    ways = []
    for overlap in OVERLAPS:
        if overlap >= window:
            continue

        def latents(
            prompts: Sequence[str], seeds: Sequence[int], overlap: int = overlap
        ) -> Iterator[Tensor]:
            run = side_by_side(model, prompts, seeds)
            return extend_clips(
                run.velocity,
                run.noise,
                run.text,
                tau=_levels(model, steps),
                window=window,
                overlap=overlap,
            )

        ways.append(
            Way(
                name=f"clip by clip, {steps} steps, overlap {overlap}",
                model=model,
                calls=steps / (window - overlap) * _cost(model),
                border_frames=(window - overlap) * TIME_FACTOR,
                latents=latents,
            )
        )
    return ways


def paper_ways(
    teacher: Model, student: Model | None, others: Mapping[str, Model], seconds: float
) -> Iterator[Way]:
    """Yield everything that is compared, the baselines in their best setting.

    Args:
        teacher: undistilled, trained on mixed partitions.
        student: distilled from it, if there is one.
        others: more undistilled models by name, such as one trained on the diagonal alone.
        seconds: of the streams on which settings are tried.

    Raises:
        ConfigError: a teacher that is distilled, or a student that is not.
    """
    for model, distilled in ((teacher, False), (student, True)):
        if model is not None and model.config.distilled != distilled:
            word = "distilled" if model.config.distilled else "not distilled"
            raise ConfigError(f"{model.config.name} is {word}; the other kind is needed there")
    own = teacher.config.partition
    length, steps = own.buffer_length, own.total_steps
    for size in CHUNK_SIZES:
        if length % size == 0 and steps % (length // size) == 0:
            cut = _cut(own, length, size, steps)
            yield buffer_way(f"teacher, c={size}", teacher, cut, start="ramp")
    if length > own.chunk_size:
        cut = _with_references(own)
        yield buffer_way(f"teacher, K={cut.num_reference}", teacher, cut, start="clip")
    if student is not None:
        yield buffer_way("student", student, student.config.partition, start=student.config.start)
    yield best_way(queue_ways(teacher), seconds)
    yield best_way(clip_ways(teacher, steps), seconds)
    for name, model in others.items():
        partition = model.config.partition
        for size in (1, own.chunk_size):
            cut = _cut(partition, partition.buffer_length, size, partition.total_steps)
            yield buffer_way(f"{name}, c={size}", model, cut, start="ramp")


def best_way(ways: Sequence[Way], seconds: float) -> Way:
    """Return the way with the most windows right on a few captions, the cheaper one if equal."""
    clips = evaluation_clips(PILOT_PROMPTS, PILOT_SEED)

    def windows_right(way: Way) -> float:
        scores = list(score_way(way, clips, seconds, seed=PILOT_SEED, batch=PILOT_PROMPTS))
        return mean(window["all"] for score in scores for window in score.windows)

    return max(ways, key=lambda way: (windows_right(way), -way.calls))


def score_way(
    way: Way, clips: Sequence[Clip], seconds: float, *, seed: int, batch: int
) -> Iterator[StreamScore]:
    """Make and judge streams; arguments as `evaluation.judge_streams`."""
    num_frames = round(seconds * way.model.config.fps)

    def make(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return decode_latents(way.model, way.latents(prompts, seeds), num_frames)

    return judge_streams(
        make, clips, seconds, border_frames=way.border_frames, seed=seed, batch=batch
    )


def suite_report(way: Way, scores: Sequence[StreamScore]) -> dict[str, object]:
    """Sum up one way as plain values for JSON: its name, its cost, and `evaluation.report`."""
    return {
        "way": way.name,
        "model": way.model.config.name,
        "calls_per_latent_frame": round(way.calls, 3),
        **report(scores),
    }


def _cut(partition: Partition, length: int, size: int, steps: int) -> Partition:
    """Cut a buffer anew: the same length and the same steps for each frame."""
    chunks = length // size
    return replace(
        partition,
        num_reference=0,
        num_chunks=chunks,
        chunk_size=size,
        micro_steps=max(1, steps // chunks),
    )


def _with_references(partition: Partition) -> Partition:
    """Return K = c: the oldest chunk of the buffer is finished and kept as a reference."""
    return replace(
        partition,
        num_reference=partition.chunk_size,
        num_chunks=partition.num_chunks - 1,
    )


def _levels(model: Model, steps: int) -> Tensor:
    own = model.config.partition
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    return apply_gamma(time, own.gamma, own.gamma_parameter)


def _cost(model: Model) -> int:
    """Calls of the network for one velocity."""
    return 1 if model.config.distilled or model.config.guidance_scale == 1 else 2
