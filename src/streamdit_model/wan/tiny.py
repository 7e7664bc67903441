"""The tiny autoencoder of Wan latents, taew2_1: video <-> latents, whole clip or streamed.

A convolutional network of 11 million parameters that makes and takes the normalised latents of the
Wan autoencoder directly. Its decoder aligns with that autoencoder: n latent frames are
1 + 4(n - 1) video frames. Its encoder always joins four whole frames, latent frame n is made from
video frames up to 4n + 3: so a clip gets its last frame three times more, and a stream is encoded
three frames late.

Reference: open-weights.md 4.6 and 4.5, performance.md 1.5; madebyollin/taehv `taehv.py`.
Choice: not the class of our own autoencoder. It shares the interface, but its blocks have other
activations, three convolutions, and memories behind the pixel layers; its kernels are 4-D where
ours are matrices, and it drops three frames at the start, which one class could only join by
branches that touch the shipped weights.
"""

# Shape suffixes: b batch, f frames, c channels, h w height and width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.autoencoder import TIME_FACTOR, State
from streamdit_model.errors import ConfigError
from streamdit_model.wan import clip_shape
from streamdit_model.wan.vae_keys import refuse_other_keys

__all__ = ["TAEW_2_1", "TAEW_2_2", "TinyAutoencoder", "TinyAutoencoderConfig"]

SPACE_HALVINGS = 3
ENCODER_JOINS = (2, 2, 1)  # frames joined at each halving of space, fine to coarse
DECODER_SPLITS = (1, 2, 2)  # frames made at each doubling of space, coarse to fine
BLOCKS = 3  # memory blocks at each resolution
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyAutoencoderConfig:
    """Sizes of a tiny autoencoder.

    Args:
        latent_channels: channels of a latent frame.
        encoder_width: channels of the whole encoder.
        decoder_widths: channels of the decoder, coarse to fine; the last ones make pixels.
        pixel_patch: pixels along each axis folded into channels before the first convolution.

    Raises:
        ConfigError: a number below 1, or not four decoder widths.
    """

    latent_channels: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    pixel_patch: int = 1

    def __post_init__(self) -> None:
        if len(self.decoder_widths) != SPACE_HALVINGS + 1:
            raise ConfigError(
                f"{len(self.decoder_widths)} decoder widths; {SPACE_HALVINGS + 1} are needed"
            )
        sizes = (self.latent_channels, self.encoder_width, self.pixel_patch)
        if min(*sizes, *self.decoder_widths) < 1:
            raise ConfigError("widths, pixel patch and latent channels must be at least 1")

    @property
    def space_factor(self) -> int:
        """Return the pixels a latent pixel, along each axis."""
        return self.pixel_patch * 2**SPACE_HALVINGS


TAEW_2_1 = TinyAutoencoderConfig()
"""For the latents of Wan 2.1."""

TAEW_2_2 = TinyAutoencoderConfig(latent_channels=48, pixel_patch=2)
"""For the latents of Wan 2.2 TI2V-5B."""


class Bound(nn.Module):
    """Bend values smoothly into -3 to 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Residual block that sees each frame beside the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def run(self, x_bfchw: Tensor, past_bchw: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the block's output and the frame to remember; past is None at the start."""
        past = torch.zeros_like(x_bfchw[:, 0]) if past_bchw is None else past_bchw
        before = torch.cat([past.unsqueeze(1), x_bfchw[:, :-1]], dim=1)
        update = self.conv(torch.cat([x_bfchw, before], dim=2).flatten(0, 1))
        # A copy: a view would keep all frames in memory.
        return F.relu(x_bfchw + update.unflatten(0, x_bfchw.shape[:2])), x_bfchw[:, -1].clone()


class Join(nn.Module):
    """Make one frame of neighbouring ones."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width * frames, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, x.shape[1] * self.frames, *x.shape[2:]))


class Split(nn.Module):
    """Make neighbouring frames of one."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


def _encoder(config: TinyAutoencoderConfig) -> nn.ModuleList:
    width = config.encoder_width
    layers: list[nn.Module] = [
        nn.Conv2d(3 * config.pixel_patch**2, width, 3, padding=1),
        nn.ReLU(),
    ]
    for frames in ENCODER_JOINS:
        layers.append(Join(width, frames))
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [MemoryBlock(width) for _ in range(BLOCKS)]
    layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
    return nn.ModuleList(layers)


def _decoder(config: TinyAutoencoderConfig) -> nn.ModuleList:
    widths = config.decoder_widths
    layers: list[nn.Module] = [
        Bound(),
        nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
        nn.ReLU(),
    ]
    for index, frames in enumerate(DECODER_SPLITS):
        width, narrower = widths[index], widths[index + 1]
        layers += [MemoryBlock(width) for _ in range(BLOCKS)]
        layers += [nn.Upsample(scale_factor=2), Split(width, frames)]
        layers.append(nn.Conv2d(width, narrower, 3, padding=1, bias=False))
    layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * config.pixel_patch**2, 3, padding=1)]
    return nn.ModuleList(layers)


class TinyAutoencoder(nn.Module):
    """Video <-> normalised Wan latents, whole clip or streamed.

    The interface of `WanAutoencoder`; only `frames_to_encode` differs. The parameters have the
    names of the published files, since those only number the layers.
    """

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)

    def check_keys(self, tensors: Mapping[str, _Value]) -> dict[str, _Value]:
        """Return the content of a file, whose names must be those of this network.

        Raises:
            WeightsError: the first missing and the first unexpected name are in the message.
        """
        refuse_other_keys(tensors, self.state_dict(), "a tiny Wan autoencoder")
        return dict(tensors)

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
        """Return how many video frames `encode_step` takes for so many latent frames.

        Always four each, at the start of a stream too: this encoder looks three frames ahead.
        """
        return TIME_FACTOR * latent_frames

    def encode(self, video: Tensor) -> Tensor:
        """Encode a whole clip at once, its last frame shown three times more.

        Args:
            video: float in [0, 1], (batch, 3, 1 + 4(n - 1), height, width).

        Returns:
            Normalised latents, (batch, latent_channels, n, height / factor, width / factor).

        Raises:
            ConfigError: as in `latent_shape`.
        """
        self.latent_shape(*video.shape[2:])
        last = video[:, :, -1:].expand(-1, -1, TIME_FACTOR - 1, -1, -1)
        return self._encode(torch.cat([video, last], dim=2), None)[0]

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
        """Encode the next frames of a stream, always four at a time.

        Args:
            video: float in [0, 1], (batch, 3, 4n, height, width), n at least 1.
            state: what the last call returned; None at the start of a stream.

        Returns:
            n latent frames, and the state for the next call.

        Raises:
            ConfigError: a number of frames that is no multiple of 4, or as in `latent_shape`.
        """
        frames = video.shape[2]
        if not frames or frames % TIME_FACTOR:
            raise ConfigError(
                f"frames {frames} make no whole latent frames; a multiple of {TIME_FACTOR} is"
                " needed"
            )
        self.latent_shape(1, *video.shape[3:])
        parts = []
        for group in video.split(TIME_FACTOR, dim=2):
            latents, state = self._encode(group, state)
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
            video, state = self._decode(latent, state)
            parts.append(video)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _encode(self, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        x_bfchw = F.pixel_unshuffle(video.transpose(1, 2), self.config.pixel_patch)
        latents, remembered = _run(self.encoder, x_bfchw, state)
        return latents.transpose(1, 2), remembered

    def _decode(self, latents: Tensor, state: State | None) -> tuple[Tensor, State]:
        x_bfchw, remembered = _run(self.decoder, latents.transpose(1, 2), state)
        if state is None:
            x_bfchw = x_bfchw[:, TIME_FACTOR - 1 :]  # before the first frame of the video
        return F.pixel_shuffle(x_bfchw, self.config.pixel_patch).transpose(1, 2), remembered


def _run(layers: nn.ModuleList, x_bfchw: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Run the layers of one direction, handing each memory block the frame it remembers."""
    remembered: State = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, MemoryBlock):
            past = None if state is None else state[str(index)]
            x_bfchw, remembered[str(index)] = layer.run(x_bfchw, past)
        else:
            x = layer(x_bfchw.flatten(0, 1))
            x_bfchw = x.unflatten(0, (x_bfchw.shape[0], -1))
    return x_bfchw, remembered
