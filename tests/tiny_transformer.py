"""A tiny real transformer in float64, with weights that make every part of it count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamdit_model.frame_text import FrameText
from streamdit_model.text import TextCondition
from streamdit_model.transformer import StreamDiT, TransformerConfig

TEXT_WIDTH = 6


def tiny_config(**changes: Any) -> TransformerConfig:
    """Return 8 latent frames of 4 x 4 tokens; `changes` replace fields."""
    sizes: dict[str, Any] = {
        "latent_channels": 3,
        "grid": (8, 8, 8),
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_width": 24,
        "text_width": TEXT_WIDTH,
        "tau_width": 8,
    }
    return TransformerConfig(**(sizes | changes))


def tiny_transformer(seed: int = 0, **changes: Any) -> StreamDiT:
    """Return a model of `tiny_config` without any zero among its weights, in float64."""
    model = StreamDiT(tiny_config(**changes)).double()
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, so that no gate is closed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_(scale * noise + (1.0 if parameter.dim() == 1 else 0.0))


def condition(prompts: int = 3, length: int = 5, seed: int = 1) -> TextCondition:
    """Return text tokens; every prompt has at least one real token, and one has all."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(prompts, length, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, length + 1, (prompts, 1), generator=generator)
    lengths[0] = length
    return TextCondition(tokens, torch.arange(length) < lengths)


def inputs(
    model: StreamDiT, batch: int = 2, frames: int | None = None, seed: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, tau and the slots of `frames` latent frames at the tail of the grid."""
    generator = torch.Generator().manual_seed(seed)
    buffer_length, height, width = model.config.grid
    frames = buffer_length if frames is None else frames
    shape = (batch, model.config.latent_channels, frames, height, width)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    tau = torch.rand(batch, frames, generator=generator)
    return latents, tau, torch.arange(buffer_length - frames, buffer_length)


def one_prompt(model: StreamDiT) -> FrameText:
    """Return the first prompt of `condition` for every sample."""
    return FrameText(model.text_keys(condition()), torch.zeros(1, dtype=torch.long))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-12) -> None:
    """Assert equality up to the rounding of float64 sums taken in another order."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def moved_frames(one: Tensor, other: Tensor) -> list[int]:
    """Return the latent frames in which two velocities differ."""
    differences = (one - other).abs().amax(dim=(0, 1, 3, 4))
    return [frame for frame, value in enumerate(differences.tolist()) if value > 1e-9]


def without_self_attention(model: StreamDiT) -> StreamDiT:
    """Keep every frame to itself: nothing but self-attention lets frames meet."""
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight.zero_()  # type: ignore[union-attr]
    return model
