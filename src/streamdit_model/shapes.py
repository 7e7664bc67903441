"""The shapes world: clips of one object on a plain background, drawn, moved and rendered.

It knows what a red circle moving left looks like and nothing of models or training. A clip is a
short description, valid at any time and any resolution; `render` makes frames of it. Coordinates
are x right, y down, both from -1 to 1; time is in seconds, 16 frames each. The words for a clip
are in `captions` and are offered here too; judging pixels is in `verifier`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from streamdit_model.captions import caption, paraphrase, parse
from streamdit_model.errors import ConfigError

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "COLORS",
    "FPS",
    "HELD_OUT",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Clip",
    "SwitchClip",
    "caption",
    "coverage",
    "draw_clip",
    "paraphrase",
    "parse",
    "pose",
    "render",
    "render_batch",
    "signed_distance",
    "switch",
]

FPS = 16

COLORS = {
    "red": (230, 41, 41),
    "green": (41, 178, 64),
    "blue": (41, 89, 235),
    "yellow": (242, 212, 38),
    "purple": (148, 56, 191),
    "orange": (247, 140, 31),
    "white": (242, 242, 242),
    "cyan": (38, 204, 217),
}
BACKGROUNDS = {
    "black": (13, 13, 15),
    "gray": (115, 115, 120),
    "navy": (13, 20, 71),
    "pink": (245, 184, 199),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": 0.32, "large": 0.56}
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
MOTIONS = (*DIRECTIONS, "bouncing", "circling", "spinning", "pulsing")
ATTRIBUTES = ("color", "background", "shape", "size", "motion")
HELD_OUT = frozenset(
    {
        ("purple", "triangle"),
        ("orange", "star"),
        ("cyan", "square"),
        ("yellow", "circle"),
        ("green", "cross"),
        ("white", "ring"),
    }
)
VALUES = {
    "color": tuple(COLORS),
    "background": tuple(BACKGROUNDS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "motion": MOTIONS,
}

BOUNCE_RATE, CIRCLE_RATE, SPIN_RATE, PULSE_RATE = 1.6, 2.2, 2.5, 4.0  # rad/s
CIRCLE_RADIUS = 0.5
PULSE_DEPTH = 0.4
SPEED_RANGE = (0.7, 1.0)  # half frames per second
MARGIN = 0.03  # between a resting object and the border: one pixel of 64
GLIDE_SECONDS = 0.25

# All lengths in units of r. Choice: shapes-world.md gives areas; the proportions are ours.
SQUARE_HALF = math.sqrt(2.88) / 2
TRIANGLE_RADIUS = math.sqrt(1.60 / (0.75 * math.sqrt(3)))  # equilateral, around its centroid
TRIANGLE_SIDE = TRIANGLE_RADIUS * math.sqrt(3)
STAR_INNER = 1.32 / (5 * math.sin(math.pi / 5))  # radius of the notches; the points are at 1
RING_INNER = 0.60
CROSS_LENGTH = 0.90
CROSS_HALF = CROSS_LENGTH - math.sqrt(CROSS_LENGTH**2 - 0.40)  # 8 l w - 4 w w = 1.60
DOT_RADIUS, DOT_DISTANCE = 0.12, 0.80
# Reach from the centre to the sides, up and down when upright, and in any direction.
REACH = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (SQUARE_HALF, SQUARE_HALF, SQUARE_HALF, SQUARE_HALF * math.sqrt(2)),
    "triangle": (TRIANGLE_SIDE / 2, TRIANGLE_RADIUS, TRIANGLE_RADIUS / 2, TRIANGLE_RADIUS),
    "star": (math.sin(math.tau / 5), 1.0, math.cos(math.pi / 5), 1.0),
    "ring": (1.0, 1.0, 1.0, 1.0),
    "cross": (CROSS_LENGTH, CROSS_LENGTH, CROSS_LENGTH, math.hypot(CROSS_LENGTH, CROSS_HALF)),
}
TURNS = {"circle": 1, "square": 4, "triangle": 3, "star": 5, "ring": 1, "cross": 4}
PIXELS_AT_ONCE = 1 << 17


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One object and its motion for all time.

    `x`, `y` is the centre at time 0 (of a moving object) or its resting place; `phase` is the
    angle at time 0 of a bouncing, circling, spinning or pulsing object, in rad; `speed` is that
    of a moving object, in half frames per second. `offset` (x, y, angle, scale) is what is left
    at the time `since` of an earlier pose; it fades.
    """

    color: str
    background: str
    shape: str
    size: str
    motion: str
    x: float = 0.0
    y: float = 0.0
    phase: float = 0.0
    speed: float = 0.85
    since: float = 0.0
    offset: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, allowed in VALUES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"unknown {name}: {value!r}; allowed: {', '.join(allowed)}")

    @property
    def attributes(self) -> dict[str, str]:
        """What the caption says, by attribute."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


@dataclass(frozen=True, kw_only=True, slots=True)
class SwitchClip:
    """A clip of which one attribute changes: `before` up to `frame`, `after` from there on."""

    before: Clip
    after: Clip
    frame: int


def draw_clip(seed: int, index: int, *, held_out: bool = False) -> Clip:
    """Draw the clip number `index` of the endless list that `seed` names.

    All values are equally likely, pairs of color and shape as well; with `held_out` only the
    held-out pairs, else never one of them.
    """
    random = Random(f"shapes clip {seed} {index} {held_out}")
    pairs = [(c, s) for c in COLORS for s in SHAPES if ((c, s) in HELD_OUT) == held_out]
    color, shape = random.choice(pairs)
    background = random.choice(VALUES["background"])
    size = random.choice(VALUES["size"])
    motion = random.choice(MOTIONS)
    (left, right), (top, bottom) = _room(shape, size, motion)
    return Clip(
        color=color,
        background=background,
        shape=shape,
        size=size,
        motion=motion,
        x=random.uniform(left, right),
        y=random.uniform(top, bottom),
        phase=random.uniform(0, math.tau),
        speed=random.uniform(*SPEED_RANGE),
    )


def switch(clip: Clip, seed: int, index: int, *, frame: int) -> SwitchClip:
    """Change one drawn attribute of the clip at a frame; everything else continues.

    The new value differs from the old one; a held-out pair is not entered by a switch.
    """
    random = Random(f"shapes switch {seed} {index}")
    name = random.choice(ATTRIBUTES)
    values = [value for value in VALUES[name] if value != getattr(clip, name)]
    if name in ("color", "shape"):
        pair = {"color": clip.color, "shape": clip.shape}
        values = [v for v in values if tuple((pair | {name: v}).values()) not in HELD_OUT]
    after = _continued(clip, frame / FPS, name, random.choice(values))
    return SwitchClip(before=clip, after=after, frame=frame)


def pose(clip: Clip, seconds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give where the object is.

    Args:
        clip: what moves.
        seconds: any times, (frames,) float64.

    Returns:
        x and y of the centre, angle (rad, clockwise) and scale, each (frames,) float64.
    """
    x = torch.full_like(seconds, clip.x)
    y = torch.full_like(seconds, clip.y)
    angle, scale = torch.zeros_like(seconds), torch.ones_like(seconds)
    (left, right), (top, bottom) = _room(clip.shape, clip.size, clip.motion)
    match clip.motion:
        case "moving left" | "moving right":
            step = DIRECTIONS[clip.motion][0] * clip.speed
            x = left + torch.remainder(clip.x + step * seconds - left, right - left)
        case "moving up" | "moving down":
            step = DIRECTIONS[clip.motion][1] * clip.speed
            y = top + torch.remainder(clip.y + step * seconds - top, bottom - top)
        case "bouncing":
            y = bottom - (bottom - top) * torch.sin(BOUNCE_RATE * seconds + clip.phase).abs()
        case "circling":
            x = CIRCLE_RADIUS * torch.cos(CIRCLE_RATE * seconds + clip.phase)
            y = CIRCLE_RADIUS * torch.sin(CIRCLE_RATE * seconds + clip.phase)
        case "spinning":
            angle = SPIN_RATE * seconds + clip.phase
        case "pulsing":
            scale = 1 + PULSE_DEPTH * torch.sin(PULSE_RATE * seconds + clip.phase)
    if any(clip.offset):
        fade = torch.exp((clip.since - seconds).clamp(max=0) / GLIDE_SECONDS)
        dx, dy, da, ds = clip.offset
        x, y, angle, scale = x + dx * fade, y + dy * fade, angle + da * fade, scale + ds * fade
    return x, y, angle, scale


def coverage(
    shape: str, size: str, placed: tuple[Tensor, Tensor, Tensor, Tensor], resolution: int, dot: bool
) -> Tensor:
    """Give the share of every pixel that the object covers.

    Args:
        shape, size: of the object.
        placed: x, y, angle and scale, each (frames,) float64.
        resolution: pixels per side.
        dot: whether the dot is cut out that shows a circle or a ring spinning.

    Returns:
        Float32 (frames, resolution, resolution), 0 to 1; edges ramp over one pixel of distance.
    """
    x, y, angle, scale = (value[:, None, None] for value in placed)
    radius = SIZES[size] * scale
    centers = (torch.arange(resolution, dtype=torch.float64) + 0.5) * (2 / resolution) - 1
    u = ((centers[None, None, :] - x) / radius).float()  # (frames, 1, resolution)
    v = ((centers[None, :, None] - y) / radius).float()  # (frames, resolution, 1)
    if bool((angle != 0).any()):
        cosine, sine = torch.cos(angle).float(), torch.sin(angle).float()
        u, v = cosine * u + sine * v, cosine * v - sine * u
    distance = signed_distance(shape, u, v)
    if dot:
        distance = torch.maximum(distance, DOT_RADIUS - torch.hypot(u, v + DOT_DISTANCE))
    pixels = (radius * (resolution / 2)).float()
    return torch.addcmul(torch.full_like(pixels, 0.5), distance, pixels, value=-1).clamp_(0, 1)


def render(
    clip: Clip | SwitchClip, num_frames: int, resolution: int, *, first_frame: int = 0
) -> Tensor:
    """Render frames of a clip, anti-aliased, colors mixed linearly in sRGB.

    Args:
        clip: what to show.
        num_frames: number of frames, at least 1.
        resolution: pixels per side, at least 8.
        first_frame: number of the first one; any part of a clip equals that part of the whole.

    Returns:
        uint8 (frames, resolution, resolution, 3).
    """
    if num_frames < 1 or resolution < 8:
        raise ConfigError(
            f"cannot render {num_frames} frames of {resolution} pixels; at least 1 frame of 8"
        )
    video = torch.empty(num_frames, resolution, resolution, 3, dtype=torch.uint8)
    if isinstance(clip, SwitchClip):
        border = min(max(clip.frame - first_frame, 0), num_frames)
        _render_into(video[:border], clip.before, first_frame)
        _render_into(video[border:], clip.after, first_frame + border)
    else:
        _render_into(video, clip, first_frame)
    return video


def render_batch(
    clips: Sequence[Clip | SwitchClip], num_frames: int, resolution: int, *, first_frame: int = 0
) -> Tensor:
    """Render several clips: uint8 (batch, frames, resolution, resolution, 3)."""
    return torch.stack(
        [render(clip, num_frames, resolution, first_frame=first_frame) for clip in clips]
    )


def _render_into(video: Tensor, clip: Clip, first_frame: int) -> None:
    """Fill uint8 (frames, resolution, resolution, 3) with the frames from `first_frame` on."""
    num_frames, resolution = video.shape[:2]
    background = torch.tensor(BACKGROUNDS[clip.background], dtype=torch.float32)
    change = torch.tensor(COLORS[clip.color], dtype=torch.float32) - background
    dot = clip.motion == "spinning" and clip.shape in ("circle", "ring")
    step = max(1, PIXELS_AT_ONCE // resolution**2)
    for start in range(0, num_frames, step):
        part = video[start : start + step]
        frames = torch.arange(len(part), dtype=torch.float64) + (first_frame + start)
        share = coverage(clip.shape, clip.size, pose(clip, frames / FPS), resolution, dot)
        # + 0.5: the cast cuts, so this rounds.
        part.copy_(torch.addcmul(background + 0.5, share[..., None], change))


def signed_distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Give the signed distance to the upright shape of radius 1, exact near its edges."""
    match shape:
        case "circle":
            return torch.hypot(u, v) - 1
        case "ring":
            middle, half = (1 + RING_INNER) / 2, (1 - RING_INNER) / 2
            return (torch.hypot(u, v) - middle).abs() - half
        case "square":
            return torch.maximum(u.abs(), v.abs()) - SQUARE_HALF
        case "cross":
            long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
            return torch.maximum(long - CROSS_LENGTH, short - CROSS_HALF)
        case "triangle":
            slope = u.abs() * math.sqrt(0.75) - v / 2
            return torch.maximum(slope, v) - TRIANGLE_RADIUS / 2
        case _:
            return _star_distance(u, v)


def _star_distance(u: Tensor, v: Tensor) -> Tensor:
    """Fold the plane into one of the ten mirrored sectors; one edge is left there."""
    u = u.abs()
    for degrees in (108, 36):  # mirror what lies beyond this direction, counted from the top
        along, across = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        beyond = (across * u + along * v).clamp(min=0)
        u, v = u - 2 * across * beyond, v - 2 * along * beyond
    u = u.abs()
    inner_u = STAR_INNER * math.sin(math.pi / 5)
    inner_v = 1 - STAR_INNER * math.cos(math.pi / 5)
    length = math.hypot(inner_u, inner_v)  # of the edge from the point (0, -1) to the notch
    return (inner_v * u - inner_u * (v + 1)) / length


def _room(shape: str, size: str, motion: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Give the ranges of x and y in which the centre may be: (left, right), (top, bottom).

    A resting object stays in the frame; along its way a moving one goes on until it is just out.
    """
    radius = SIZES[size] * (1 + PULSE_DEPTH if motion == "pulsing" else 1)
    side, up, down, around = (radius * reach for reach in REACH[shape])
    if motion == "spinning":
        side = up = down = around
    across = (side + MARGIN - 1, 1 - side - MARGIN)
    upright = (up + MARGIN - 1, 1 - down - MARGIN)
    dx, dy = DIRECTIONS.get(motion, (0, 0))
    return ((-1 - side, 1 + side) if dx else across), ((-1 - down, 1 + up) if dy else upright)


def _continued(clip: Clip, seconds: float, name: str, value: str) -> Clip:
    """Change one attribute and go on from the pose that the object has at that time.

    Choice: where the new path cannot pass through the old pose, the rest fades in a second.
    """
    new = replace(clip, **{name: value})
    if name in ("color", "background"):
        return new
    now = torch.tensor([seconds], dtype=torch.float64)
    old = [float(part) for part in pose(clip, now)]
    x, y, angle, scale = old
    (left, right), (top, bottom) = _room(new.shape, new.size, new.motion)
    phases = {
        "bouncing": math.asin(min(1.0, max(0.0, (bottom - y) / (bottom - top))))
        - BOUNCE_RATE * seconds,
        "circling": math.atan2(y, x) - CIRCLE_RATE * seconds,
        "spinning": angle - SPIN_RATE * seconds,
        "pulsing": math.asin(min(1.0, max(-1.0, (scale - 1) / PULSE_DEPTH))) - PULSE_RATE * seconds,
    }
    dx, dy = DIRECTIONS.get(new.motion, (0, 0))
    new = replace(
        new,
        x=min(max(x, left), right - 1e-6) - dx * clip.speed * seconds,
        y=min(max(y, top), bottom - 1e-6) - dy * clip.speed * seconds,
        phase=phases.get(value, clip.phase),
        since=seconds,
        offset=(0.0, 0.0, 0.0, 0.0),
    )
    rest = [before - float(part) for before, part in zip(old, pose(new, now), strict=True)]
    turn = math.tau / TURNS[new.shape]
    return replace(new, offset=(rest[0], rest[1], math.remainder(rest[2], turn), rest[3]))
