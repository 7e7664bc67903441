"""Strength of video to video: the noise level at which an input is left to the model.

Strength is 1 - tau of entry: near 0 keeps the input, 1 begins at pure noise and forgets it. A model
enters at the levels of its own partition only.

Paper: section 8 names SDEdit and gives no strength; the rule is that of paper.md 7.2.
"""

from __future__ import annotations

import math

from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition

__all__ = ["entry_level", "strength_levels", "strength_of"]

_ROUNDING = 5e-4  # levels are shown with three digits, and what is shown may be typed


def strength_levels(partition: Partition) -> tuple[float, ...]:
    """Return the strengths that a model has, rising; the last one is 1."""
    return tuple(strength_of(partition, level) for level in reversed(range(partition.total_steps)))


def strength_of(partition: Partition, level: int) -> float:
    """Return the strength of an entry at a level, 0 .. T-1."""
    return 1.0 - float(partition.gamma_table()[level])


def entry_level(partition: Partition, strength: float) -> int:
    """Return the level whose strength is nearest, 0 .. T-1; of two as near the stronger one.

    Args:
        partition: of the model.
        strength: in (0, 1].

    Raises:
        ConfigError: not in (0, 1], or below the lowest strength; the levels are listed.

    Choice: below the lowest level nothing would be left to the model, so that is no edit.
    """
    levels = strength_levels(partition)
    shown = ", ".join(f"{level:.3g}" for level in levels)
    hint = f"the levels of this model are {shown}"
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise ConfigError(f"strength {strength:g} is not above 0 and at most 1", hint=hint)
    if strength < levels[0] - _ROUNDING:
        raise ConfigError(
            f"strength {strength:g} is below the lowest level of this model, {levels[0]:.3g}; "
            f"allowed are {shown}",
            hint=f"use {levels[0]:.3g} or more",
        )
    near = range(partition.total_steps)
    return min(near, key=lambda level: abs(strength_of(partition, level) - strength))
