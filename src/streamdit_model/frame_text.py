"""Which prompt each latent frame reads: cross-attention keys of prompts, chosen by index.

Keys and values are computed once per prompt and kept; a stream or a training batch points into
them, per sample or per latent frame, and may blend two prompts.

Paper: section 4.1 (text enters by cross-attention). Choice: text per latent frame and blends, so
that a prompt can change inside the buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdit_model.errors import ConfigError

__all__ = ["BlockText", "FrameText", "PromptRows", "TextKeys"]


class PromptRows(NamedTuple):
    """Keys, values and mask of one block, one row per sample or per latent frame.

    Shapes: (rows, heads, length, head width) twice, and (rows, 1, 1, length) bool or None.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class BlockText(NamedTuple):
    """What one block's cross-attention reads: a prompt, or two to blend.

    `second` holds the other prompt and its share, (batch, frames, 1, 1).
    """

    first: PromptRows
    second: tuple[PromptRows, Tensor] | None


@dataclass(frozen=True)
class TextKeys:
    """Keys and values of the cross-attention of every block, for a number of prompts.

    Args:
        keys: per block, (prompts, heads, length, head width).
        values: per block, same shape.
        mask: (prompts, length) bool, True where a token is real; None when all are.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """Text tokens of a prompt, padding included."""
        return self.keys[0].shape[2]

    @classmethod
    def stack(cls, items: Sequence["TextKeys"]) -> "TextKeys":
        """Join the prompts of several, padded to the longest, in the order given."""
        if len(items) == 1:
            return items[0]
        length = max(item.length for item in items)

        def join(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[2])) for x in tensors])

        keys = tuple(join(block) for block in zip(*(item.keys for item in items), strict=True))
        values = tuple(join(block) for block in zip(*(item.values for item in items), strict=True))
        mask = None
        if any(item.mask is not None or item.length < length for item in items):
            mask = torch.cat([item._padded_mask(length) for item in items])
        return cls(keys=keys, values=values, mask=mask)

    def _padded_mask(self, length: int) -> Tensor:
        mask = self.mask
        if mask is None:
            device = self.keys[0].device
            mask = torch.ones(self.num_prompts, self.length, dtype=torch.bool, device=device)
        return F.pad(mask, (0, length - self.length))


@dataclass(frozen=True)
class FrameText:
    """Which prompt every latent frame reads, as indices into the prompts of `keys`.

    Args:
        keys: of `StreamDiT.text_keys`.
        first: (batch,) or (batch, frames) long; (1,) is one prompt for all samples.
        second: shaped like any of these, or None: a second prompt to blend with.
        weight: (batch, frames) in [0, 1], the share of the second prompt: every cross-attention
            returns (1 - weight) * result(first) + weight * result(second). None without a second.
    """

    keys: TextKeys
    first: Tensor
    second: Tensor | None = None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.second is None) != (self.weight is None):
            raise ConfigError("a second prompt and its weight must be given together")

    def per_block(self) -> list[BlockText]:
        """Gather what the cross-attention of every block reads."""
        first = self._rows(self.first)
        if self.second is None or self.weight is None:
            return [BlockText(rows, None) for rows in first]
        share = self.weight[:, :, None, None].to(first[0].value.device)
        return [
            BlockText(one, (two, share))
            for one, two in zip(first, self._rows(self.second), strict=True)
        ]

    def _rows(self, index: Tensor) -> list[PromptRows]:
        index = index.flatten().to(self.keys.keys[0].device)
        mask = self.keys.mask
        chosen = None if mask is None else mask.index_select(0, index)[:, None, None]
        return [
            PromptRows(key.index_select(0, index), value.index_select(0, index), chosen)
            for key, value in zip(self.keys.keys, self.keys.values, strict=True)
        ]
