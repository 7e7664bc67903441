"""The autoencoder stage: learn to give back the video that was put in.

Clips are drawn from the shapes world by (seed, step, sample). A window starts a stream and is
longer than the decoder remembers, so that both the first frames and frames with carried-over state
are seen.

Paper: section 4.1 names the autoencoder; its training is not given.
Choice: squared error (from absolute error alone it learns the background and no object for long),
absolute error, and that of differences along space and time (sharp outlines, a background that
holds still); and a little noise on the latents, since those to be decoded later
come from a flow and are never exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder
from streamdit_model.flow_matching import sample_draws
from streamdit_model.shapes import draw_clip, render_batch

__all__ = ["ReconstructionConfig", "ReconstructionTask", "peak_signal_to_noise"]


SQUARE_WEIGHT = 10.0  # of the squared error beside the absolute one


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionConfig:
    """What the autoencoder is trained on.

    Args:
        resolution: pixels per side.
        latent_frames: length of a window.
        latent_noise: largest deviation of the noise on the latents; drawn from 0 for each window.
        difference_weight: weight of the differences along space and time.
        compile: compile the autoencoder first (about a minute, then some 2x faster).
    """

    resolution: int
    latent_frames: int = 6
    latent_noise: float = 0.1
    difference_weight: float = 0.5
    compile: bool = False


class ReconstructionTask:
    """The task of the autoencoder stage, see `trainer.Task`."""

    def __init__(self, autoencoder: Autoencoder, config: ReconstructionConfig, seed: int) -> None:
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
        self.autoencoder = autoencoder
        self.config = config
        self.seed = seed
        self._reconstruct = torch.compile(_reconstruct) if config.compile else _reconstruct

    def begin(self, stage: str) -> None:
        """Put the autoencoder into training mode, where latent statistics are the batch's own."""
        self.autoencoder.train()

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        """Return the summed loss of windows drawn for these samples."""
        device = next(self.autoencoder.parameters()).device
        draws = [sample_draws(self.seed, step, sample) for sample in samples]
        clips = [draw_clip(self.seed, int(draw.integers(2**40))) for draw in draws]
        frames = self.config.latent_frames * TIME_FACTOR
        pixels = render_batch(clips, frames, self.config.resolution)
        video = pixels.to(device).permute(0, 4, 1, 2, 3).float() / 255
        shape = self._latent_shape(video)
        noise = torch.stack(
            [
                torch.from_numpy(draw.standard_normal(shape, dtype="float32")) * float(share)
                for draw in draws
                for share in [draw.random() * self.config.latent_noise]
            ]
        ).to(device)
        output = self._reconstruct(self.autoencoder, video, noise)
        loss = _error(output.float(), video, self.config.difference_weight)
        return loss, {"psnr": peak_signal_to_noise(output.detach().float(), video)}

    def after_step(self, step: int) -> None:
        """Do nothing: the stage keeps nothing outside the weights."""

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the stage keeps nothing outside the weights."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take nothing back."""

    def _latent_shape(self, video: Tensor) -> tuple[int, ...]:
        channels = self.autoencoder.config.latent_channels
        return (channels, *self.autoencoder.latent_shape(*video.shape[2:]))


def peak_signal_to_noise(output: Tensor, video: Tensor) -> float:
    """Return the PSNR in dB of video in [0, 1]; the output is clamped first."""
    error = float((output.clamp(0, 1) - video).square().mean())
    return 10 * math.log10(1 / max(error, 1e-12))


def _reconstruct(autoencoder: Autoencoder, video: Tensor, noise: Tensor) -> Tensor:
    latents = autoencoder.encode(video)
    return autoencoder.decode(latents + noise.to(latents))


def _error(output: Tensor, video: Tensor, difference_weight: float) -> Tensor:
    """Return the sum over the batch of absolute and squared errors, and those of differences."""
    error = output - video
    dims = (1, 2, 3, 4)
    total = error.abs().mean(dims) + SQUARE_WEIGHT * error.square().mean(dims)
    for dim in (2, 3, 4):
        total = total + difference_weight * error.diff(dim=dim).abs().mean(dims)
    return total.sum()
