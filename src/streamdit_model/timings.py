"""The arithmetic of a measurement: quantiles, slopes, ratios, lateness. Numbers in, numbers out.

Nothing here reads a clock. A quantile lies between two samples where the rank does, so that few
samples make no jump; what was left out as warm-up was left out before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

__all__ = [
    "gaps",
    "half_spread",
    "is_steady",
    "late_chunks",
    "median",
    "quantile",
    "ratio",
    "shares",
    "slope_per_hour",
    "summary",
]

STEADY_SAMPLES = 5
STEADY_WITHIN = 0.02
SHORTEST_SLOPE = 60.0  # seconds: below it a slope of an hour says nothing


def quantile(samples: Sequence[float], share: float) -> float:
    """Return the value below which a share of the samples lies, between two samples if need be.

    Args:
        samples: in any order, at least one.
        share: 0 (the smallest) to 1 (the largest).

    Raises:
        ValueError: no samples, or a share outside 0 to 1.
    """
    if not samples or not 0 <= share <= 1:
        raise ValueError(f"quantile {share} of {len(samples)} samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(samples: Sequence[float]) -> float:
    """Return the middle of the samples, at least one."""
    return quantile(samples, 0.5)


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return `count`, `median`, `p90`, `p99` and `max` of the samples, at least one."""
    return {
        "count": len(samples),
        "median": median(samples),
        "p90": quantile(samples, 0.9),
        "p99": quantile(samples, 0.99),
        "max": max(samples),
    }


def half_spread(samples: Sequence[float]) -> float:
    """Return half the distance between the largest and the smallest, as a share of the median.

    0 for one sample, and where the median is 0.
    """
    middle = median(samples)
    return (max(samples) - min(samples)) / 2 / middle if middle else 0.0


def shares(totals: Mapping[str, float]) -> dict[str, float]:
    """Return what share of the sum each total is; all 0 where the sum is."""
    whole = sum(totals.values())
    return {name: total / whole if whole else 0.0 for name, total in totals.items()}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return the ratio of measurements that were taken in turns: one over the other, pair by pair.

    What slows the machine down slows both of a pair, so their ratio stays.

    Args:
        numerators, denominators: of the same length, at least one; denominators above 0.

    Returns:
        `median`, `low` and `high`: of the pairs' ratios the middle, the smallest and the largest.
    """
    found = [one / other for one, other in zip(numerators, denominators, strict=True)]
    return {"median": median(found), "low": min(found), "high": max(found)}


def gaps(arrivals: Sequence[float]) -> list[float]:
    """Return the times between arrivals, one fewer than there are arrivals."""
    return [later - earlier for earlier, later in pairwise(arrivals)]


def late_chunks(arrivals: Sequence[float], chunk_seconds: float) -> int:
    """Count the chunks that a viewer would have waited for, who starts one chunk late.

    Args:
        arrivals: time of each chunk in seconds.
        chunk_seconds: how long a chunk is shown. The first is shown one chunk's length after it
            came, each later one right after the one before, or when it comes if that is later.
    """
    late = 0
    shown = arrivals[0] + chunk_seconds if arrivals else 0.0
    for arrival in arrivals[1:]:
        shown += chunk_seconds
        if arrival > shown:
            late += 1
            shown = arrival
    return late


def slope_per_hour(times: Sequence[float], values: Sequence[float]) -> float | None:
    """Return by how much values grow in an hour, by least squares.

    Args:
        times: in seconds, rising.
        values: one for each time.

    Returns:
        None where the times span less than `SHORTEST_SLOPE`.
    """
    if len(times) < 2 or times[-1] - times[0] < SHORTEST_SLOPE:
        return None
    middle, level = math.fsum(times) / len(times), math.fsum(values) / len(values)
    pairs = zip(times, values, strict=True)
    product = math.fsum((time - middle) * (value - level) for time, value in pairs)
    return 3600 * product / math.fsum((time - middle) ** 2 for time in times)


def is_steady(samples: Sequence[float], least: int) -> bool:
    """Say whether warm-up is over: enough samples, and the last five within 2 % of each other.

    Args:
        samples: times so far, in the order they were taken.
        least: samples that are warm-up in any case.
    """
    last = samples[-STEADY_SAMPLES:]
    if len(samples) < max(least, STEADY_SAMPLES):
        return False
    return max(last) - min(last) <= STEADY_WITHIN * min(last)
