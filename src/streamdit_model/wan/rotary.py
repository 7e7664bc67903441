"""Rotary positions on three axes: latent frame, row, column.

A head is cut into three parts of consecutive channel pairs, one for each axis; pair i of an axis
turns by position * 10,000^(-2i / channels of the axis). A dot product of two rotated vectors
depends on the difference of their positions only, so any numbering of frames will do, and there is
no largest one.

Reference: open-weights.md 4.1 (head 128 is 44, 42 and 42).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotation"]

THETA = 10_000.0


class Rotation(NamedTuple):
    """Cosines and sines for all tokens, (frames, tokens of a frame, head width / 2)."""

    cosine: Tensor
    sine: Tensor


def rotation(
    positions: Tensor,
    rows: int,
    columns: int,
    head_width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Rotation:
    """Return the rotation of every token.

    Args:
        positions: (frames,) position of each latent frame, of any size and sign.
        rows: token rows of a frame.
        columns: token columns of a frame.
        head_width: even.
        device: where the result is put.
        dtype: of the result. Choice: angles are float64 whatever it is, as in the original.
    """
    space = 2 * (head_width // 6)
    axes = (
        _angles(positions, head_width - 2 * space)[:, None, None],
        _angles(torch.arange(rows), space)[None, :, None],
        _angles(torch.arange(columns), space)[None, None],
    )
    shape = (len(positions), rows, columns, -1)

    def table(parts: Sequence[Tensor]) -> Tensor:
        moved = [part.to(device, dtype).expand(shape) for part in parts]
        return torch.cat(moved, dim=-1).flatten(1, 2)

    return Rotation(table([x.cos() for x in axes]), table([x.sin() for x in axes]))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn every pair of channels; (..., frames, tokens of a frame, head width) to itself."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * by.cosine - odd * by.sine, even * by.sine + odd * by.cosine)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


def _angles(positions: Tensor, channels: int) -> Tensor:
    """(count,) positions -> (count, channels / 2) float64."""
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float64) / channels
    return positions.double()[:, None] * THETA**-steps
