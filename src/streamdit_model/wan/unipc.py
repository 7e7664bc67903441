"""UniPC with a history per latent frame, for open weights that are sampled in many micro steps.

A multistep solver of order two: each step first corrects where the last one arrived, with the
clean estimate that was just made there, then predicts the next latents from this estimate and the
one before. Every latent frame has its own history, since the frames of a buffer are at different
tau; a frame that enters the buffer begins without one. Everything a step needs of the past is in
one `UniPCState`; the step is a pure function.

tau runs from 0 (noise) to 1 (data), velocity points to data, as everywhere: lambda, half the
logarithm of the signal-to-noise ratio squared, is log(tau / (1 - tau)).

Choice: order two and the "bh2" form of UniPC, which SkyReels-V2 was published with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition

__all__ = ["UniPCState", "UniPCStepper", "skyreels_taus", "unipc_step"]

_SMALLEST_TAU = 1e-6
"""Choice: tau = 0 has no finite lambda; diffusers moves it by as much."""

_SAME = 1e-6  # taus that come through float32


@dataclass(frozen=True, slots=True, eq=False)
class UniPCState:
    """What a step leaves for the next one.

    Args:
        first_frame: absolute number of the first frame.
        steps: per frame, how many estimates its history has: 0, 1 or 2.
        arrived: per frame, tau after the last step.
        tau: per frame, tau before the last step, where `clean` was estimated.
        tau_before: per frame, tau of the estimate before that.
        noisy: latents at `tau`, corrected, (batch, channels, frames, height, width).
        clean: clean estimate at `tau`, same shape.
        clean_before: clean estimate at `tau_before`, same shape.
    """

    first_frame: int
    steps: tuple[int, ...]
    arrived: tuple[float, ...]
    tau: tuple[float, ...]
    tau_before: tuple[float, ...]
    noisy: Tensor
    clean: Tensor
    clean_before: Tensor


def skyreels_taus(num_steps: int, shift: float = 8.0) -> tuple[float, ...]:
    """Return the taus of a frame's way, num_steps + 1 of them, the last one 1.

    Args:
        num_steps: steps from noise to data, at least 1.
        shift: above 1 frames stay noisy longer.

    Raises:
        ConfigError: a number out of range.

    Source: open-weights.md 3: model times 999, 995, ..., 470, 363, 216 for 30 steps and shift 8.
    The way begins a little after pure noise, at sigma = 0.999 before the shift.
    """
    if num_steps < 1:
        raise ConfigError(f"{num_steps} steps, at least 1 is needed")
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift {shift} is not a finite number above 0")
    sigmas = [0.999 * (num_steps - step) / num_steps for step in range(num_steps)]
    return (*(1 - shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas), 1.0)


def unipc_step(
    state: UniPCState | None,
    noisy: Tensor,
    predicted_velocity: Tensor,
    tau: Sequence[float],
    tau_after: Sequence[float],
    first_frame: int,
) -> tuple[Tensor, UniPCState]:
    """Move every latent frame along its own step.

    Args:
        state: what the last step left; None at the start. Frames it does not know begin anew, and
            frames that left the buffer are forgotten.
        noisy: latents, (batch, channels, frames, height, width).
        predicted_velocity: same shape; points to data.
        tau: of every frame, in [0, 1], where `noisy` is.
        tau_after: of every frame, at least tau; equal leaves a frame untouched and forgets its
            history, which is what clean reference frames need.
        first_frame: absolute number of the first frame.

    Returns:
        Latents at tau_after, shape and dtype of `noisy`; and the state for the next step.

    Raises:
        ConfigError: taus out of range, or a frame that is not where its last step arrived.

    Source: UniPC, arXiv 2302.04867, data prediction, for alpha = tau and sigma = 1 - tau.
    """
    frames = range(noisy.shape[2])
    _check(tau, tau_after, len(frames))
    moving = [after > before for before, after in zip(tau, tau_after, strict=True)]
    past = _aligned(state, noisy, tau, moving, first_frame)
    clean = noisy + _per_frame([1 - _inside(value) for value in tau], noisy) * predicted_velocity
    corrected = _mixed(
        [_correction(past.steps[i], past.tau_before[i], past.tau[i], tau[i]) for i in frames],
        (noisy, past.noisy, clean, past.clean, past.clean_before),
    )
    predicted = _mixed(
        [_prediction(past.steps[i], past.tau[i], tau[i], tau_after[i]) for i in frames],
        (noisy, corrected, clean, past.clean),
    )
    return predicted, UniPCState(
        first_frame=first_frame,
        steps=tuple(min(2, past.steps[i] + 1) if moving[i] else 0 for i in frames),
        arrived=tuple(tau_after),
        tau=tuple(tau),
        tau_before=past.tau,
        noisy=corrected,
        clean=clean,
        clean_before=past.clean,
    )


class UniPCStepper:
    """A stepper of `sampling.cycle` with the history of one stream.

    Args:
        partition: says which tau a level is.

    Choice: its gamma `shift` begins at tau = 0 where `skyreels_taus` begins 0.0001 later, so that
    the buffer's own table holds; rounded to whole model times, all others are the same.
    """

    def __init__(self, partition: Partition) -> None:
        self._taus = tuple(float(tau) for tau in partition.gamma_table())
        self._state: UniPCState | None = None

    def __call__(
        self,
        noisy: Tensor,
        predicted_velocity: Tensor,
        levels: Sequence[int],
        levels_after: Sequence[int],
        first_frame: int,
    ) -> Tensor:
        """Return the latents at the levels after the step."""
        tau, after = ([self._taus[k] for k in row] for row in (levels, levels_after))
        moved, self._state = unipc_step(
            self._state, noisy, predicted_velocity, tau, after, first_frame
        )
        return moved

    def forget(self, frames: range) -> None:
        """Drop the history of latent frames, in absolute numbers, whose latents were replaced."""
        if self._state is None:
            return
        first = self._state.first_frame
        steps = tuple(
            0 if first + place in frames else count for place, count in enumerate(self._state.steps)
        )
        self._state = replace(self._state, steps=steps)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on exactly: tensors, numbers and lists of numbers."""
        if self._state is None:
            return {}
        values = {field.name: getattr(self._state, field.name) for field in fields(UniPCState)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state.items()
        }
        self._state = UniPCState(**values) if values else None


def _check(tau: Sequence[float], tau_after: Sequence[float], frames: int) -> None:
    if not len(tau) == len(tau_after) == frames:
        raise ConfigError(f"{len(tau)} and {len(tau_after)} taus for {frames} frames")
    for before, after in zip(tau, tau_after, strict=True):
        if not 0 <= before <= after <= 1:
            raise ConfigError(f"a step from tau {before} to {after} does not rise within 0 to 1")
        if before < after <= _SMALLEST_TAU:
            raise ConfigError(f"a step to tau {after} ends at noise, it must pass {_SMALLEST_TAU}")


def _aligned(
    state: UniPCState | None,
    noisy: Tensor,
    tau: Sequence[float],
    moving: Sequence[bool],
    first_frame: int,
) -> UniPCState:
    """Return the state of the frames that are here now; new and resting ones have no history."""
    places: list[int | None] = []
    for place, value in enumerate(tau):
        frame = first_frame + place
        index = -1 if state is None else frame - state.first_frame
        if state is None or not moving[place] or not 0 <= index < len(state.steps):
            places.append(None)
            continue
        if state.steps[index] and abs(state.arrived[index] - value) > _SAME:
            raise ConfigError(
                f"latent frame {frame} is at tau {value}, its last step went to"
                f" {state.arrived[index]}",
                hint="begin with an empty state when latents were changed between steps",
            )
        places.append(index)
    held = (noisy,) * 3 if state is None else (state.noisy, state.clean, state.clean_before)
    return UniPCState(
        first_frame=first_frame,
        steps=tuple(0 if i is None or state is None else state.steps[i] for i in places),
        arrived=tuple(tau),
        tau=_taken(places, tau, None if state is None else state.tau),
        tau_before=_taken(places, tau, None if state is None else state.tau_before),
        noisy=_gathered(places, noisy, held[0]),
        clean=_gathered(places, noisy, held[1]),
        clean_before=_gathered(places, noisy, held[2]),
    )


def _taken(
    places: Sequence[int | None], here: Sequence[float], held: Sequence[float] | None
) -> tuple[float, ...]:
    """Return held[place] where a frame has one, what is here elsewhere."""
    return tuple(
        value if index is None or held is None else held[index]
        for index, value in zip(places, here, strict=True)
    )


def _gathered(places: Sequence[int | None], here: Tensor, held: Tensor) -> Tensor:
    """Return the held latents of each frame that has a place there, those that are here else."""
    return torch.stack(
        [
            here[:, :, place] if index is None else held[:, :, index]
            for place, index in enumerate(places)
        ],
        dim=2,
    )


def _correction(
    steps: int, before: float, last: float, now: float
) -> tuple[float, float, float, float, float]:
    """Return the shares of (noisy, last corrected, clean, last clean, clean before that).

    The last step went from `last` to `now`; its order was the number of estimates it had.
    """
    if steps == 0:
        return 1.0, 0.0, 0.0, 0.0, 0.0
    height, grown = _span(last, now)
    keep = (1 - _inside(now)) / (1 - _inside(last))
    weight = -_inside(now) * grown
    if steps == 1:
        return 0.0, keep, 0.5 * weight, 0.5 * weight, 0.0
    ratio = (_lambda(before) - _lambda(last)) / height
    first = grown / -height - 1  # the integrals of exp against 1 and against the step's own time
    second = first / -height - 0.5
    share_before = (first - 2 * second) / grown / (1 - ratio)
    share_now = first / grown - share_before
    old = share_before / ratio
    return 0.0, keep, weight * share_now, weight * (1 - share_now - old), weight * old


def _prediction(
    steps: int, last: float, now: float, after: float
) -> tuple[float, float, float, float]:
    """Return the shares of (noisy, corrected, clean, last clean) in the next latents."""
    if after <= now:
        return 1.0, 0.0, 0.0, 0.0
    if after >= 1:  # the clean estimate itself: the last step is of order one
        return 0.0, 0.0, 1.0, 0.0
    height, grown = _span(now, after)
    keep = (1 - after) / (1 - _inside(now))
    weight = -after * grown
    if steps == 0:
        return 0.0, keep, weight, 0.0
    old = 0.5 * height / (_lambda(last) - _lambda(now))
    return 0.0, keep, weight * (1 - old), weight * old


def _span(start: float, end: float) -> tuple[float, float]:
    """Return the length h of a step in lambda, and exp(-h) - 1."""
    height = _lambda(end) - _lambda(start)
    return height, math.expm1(-height)


def _lambda(tau: float) -> float:
    value = _inside(tau)
    return math.log(value) - math.log1p(-value)


def _inside(tau: float) -> float:
    return max(tau, _SMALLEST_TAU)


def _mixed(shares: Sequence[Sequence[float]], parts: Sequence[Tensor]) -> Tensor:
    """Sum latents with shares of their own for each frame; a share of 0 leaves a part out."""
    result = torch.zeros_like(parts[0])
    for column, part in enumerate(parts):
        of_frames = [row[column] for row in shares]
        if any(of_frames):
            result = result + _per_frame(of_frames, part) * part
    return result


def _per_frame(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
