"""Windowed attention: how a (frames, height, width) grid of tokens is cut into windows.

Every window is a run of a few consecutive tokens along each axis, shifted by half a window in
every other layer. Tokens are put into window order by one index, windows of equal size become one
batch, and attention runs on that batch without any mask: a shift cuts each axis into a first
piece, whole windows and a last piece, so a shift of three axes makes up to eight sizes of window.
Sizes that the window does not divide only change the last piece.

This file knows nothing of layers, text or time; `transformer.py` calls it.

Paper: section 4.1 (window attention).
"""

# Shape suffixes: b batch, t tokens in window order, m heads, k head width.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "WindowPlan",
    "attend",
    "axis_windows",
    "full_plan",
    "key_masks",
    "plan_windows",
    "window_attention",
]

WRITTEN_OUT_KEYS = 512  # longest rows of attention that training on a CPU keeps in memory


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one layer: an order of the tokens, and the sizes of the windows in it.

    Args:
        order: token numbers in window order, (tokens,) long; None leaves the order as it is.
        inverse: the index that undoes `order`, (tokens,) long; None with `order` None.
        groups: pairs (number of windows, tokens in each), in the order of the tokens.
    """

    order: Tensor | None
    inverse: Tensor | None
    groups: tuple[tuple[int, int], ...]


def axis_windows(size: int, window: int, *, shifted: bool, wrap: bool) -> list[int]:
    """Number the window of every position of one axis.

    Args:
        size: positions of the axis, at least 1.
        window: positions in a window, at least 1; the last window may be smaller.
        shifted: move the borders by half a window, rounded down. Choice: an axis that one window
            covers stays unshifted, since it has no border to bridge.
        wrap: the pieces before the first and behind the last shifted border are one window.

    Returns:
        Window numbers from 0, `size` of them.

    Choice: the wrapped pieces are apart by default, since joined in time they would mix the newest
    noise with the oldest clean frames (paper.md section 2).
    """
    if not shifted or window >= size:
        return [position // window for position in range(size)]
    shift = window // 2
    numbers = [(position + window - shift) // window for position in range(size)]
    count = -(-size // window)
    return [number % count if wrap else number for number in numbers]


@lru_cache(maxsize=256)
def full_plan(tokens: int) -> WindowPlan:
    """Return the plan of full attention: one window that holds every token."""
    return WindowPlan(order=None, inverse=None, groups=((1, tokens),))


@lru_cache(maxsize=256)
def plan_windows(
    slots: tuple[int, ...],
    grid: tuple[int, int, int],
    window: tuple[int, int, int],
    shifted: tuple[bool, bool, bool],
    wrap: tuple[bool, bool, bool],
    device: torch.device,
) -> WindowPlan:
    """Cut the tokens of the frames present into windows of the full grid.

    Args:
        slots: slot on the full grid of every frame present; windows are cut on the full grid, so a
            frame keeps its window while the buffer grows.
        grid: tokens of the full grid, (frames, height, width).
        window: tokens of a window, (frames, height, width).
        shifted: per axis, whether the borders are moved by half a window.
        wrap: per axis, whether the two outer pieces of a shifted axis are one window.
        device: where the indices are needed.

    Returns:
        A plan for tokens counted in the order (frame present, row, column).

    Choice: windows of equal size are one batch, which is exact and needs no mask.
    """
    frames, height, width = (
        axis_windows(size, length, shifted=moved, wrap=wrapped)
        for size, length, moved, wrapped in zip(grid, window, shifted, wrap, strict=True)
    )
    members: dict[tuple[int, int, int], list[int]] = {}
    token = 0
    for slot in slots:
        for row in height:
            for column in width:
                members.setdefault((frames[slot], row, column), []).append(token)
                token += 1
    by_size: dict[int, list[list[int]]] = {}
    for tokens in members.values():
        by_size.setdefault(len(tokens), []).append(tokens)
    groups = tuple((len(windows), size) for size, windows in by_size.items())
    flat = [token for windows in by_size.values() for tokens in windows for token in tokens]
    if flat == sorted(flat):
        return WindowPlan(order=None, inverse=None, groups=groups)
    order = torch.tensor(flat)
    return WindowPlan(order.to(device), torch.argsort(order).to(device), groups)


def key_masks(plan: WindowPlan, present: Tensor) -> tuple[Tensor, ...]:
    """Turn the tokens present into one mask of keys per group of windows.

    Args:
        plan: the windows.
        present: (batch, tokens) bool, tokens in their own order; False hides a token as a key.

    Returns:
        Per group, (batch * windows, 1, 1, tokens in a window) bool. A window without any token
        present sees all of its own, so that no row of attention is empty; its results are absent
        frames', which nobody reads.
    """
    ordered = present if plan.order is None else present[:, plan.order]
    masks = []
    start = 0
    for count, size in plan.groups:
        mask = ordered[:, start : start + count * size].reshape(-1, 1, 1, size)
        masks.append(mask | ~mask.any(dim=-1, keepdim=True))
        start += count * size
    return tuple(masks)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from queries to keys: scaled dot products, softmax, mean of the values.

    Args:
        query: (rows, heads, queries, head width).
        key: (rows, heads, keys, head width).
        value: same shape as the keys.
        mask: broadcast to (rows, heads, queries, keys) bool, True lets a query see a key; or None.

    Returns:
        (rows, heads, queries, head width), dtype of the values.

    Choice: training short rows on a CPU writes the three steps out, as the backward pass of the
    fused CPU kernel takes two to five times as long there in bfloat16; all else is one call.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    training = torch.is_grad_enabled() and query.device.type == "cpu"
    if not training or key.shape[-2] > WRITTEN_OUT_KEYS:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return shares.to(value.dtype) @ value


def window_attention(
    query_btmk: Tensor,
    key_btmk: Tensor,
    value_btmk: Tensor,
    groups: Sequence[tuple[int, int]],
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Attend inside every window.

    Args:
        query_btmk: (batch, tokens, heads, head width), tokens in window order.
        key_btmk: same shape.
        value_btmk: same shape.
        groups: as in `WindowPlan`; their tokens add up to `tokens`.
        masks: of `key_masks`, or None.

    Returns:
        (batch, tokens, heads * head width), in window order.
    """
    batch, _, heads, head_width = query_btmk.shape
    results = []
    start = 0
    for number, (count, size) in enumerate(groups):
        stop = start + count * size
        query, key, value = (
            x[:, start:stop].reshape(batch * count, size, heads, head_width).transpose(1, 2)
            for x in (query_btmk, key_btmk, value_btmk)
        )
        mask = None if masks is None else masks[number]
        attended = attend(query, key, value, mask)
        results.append(attended.transpose(1, 2).reshape(batch, count * size, heads * head_width))
        start = stop
    return results[0] if len(results) == 1 else torch.cat(results, dim=1)
