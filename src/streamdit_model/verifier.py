"""The measuring instrument of the shapes world: what a video shows, judged from its pixels alone.

It knows the palette, the shapes and the motions, and neither captions nor models. Colors are named
by the palette, shapes by their silhouette, motions by the best of the eight laws of motion; "none"
is said where nothing, several things, or something else is seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.motion import NO_MOTION, Motion, judge_motion
from streamdit_model.shapes import ATTRIBUTES, BACKGROUNDS, COLORS, FPS, SHAPES, SIZES
from streamdit_model.silhouette import AREAS, Track, measure

__all__ = ["Verdict", "judge", "judge_windows", "score", "score_windows", "wilson"]

MOTION_SECONDS = 2.0
SHAPE_SECONDS = 4.0
MOST_COLOR_ERROR = 28.0  # delta E; the two nearest palette entries are 44 apart
LEAST_AGREEMENT = 0.6
SIZE_BORDER = math.sqrt(SIZES["small"] * SIZES["large"])
SIZE_RANGE = (SIZES["small"] ** 2 / SIZE_BORDER, SIZES["large"] ** 2 / SIZE_BORDER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a stretch of video shows; every name may be "none", every measurement nan.

    Attributes:
        color, background, shape, size, motion: names of the shapes world.
        speed: half frames per second of a moving object; rad/s of the other motions, negative
            for counterclockwise circling and spinning.
        rest_x, rest_y: what the motion leaves in place, in half frames from the middle: the line
            of a moving object (nan along it), the floor of a bouncing one, the centre of the
            circle, the centre of a spinning or pulsing object.
        radius: r in half frames, mean over time.
        agreement: intersection over union of the silhouette with that of the nearest shape.
        color_error, background_error: delta E (CIE 1976) to the nearest palette entry.
        edge_energy: mean slope of the silhouette's edge per pixel; rendered clips have 0.6 to 0.7.
        seen: share of the frames that show an object.
    """

    color: str
    background: str
    shape: str
    size: str
    motion: str
    speed: float
    rest_x: float
    rest_y: float
    radius: float
    agreement: float
    color_error: float
    background_error: float
    edge_energy: float
    seen: float


def judge(frames: Tensor) -> Verdict:
    """Judge a whole clip.

    Color, background, shape and size are judged over the whole, motion in each of its stretches
    of two seconds; a motion counts when it is seen in more than half of them. Shape and size are
    sure from 4 s on: in less, a large moving object may never be seen whole.

    Args:
        frames: uint8 (frames, height, width, 3) at 16 frames per second, at least 2 s, square,
            at least 32 pixels per side.
    """
    track = _measured(frames)
    length = round(MOTION_SECONDS * FPS)
    count = math.ceil(len(track) / length)
    starts = [round(i * (len(track) - length) / max(count - 1, 1)) for i in range(count)]
    motions = [_window_motion(track, track.part(i, i + length)) for i in starts]
    names = [motion.name for motion in motions]
    most = max(names, key=names.count)
    motion = NO_MOTION
    if 2 * names.count(most) > len(names):
        alike = sorted((m for m in motions if m.name == most), key=lambda m: m.speed)
        motion = alike[len(alike) // 2]
    return _verdict(track, track, motion)


def judge_windows(frames: Tensor, window_seconds: float = MOTION_SECONDS) -> list[Verdict]:
    """Judge a long stream window by window.

    Motion, color and background are judged in each window, shape and size over the 4 s around
    it.

    Args:
        frames: as for `judge`.
        window_seconds: length of a window, at least 2; a shorter rest at the end is left out.

    Returns:
        One verdict for each window, in order.
    """
    if window_seconds < MOTION_SECONDS:
        raise ConfigError(
            f"windows of {window_seconds} s are too short to judge motion; at least 2 s"
        )
    track = _measured(frames)
    length = round(window_seconds * FPS)
    around = max(length, round(SHAPE_SECONDS * FPS))
    verdicts = []
    for start in range(0, len(track) - length + 1, length):
        first = min(max(0, start - (around - length) // 2), max(0, len(track) - around))
        context, window = track.part(first, first + around), track.part(start, start + length)
        verdicts.append(_verdict(window, context, _window_motion(context, window)))
    return verdicts


def score(verdict: Verdict, attributes: Mapping[str, str]) -> dict[str, bool]:
    """Compare a verdict with what a caption says.

    Args:
        verdict: what was seen.
        attributes: attribute to value, such as `Clip.attributes` or `parse(prompt)`; those not
            named are not scored.

    Returns:
        Attribute to whether it was seen, and under "all" whether all were.
    """
    right = {
        name: getattr(verdict, name) == attributes[name]
        for name in ATTRIBUTES
        if name in attributes
    }
    return right | {"all": all(right.values())}


def score_windows(
    frames: Tensor, attributes: Mapping[str, str], window_seconds: float = MOTION_SECONDS
) -> list[dict[str, bool]]:
    """Score every window of a long stream against the same attributes."""
    return [score(verdict, attributes) for verdict in judge_windows(frames, window_seconds)]


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Give the 95 % interval of a share, after Wilson; (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share = successes / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _measured(frames: Tensor) -> Track:
    """Refuse what cannot be judged, then measure."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
        raise ConfigError(
            f"frames of shape {tuple(frames.shape)}, {frames.dtype}; "
            "allowed: uint8 (frames, height, width, 3)"
        )
    height, width = frames.shape[1:3]
    if height != width or height < 32:
        raise ConfigError(f"frames of {height}x{width}; the shapes world is square, 32 pixels up")
    if len(frames) < MOTION_SECONDS * FPS:
        raise ConfigError(
            f"{len(frames)} frames are too few to judge; at least {MOTION_SECONDS * FPS:.0f}"
        )
    return measure(frames)


def _is_one_object(track: Track) -> bool:
    """Tell whether an object is seen in a third of the frames and a second one in few of them."""
    several, clear = int(track.several.sum()), int(track.whole.sum())
    return float(track.seen.float().mean()) > 1 / 3 and several <= clear / 4


def _window_motion(context: Track, window: Track) -> Motion:
    if not _is_one_object(window):
        return NO_MOTION
    return judge_motion(window, SHAPES.index(_nearest_shape(context)[0]))


def _nearest_shape(track: Track) -> tuple[str, float]:
    """Give the shape that agrees best, and how well; nan when no frame shows it whole.

    Large silhouettes tell more, so frames count by area.
    """
    if not bool(track.whole.any()):
        return SHAPES[0], math.nan
    weight = track.area * track.whole
    means = weight @ track.agreement / weight.sum()
    best = int(means.argmax())
    return SHAPES[best], float(means[best])


def _verdict(window: Track, context: Track, motion: Motion) -> Verdict:
    background, background_error = _palette_name(window.background, BACKGROUNDS)
    color, shape, size = "none", "none", "none"
    color_error = radius = agreement = edge_energy = math.nan
    if _is_one_object(window):
        clear = window.whole if bool(window.whole.any()) else window.seen
        color, color_error = _palette_name(window.color[clear], COLORS)
        edge_energy = float(window.sharpness[clear].mean())
        nearest, agreement = _nearest_shape(context)
        if agreement >= LEAST_AGREEMENT:
            shape = nearest
        if not math.isnan(agreement):
            radius = float((context.area[context.whole] / AREAS[nearest]).sqrt().mean())
        if SIZE_RANGE[0] <= radius <= SIZE_RANGE[1]:
            size = "small" if radius < SIZE_BORDER else "large"
    return Verdict(
        color=color,
        background=background,
        shape=shape,
        size=size,
        motion=motion.name,
        speed=motion.speed,
        rest_x=motion.rest_x,
        rest_y=motion.rest_y,
        radius=radius,
        agreement=agreement,
        color_error=color_error,
        background_error=background_error,
        edge_energy=edge_energy,
        seen=float(window.seen.float().mean()),
    )


def _palette_name(colors: Tensor, palette: Mapping[str, tuple[int, int, int]]) -> tuple[str, float]:
    """Name the median of colors, (frames, 3), and give its delta E to that palette entry."""
    entries = torch.tensor(list(palette.values()), dtype=torch.float32)
    difference = _lab(entries) - _lab(colors.median(0).values)
    error, index = difference.square().sum(1).sqrt().min(0)
    name = list(palette)[int(index)] if error <= MOST_COLOR_ERROR else "none"
    return name, float(error)


def _lab(color: Tensor) -> Tensor:
    """Convert sRGB from 0 to 255 to CIE L*a*b* (D65), (..., 3)."""
    share = color / 255
    linear = torch.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    cube = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    x, y, z = cube.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
