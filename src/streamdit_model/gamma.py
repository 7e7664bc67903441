"""The schedules that map normalized time to tau, 0 to 0 and 1 to 1.

The paper trains and samples with the linear one and names the power (supplement, eq. 9). Training
and inference use the same one.
"""

import math

from torch import Tensor

from streamdit_model.errors import ConfigError

__all__ = ["apply_gamma", "linear", "power", "shift"]


def linear(time: Tensor) -> Tensor:
    """Return time itself: all segments are equally wide.

    Args:
        time: normalized time in [0, 1], any shape.

    Paper: eq. 9, gamma(t) = t.
    """
    return time


def power(time: Tensor, exponent: float) -> Tensor:
    """Return time ** exponent; above 1 frames stay noisy longer.

    Args:
        time: normalized time in [0, 1], any shape.
        exponent: above 0.

    Paper: eq. 9, gamma(t) = t^k.
    """
    return time**exponent


def shift(time: Tensor, amount: float) -> Tensor:
    """Return time / (time + amount * (1 - time)); above 1 frames stay noisy longer.

    Args:
        time: normalized time in [0, 1], any shape.
        amount: above 0; 1 is linear.

    Choice: the time shift of open video models, so that they keep the levels they were trained on.
    """
    return time / (time + amount * (1 - time))


def apply_gamma(time: Tensor, gamma: str, gamma_parameter: float) -> Tensor:
    """Map normalized time to tau by the named schedule.

    Args:
        time: float64 in [0, 1], any shape.
        gamma: "linear", "power" or "shift".
        gamma_parameter: exponent of "power", amount of "shift"; 1.0 for "linear".

    Returns:
        tau, shape and dtype of `time`.

    Raises:
        ConfigError: an unknown name, or a parameter that the schedule cannot take.
    """
    if not (math.isfinite(gamma_parameter) and gamma_parameter > 0):
        raise ConfigError(f"gamma parameter {gamma_parameter} is not a finite number above 0")
    match gamma:
        case "linear":
            if gamma_parameter != 1.0:
                raise ConfigError(
                    f"gamma linear takes no parameter but 1.0: {gamma_parameter}",
                    hint="use gamma power or shift with a parameter",
                )
            return linear(time)
        case "power":
            return power(time, gamma_parameter)
        case "shift":
            return shift(time, gamma_parameter)
    raise ConfigError(f"gamma {gamma!r} is unknown; linear, power and shift are known")
