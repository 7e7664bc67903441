"""Do weights follow our conventions? One step from a real clip, judged under ours and four others.

A clip is noised as in the moving buffer, each chunk to its level. The network predicts the velocity
once, and the velocity predicts the clip. Where weights, files and code fit each other, the error of
that prediction is lowest under the convention of this project, at every level. Sign, direction of
time, scale of time and order of frames are what conversions get wrong without any other sign of it.

Reference: open-weights.md 2.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError, NumericsError
from streamdit_model.flow_matching import clean_estimate, interpolate, keyed_noise
from streamdit_model.partition import Partition
from streamdit_model.sampling import Velocity, Window

__all__ = ["CONVENTIONS", "OURS", "Probe", "probe"]

OURS = "ours"
TIMESTEPS = 1000.0
_TIE = 1e-4  # of an error; two conventions that are the same at a level differ by rounding


def _sign_flipped(velocity: Velocity) -> Velocity:
    """The network's velocity points to noise."""
    return lambda window: -velocity(window)


def _tau_reversed(velocity: Velocity) -> Velocity:
    """The network's time is 0 for data and 1 for noise."""
    return lambda window: velocity(replace(window, tau=1 - window.tau))


def _time_unscaled(velocity: Velocity) -> Velocity:
    """The network's timestep goes from 0 to 1, where ours is scaled to 1000."""
    return lambda window: velocity(replace(window, tau=1 - (1 - window.tau) / TIMESTEPS))


def _order_reversed(velocity: Velocity) -> Velocity:
    """The network's first frame is the newest."""

    def call(window: Window) -> Tensor:
        turned = replace(window, latents=window.latents.flip(2), tau=window.tau.flip(1))
        return velocity(turned).flip(2)

    return call


def _same(velocity: Velocity) -> Velocity:
    return velocity


CONVENTIONS: dict[str, Callable[[Velocity], Velocity]] = {
    OURS: _same,
    "sign flipped": _sign_flipped,
    "tau reversed": _tau_reversed,
    "time unscaled": _time_unscaled,
    "order reversed": _order_reversed,
}
"""Name -> what turns a velocity of that convention into one of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Errors of the predicted clip.

    Args:
        taus: of the levels, rising.
        errors: convention -> mean squared error at each level, over the mean square of the clip;
            1 is as good as predicting zero.
    """

    taus: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]

    @property
    def best(self) -> str:
        """The convention whose error is lowest in the mean over all levels; ours in a tie."""
        return min(self.errors, key=lambda name: sum(self.errors[name]))

    @property
    def beaten_at(self) -> tuple[float, ...]:
        """The taus at which another convention than ours is better."""
        return tuple(
            tau
            for index, tau in enumerate(self.taus)
            if min(errors[index] for errors in self.errors.values())
            < self.errors[OURS][index] * (1 - _TIE)
        )

    @property
    def fits(self) -> bool:
        """Whether ours is best at every level."""
        return self.best == OURS and not self.beaten_at


def probe(
    velocity: Velocity, clean: Tensor, partition: Partition, *, text: object, seed: int = 0
) -> Probe:
    """Predict a clip from its noised latents once, under every convention.

    Args:
        velocity: of the network, as if its convention were ours; called five times for each window.
        clean: latents of the clip, float32 (1, channels, frames, height, width), at least the B
            frames of one window; a rest that fills no window is left out.
        partition: decides the window and its levels, those at the first micro step.
        text: handed to the velocity.
        seed: of the noise.

    Raises:
        ConfigError: fewer frames than a window has.
        NumericsError: a prediction that is not finite.
    """
    length = partition.buffer_length
    if clean.shape[2] < length:
        raise ConfigError(f"{clean.shape[2]} latent frames do not fill a window of {length}")
    tau = partition.tau(0).to(clean.device)
    taus = sorted(set(tau.tolist()) - {1.0})  # references are not predicted
    draw = keyed_noise([seed], clean.shape[1], *clean.shape[3:], device=clean.device)
    sums = {name: [0.0] * len(taus) for name in CONVENTIONS}
    count = clean.shape[2] // length
    for first in range(0, count * length, length):
        whole = clean[:, :, first : first + length]
        noise = torch.stack([draw(first + frame, 0) for frame in range(length)], dim=2)
        window = Window(
            latents=interpolate(whole, noise, tau, 0.0),
            tau=tau[None],
            slots=torch.arange(length, device=clean.device),
            first_frame=first,
            text=text,
        )
        for name, convention in CONVENTIONS.items():
            predicted = clean_estimate(window.latents, convention(velocity)(window), tau, 0.0)
            found = (predicted - whole).square().mean(dim=(0, 1, 3, 4)) / whole.square().mean()
            for index, level in enumerate(taus):
                sums[name][index] += float(found[tau == level].mean()) / count
    if not all(math.isfinite(value) for values in sums.values() for value in values):
        raise NumericsError("the network predicts values that are not finite")
    return Probe(taus=tuple(taus), errors={name: tuple(sums[name]) for name in CONVENTIONS})
