"""The Wan autoencoder: video <-> latents, whole clip or streamed, 2.1 and 2.2.

Causal in both directions: the first latent frame is the first video frame alone, latent frame n is
made from video frames up to 4n, and video frames 4n - 3 to 4n are made from latent frames up to n.
Every layer that looks back remembers at most two frames of its own input, so that a whole clip and
a stream fed piece by piece are the same function.

Reference: open-weights.md 4.5.
Choice: no tiling in space, which makes seams; a stream works on four frames at a time. Between
calls the decoder of Wan 2.1 remembers 944 million values at 480x832 (1.9 GB in bfloat16).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.autoencoder import TIME_FACTOR, State
from streamdit_model.errors import ConfigError
from streamdit_model.wan import clip_shape
from streamdit_model.wan.vae_config import Stage, WanAutoencoderConfig
from streamdit_model.wan.vae_layers import (
    CausalConvolution,
    Memory,
    Middle,
    Norm,
    ResidualBlock,
    SpaceDown,
    SpaceUp,
    TimeDown,
    TimeUp,
    averaged,
    name_memories,
    repeated,
)

__all__ = ["WanAutoencoder"]


def _blocks(stage: Stage) -> nn.ModuleList:
    widths = [stage.inputs] + [stage.outputs] * stage.blocks
    return nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))


class EncoderStage(nn.Module):
    """Residual blocks at one resolution, then half of it; space first, then time."""

    def __init__(self, stage: Stage, straight_way: bool) -> None:
        super().__init__()
        self.stage = stage
        self.straight_way = straight_way
        self.blocks = _blocks(stage)
        self.space = SpaceDown(stage.outputs, stage.resampled) if stage.resampled else None
        self.time = TimeDown(stage.resampled) if stage.changes_time else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        entered = x
        for block in self.blocks:
            x = block(x, memory)
        if self.space is not None:
            x = self.space.run(x)
        if self.time is not None:
            x = self.time.run(x, memory)
        if self.straight_way:
            x = x + averaged(entered, self.stage, memory.past is None)
        return x


class DecoderStage(nn.Module):
    """Residual blocks at one resolution, then twice of it; time first, then space."""

    def __init__(self, stage: Stage, straight_way: bool) -> None:
        super().__init__()
        self.stage = stage
        self.straight_way = straight_way
        self.blocks = _blocks(stage)
        self.time = TimeUp(stage.outputs) if stage.changes_time else None
        self.space = SpaceUp(stage.outputs, stage.resampled) if stage.resampled else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        entered = x
        for block in self.blocks:
            x = block(x, memory)
        if self.time is not None:
            x = self.time.run(x, memory)
        if self.space is not None:
            x = self.space.run(x)
        if self.straight_way:
            x = x + repeated(entered, self.stage, memory.past is None)
        return x


class Encoder(nn.Module):
    """Folded pixels to mean and logarithm of the variance of latents, before the last mix."""

    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        stages = config.encoder_stages
        coarsest = stages[-1].outputs
        self.conv_in = CausalConvolution(config.pixel_channels, stages[0].inputs)
        self.stages = nn.ModuleList(EncoderStage(stage, config.straight_ways) for stage in stages)
        self.middle = Middle(coarsest)
        self.norm_out = Norm(coarsest, 3)
        self.conv_out = CausalConvolution(coarsest, 2 * config.latent_channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in.run(x, memory)
        for stage in self.stages:
            x = stage(x, memory)
        x = self.middle(x, memory)
        return self.conv_out.run(F.silu(self.norm_out(x)), memory)


class Decoder(nn.Module):
    """Latents after the first mix to folded pixels."""

    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        stages = config.decoder_stages
        coarsest, finest = stages[0].inputs, stages[-1].outputs
        self.conv_in = CausalConvolution(config.latent_channels, coarsest)
        self.middle = Middle(coarsest)
        self.stages = nn.ModuleList(
            DecoderStage(stage, config.straight_ways and stage.resampled > 0) for stage in stages
        )
        self.norm_out = Norm(finest, 3)
        self.conv_out = CausalConvolution(finest, config.pixel_channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.middle(self.conv_in.run(x, memory), memory)
        for stage in self.stages:
            x = stage(x, memory)
        return self.conv_out.run(F.silu(self.norm_out(x)), memory)


class WanAutoencoder(nn.Module):
    """Video <-> normalised latents, whole clip or streamed.

    Video is float in [0, 1], (batch, 3, 1 + 4(n - 1), height, width); latents are
    (batch, latent_channels, n, height / factor, width / factor), each channel normalised by the
    mean and deviation of the configuration, as the diffusion networks take them. The factor is 8
    for Wan 2.1 and 16 for Wan 2.2.
    """

    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.to_moments = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.from_latents = nn.Conv3d(channels, channels, 1)
        self.decoder = Decoder(config)
        name_memories(self)

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (latent frames, height, width) of a clip.

        Raises:
            ConfigError: not 1 more than a multiple of 4 frames, or not a multiple of the factor.
        """
        factor = self.config.space_factor
        return clip_shape.latent_shape(video_frames, height, width, factor)

    def video_shape(self, latent_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (video frames, height, width) of latents; the inverse of `latent_shape`."""
        return clip_shape.video_shape(latent_frames, height, width, self.config.space_factor)

    def frames_to_encode(self, latent_frames: int, state: State | None) -> int:
        """Return how many video frames `encode_step` takes for so many latent frames."""
        return TIME_FACTOR * latent_frames - (TIME_FACTOR - 1 if state is None else 0)

    def encode(self, video: Tensor) -> Tensor:
        """Encode a whole clip at once.

        Args:
            video: float in [0, 1], (batch, 3, 1 + 4(n - 1), height, width).

        Returns:
            Normalised means, (batch, latent_channels, n, height / factor, width / factor).

        Raises:
            ConfigError: as in `latent_shape`.
        """
        return self._encode(video, None)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip at once.

        Args:
            latents: normalised, (batch, latent_channels, n, height, width).

        Returns:
            Video, about [0, 1] and not clamped, (batch, 3, 1 + 4(n - 1), factor height, factor
            width).
        """
        return self._decode(latents, None)[0]

    def encode_step(self, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Encode the next frames of a stream: its first frame alone, then always four at a time.

        Args:
            video: float in [0, 1], (batch, 3, frames, height, width); `frames_to_encode` says how
                many frames.
            state: what the last call returned; None at the start of a stream.

        Returns:
            The latent frames, and the state for the next call.

        Raises:
            ConfigError: a number of frames that makes no whole latent frames, or as in
                `latent_shape`.
        """
        lacking = 0 if state is not None else TIME_FACTOR - 1  # of the first latent frame
        count, rest = divmod(video.shape[2] + lacking, TIME_FACTOR)
        if rest or not count:
            one = self.frames_to_encode(1, state)
            raise ConfigError(
                f"frames {video.shape[2]} make no whole latent frames here; {one} or a multiple of "
                f"{TIME_FACTOR} more are needed"
            )
        parts = []
        for frames in video.split([TIME_FACTOR - lacking, *[TIME_FACTOR] * (count - 1)], dim=2):
            latents, state = self._encode(frames, state)
            parts.append(latents)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def decode_step(self, latents: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Decode the next latent frames of a stream, always one at a time.

        One at a time, so that 1, 2, 4 or 8 latent frames a call give equal bits.

        Args:
            latents: normalised, (batch, latent_channels, n, height, width), n at least 1.
            state: what the last call returned; None at the start of a stream.

        Returns:
            4n video frames, three less at the start of a stream, about [0, 1] and not clamped, and
            the state for the next call.
        """
        parts = []
        for latent in latents.split(1, dim=2):
            video, state = self._decode(latent, state, is_spare=bool(parts))
            parts.append(video)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _encode(self, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        frames = video.shape[2] + (0 if state is None else 1)
        self.latent_shape(frames, *video.shape[3:])
        memory = Memory(state)
        moments = self.encoder(_folded(video * 2 - 1, self.config.pixel_patch), memory)
        mean = self.to_moments(moments)[:, : self.config.latent_channels]
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale, memory.kept

    def _decode(
        self, latents: Tensor, state: State | None, *, is_spare: bool = False
    ) -> tuple[Tensor, State]:
        """Decode; a spare state is one that nobody else has, and is used up on the way."""
        memory = Memory(state, is_spare=is_spare)
        shift, scale = self._statistics(latents)
        pixels = self.decoder(self.from_latents(latents * scale + shift), memory)
        return (_unfolded(pixels, self.config.pixel_patch) + 1) / 2, memory.kept

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the latent channels, each (channels, 1, 1, 1).

        Choice: not buffers; they belong to the configuration and stand in no file of weights.
        """
        mean, deviation = latents.new_tensor((self.config.mean, self.config.deviation))
        return mean.view(-1, 1, 1, 1), deviation.view(-1, 1, 1, 1)


def _folded(video: Tensor, patch: int) -> Tensor:
    """Fold squares of pixels into channels: color, then column, then row of the square."""
    x = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unfolded(pixels: Tensor, patch: int) -> Tensor:
    """Undo `_folded`."""
    x = pixels.unflatten(1, (-1, patch, patch))
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
