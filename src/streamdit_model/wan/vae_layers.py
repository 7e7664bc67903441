"""Layers of the Wan autoencoder: causal in time, with a memory that is handed in and out.

A layer that looks back keeps its last input frames, and at the start of a stream it looks back at
zeros. The two layers that change the frame rate leave the first frame of a stream alone: so n
latent frames are 1 + 4(n - 1) video frames. Nothing here knows of latents or pixels.

Reference: open-weights.md 4.5.
"""

# Shape suffixes: b batch, c channels, f frames, h w height and width.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.autoencoder import State
from streamdit_model.wan.vae_config import Stage

__all__ = [
    "CausalConvolution",
    "Memory",
    "Middle",
    "Norm",
    "ResidualBlock",
    "SpaceDown",
    "SpaceUp",
    "TimeDown",
    "TimeUp",
    "averaged",
    "name_memories",
    "repeated",
]


class Memory:
    """What the layers of one direction remember from call to call of a stream.

    Args:
        past: what was kept by the last call; None at the start of a stream.
        is_spare: every part of the past is given back as soon as it was read, so that past and
            present are not in memory together; nobody else may have it.
    """

    def __init__(self, past: State | None, *, is_spare: bool = False) -> None:
        self.past = past
        self._is_spare = is_spare
        self.kept: State = {}

    def before(self, layer: Remembering, x_bcfhw: Tensor, frames: int) -> Tensor:
        """Return the frames before the first one of x, zeros at the start of a stream."""
        if self.past is not None:
            name = layer.memory_name
            return self.past.pop(name) if self._is_spare else self.past[name]
        batch, channels, _, height, width = x_bcfhw.shape
        return x_bcfhw.new_zeros(batch, channels, frames, height, width)

    def keep(self, layer: Remembering, x_bcfhw: Tensor, frames: int) -> None:
        """Keep the last frames of x, as a copy: a view would keep all of x in memory."""
        self.kept[layer.memory_name] = x_bcfhw[:, :, -frames:].clone()


class Remembering(nn.Conv3d):
    """A convolution over time that looks back; its name in a memory is given by its owner."""

    memory_name: str


def name_memories(model: nn.Module) -> None:
    """Give every layer of a model that remembers its own name."""
    for name, layer in model.named_modules():
        if isinstance(layer, Remembering):
            layer.memory_name = name


class CausalConvolution(Remembering):
    """A 3-D convolution over each frame and the frames before it; it keeps all sizes."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__(inputs, outputs, size, padding=(0, size // 2, size // 2))
        self.reach = size - 1

    def run(self, x_bcfhw: Tensor, memory: Memory) -> Tensor:
        """Map (batch, inputs, frames, height, width) to as many frames of `outputs` channels."""
        if self.reach:
            before = memory.before(self, x_bcfhw, self.reach)
            x_bcfhw = torch.cat([before, x_bcfhw], dim=2)
            del before  # it may be spare
            memory.keep(self, x_bcfhw, self.reach)
        return self(x_bcfhw)


class Norm(nn.Module):
    """Scale the channels of every pixel to root mean square 1, then each by its gamma.

    Args:
        channels: of the input.
        dimensions: of the input behind the channels; gamma has as many of length 1.
    """

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dimensions))

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares of hundreds of channels is too coarse in 16 bits.
        precise = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return F.normalize(precise, dim=1).to(x.dtype) * self.gamma * x.shape[1] ** 0.5


class ResidualBlock(nn.Module):
    """Two causal convolutions, each after a norm and a SiLU, beside a straight way."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_1 = Norm(inputs, 3)
        self.conv_1 = CausalConvolution(inputs, outputs)
        self.norm_2 = Norm(outputs, 3)
        self.conv_2 = CausalConvolution(outputs, outputs)
        self.shortcut = CausalConvolution(inputs, outputs, size=1) if inputs != outputs else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        update = self.conv_1.run(F.silu(self.norm_1(x)), memory)
        update = self.conv_2.run(F.silu(self.norm_2(update)), memory)
        return update + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nn.Module):
    """Attention of one head among the pixels of each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width, 2)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x_bcfhw: Tensor) -> Tensor:
        x = x_bcfhw.transpose(1, 2).flatten(0, 1)  # frames as a batch
        pixels = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        query, key, value = pixels.unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        update = self.out(mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))
        return x_bcfhw + update.unflatten(0, (x_bcfhw.shape[0], -1)).transpose(1, 2)


class Middle(nn.Module):
    """The coarsest part of encoder and decoder: a block, attention in each frame, a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ResidualBlock(width, width)
        self.attention = FrameAttention(width)
        self.last = ResidualBlock(width, width)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.last(self.attention(self.first(x, memory)), memory)


class SpaceUp(nn.Conv2d):
    """Double height and width of every frame."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def run(self, x_bcfhw: Tensor) -> Tensor:
        """Map every frame to one of twice its height and width, `outputs` channels."""
        x = x_bcfhw.transpose(1, 2).flatten(0, 1)
        x = self(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x.unflatten(0, (x_bcfhw.shape[0], -1)).transpose(1, 2)


class SpaceDown(nn.Conv2d):
    """Halve height and width of every frame; only the far edges are padded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, stride=2)

    def run(self, x_bcfhw: Tensor) -> Tensor:
        """Map every frame to one of half its height and width, `outputs` channels."""
        x = x_bcfhw.transpose(1, 2).flatten(0, 1)
        x = self(F.pad(x, (0, 1, 0, 1)))
        return x.unflatten(0, (x_bcfhw.shape[0], -1)).transpose(1, 2)


class TimeUp(Remembering):
    """Make two frames of every frame but the first of a stream, which it never sees."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * width, (3, 1, 1))

    def run(self, x_bcfhw: Tensor, memory: Memory) -> Tensor:
        """Map f frames to 2f, at the start of a stream to 2f - 1."""
        untouched = 1 if memory.past is None else 0
        before = memory.before(self, x_bcfhw, 2)
        joined = torch.cat([before, x_bcfhw[:, :, untouched:]], dim=2)
        memory.keep(self, joined, 2)
        if joined.shape[2] < 3:
            return x_bcfhw
        pairs = self(joined).unflatten(1, (2, -1))  # the two frames side by side in the channels
        doubled = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        return torch.cat([x_bcfhw[:, :, :untouched], doubled], dim=2)


class TimeDown(Remembering):
    """Make one frame of two and the one before them; leave the first of a stream alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (3, 1, 1), stride=(2, 1, 1))

    def run(self, x_bcfhw: Tensor, memory: Memory) -> Tensor:
        """Map 2f frames to f, at the start of a stream 2f + 1 frames to f + 1."""
        memory.keep(self, x_bcfhw, 1)
        if memory.past is not None:
            return self(torch.cat([memory.before(self, x_bcfhw, 1), x_bcfhw], dim=2))
        if x_bcfhw.shape[2] == 1:
            return x_bcfhw
        return torch.cat([x_bcfhw[:, :, :1], self(x_bcfhw)], dim=2)


def averaged(x_bcfhw: Tensor, stage: Stage, is_start: bool) -> Tensor:
    """Return the straight way round an encoder stage: means over neighbours and channels.

    Args:
        x_bcfhw: what enters the stage.
        stage: says how much is joined.
        is_start: True at the start of a stream, whose first frame is joined to zeros.
    """
    time, space = stage.time_factor, stage.space_factor
    if is_start:
        x_bcfhw = F.pad(x_bcfhw, (0, 0, 0, 0, time - 1, 0))
    x = x_bcfhw.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    joined = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return joined.unflatten(1, (stage.outputs, -1)).mean(dim=2)


def repeated(x_bcfhw: Tensor, stage: Stage, is_start: bool) -> Tensor:
    """Return the straight way round a decoder stage: every value repeated.

    Args:
        x_bcfhw: what enters the stage.
        stage: says how often.
        is_start: True at the start of a stream, whose first frame is not repeated in time.
    """
    time, space = stage.time_factor, stage.space_factor
    channels = stage.outputs * time * space**2
    x = x_bcfhw.repeat_interleave(channels // stage.inputs, dim=1)
    x = x.unflatten(1, (stage.outputs, time, space, space)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, time - 1 :] if is_start else x
