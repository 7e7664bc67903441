"""What every frame of a shapes video shows: background, color, silhouette, pose, edges.

From pixels alone, frame by frame and with no network; what it amounts to over time is judged in
`verifier`. Lengths are in half frames, x right, y down; colors are sRGB from 0 to 255.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdit_model.shapes import SHAPES, TURNS, signed_distance

__all__ = ["AREAS", "NUM_ANGLES", "Track", "measure"]

AREAS = {"circle": math.pi, "square": 2.88, "triangle": 1.6, "star": 1.32, "ring": 0.64 * math.pi}
AREAS["cross"] = 1.6  # units of r squared
# Where the outline of a shape, or the dot of a round one, crosses a circle, in units of r.
PROFILE_RADIUS = {
    "circle": 0.8,
    "square": 1.0,
    "triangle": 0.8,
    "star": 0.7,
    "ring": 0.8,
    "cross": 0.65,
}
NUM_ANGLES = 48
CONTRAST = 36.0  # sRGB distance from the background; the least of the palette is 72
LEAST_AREA = 0.012  # a quarter of the smallest object that pulses
SECOND_AREA = 0.04  # beside the main one
GRID = 40  # cells per side of a silhouette brought to unit area and upright
FLOOD = 32  # cells per side for what hangs together
SHARP, SOFTEST = 0.65, 0.3  # mean slope of a rendered silhouette; the least share of it matched
FRAMES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """What is measured in each frame.

    Attributes:
        background: median of the border, (frames, 3).
        color: mean of the inside of the object, (frames, 3).
        area: what is seen of it, (frames,), of 4 for the whole frame.
        center: x and y of the centroid of what is seen, (frames, 2).
        edges: left, right, top, bottom of the object, nan where the frame cuts it, (frames, 4).
        seen: whether there is an object, (frames,) bool.
        whole: whether it is seen and not cut by the frame, (frames,) bool.
        several: whether there is a second object, (frames,) bool.
        agreement: intersection over union with each shape of `SHAPES`, (frames, shapes).
        profile: share covered along a circle around the centre, clockwise from the right,
            (frames, shapes, angles).
        sharpness: mean slope of the silhouette along its edge, per pixel, (frames,).
    """

    background: Tensor
    color: Tensor
    area: Tensor
    center: Tensor
    edges: Tensor
    seen: Tensor
    whole: Tensor
    several: Tensor
    agreement: Tensor
    profile: Tensor
    sharpness: Tensor

    def __len__(self) -> int:
        return len(self.area)

    def part(self, start: int, stop: int) -> "Track":
        """Give the measurements of frames `start` to `stop`."""
        return Track(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def measure(frames: Tensor) -> Track:
    """Measure every frame.

    Args:
        frames: uint8 (frames, height, width, 3), height = width.
    """
    parts = [
        _measure(frames[i : i + FRAMES_AT_ONCE]) for i in range(0, len(frames), FRAMES_AT_ONCE)
    ]
    return Track(
        **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Track)}
    )


def _measure(frames: Tensor) -> Track:
    video = frames.permute(0, 3, 1, 2).float()
    resolution = video.shape[-1]
    background = _border_median(video)
    change = video - background[:, :, None, None]
    contrast = change.square().sum(1).sqrt()
    mask = (contrast > CONTRAST).float()
    kept, second_area = _main_object(mask)
    color = _inside_mean(video, contrast, mask * kept, background)
    direction = color - background
    strength = direction.square().sum(1)
    alpha = torch.einsum("fchw,fc->fhw", change, direction) / strength[:, None, None].clamp(min=1)
    alpha = alpha.clamp(0, 1) * kept
    pixel_area = (2 / resolution) ** 2
    area = alpha.sum((1, 2)) * pixel_area
    seen = (area > LEAST_AREA) & (strength > CONTRAST**2)
    axis = (torch.arange(resolution) + 0.5) * (2 / resolution) - 1
    weight = (area / pixel_area).clamp(min=1)
    center = torch.stack([alpha.sum(1) @ axis, alpha.sum(2) @ axis], 1) / weight[:, None]
    sides = (alpha, alpha.flip(-1), alpha.mT, alpha.mT.flip(-1))
    edges = torch.stack([_first_edge(side) for side in sides], 1) * torch.tensor([1, -1, 1, -1])
    touched = torch.stack([side[:, :, 0].amax(1) >= 0.5 for side in sides], 1)
    cut = touched.any(1)
    sharpness = _sharpness(alpha)
    agreement, profile = _compare(alpha, area, center, sharpness)
    return Track(
        background=background,
        color=color,
        area=area,
        center=center,
        edges=edges,
        seen=seen,
        whole=seen & ~cut,
        several=seen & ~cut & (second_area > SECOND_AREA),
        agreement=agreement,
        profile=profile,
        sharpness=sharpness,
    )


def _border_median(video: Tensor) -> Tensor:
    """Give the median color of the two outermost rows and columns, (frames, 3)."""
    parts = (video[..., :2, :], video[..., -2:, :], video[..., 2:-2, :2], video[..., 2:-2, -2:])
    return torch.cat([part.flatten(2) for part in parts], 2).median(2).values


def _main_object(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find what hangs together, from the thickest spot on.

    Args:
        mask: 1 where a pixel differs from the background, (frames, height, width).

    Returns:
        The main object with its soft rim, (frames, height, width) of 0 and 1, and the area of
        the rest, (frames,). A rest as large as an object is kept: a star that leaves the frame
        shows its legs apart.
    """
    is_solid = F.avg_pool2d(mask[:, None], 3, stride=1, padding=1)[:, 0] > 0.4  # no specks
    solid = mask * is_solid
    cells = F.adaptive_max_pool2d(solid, FLOOD) > 0
    thickness = F.avg_pool2d(cells.float(), 5, stride=1, padding=2) + cells
    reached = F.one_hot(thickness.flatten(1).argmax(1), FLOOD**2).view_as(cells).bool() & cells
    for _ in range(FLOOD):
        before = reached
        for _ in range(4):
            reached = _grown(reached) & cells
        if torch.equal(before, reached):
            break
    cell_of_pixel = torch.arange(mask.shape[-1]) * FLOOD // mask.shape[-1]
    main, everything = (
        _grown(part)[:, cell_of_pixel][:, :, cell_of_pixel] for part in (reached, cells)
    )
    rest = (solid * ~main).mean((1, 2)) * 4
    return torch.where((rest > SECOND_AREA)[:, None, None], everything, main).float(), rest


def _grown(mask: Tensor) -> Tensor:
    """Add the eight neighbors of what is in a mask, (frames, height, width) bool."""
    wide = mask.clone()
    wide[:, :, 1:] |= mask[:, :, :-1]
    wide[:, :, :-1] |= mask[:, :, 1:]
    tall = wide.clone()
    tall[:, 1:] |= wide[:, :-1]
    tall[:, :-1] |= wide[:, 1:]
    return tall


def _inside_mean(video: Tensor, contrast: Tensor, mask: Tensor, background: Tensor) -> Tensor:
    """Give the mean color away from the rim, (frames, 3); the background's when there is none."""
    outside = mask == 0
    for _ in range(max(1, round(video.shape[-1] / 64))):
        outside = _grown(outside)
    core = (~outside).float()
    has_core = core.sum((1, 2)) >= 3
    weight = torch.where(has_core[:, None, None], core, mask) * contrast**4
    total = weight.sum((1, 2))
    mean = torch.einsum("fchw,fhw->fc", video, weight) / total.clamp(min=1e-6)[:, None]
    return torch.where((total > 0)[:, None], mean, background)


def _first_edge(alpha: Tensor) -> Tensor:
    """Give the x at which the object begins, seen from the left, (frames,).

    nan where the frame's left side cuts it, or where its leftmost part lies on the upper or lower
    side, so that it would not move with the object.
    """
    columns = alpha.amax(1)
    inside = columns >= 0.5
    index = inside.int().argmax(1)
    here = columns.gather(1, index[:, None])[:, 0]
    before = columns.gather(1, (index[:, None] - 1).clamp(min=0))[:, 0]
    position = index - (here - 0.5) / (here - before).clamp(min=1e-3)
    ends = torch.maximum(alpha[:, 0], alpha[:, -1])
    beside = torch.stack([index, (index + 1).clamp(max=alpha.shape[-1] - 1)], 1)
    lost = (index == 0) | ~inside.any(1) | (ends.gather(1, beside).amax(1) >= 0.5)
    return ((position + 0.5) * (2 / alpha.shape[-1]) - 1).masked_fill(lost, math.nan)


def _sharpness(alpha: Tensor) -> Tensor:
    """Give the mean slope along the edges, weighted by the slope; 1 = a step within one pixel."""
    across = alpha[:, :-1, 1:] - alpha[:, :-1, :-1]
    down = alpha[:, 1:, :-1] - alpha[:, :-1, :-1]
    energy = across.square() + down.square()
    return energy.sum((1, 2)) / energy.sqrt().sum((1, 2)).clamp(min=1e-6)


@lru_cache(maxsize=1)
def _templates() -> tuple[Tensor, Tensor, Tensor]:
    """Give what the silhouettes are compared with.

    Returns:
        The grid of cells in units of the square root of the area, (cells, 2); the distance to
        each shape of unit area in units of its r, (shapes, cells); the weights of the moments
        of order 3, 4 and 5, complex (cells, 3).
    """
    axis = (torch.arange(GRID) + 0.5) * (2 / GRID) - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    u, v = u.flatten(), v.flatten()
    scaled = [(math.sqrt(AREAS[shape]) * u, math.sqrt(AREAS[shape]) * v) for shape in SHAPES]
    signed = [signed_distance(shape, *point) for shape, point in zip(SHAPES, scaled, strict=True)]
    complex_point = torch.complex(u, v) * (torch.hypot(u, v) <= 1)
    moments = torch.stack([complex_point**order for order in (3, 4, 5)], 1)
    return torch.stack([u, v], 1), torch.stack(signed), moments


def _sample(alpha: Tensor, points: Tensor) -> Tensor:
    """Read the silhouette at x, y points, (frames, points, 2), bilinear: (frames, points)."""
    read = F.grid_sample(alpha[:, None], points[:, None], align_corners=False)
    return read[:, 0, 0]


def _compare(
    alpha: Tensor, area: Tensor, center: Tensor, sharpness: Tensor
) -> tuple[Tensor, Tensor]:
    """Compare each silhouette with every shape at its place, size, best angle and softness.

    Returns:
        Agreement (frames, shapes) and profile (frames, shapes, angles).
    """
    grid, signed, moments = _templates()
    width = area.clamp(min=LEAST_AREA).sqrt()
    slope = (sharpness / SHARP).clamp(SOFTEST, 1) * (alpha.shape[-1] / 2)
    upright = _sample(alpha, center[:, None] + width[:, None, None] * grid)
    seen_moments = upright.to(moments.dtype) @ moments
    agreement, profile = [], []
    turn = torch.arange(NUM_ANGLES) * (math.tau / NUM_ANGLES)
    circle = torch.stack([torch.cos(turn), torch.sin(turn)], 1)
    for shape, distances in zip(SHAPES, signed, strict=True):
        radius = width / math.sqrt(AREAS[shape])
        template = (0.5 - distances * (radius * slope)[:, None]).clamp(0, 1)
        silhouette = upright
        if TURNS[shape] > 1:
            order = TURNS[shape] - 3
            own = ((distances < 0).to(moments.dtype) @ moments)[order]
            angle = torch.angle(seen_moments[:, order] / own) / TURNS[shape]
            turned = torch.polar(width, angle)[:, None] * torch.complex(grid[:, 0], grid[:, 1])
            silhouette = _sample(alpha, center[:, None] + torch.view_as_real(turned))
        common = torch.minimum(silhouette, template).sum(1)
        agreement.append(common / torch.maximum(silhouette, template).sum(1).clamp(min=1e-6))
        around = radius[:, None, None] * (PROFILE_RADIUS[shape] * circle)
        profile.append(_sample(alpha, center[:, None] + around))
    return torch.stack(agreement, 1), torch.stack(profile, 1)
