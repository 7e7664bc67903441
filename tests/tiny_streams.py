"""A tiny real model, with weights that make its velocity depend on everything it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.partition import Partition
from streamdit_model.stream import VideoChunk
from streamdit_model.text import TextConfig, TextEncoder
from streamdit_model.transformer import StreamDiT, TransformerConfig
from streamdit_model.weights import Model, ModelConfig

CHUNK_FRAMES = 8  # video frames of a chunk of the default model
CHUNK_SECONDS = 0.5


def tiny_model(
    partition: Partition | None = None,
    *,
    start: str = "ramp",
    distilled: bool = False,
    guidance_scale: float = 1.0,
    stepper: str = "euler",
    seed: int = 0,
) -> Model:
    """Return a model of 16 x 16 pixels; by default N=4 chunks of c=2 with s=2 micro steps."""
    partition = partition or Partition(num_chunks=4, chunk_size=2, micro_steps=2)
    text = TextConfig(width=16, byte_width=8, depth=1, num_heads=2, max_bytes=32)
    config = ModelConfig(
        name="tiny",
        fps=CHUNK_FRAMES / CHUNK_SECONDS,
        height=16,
        width=16,
        partition=partition,
        start=start,  # type: ignore[arg-type]
        stepper=stepper,  # type: ignore[arg-type]
        distilled=distilled,
        guidance_scale=guidance_scale,
        strength=0.5,
        transformer=TransformerConfig(
            latent_channels=4,
            grid=(partition.buffer_length, 2, 2),
            width=16,
            depth=2,
            num_heads=2,
            mlp_width=32,
            text_width=16,
            tau_width=16,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=4,
            widths=(8, 8, 8),
            encoder_blocks=(1, 1, 1),
            decoder_blocks=(1, 1, 1),
        ),
        text=text,
    )
    parts = StreamDiT(config.transformer), Autoencoder(config.autoencoder), TextEncoder(text)
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        _randomize(part, generator)
        part.eval().requires_grad_(False)
    return Model(config, *parts, torch.device("cpu"), torch.float32)


def _randomize(part: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)


def md5s(chunks: Iterable[VideoChunk]) -> list[str]:
    """Return the md5 of each chunk's frames."""
    return [hashlib.md5(chunk.frames.numpy().tobytes()).hexdigest() for chunk in chunks]


def frames_of(chunks: Iterable[VideoChunk]) -> torch.Tensor:
    """Return all frames, uint8 (frames, height, width, 3)."""
    return torch.cat([chunk.frames for chunk in chunks])


@contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a part of the model for a while."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
