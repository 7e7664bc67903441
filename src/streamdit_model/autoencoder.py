"""The streaming autoencoder: video frames <-> latent frames, 4x in time and 8x in space.

Causal in both directions: latent frame n is made from video frames up to 4n+3, and video frames
4n to 4n+3 are made from latent frames up to n. Every layer remembers at most one frame of its own
input, so a clip run whole (time folded into the batch) and a stream fed piece by piece are the same
function, and n latent frames are exactly 4n video frames: no seams, nothing to trim.

Paper: section 4.1 (the latent is 4x8x8) and section 11 (seams of chunk-wise decoding, solved here).
Choice: memory blocks (a convolution over the frame and its predecessor) instead of attention or
3-D convolution, since their streaming state is one frame of features a block.
"""

# Shape suffixes: b batch, f frames, c channels, h w height and width.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.errors import ConfigError

__all__ = ["TIME_FACTOR", "Autoencoder", "AutoencoderConfig", "State"]

TIME_FACTOR = 4  # video frames a latent frame
SMALLEST_DEVIATION = 0.25  # of a latent channel, in shares of the largest
SPACE_FACTOR = 8  # pixels a latent pixel, along each axis

State = dict[str, Tensor]
"""Last input frame of every memory block, by name; (batch, channels, height, width) each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Sizes of the streaming autoencoder.

    Args:
        latent_channels: channels of a latent frame.
        widths: channels of the stages, coarse (latent resolution) to fine; one stage for each
            halving of space after the pixel patch, plus one. At least three.
        encoder_blocks: memory blocks of each encoder stage, coarse to fine.
        decoder_blocks: memory blocks of each decoder stage, coarse to fine.
        pixel_patch: pixels along each axis folded into channels before the first convolution.

    Raises:
        ConfigError: the stages do not make 8x in space.
    """

    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 64, 32)
    encoder_blocks: tuple[int, ...] = (2, 1, 1)
    decoder_blocks: tuple[int, ...] = (3, 2, 2)
    pixel_patch: int = 2

    def __post_init__(self) -> None:
        stages = len(self.widths)
        if self.pixel_patch * 2 ** (stages - 1) != SPACE_FACTOR or stages < 3:
            raise ConfigError(
                f"{stages} stages and pixel patch {self.pixel_patch} make "
                f"{self.pixel_patch * 2 ** (stages - 1)}x in space; {SPACE_FACTOR}x and at least "
                "3 stages are needed"
            )
        for name in ("encoder_blocks", "decoder_blocks"):
            if len(getattr(self, name)) != stages:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} entries for {stages} widths"
                )
        if (
            min((self.latent_channels, *self.widths, *self.encoder_blocks, *self.decoder_blocks))
            < 1
        ):
            raise ConfigError("widths, blocks and latent channels must be at least 1")

    @property
    def encoder_lead_in(self) -> int:
        """Latent frames after which an encoding no longer depends on where the stream began."""
        rates = [max(1, TIME_FACTOR >> min(stage, 2)) for stage in range(len(self.widths))]
        reach = sum(blocks * rate for blocks, rate in zip(self.encoder_blocks, rates, strict=True))
        return -(-reach // TIME_FACTOR)


class Convolution(nn.Module):
    """A 2-D convolution that keeps height and width (or halves them with stride 2).

    The kernel is stored as a matrix (outputs, inputs * size * size), so that Muon can train it.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.kernel_shape = (outputs, inputs, size, size)
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs * size * size))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (images, inputs, height, width) to (images, outputs, height, width)."""
        kernel = self.weight.view(self.kernel_shape)
        padding = self.kernel_shape[-1] // 2
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, kernel, self.bias, stride=self.stride, padding=padding)


class MemoryBlock(nn.Module):
    """Residual block that sees each frame beside the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = Convolution(2 * width, width)
        self.out = Convolution(width, width)

    def forward(self, x_bfchw: Tensor, past_bchw: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the block's output and the frame to remember.

        Args:
            x_bfchw: (batch, frames, channels, height, width).
            past_bchw: the input frame before the first one; None at the start of a stream.
        """
        past = torch.zeros_like(x_bfchw[:, 0]) if past_bchw is None else past_bchw
        before_bfchw = torch.cat([past.unsqueeze(1), x_bfchw[:, :-1]], dim=1)
        pair = torch.cat([x_bfchw, before_bfchw], dim=2).flatten(0, 1)
        update = self.out(F.silu(self.mix(F.silu(pair))))
        return x_bfchw + update.unflatten(0, x_bfchw.shape[:2]), x_bfchw[:, -1]


class Downsample(nn.Module):
    """Halve space, and time too where two neighbouring frames are joined."""

    def __init__(self, width: int, width_out: int, joins_frames: bool) -> None:
        super().__init__()
        self.frames = 2 if joins_frames else 1
        self.width_out = width_out
        self.conv = Convolution(width * self.frames, width_out, stride=2)

    def forward(self, x_bfchw: Tensor) -> Tensor:
        batch, frames = x_bfchw.shape[:2]
        joined = x_bfchw.reshape(
            batch * frames // self.frames, -1, *x_bfchw.shape[3:]
        )  # neighbouring frames side by side in the channels
        straight = _resized_channels(F.pixel_unshuffle(joined, 2), self.width_out)
        return (straight + self.conv(joined)).unflatten(0, (batch, frames // self.frames))


class Upsample(nn.Module):
    """Double space, and time too where one frame becomes two."""

    def __init__(self, width: int, width_out: int, splits_frames: bool) -> None:
        super().__init__()
        self.frames = 2 if splits_frames else 1
        self.width_out = width_out * self.frames
        self.conv = Convolution(width, self.width_out)

    def forward(self, x_bfchw: Tensor) -> Tensor:
        batch, frames = x_bfchw.shape[:2]
        x = x_bfchw.flatten(0, 1)
        straight = F.pixel_shuffle(_resized_channels(x, 4 * self.width_out), 2)
        x = straight + self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x.reshape(batch, frames * self.frames, -1, *x.shape[2:])


def _resized_channels(x: Tensor, channels: int) -> Tensor:
    """Average groups of channels, or repeat each, to get the number that is wanted.

    Choice: such straight ways round the convolutions that change resolution let the easy part of
    a picture through from the first step on, which training time on a CPU depends on.
    """
    if x.shape[1] >= channels:
        return x.unflatten(1, (channels, -1)).mean(2)
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class LatentNorm(nn.Module):
    """Give the latent channels mean 0 and deviation up to 1 over the training data.

    The statistics are running averages, in training too: those of one small batch would take away
    what its clips have in common, such as the colors.
    Choice: so that noise of the flow and noise added in autoencoder training have a fixed scale. A
    channel that hardly varies is not blown up to deviation 1: the flow would have to learn its
    noise as if it were picture (docs/experiments.md).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x_bfchw: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                values = x_bfchw.float()
                mean = values.mean((0, 1, 3, 4))
                spread = (values - self.mean.view(1, 1, -1, 1, 1)).square().mean((0, 1, 3, 4))
                self.mean.lerp_(mean, self.momentum)
                self.deviation.lerp_(spread.sqrt().clamp_min(1e-4), self.momentum)
        shape = (1, 1, -1, 1, 1)
        mean, scale = self.mean.clone().view(shape), self.scale().view(shape)
        return (x_bfchw - mean.to(x_bfchw)) / scale.to(x_bfchw)

    def scale(self) -> Tensor:
        """Return what each channel is divided by, (channels,)."""
        return self.deviation.clamp(min=SMALLEST_DEVIATION * self.deviation.max())


class Autoencoder(nn.Module):
    """Video <-> latents, whole clip or streamed.

    Video is float in [0, 1], (batch, 3, 4n, height, width); latents are
    (batch, latent_channels, n, height / 8, width / 8) with about unit variance.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        patch_channels = 3 * config.pixel_patch**2
        coarse_to_fine = list(config.widths)
        last = len(coarse_to_fine) - 1
        # Time is halved at the two transitions nearest the latent: cheap fine stages stay 2-D-like.
        self.encoder_in = Convolution(patch_channels, coarse_to_fine[-1])
        self.encoder = nn.ModuleList()
        for stage in range(last, -1, -1):
            for _ in range(config.encoder_blocks[stage]):
                self.encoder.append(MemoryBlock(coarse_to_fine[stage]))
            if stage > 0:
                widths = coarse_to_fine[stage], coarse_to_fine[stage - 1]
                self.encoder.append(Downsample(*widths, joins_frames=stage <= 2))
        self.encoder_out = Convolution(coarse_to_fine[0], config.latent_channels, size=1)
        self.latent_norm = LatentNorm(config.latent_channels)
        self.decoder_in = Convolution(config.latent_channels, coarse_to_fine[0])
        self.decoder = nn.ModuleList()
        for stage in range(last + 1):
            for _ in range(config.decoder_blocks[stage]):
                self.decoder.append(MemoryBlock(coarse_to_fine[stage]))
            if stage < last:
                widths = coarse_to_fine[stage], coarse_to_fine[stage + 1]
                self.decoder.append(Upsample(*widths, splits_frames=stage < 2))
        self.decoder_out = Convolution(coarse_to_fine[-1], patch_channels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights; also after `to_empty`, when the model was built on the meta device.

        Convolutions are normal with variance 1/inputs, so that the signal keeps its size. Zero are
        the last one of every memory block, those with a straight way round them, and the one that
        makes pixels: so the first output is gray. Biases are zero; the latent norm does nothing.
        """
        for module in self.modules():
            if isinstance(module, Convolution):
                nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LatentNorm):
                nn.init.zeros_(module.mean)
                nn.init.ones_(module.deviation)
        for module in self.modules():
            if isinstance(module, MemoryBlock):
                nn.init.zeros_(module.out.weight)
            elif isinstance(module, Downsample | Upsample):
                nn.init.zeros_(module.conv.weight)
        for convolution in (self.encoder_out, self.decoder_in, self.decoder_out):
            nn.init.zeros_(convolution.weight)

    @staticmethod
    def latent_shape(video_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (latent frames, height, width) of a video.

        Raises:
            ConfigError: a length is not a multiple of 4 frames or 8 pixels.
        """
        factors = {"frames": TIME_FACTOR, "height": SPACE_FACTOR, "width": SPACE_FACTOR}
        sizes = (video_frames, height, width)
        for (name, factor), size in zip(factors.items(), sizes, strict=True):
            if size < factor or size % factor:
                raise ConfigError(f"{name} {size} is not a multiple of {factor}")
        return video_frames // TIME_FACTOR, height // SPACE_FACTOR, width // SPACE_FACTOR

    @staticmethod
    def video_shape(latent_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (video frames, height, width) of latents; the inverse of `latent_shape`."""
        return latent_frames * TIME_FACTOR, height * SPACE_FACTOR, width * SPACE_FACTOR

    def frames_to_encode(self, latent_frames: int, state: State | None) -> int:
        """Return how many video frames `encode_step` takes for so many latent frames."""
        return TIME_FACTOR * latent_frames

    @property
    def encoder_lead_in(self) -> int:
        """Latent frames after which an encoding no longer depends on where the stream began."""
        return self.config.encoder_lead_in

    @property
    def decoder_lead_in(self) -> int:
        """Latent frames after which a decoding no longer depends on where the stream began."""
        rates = [max(1, TIME_FACTOR >> min(stage, 2)) for stage in range(len(self.config.widths))]
        reach = sum(
            blocks * rate for blocks, rate in zip(self.config.decoder_blocks, rates, strict=True)
        )
        return -(-reach // TIME_FACTOR)

    def encode(self, video: Tensor) -> Tensor:
        """Encode a whole clip, time folded into the batch.

        Args:
            video: float in [0, 1], (batch, 3, 4n, height, width).

        Returns:
            Latents, (batch, latent_channels, n, height / 8, width / 8).
        """
        return self._encode(video, None)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip, time folded into the batch.

        Args:
            latents: (batch, latent_channels, n, height, width).

        Returns:
            Video, about [0, 1] and not clamped, (batch, 3, 4n, 8 height, 8 width).
        """
        return self._decode(latents, None)[0]

    def encode_step(self, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Encode the next frames of a stream, always four at a time.

        Args:
            video: float in [0, 1], (batch, 3, 4n, height, width), n at least 1.
            state: what the last call returned; None at the start of a stream.

        Returns:
            n latent frames, and the state for the next call.
        """
        parts = []
        for frames in video.split(TIME_FACTOR, dim=2):
            latents, state = self._encode(frames, state)
            parts.append(latents)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def decode_step(self, latents: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Decode the next latent frames of a stream, always one at a time.

        One at a time, so that 1, 2, 4 or 8 latent frames a call give equal bits.

        Args:
            latents: (batch, latent_channels, n, height, width), n at least 1.
            state: what the last call returned; None at the start of a stream.

        Returns:
            4n video frames, about [0, 1] and not clamped, and the state for the next call.
        """
        parts = []
        for latent in latents.split(1, dim=2):
            video, state = self._decode(latent, state)
            parts.append(video)
        assert state is not None
        return torch.cat(parts, dim=2), state

    def _encode(self, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        self.latent_shape(*video.shape[2:])
        batch, frames = video.shape[0], video.shape[2]
        x = (video * 2 - 1).transpose(1, 2).flatten(0, 1)
        x = F.pixel_unshuffle(x, self.config.pixel_patch)
        x = self.encoder_in(x)
        x_bfchw, remembered = _run(self.encoder, x.unflatten(0, (batch, frames)), state)
        x = x_bfchw.flatten(0, 1)
        z = self.encoder_out(F.silu(x)) + _resized_channels(x, self.config.latent_channels)
        z = z.unflatten(0, x_bfchw.shape[:2])
        return self.latent_norm(z).transpose(1, 2), remembered

    def _decode(self, latents: Tensor, state: State | None) -> tuple[Tensor, State]:
        batch, frames = latents.shape[0], latents.shape[2]
        x = latents.transpose(1, 2).flatten(0, 1)
        x = self.decoder_in(x) + _resized_channels(x, self.config.widths[0])
        x_bfchw, remembered = _run(self.decoder, x.unflatten(0, (batch, frames)), state)
        pixels = self.decoder_out(F.silu(x_bfchw.flatten(0, 1)))
        pixels = F.pixel_shuffle(pixels, self.config.pixel_patch)
        video = pixels.unflatten(0, x_bfchw.shape[:2]).transpose(1, 2)
        return (video + 1) / 2, remembered


def _run(layers: nn.ModuleList, x_bfchw: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Run the layers of one direction, handing each memory block the frame it remembers."""
    remembered: State = {}
    for name, layer in _named(layers):
        if isinstance(layer, MemoryBlock):
            past = None if state is None else state[name]
            x_bfchw, remembered[name] = layer(x_bfchw, past)
        else:
            x_bfchw = layer(x_bfchw)
    return x_bfchw, remembered


def _named(layers: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    return ((str(index), layer) for index, layer in enumerate(layers))
