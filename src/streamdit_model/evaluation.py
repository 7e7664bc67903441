"""Score a model of the shapes world: does its video show what the captions say, and for how long?

Streams are run side by side and judged by the verifier in windows of 2 s from the first frame on.
A stream counts as right when all five attributes are right in every window. Beside it stand
measures without words: outlines and the step at chunk borders against ground truth that went
through the same autoencoder, and what the autoencoder alone loses. None of this is a VBench score.

Paper: section 6 evaluates long videos by VBench and by people. Choice: a world in which the caption
says exactly what must be seen, so that a score needs no judgement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.captions import caption
from streamdit_model.data import is_reserved
from streamdit_model.errors import ConfigError
from streamdit_model.latent_streams import stream_video, to_uint8
from streamdit_model.motion import speed_limits
from streamdit_model.reconstruction import peak_signal_to_noise
from streamdit_model.shapes import ATTRIBUTES, FPS, Clip, draw_clip, render
from streamdit_model.verifier import Verdict, judge_windows, score, wilson
from streamdit_model.weights import Model

__all__ = [
    "Share",
    "StreamScore",
    "autoencoder_report",
    "check_seconds",
    "evaluation_clips",
    "judge_streams",
    "report",
    "score_streams",
]

WINDOW_SECONDS = 2.0
ROUND_TRIP_FRAMES = 64  # at once, so that memory does not grow with the clip


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, with the 95 % interval of Wilson."""

    right: int
    total: int

    def to_dict(self) -> dict[str, float | int]:
        """Return counts, share and interval as plain numbers."""
        low, high = wilson(self.right, self.total)
        share = self.right / self.total if self.total else 0.0
        return {
            "right": self.right,
            "total": self.total,
            "share": round(share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }


@dataclass(frozen=True, slots=True)
class StreamScore:
    """One judged stream.

    Args:
        clip: what the prompt was made from.
        windows: for each window, attribute to whether it was right, and "all".
        verdicts: what was seen in each window.
        border_step: mean absolute frame difference at chunk borders over that elsewhere.
        latent_step: the same at the borders of latent frames.
        frames: the video, uint8 (frames, height, width, 3), when it was asked for.
    """

    clip: Clip
    windows: tuple[dict[str, bool], ...]
    verdicts: tuple[Verdict, ...]
    border_step: float
    latent_step: float
    frames: Tensor | None = None

    def is_right(self, attribute: str = "all") -> bool:
        """Whether the attribute was right in every window."""
        return all(window[attribute] for window in self.windows)

    def has_right_speed(self) -> bool:
        """Whether the median speed is the world's, with a tenth to spare; False when unknown."""
        speeds = [v.speed for v in self.verdicts if math.isfinite(v.speed)]
        low, high = speed_limits(self.clip.motion)
        return bool(speeds) and low <= median(speeds) <= high


def evaluation_clips(count: int, seed: int, *, held_out: bool = False) -> list[Clip]:
    """Draw clips whose captions no training clip has.

    Args:
        count: how many.
        seed: of the draw.
        held_out: the six held-out pairs instead of reserved captions of other pairs.
    """
    clips: list[Clip] = []
    index = 0
    while len(clips) < count:
        clip = draw_clip(seed, index, held_out=held_out)
        index += 1
        if held_out or is_reserved(clip):
            clips.append(clip)
    return clips


def check_seconds(seconds: float) -> None:
    """Refuse a length that windows of 2 s do not divide, or shorter than 4 s.

    Raises:
        ConfigError: such a length.
    """
    if not (2 * WINDOW_SECONDS <= seconds < math.inf) or seconds % WINDOW_SECONDS:
        raise ConfigError(f"{seconds:g} seconds is not a multiple of 2 and at least 4")


def score_streams(
    model: Model,
    clips: Sequence[Clip],
    seconds: float,
    *,
    seed: int = 0,
    batch: int = 16,
    guidance_scale: float | None = None,
    prompts: Sequence[str] | None = None,
    keep_frames: bool = False,
) -> Iterator[StreamScore]:
    """Run a stream for each clip's caption and judge it.

    Args:
        model: of the shapes world.
        clips: whose canonical captions are the prompts.
        seconds: length of each stream, a multiple of 2 and at least 4.
        seed: the streams have seeds from here on.
        batch: streams run side by side.
        guidance_scale: None is the model's own.
        prompts: other words for the captions, one for each clip.
        keep_frames: keep the video in the score.

    Yields:
        The scores in order.

    Raises:
        ConfigError: a length that windows of 2 s do not divide.
        NumericsError: the model made video that is not finite.
    """

    def make(words: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return _videos(model, words, seeds, seconds, guidance_scale)

    yield from judge_streams(
        make,
        clips,
        seconds,
        border_frames=model.config.partition.chunk_size * TIME_FACTOR,
        seed=seed,
        batch=batch,
        prompts=prompts,
        keep_frames=keep_frames,
    )


def judge_streams(
    make: Callable[[Sequence[str], Sequence[int]], Tensor],
    clips: Sequence[Clip],
    seconds: float,
    *,
    border_frames: int,
    seed: int = 0,
    batch: int = 16,
    prompts: Sequence[str] | None = None,
    keep_frames: bool = False,
) -> Iterator[StreamScore]:
    """Make a stream for each clip's caption, by whatever way, and judge it.

    Args:
        make: prompts and seeds to uint8 (streams, frames, height, width, 3) of `seconds`.
        clips, seconds, seed, batch, prompts, keep_frames: as in `score_streams`.
        border_frames: video frames from one border to the next.

    Yields:
        The scores in order.

    Raises:
        ConfigError: a length that windows of 2 s do not divide.
    """
    check_seconds(seconds)
    words = [caption(clip) for clip in clips] if prompts is None else list(prompts)
    for first in range(0, len(clips), batch):
        some = clips[first : first + batch]
        seeds = [seed + first + index for index in range(len(some))]
        videos = make(words[first : first + batch], seeds)
        for clip, frames in zip(some, videos, strict=True):
            verdicts = tuple(judge_windows(frames, WINDOW_SECONDS))
            yield StreamScore(
                clip=clip,
                windows=tuple(score(verdict, clip.attributes) for verdict in verdicts),
                verdicts=verdicts,
                border_step=_border_step(frames, border_frames),
                latent_step=_border_step(frames, TIME_FACTOR),
                frames=frames if keep_frames else None,
            )


def report(scores: Sequence[StreamScore]) -> dict[str, object]:
    """Sum up the scores of streams of one length as plain values for JSON.

    A measure that no window has, such as the color error where no object is seen, is None.
    """
    names = (*ATTRIBUTES, "all")
    windows = len(scores[0].windows)
    half = windows // 2
    return {
        "streams": len(scores),
        "clips_right": _share(scores, lambda item: item.is_right()),
        "attributes": {
            name: _share(scores, lambda item, name=name: item.is_right(name)) for name in ATTRIBUTES
        },
        "windows": {
            name: [
                round(mean(item.windows[number][name] for item in scores), 4)
                for number in range(windows)
            ]
            for name in names
        },
        "first_half": round(mean(w["all"] for s in scores for w in s.windows[:half]), 4),
        "last_half": round(mean(w["all"] for s in scores for w in s.windows[half:]), 4),
        "speed": _share(scores, StreamScore.has_right_speed),
        "by_motion": _by(scores, "motion"),
        "by_shape": _by(scores, "shape"),
        "color_error": _known_mean((v.color_error for s in scores for v in s.verdicts), 2),
        "edge_energy": _known_mean((v.edge_energy for s in scores for v in s.verdicts), 4),
        "border_step": _known_mean((s.border_step for s in scores), 4),
        "latent_step": _known_mean((s.latent_step for s in scores), 4),
    }


def autoencoder_report(model: Model, clips: Sequence[Clip]) -> dict[str, object]:
    """Measure what the autoencoder alone loses, on fresh clips, streamed.

    Returns:
        PSNR in dB around frame 64 and around frame 1000, and of ground truth that went through it:
        outline energy, the step at borders of 8 frames, and how often each attribute is right.
    """
    near, far, scores = [], [], []
    for clip in clips:
        truth = render(clip, 1024, model.config.height)
        frames = _round_trip(model, truth)
        near.append(_psnr(frames[56:72], truth[56:72]))
        far.append(_psnr(frames[992:1008], truth[992:1008]))
        verdicts = tuple(judge_windows(frames[: 8 * FPS], WINDOW_SECONDS))
        windows = tuple(score(verdict, clip.attributes) for verdict in verdicts)
        steps = (_border_step(frames, 2 * TIME_FACTOR), _border_step(frames, TIME_FACTOR))
        scores.append(StreamScore(clip, windows, verdicts, *steps))
    summary = report(scores)
    return {
        "clips": len(clips),
        "psnr_frame_64": round(mean(near), 2),
        "psnr_frame_1000": round(mean(far), 2),
        "edge_energy": summary["edge_energy"],
        "border_step": summary["border_step"],
        "latent_step": summary["latent_step"],
        "attributes": summary["attributes"],
    }


def _videos(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    seconds: float,
    guidance_scale: float | None,
) -> Tensor:
    """Return uint8 (streams, frames, height, width, 3)."""
    num_frames = round(seconds * model.config.fps)
    chunk_frames = model.config.partition.chunk_size * TIME_FACTOR
    num_chunks = -(-num_frames // chunk_frames)
    (video,) = stream_video(
        model, prompts, seeds, [range(num_chunks)], guidance_scale=guidance_scale
    )
    return video[:, :num_frames]


def _round_trip(model: Model, frames: Tensor) -> Tensor:
    """Stream a clip through encoder and decoder: uint8 (frames, h, w, 3) to the same."""
    encoder_state = decoder_state = None
    parts = []
    with torch.inference_mode():
        for piece in frames.split(ROUND_TRIP_FRAMES):
            video = piece.to(model.device).permute(3, 0, 1, 2)[None].to(model.dtype) / 255
            latents, encoder_state = model.autoencoder.encode_step(video, encoder_state)
            video, decoder_state = model.autoencoder.decode_step(latents, decoder_state)
            parts.append(to_uint8(video)[0])
    return torch.cat(parts)


def _known_mean(values: Iterable[float], digits: int) -> float | None:
    """Mean of the values that are numbers, rounded; None when there are none."""
    known = [value for value in values if math.isfinite(value)]
    return round(mean(known), digits) if known else None


def _psnr(frames: Tensor, truth: Tensor) -> float:
    return peak_signal_to_noise(frames.float() / 255, truth.float() / 255)


def _border_step(frames: Tensor, chunk_frames: int) -> float:
    """Mean absolute difference of neighbouring frames at chunk borders over that inside chunks."""
    steps = (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3))
    is_border = (torch.arange(1, len(frames)) % chunk_frames) == 0
    inside = float(steps[~is_border].mean())
    return float(steps[is_border].mean()) / inside if inside > 0 else 1.0


def _share(
    scores: Sequence[StreamScore], is_right: Callable[[StreamScore], bool]
) -> dict[str, float | int]:
    return Share(sum(is_right(item) for item in scores), len(scores)).to_dict()


def _by(scores: Sequence[StreamScore], attribute: str) -> dict[str, dict[str, float | int]]:
    """Clips right, for each value of an attribute."""
    values = sorted({getattr(item.clip, attribute) for item in scores})
    return {
        value: _share(
            [item for item in scores if getattr(item.clip, attribute) == value],
            lambda item: item.is_right(),
        )
        for value in values
    }
