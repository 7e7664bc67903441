"""The Wan block: self-attention, cross-attention to text, MLP.

A block maps the residual stream, (batch, frames, tokens of a frame, width), to itself. Queries of
the self-attention belong to the frames of the window; its keys and values may also come from
context frames, which were seen before and are kept without rotary embedding.

Reference: open-weights.md 2.4 and 4.1.
"""

# Shape suffixes: b batch, f latent frames, s tokens of one frame, d width, m heads, k head width,
# l text tokens, p prompts.

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.blocks import MODULATIONS, NORM_EPSILON, ScaledNorm, modulate
from streamdit_model.frame_text import BlockText, PromptRows
from streamdit_model.wan.rotary import Rotation, rotate
from streamdit_model.window_attention import WindowPlan, window_attention

__all__ = ["Keep", "LayerContext", "LayerWindows", "WanBlock", "WanCrossAttention", "layer_norm"]

Keep = Callable[[Tensor, Tensor], None]
"""keep(key, value), both (batch, heads, frames, tokens, head width); keys normed, not rotated."""


class LayerContext(NamedTuple):
    """Keys and values of one layer's context frames and the rotation of the keys.

    Keys and values are (batch, heads, frames, tokens, head width), keys normed and not rotated.
    """

    key: Tensor
    value: Tensor
    rotation: Rotation


class LayerWindows(NamedTuple):
    """How one layer's tokens are cut into windows, and which keys are hidden, as `key_masks`."""

    plan: WindowPlan
    masks: tuple[Tensor, ...] | None


def layer_norm(x: Tensor) -> Tensor:
    """Norm the last axis to mean 0 and variance 1, without learned scale."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON)


class WanSelfAttention(nn.Module):
    """Attention of every token of the window to the whole window and the context.

    Queries and keys are normed over all heads together, then rotated.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query_norm = ScaledNorm(width)
        self.key_norm = ScaledNorm(width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x_bfsd: Tensor,
        rotation: Rotation,
        context: LayerContext | None,
        mask: Tensor | None,
        keep: Keep | None,
        windows: LayerWindows | None,
    ) -> Tensor:
        """Map the residual layout to itself; `keep` gets the window's keys and values."""
        value = self._split(self.value(x_bfsd))
        query = self._split(self.query_norm(self.query(x_bfsd)).to(value.dtype))
        key = self._split(self.key_norm(self.key(x_bfsd)).to(value.dtype))
        turned, rotated, values = rotate(query, rotation), rotate(key, rotation), value
        if context is not None:
            rotated = torch.cat([rotate(context.key, context.rotation), rotated], dim=2)
            values = torch.cat([context.value, value], dim=2)
        if keep is not None:
            keep(key, value)
        turned, rotated, values = (x.flatten(2, 3) for x in (turned, rotated, values))
        if windows is None:
            attended = F.scaled_dot_product_attention(turned, rotated, values, attn_mask=mask)
            attended = attended.transpose(1, 2).flatten(2)
        else:
            attended = _attend_in_windows(turned, rotated, values, windows)
        return self.output(attended.view(x_bfsd.shape))

    def _split(self, x_bfsd: Tensor) -> Tensor:
        """Cut the width into heads: (b, m, f, s, k)."""
        return x_bfsd.unflatten(-1, self.heads).permute(0, 3, 1, 2, 4)


def _attend_in_windows(
    query_bmtk: Tensor, key_bmtk: Tensor, value_bmtk: Tensor, windows: LayerWindows
) -> Tensor:
    """Attend inside windows: (batch, tokens, width)."""
    plan, masks = windows
    ordered = [x.transpose(1, 2) for x in (query_bmtk, key_bmtk, value_bmtk)]
    if plan.order is not None:
        ordered = [x.index_select(1, plan.order) for x in ordered]
    attended = window_attention(ordered[0], ordered[1], ordered[2], plan.groups, masks)
    return attended if plan.inverse is None else attended.index_select(1, plan.inverse)


class WanCrossAttention(nn.Module):
    """Attention of every token to the text of its sample or of its latent frame."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query_norm = ScaledNorm(width)
        self.key_norm = ScaledNorm(width)
        self.output = nn.Linear(width, width)

    def keys_values(self, tokens_pld: Tensor) -> tuple[Tensor, Tensor]:
        """Map projected text tokens to keys and values, (prompts, heads, length, head width)."""
        value = self.value(tokens_pld)
        key = self.key_norm(self.key(tokens_pld)).to(value.dtype)
        pair = [x.unflatten(-1, self.heads).transpose(1, 2).contiguous() for x in (key, value)]
        return pair[0], pair[1]

    def forward(self, x_bfsd: Tensor, text: BlockText) -> Tensor:
        """Map the residual layout to itself."""
        query = self.query_norm(self.query(x_bfsd)).unflatten(-1, self.heads)
        attended = self._attend(query, text.first)
        if text.second is not None:
            rows, weight = text.second
            second = self._attend(query, rows)
            attended = ((1 - weight) * attended + weight * second).to(second.dtype)
        return self.output(attended)

    @staticmethod
    def _attend(query_bfsmk: Tensor, rows: PromptRows) -> Tensor:
        """Attend row by row: a row of text is shared by all, of a sample, or of a frame."""
        num_rows, heads, _, head_width = rows.key.shape
        query = query_bfsmk.reshape(num_rows, -1, heads, head_width).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query.to(rows.value.dtype), rows.key, rows.value, attn_mask=rows.mask
        )
        return attended.transpose(1, 2).reshape(*query_bfsmk.shape[:3], heads * head_width)


class WanBlock(nn.Module):
    """One block: modulated self-attention, plain cross-attention, modulated MLP."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, MODULATIONS, width))
        self.attention = WanSelfAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.cross_attention = WanCrossAttention(width, num_heads)
        self.mlp_up = nn.Linear(width, mlp_width)
        self.mlp_down = nn.Linear(mlp_width, width)

    def forward(
        self,
        x_bfsd: Tensor,
        modulation_bf6d: Tensor,
        rotation: Rotation,
        text: BlockText,
        context: LayerContext | None = None,
        mask: Tensor | None = None,
        keep: Keep | None = None,
        windows: LayerWindows | None = None,
    ) -> Tensor:
        """Map the residual stream to itself.

        Args:
            x_bfsd: residual stream.
            modulation_bf6d: of each frame, or with one frame of all.
            rotation: of the window's tokens.
            text: what the cross-attention reads.
            context: more keys and values of the self-attention, before the window's own.
            mask: (batch, 1, 1, keys) bool, False hides a key; context first.
            keep: gets the window's keys and values.
            windows: cut of the self-attention, without context and mask; None is full attention.
        """
        modulation = (modulation_bf6d + self.table).unsqueeze(3)  # (b, f, 6, 1, d)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        x = x_bfsd
        normed = modulate(layer_norm(x), shift, scale)
        x = x + gate * self.attention(normed, rotation, context, mask, keep, windows)
        x = x + self.cross_attention(self.cross_norm(x), text)
        hidden = F.gelu(
            self.mlp_up(modulate(layer_norm(x), mlp_shift, mlp_scale)), approximate="tanh"
        )
        return x + mlp_gate * self.mlp_down(hidden)
