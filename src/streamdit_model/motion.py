"""Which of the eight laws of motion a tracked object of the shapes world follows.

It knows the track of one object and the laws, and nothing of pixels or palettes. Lengths are in
half frames, x right, y down; positive angles turn clockwise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdit_model.shapes import (
    BOUNCE_RATE,
    CIRCLE_RATE,
    DIRECTIONS,
    FPS,
    PULSE_RATE,
    SPEED_RANGE,
    SPIN_RATE,
)
from streamdit_model.silhouette import NUM_ANGLES, Track

__all__ = ["NO_MOTION", "Motion", "judge_motion", "speed_limits"]

LAG = 4  # frames between the two positions of a displacement
LEAST_LAGS = 8
MOST_STEP = 0.35  # half frames per frame; more is a jump from side to side
STILL = 0.05  # root mean square displacement in LAG frames; the slowest motion has 0.15
LEAST_FIT = 0.7  # share of the displacements that a law explains
SPEEDS = (0.35, 1.6)
CIRCLE_RADII = (0.25, 0.75)
BOUNCE_HEIGHTS = (0.3, 2.0)
PULSE_DEPTHS = (0.2, 0.7)
PULSE_FIT = 0.6
RATE_FACTORS = torch.linspace(0.7, 1.3, 25)
SPIN_FACTORS = torch.linspace(-1.6, 1.6, 129)
LEAST_SPIN = 0.5
LEAST_OUTLINE = 0.01  # deviation around the circle; the dot of a sharp ring gives 0.17
LEAST_COHERENCE = 0.6
RATES = {
    "bouncing": BOUNCE_RATE,
    "circling": CIRCLE_RATE,
    "spinning": SPIN_RATE,
    "pulsing": PULSE_RATE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """The name of a motion, its speed or rate, and what it leaves in place (see `Verdict`)."""

    name: str
    speed: float
    rest_x: float
    rest_y: float


NO_MOTION = Motion(name="none", speed=math.nan, rest_x=math.nan, rest_y=math.nan)


def speed_limits(motion: str, tolerance: float = 0.1) -> tuple[float, float]:
    """Give the least and the greatest `Motion.speed` that the world's motion may have.

    Args:
        motion: one of `MOTIONS`.
        tolerance: share by which the world's value or range is widened on both sides.
    """
    low, high = SPEED_RANGE if motion in DIRECTIONS else (RATES[motion], RATES[motion])
    return low * (1 - tolerance), high * (1 + tolerance)


def judge_motion(track: Track, shape_index: int) -> Motion:
    """Name the motion in a window.

    Args:
        track: measurements of at least 2 s.
        shape_index: which of `SHAPES` the object is, to see it spin.
    """
    moved = _displacements(track)
    known = ~moved.isnan()
    if int(known.sum()) < LEAST_LAGS:
        return NO_MOTION
    energy = float(moved[known].square().sum())
    if energy <= known.float().mean() * len(moved) * STILL**2:
        return _judge_at_rest(track, shape_index)
    # Each law tells what it leaves unexplained, its speed, and whether that speed is allowed.
    laws = {name: _fit_moving(moved, known, *axis) for name, axis in DIRECTIONS.items()}
    laws["bouncing"] = _fit_bouncing(moved, known)
    laws["circling"] = _fit_circling(moved, known)
    name = min(laws, key=lambda law: laws[law][0])
    rest, speed, is_allowed = laws[name]
    if not is_allowed or rest > (1 - LEAST_FIT) * energy:
        return NO_MOTION
    rest_x, rest_y = _resting_place(track, name, speed)
    return Motion(name=name, speed=speed, rest_x=rest_x, rest_y=rest_y)


def _displacements(track: Track) -> Tensor:
    """Give how far the object goes in LAG frames, x and y, nan where unknown: (lags, 2).

    An object seen whole is followed by its centroid, one that the frame cuts by those of its
    edges that are inside.
    """
    left, right, top, bottom = torch.diff(track.edges, dim=0).unbind(1)
    by_edges = torch.stack(
        [torch.stack(pair, 1).nanmean(1) for pair in ((left, right), (top, bottom))], 1
    )
    followed = (track.whole[1:] & track.whole[:-1])[:, None]
    seen = (track.seen[1:] & track.seen[:-1])[:, None]
    by_edges = by_edges.masked_fill(~seen | (by_edges.abs() > MOST_STEP), math.nan)
    step = torch.where(followed, torch.diff(track.center, dim=0), by_edges)
    return step.unfold(0, LAG, 1).sum(-1)


def _fit_moving(moved: Tensor, known: Tensor, dx: int, dy: int) -> tuple[float, float, bool]:
    along = torch.tensor([float(dx), float(dy)]).expand_as(moved)
    along_known = along[known]
    length = float((moved[known] * along_known).sum() / along_known.square().sum().clamp(min=1))
    length = max(length, 0.0)
    rest = float((moved[known] - length * along_known).square().sum())
    speed = length * FPS / LAG
    return rest, speed, SPEEDS[0] <= speed <= SPEEDS[1]


def _times(count: int) -> tuple[Tensor, Tensor]:
    """Give the times of both positions of each displacement, in seconds."""
    start = torch.arange(count) / FPS
    return start, start + LAG / FPS


def _fit_bouncing(moved: Tensor, known: Tensor) -> tuple[float, float, bool]:
    before, after = _times(len(moved))
    rate = BOUNCE_RATE * RATE_FACTORS[:, None, None]
    phase = (torch.arange(32) * (math.pi / 32))[None, :, None]
    path = torch.sin(rate * before + phase).abs() - torch.sin(rate * after + phase).abs()
    weight = known[:, 1].float()
    vertical = moved[:, 1].nan_to_num()
    height = (path * vertical * weight).sum(-1) / (path.square() * weight).sum(-1).clamp(min=1e-6)
    rest = ((vertical - height[..., None] * path).square() * weight).sum(-1)
    rest = torch.where(height > 0, rest, torch.inf)
    best = int(rest.argmin())
    found = float(height.flatten()[best])
    sideways = float(moved[:, 0].nan_to_num().square().sum())
    speed = BOUNCE_RATE * float(RATE_FACTORS[best // 32])
    is_allowed = BOUNCE_HEIGHTS[0] <= found <= BOUNCE_HEIGHTS[1]
    return float(rest.flatten()[best]) + sideways, speed, is_allowed


def _fit_circling(moved: Tensor, known: Tensor) -> tuple[float, float, bool]:
    before, after = _times(len(moved))
    best = (math.inf, math.nan, False)
    for rate in torch.cat([RATE_FACTORS, -RATE_FACTORS]) * CIRCLE_RATE:
        cosine = torch.cos(rate * after) - torch.cos(rate * before)
        sine = torch.sin(rate * after) - torch.sin(rate * before)
        # radius * (cos(wt + phase), sin(wt + phase)), linear in radius * (cos, sin)(phase)
        design = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 2)
        design, value = design[known], moved[known]
        found = torch.linalg.lstsq(design, value[:, None]).solution
        rest = float((value - (design @ found)[:, 0]).square().sum())
        radius = float(found.square().sum().sqrt())
        if rest < best[0]:
            best = (rest, float(rate), CIRCLE_RADII[0] <= radius <= CIRCLE_RADII[1])
    return best


def _resting_place(track: Track, name: str, rate: float) -> tuple[float, float]:
    if not bool(track.whole.any()):
        return math.nan, math.nan
    x, y = track.center[track.whole].unbind(1)
    if name in DIRECTIONS:
        dx, dy = DIRECTIONS[name]
        return (math.nan if dx else float(x.median())), (math.nan if dy else float(y.median()))
    if name == "bouncing":
        return float(x.median()), float(y.quantile(0.97))
    angle = rate * torch.arange(len(track))[track.whole] / FPS
    design = torch.stack([torch.ones_like(angle), torch.cos(angle), torch.sin(angle)], 1)
    middle = torch.linalg.lstsq(design, torch.stack([x, y], 1)).solution[0]
    return float(middle[0]), float(middle[1])


def _judge_at_rest(track: Track, shape_index: int) -> Motion:
    """Tell pulsing, spinning and standing still apart."""
    if int(track.whole.sum()) < len(track) / 2:
        return NO_MOTION
    rest_x, rest_y = (float(value) for value in track.center[track.whole].median(0).values)
    rate = _pulse_rate(track)
    if rate:
        return Motion(name="pulsing", speed=rate, rest_x=rest_x, rest_y=rest_y)
    rate = _spin_rate(track, shape_index)
    if rate:
        return Motion(name="spinning", speed=rate, rest_x=rest_x, rest_y=rest_y)
    return NO_MOTION


def _pulse_rate(track: Track) -> float:
    """Give the rate at which the object grows and shrinks, 0 when it does not."""
    scale = track.area[track.whole].sqrt()
    seconds = torch.arange(len(track))[track.whole] / FPS
    energy = float((scale - scale.mean()).square().sum())
    rests, depths = [], []
    for factor in RATE_FACTORS:
        angle = PULSE_RATE * factor * seconds
        design = torch.stack([torch.ones_like(angle), torch.cos(angle), torch.sin(angle)], 1)
        found = torch.linalg.lstsq(design, scale[:, None]).solution
        rests.append(float((scale[:, None] - design @ found).square().sum()))
        depths.append(float(found[1:].square().sum().sqrt() / found[0]))
    best = min(range(len(rests)), key=rests.__getitem__)
    is_pulse = PULSE_DEPTHS[0] <= depths[best] <= PULSE_DEPTHS[1]
    is_pulse = is_pulse and rests[best] <= (1 - PULSE_FIT) * energy
    return PULSE_RATE * float(RATE_FACTORS[best]) if is_pulse else 0.0


def _spin_rate(track: Track, shape_index: int) -> float:
    """Give the rate of turning, clockwise positive, 0 when it does not turn.

    The outline on a circle around the centre, less what rests in it, is turned back at each
    candidate rate; at the right one all frames agree, so their mean keeps its contrast.
    """
    profile = track.profile[track.whole, shape_index]
    seconds = torch.arange(len(track))[track.whole] / FPS
    waves = torch.fft.rfft(profile - profile.mean(0), dim=1)[:, 1:] / NUM_ANGLES
    orders = torch.arange(1, waves.shape[1] + 1)
    angles = SPIN_RATE * SPIN_FACTORS[:, None, None] * seconds[:, None] * orders
    turned_back = waves * torch.polar(torch.ones(()), angles)
    contrast = turned_back.mean(1).abs().square().sum(1).mul(2).sqrt()
    own = float(waves.abs().square().sum(1).mul(2).mean().sqrt())
    best = int(contrast.argmax())
    factor = float(SPIN_FACTORS[best])
    is_clear = float(contrast[best]) >= max(LEAST_OUTLINE, LEAST_COHERENCE * own)
    return SPIN_RATE * factor if is_clear and abs(factor) >= LEAST_SPIN else 0.0
