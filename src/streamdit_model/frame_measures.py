"""What can be measured in the pixels of one frame and of the step to it from the one before.

Sampled pixels, a few milliseconds a frame at 512x512, no model and no knowledge of what is shown.
`health.py` judges by these numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from streamdit_model.errors import ConfigError

__all__ = ["FrameMeasures", "FrameMeter"]

SAMPLED_SIDE = 128  # pixels of the shorter side that are looked at, at least
AT_ONCE = 8  # frames
DARK, BRIGHT = 4, 251  # levels; at most and at least
BLOCKS = 16  # a side
VIVID = 0.02  # of the pixels
LUMA = (0.2126, 0.7152, 0.0722)  # of BT.709


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameMeasures:
    """One frame in numbers; levels are those of uint8, 0 to 255.

    Attributes:
        mean, deviation: of the luma.
        middle: mean of the middle half of the luma values, which an object that comes into a
            picture or leaves it moves less than the mean.
        dark, bright: shares of the pixels at most 4 and at least 251.
        saturation: mean difference of the largest and the smallest of R, G and B.
        vivid: the saturation that 2 % of the pixels have or exceed, in whole levels.
        motion: mean absolute difference to the frame before; 0 in the first frame.
        liveliest: the same in the block of 1/16 x 1/16 of the picture where it is largest.
        common: the same in the median block: what all of the picture does at once.
        slope, bend: mean square of the first and second difference of the luma along the rows.
    """

    mean: float
    deviation: float
    middle: float
    dark: float
    bright: float
    saturation: float
    vivid: float
    motion: float
    liveliest: float
    common: float
    slope: float
    bend: float


class FrameMeter:
    """Measures frames in order; it remembers the samples of the last one and nothing else.

    Choice: every stride-th pixel for all but sharpness, which needs neighbours and takes every
    stride-th row whole; reliability.md section 4 has the costs. The stride is 1 below 256 pixels.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def measure(self, frames: Tensor) -> list[FrameMeasures]:
        """Measure uint8 frames `(frames, height, width, 3)`, any number, all of one size.

        Raises:
            ConfigError: another dtype or shape, or another size than the frames before.
        """
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
            shape = tuple(frames.shape)
            raise ConfigError(f"frames are {frames.dtype} {shape}, not uint8 (frames, h, w, 3)")
        return [
            measures
            for start in range(0, len(frames), AT_ONCE)
            for measures in self._measure(frames[start : start + AT_ONCE])
        ]

    def _measure(self, frames: Tensor) -> list[FrameMeasures]:
        """Measure a few frames at once."""
        stride = max(1, min(frames.shape[1:3]) // SAMPLED_SIDE)
        offset = stride // 2
        samples = frames[:, offset::stride, offset::stride].float()  # (frames, height, width, 3)
        if self._last is None:
            self._last = samples[:1]
        if self._last.shape[1:] != samples.shape[1:]:
            raise ConfigError("frames of two sizes in one video")
        steps = samples.diff(dim=0, prepend=self._last).abs_().mean(dim=-1)
        self._last = samples[-1:].clone()
        blocks = functional.adaptive_avg_pool2d(steps, BLOCKS).flatten(1)
        weights = torch.tensor(LUMA)
        luma = samples @ weights
        colour = samples.amax(dim=-1) - samples.amin(dim=-1)
        counts = _histogram(luma)
        slopes = (frames[:, offset::stride].float() @ weights).diff(dim=-1)
        columns = {
            "mean": luma.mean(dim=(1, 2)),
            "deviation": luma.flatten(1).std(dim=1, correction=0),
            "middle": _middle(counts),
            "dark": counts[:, : DARK + 1].sum(dim=1),
            "bright": counts[:, BRIGHT:].sum(dim=1),
            "saturation": colour.mean(dim=(1, 2)),
            "vivid": (_histogram(colour).cumsum(dim=1) < 1 - VIVID).sum(dim=1),
            "motion": steps.mean(dim=(1, 2)),
            "liveliest": blocks.amax(dim=1),
            "common": blocks.median(dim=1).values,
            "slope": slopes.square().mean(dim=(1, 2)),
            "bend": slopes.diff(dim=-1).square().mean(dim=(1, 2)),
        }
        rows = torch.stack([c.double() for c in columns.values()], dim=1).nan_to_num(0.0).tolist()
        return [FrameMeasures(**dict(zip(columns, row, strict=True))) for row in rows]


def _histogram(values: Tensor) -> Tensor:
    """Return the share of the pixels at each level: (frames, 256) for (frames, height, width)."""
    number = torch.arange(len(values))[:, None, None] * 256
    counts = torch.bincount((values.round().long() + number).flatten(), minlength=256 * len(values))
    return counts.view(-1, 256).double() / values[0].numel()


def _middle(counts: Tensor) -> Tensor:
    """Return the mean of the values between the quartiles, (frames,), from their histogram."""
    upper = counts.cumsum(dim=1)
    within = upper.clamp(0.25, 0.75) - (upper - counts).clamp(0.25, 0.75)
    return within @ torch.arange(256.0, dtype=within.dtype) / 0.5
