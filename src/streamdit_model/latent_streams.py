"""Several streams side by side, as latents or as video: what evaluation measures in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError, NumericsError
from streamdit_model.flow_matching import Noise, keyed_noise
from streamdit_model.guidance import guided_velocity
from streamdit_model.prompt_keys import PromptKeys, encode_now
from streamdit_model.sampling import Velocity, cycle, warm_up
from streamdit_model.stream_stages import new_buffer
from streamdit_model.transformer import FrameText
from streamdit_model.weights import Model

__all__ = [
    "SideBySide",
    "decode_latents",
    "side_by_side",
    "stream_latents",
    "stream_video",
    "to_uint8",
]


@torch.inference_mode()
def stream_latents(
    model: Model,
    prompts: Sequence[str | None],
    seeds: Sequence[int],
    num_chunks: int,
    *,
    start: str | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
) -> Iterator[Tensor]:
    """Run several streams side by side and yield their latents, for evaluation.

    Args:
        model: from `load`.
        prompts: one of each stream; None is no prompt.
        seeds: one of each stream.
        num_chunks: chunks to make, at least 1.
        start: as in `Stream`.
        guidance_scale: as in `Stream`.
        negative_prompt: as in `Stream`.

    Yields:
        Clean latents, float32 (batch, channels, c, height, width); those of a stream agree with
        that stream alone within the tolerance of batched arithmetic.

    Raises:
        ConfigError: numbers of prompts and seeds that differ, or as in `Stream`.
    """
    if num_chunks < 1:
        raise ConfigError(f"{num_chunks} chunks; at least 1 is needed")
    parts = side_by_side(
        model, prompts, seeds, guidance_scale=guidance_scale, negative_prompt=negative_prompt
    )
    buffer = new_buffer(model, batch=len(prompts))

    def text(first_frame: int, num_frames: int, micro_step: int) -> FrameText:
        return parts.text

    config = model.config
    start = config.start if start is None else start
    warm_up(buffer, parts.velocity, parts.noise, text, start=start, stepper=config.stepper)
    for _ in range(num_chunks):
        yield cycle(buffer, parts.velocity, parts.noise, text, stepper=config.stepper)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """What several streams of one model, each with one prompt for all its frames, are made from.

    Args:
        velocity: with its guidance.
        text: of all streams, for the velocity.
        noise: of all streams.
    """

    velocity: Velocity
    text: FrameText
    noise: Noise


def side_by_side(
    model: Model,
    prompts: Sequence[str | None],
    seeds: Sequence[int],
    *,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
) -> SideBySide:
    """Encode the prompts and key the noise of several streams; arguments as `stream_latents`.

    Raises:
        ConfigError: numbers of prompts and seeds that differ, or as in `Stream`.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ConfigError(
            f"{len(prompts)} prompts and {len(seeds)} seeds; as many seeds as prompts are needed, "
            "and at least 1 of each"
        )
    velocity = guided_velocity(
        model, guidance_scale=guidance_scale, negative_prompt=negative_prompt
    )
    keys = PromptKeys(model, encode_now, size=len(prompts))
    distinct = tuple(dict.fromkeys(prompts))
    index = [distinct.index(prompt) for prompt in prompts]
    text = FrameText(keys.join(distinct), torch.tensor(index, device=model.device))
    noise = keyed_noise(seeds, *model.config.frame_shape, device=model.device)
    return SideBySide(velocity, text, noise)


@torch.inference_mode()
def stream_video(
    model: Model,
    prompts: Sequence[str | None],
    seeds: Sequence[int],
    spans: Sequence[range],
    *,
    guidance_scale: float | None = None,
) -> list[Tensor]:
    """Run several streams side by side and keep the frames of some chunks.

    Only those chunks are decoded, after as many latent frames as the decoder remembers: the frames
    are those of the whole stream, at the cost of the network alone in between.

    Args:
        model: from `load`.
        prompts: one of each stream; None is no prompt.
        seeds: one of each stream.
        spans: numbers of the chunks that are wanted, rising and apart from each other.
        guidance_scale: as in `Stream`.

    Returns:
        For each span uint8 (streams, frames, height, width, 3), on the CPU.

    Raises:
        NumericsError: the model made video that is not finite.
    """
    chunk_size = model.config.partition.chunk_size
    lead_in = -(-model.autoencoder.decoder_lead_in // chunk_size)
    parts: list[list[Tensor]] = [[] for _ in spans]
    state, decoded, span = None, -1, 0
    chunks = stream_latents(model, prompts, seeds, spans[-1].stop, guidance_scale=guidance_scale)
    for number, latents in enumerate(chunks):
        span += number >= spans[span].stop
        if number < spans[span].start - lead_in:
            continue
        video, state = model.autoencoder.decode_step(
            latents.to(model.dtype), state if decoded == number - 1 else None
        )
        decoded = number
        if not bool(video.isfinite().all()):
            raise NumericsError("the model made video that is not finite")
        if number in spans[span]:
            parts[span].append(to_uint8(video))
    return [torch.cat(part, dim=1) for part in parts]


@torch.inference_mode()
def decode_latents(model: Model, latents: Iterator[Tensor], num_frames: int) -> Tensor:
    """Decode the first frames of streams side by side.

    Args:
        model: gives the autoencoder.
        latents: (batch, channels, frames, height, width) each, as many as are needed.
        num_frames: video frames, at least 1.

    Returns:
        uint8 (streams, num_frames, height, width, 3) on the CPU.

    Raises:
        NumericsError: the video is not finite.
    """
    parts, made, state = [], 0, None
    while made < num_frames:
        video, state = model.autoencoder.decode_step(next(latents).to(model.dtype), state)
        if not bool(video.isfinite().all()):
            raise NumericsError("the model made video that is not finite")
        parts.append(to_uint8(video))
        made += video.shape[2]
    return torch.cat(parts, dim=1)[:, :num_frames]


def to_uint8(video: Tensor) -> Tensor:
    """(batch, 3, frames, h, w) about [0, 1] -> uint8 (batch, frames, h, w, 3) on the CPU."""
    pixels = video.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous().cpu()
