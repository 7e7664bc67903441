"""Tiny Wan transformers, their text, and the same weights under the published names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tiny_transformer import randomize
from torch import Tensor

from streamdit_model.frame_text import FrameText
from streamdit_model.text import TextCondition
from streamdit_model.wan.config import WanConfig
from streamdit_model.wan.keys import key_map
from streamdit_model.wan.rotary import rotation
from streamdit_model.wan.transformer import WanTransformer, timestep_embedding

TINY: dict[str, Any] = {
    "latent_channels": 4,
    "width": 28,
    "depth": 3,
    "num_heads": 2,
    "mlp_width": 20,
    "text_width": 10,
    "text_length": 7,
    "time_width": 16,
}


def tiny_wan_config(**changes: Any) -> WanConfig:
    """Return 3 blocks of 2 heads of 14: 6, 4 and 4 channels on the axes; `changes` replace."""
    return WanConfig(**(TINY | changes))


def tiny_wan(seed: int = 0, **changes: Any) -> WanTransformer:
    """Return a float64 network every parameter of which is away from its default."""
    model = WanTransformer(tiny_wan_config(**changes)).double()
    randomize(model, seed)
    return model.eval()


def tensors_in(layout: str, model: WanTransformer) -> dict[str, Tensor]:
    """Return the weights of a network under the names of a published layout."""
    state = model.state_dict()
    return {theirs: state[ours] for theirs, ours in key_map(model.config, layout).items()}


def condition(prompts: int = 2, seed: int = 1, dtype: torch.dtype = torch.float64) -> TextCondition:
    """Return prompts of different lengths, shorter than what the network reads."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(prompts, 5, TINY["text_width"], generator=generator, dtype=torch.float64)
    lengths = torch.tensor([3, 5, 1, 4])[:prompts, None]
    return TextCondition(tokens.to(dtype), torch.arange(5) < lengths)


def text_of(model: WanTransformer, *index: int, seed: int = 1) -> FrameText:
    """Return prompts by number: one for all samples, or one for each."""
    keys = model.text_keys(condition(4, seed, model.head.weight.dtype))
    return FrameText(keys, torch.tensor(index))


def zero_padded(text: TextCondition, length: int = TINY["text_length"]) -> Tensor:
    """Return the tokens as the published networks take them."""
    tokens = text.tokens * text.mask[..., None]
    return F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))


@torch.no_grad()
def masked_forward(
    network: WanTransformer,
    latents: Tensor,
    tau: Tensor,
    positions: Tensor,
    text: FrameText,
    sees: list[Tensor],
) -> Tensor:
    """One plain pass; in block i a token attends where sees[i], (queries, keys) bool, is true."""
    config, frames = network.config, latents.shape[2]
    rows, columns = latents.shape[3] // 2, latents.shape[4] // 2
    x = network.patch_embedding(latents)
    time = network.time_embedding(timestep_embedding(1000 * (1 - tau), config.time_width))
    modulation = network.modulation(F.silu(time)).unflatten(-1, (6, -1))
    turn = rotation(positions, rows, columns, config.head_width, x.device, x.dtype)
    for block, read, mask in zip(network.blocks, text.per_block(), sees, strict=True):
        x = block(x, modulation, turn, read, None, mask[None, None])
    shift, scale = (time[:, :, None] + network.head_table).unsqueeze(3).unbind(2)
    values = network.head(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    values = values.reshape(len(latents), frames, rows, columns, 2, 2, -1)
    return -values.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)


def noise(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
