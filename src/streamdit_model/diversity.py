"""Whether the streams of one prompt differ as the clips of the world do: places, phases, speeds.

For each motion many seeds of one prompt are run, and as many clips of the same words are drawn and
rendered. Both are measured by the same instrument at one second, and each quantity is compared by
the Kolmogorov-Smirnov test of two samples. A model that collapsed to one video per prompt fails.

Paper: silent. Choice: distillation can cost diversity, and no score of prompt following sees it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.captions import caption
from streamdit_model.latent_streams import stream_video
from streamdit_model.shapes import FPS, MOTIONS, Clip, draw_clip, render
from streamdit_model.silhouette import measure
from streamdit_model.verifier import judge
from streamdit_model.weights import Model

__all__ = ["diversity_report", "ks_probability", "quantities", "same_words"]

SECONDS = 4  # of each clip
MOMENT = FPS  # frame at which places are measured
LEAST_SAMPLES = 8
TERMS = 100  # of the series of the Kolmogorov distribution


def diversity_report(
    model: Model, num_seeds: int, *, seed: int = 0, batch: int = 16
) -> Iterator[tuple[str, dict[str, dict[str, float | int | None]]]]:
    """Compare the streams of one prompt for each motion with the world.

    Args:
        model: of the shapes world.
        num_seeds: streams for each prompt.
        seed: the streams have seeds from here on; the clips are drawn by it too.
        batch: streams run side by side.

    Yields:
        Prompt, and for each quantity (`quantities`) the probability `p` that samples of one
        distribution differ as much (None when fewer than 8 were measured on a side) and how many
        were measured of the model's and of the world's.

    Raises:
        NumericsError: the model made video that is not finite.
    """
    for motion in MOTIONS:
        clip = next(
            clip
            for clip in (draw_clip(seed, index) for index in itertools.count())
            if clip.motion == motion
        )
        made = [quantities(video) for video in _streams(model, clip, num_seeds, seed, batch)]
        truth = [
            quantities(render(same, SECONDS * FPS, model.config.height))
            for same in same_words(clip, num_seeds, seed)
        ]
        yield caption(clip), _compared(made, truth, motion)


def same_words(clip: Clip, count: int, seed: int) -> list[Clip]:
    """Draw clips with the attributes of one: other places, phases and speeds."""
    drawn = (draw_clip(seed, index) for index in itertools.count(1_000_000))
    alike = (
        other
        for other in drawn
        if (other.shape, other.size, other.motion) == (clip.shape, clip.size, clip.motion)
    )
    looks = {"color": clip.color, "background": clip.background}
    return [replace(other, **looks) for other in itertools.islice(alike, count)]


def quantities(frames: Tensor) -> dict[str, float]:
    """Measure what no caption says.

    Args:
        frames: uint8 (frames, height, width, 3), at least 2 s.

    Returns:
        `x`, `y`: place at one second, in half frames, and `area`, of 4 for the whole frame, when
        the object is seen whole; `speed`: as in `Verdict`. nan where unknown.
    """
    track = measure(frames[MOMENT : MOMENT + 1])
    known = bool(track.whole[0])
    x, y = track.center[0].tolist() if known else (math.nan, math.nan)
    area = float(track.area[0]) if known else math.nan
    return {"x": x, "y": y, "area": area, "speed": judge(frames).speed}


def ks_probability(first: Sequence[float], second: Sequence[float]) -> float:
    """Give the probability that two samples of one distribution differ as much as these.

    The two-sample Kolmogorov-Smirnov test with its asymptotic distribution, after Stephens.

    Args:
        first, second: finite numbers, at least one each.
    """
    values = torch.tensor([*first, *second], dtype=torch.float64).sort().values
    shares = [
        torch.searchsorted(torch.tensor(sorted(some), dtype=torch.float64), values, right=True)
        / len(some)
        for some in (first, second)
    ]
    distance = float((shares[0] - shares[1]).abs().max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    argument = (root + 0.12 + 0.11 / root) * distance
    if argument < 0.2:  # the series does not converge there; the probability is 1 to 1e-12
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * argument) ** 2) for k in range(1, TERMS))
    return min(1.0, max(0.0, 2 * sum(terms)))


def _streams(model: Model, clip: Clip, count: int, seed: int, batch: int) -> Iterator[Tensor]:
    chunk_frames = model.config.partition.chunk_size * TIME_FACTOR
    chunks = range(-(-SECONDS * FPS // chunk_frames))
    for start in range(0, count, batch):
        seeds = list(range(seed + start, seed + min(start + batch, count)))
        (videos,) = stream_video(model, [caption(clip)] * len(seeds), seeds, [chunks])
        yield from videos[:, : SECONDS * FPS]


def _compared(
    made: Sequence[dict[str, float]], truth: Sequence[dict[str, float]], motion: str
) -> dict[str, dict[str, float | int | None]]:
    """Compare the quantities that vary in this motion; the others are constants of the world."""
    names = ["x", "y"]
    if motion == "pulsing":
        names.append("area")
    if motion.startswith("moving"):
        names.append("speed")
    result: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        ours, theirs = (
            [item[name] for item in side if math.isfinite(item[name])] for side in (made, truth)
        )
        enough = min(len(ours), len(theirs)) >= LEAST_SAMPLES
        result[name] = {
            "p": round(ks_probability(ours, theirs), 4) if enough else None,
            "made": len(ours),
            "world": len(theirs),
        }
    return result
