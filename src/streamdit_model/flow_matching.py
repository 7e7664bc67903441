"""The equations of flow matching with one tau per latent frame, and the keyed draws.

Pure functions on latents (batch, channels, frames, height, width) with tau (batch, frames) or
(frames,). They know no buffer and no network. tau runs from 0 (noise) to 1 (data) and velocity
points to data.

x_tau = tau*x_1 + (1 - (1-sigma_min)*tau)*x_0, with x_0 noise and x_1 data.

Every random number of the project is drawn here, on the CPU, from a counter: numpy's Philox with
the seed as key. A draw depends on its own name only, never on what was drawn before it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from streamdit_model.errors import ConfigError

__all__ = [
    "SIGMA_MIN",
    "Noise",
    "clean_estimate",
    "euler_step",
    "interpolate",
    "keyed_noise",
    "renoise",
    "sample_draws",
    "target_velocity",
]

SIGMA_MIN = 1e-5
"""Noise left at tau = 1. Choice: StreamDiT gives none; this is that of Movie Gen, its base."""

Noise = Callable[[int, int], Tensor]
"""noise(latent_frame, level) -> float32 (batch, channels, height, width), standard normal."""

_WORD = 1 << 64
_STREAM_DOMAIN = 0
_TRAINING_DOMAIN = 1


def interpolate(clean: Tensor, noise: Tensor, tau: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """Mix clean latents and noise at one tau per latent frame.

    Args:
        clean: latents, (batch, channels, frames, height, width).
        noise: standard normal, same shape.
        tau: (batch, frames) or (frames,), in [0, 1]; 0 gives `noise`.
        sigma_min: share of noise left at tau = 1.

    Returns:
        Noisy latents, shape and dtype of `clean`.

    Paper: eq. 1 (one tau) and eq. 5 (one per frame).
    """
    share = _per_frame(tau, clean)
    return (share * clean + ((1 - share) + sigma_min * share) * noise).to(clean.dtype)


def target_velocity(clean: Tensor, noise: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """Return the velocity from noise to data, which does not depend on tau.

    Args:
        clean: latents, (batch, channels, frames, height, width).
        noise: standard normal, same shape.
        sigma_min: share of noise left at tau = 1.

    Returns:
        Velocity, shape and dtype of `clean`.

    Paper: eq. 2, for every frame alike.
    """
    return clean - (1 - sigma_min) * noise


def euler_step(noisy: Tensor, predicted_velocity: Tensor, delta_tau: Tensor) -> Tensor:
    """Move every latent frame along its own step of the flow.

    Args:
        noisy: latents, (batch, channels, frames, height, width).
        predicted_velocity: same shape; points toward data.
        delta_tau: step per latent frame, (batch, frames) or (frames,); 0 leaves a frame untouched.

    Returns:
        Latents at tau + delta_tau, shape and dtype of `noisy`.

    Paper: eq. 4 (one tau) and eq. 6 (one per frame).
    """
    return (noisy + predicted_velocity * _per_frame(delta_tau, noisy)).to(noisy.dtype)


def clean_estimate(
    noisy: Tensor, velocity: Tensor, tau: Tensor, sigma_min: float = SIGMA_MIN
) -> Tensor:
    """Return the clean latents that a velocity points to.

    Solves eq. 1 and the target velocity for x_1: (1-sigma_min)*x_tau + (1 - (1-sigma_min)*tau)*v.

    Args:
        noisy: latents, (batch, channels, frames, height, width).
        velocity: same shape; points toward data.
        tau: (batch, frames) or (frames,), in [0, 1].
        sigma_min: as in `interpolate`.

    Returns:
        Clean latents, shape and dtype of `noisy`.
    """
    share = _per_frame(tau, noisy)
    left = (1 - share) + sigma_min * share
    return ((1 - sigma_min) * noisy + left * velocity).to(noisy.dtype)


def renoise(clean: Tensor, noise: Tensor, tau: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """Put predicted clean latents back to a level with noise of that level.

    The mixture is that of `interpolate`; here the noise is a fresh draw, so the step is stochastic.

    Args:
        clean: predicted clean latents, (batch, channels, frames, height, width).
        noise: fresh standard normal, same shape.
        tau: the level to go to, (batch, frames) or (frames,), in [0, 1].
        sigma_min: as in `interpolate`.

    Returns:
        Noisy latents, shape and dtype of `clean`.

    Choice: not in the paper; the sampler of open rolling models (open-weights.md 2).
    """
    return interpolate(clean, noise, tau, sigma_min)


def keyed_noise(
    seeds: Sequence[int],
    channels: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Noise:
    """Return the noise of a batch of streams, one seed for each.

    The noise of latent frame f at level k is a function of (seed, f, k) alone, drawn in float32 on
    the CPU and then moved: k = 0 is the frame's birth, k > 0 are redraws at that level. It never
    depends on prompts, length, batch, device or what was drawn before.

    Args:
        seeds: one for each stream of the batch, 0 .. 2**64 - 1.
        channels: latent channels.
        height: latent rows.
        width: latent columns.
        device: where the draws are moved to.

    Returns:
        noise(latent_frame, level) -> float32 (batch, channels, height, width). The latent frame is
        its absolute number in the stream; references before frame 0 are negative.

    Raises:
        ConfigError: a seed out of range.
    """
    for seed in seeds:
        _check_word(seed, "seed")
    shape = (channels, height, width)

    def noise(latent_frame: int, level: int) -> Tensor:
        _check_word(level, "level")
        draws = [
            _philox(seed, _STREAM_DOMAIN, latent_frame % _WORD, level).standard_normal(
                shape, dtype=np.float32
            )
            for seed in seeds
        ]
        return torch.from_numpy(np.stack(draws)).to(device)

    return noise


def sample_draws(seed: int, step: int, sample: int) -> np.random.Generator:
    """Return the source of every draw of one training sample.

    Args:
        seed: of the run, 0 .. 2**64 - 1.
        step: training step, from 0.
        sample: global sample index within the step, from 0, whatever rank works on it.

    Returns:
        A generator that depends on these three numbers only and shares nothing with `keyed_noise`.

    Raises:
        ConfigError: a number out of range.
    """
    for name, value in (("seed", seed), ("step", step), ("sample", sample)):
        _check_word(value, name)
    return _philox(seed, _TRAINING_DOMAIN, step, sample)


def _philox(seed: int, domain: int, first: int, second: int) -> np.random.Generator:
    """Return Philox with key (seed, domain), counting from (first, second) in its high words.

    The low words count the draws, 2**128 blocks of them, so two names never meet.
    """
    key = np.array([seed, domain], dtype=np.uint64)
    counter = np.array([0, 0, first, second], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _check_word(value: int, name: str) -> None:
    """Refuse what does not fit an unsigned 64-bit word."""
    if not 0 <= value < _WORD:
        raise ConfigError(f"{name} {value} is not in 0 .. {_WORD - 1}")


def _per_frame(tau: Tensor, latents: Tensor) -> Tensor:
    """Shape tau (batch, frames) or (frames,) so that it multiplies latents."""
    frames = latents.shape[2]
    if tau.shape != (frames,) and tau.shape != (latents.shape[0], frames):
        raise ConfigError(
            f"tau of shape {tuple(tau.shape)} does not fit latents of batch {latents.shape[0]} "
            f"and {frames} frames"
        )
    return tau.reshape(-1, 1, frames, 1, 1)
