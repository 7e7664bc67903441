"""The replay pool of distillation: streams that the student is running, one for each slot.

A slot belongs to a global sample index, and the pool is part of every checkpoint, so a resumed run
goes on with the same streams. Its prompts are numbers into the latent cache's captions.

Choice: a pool of running streams, advanced one cycle at each step, since states made by noising
data alone lie off the student's own path (paper.md section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamdit_model.data import LatentCache

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ReplayPool"]

_EMPTY = -1  # the empty prompt


class ReplayPool:
    """States of streams, in float32 on the CPU.

    Args:
        slots: streams in the pool.
        latent_shape: of a whole buffer, (channels, frames, height, width).
        chunk_size: c.
        cache: captions to draw from.
        lifetime: most cycles of a stream.
        text_dropout: share of streams with the empty prompt.
        paraphrase_share: share of prompts in other words than the canonical ones.
        switch_share: share of cycles in which the prompt changes.
    """

    def __init__(
        self,
        slots: int,
        latent_shape: tuple[int, int, int, int],
        chunk_size: int,
        cache: LatentCache,
        *,
        lifetime: int,
        text_dropout: float,
        paraphrase_share: float,
        switch_share: float,
    ) -> None:
        frames = latent_shape[1]
        self.latents = torch.zeros(slots, *latent_shape)
        self.num_present = torch.zeros(slots, dtype=torch.long)  # 0: not begun
        self.cycles_left = torch.zeros(slots, dtype=torch.long)
        self.prompt = torch.full((slots, frames, 2), _EMPTY)  # clip and way, for each frame
        self._chunk_size = chunk_size
        self._cache = cache
        self._lifetime = lifetime
        self._text_dropout = text_dropout
        self._paraphrase_share = paraphrase_share
        self._switch_share = switch_share

    def prompts(self, slot: int) -> tuple[str, ...]:
        """Return the prompt of each frame of a slot's buffer."""
        return tuple(
            "" if clip == _EMPTY else self._cache.texts[clip].before[way]
            for clip, way in self.prompt[slot].tolist()
        )

    def begin(self, slot: int, draw: np.random.Generator) -> None:
        """Start a stream in a slot that has none or whose stream has ended."""
        if self.num_present[slot] > 0 and self.cycles_left[slot] > 0:
            return
        self.latents[slot].zero_()
        self.num_present[slot] = 0
        self.cycles_left[slot] = 1 + int(draw.integers(self._lifetime))
        self.prompt[slot, :] = self._draw_prompt(draw)
        self._push(slot, draw)

    def advance(self, slot: int, latents: Tensor, draw: np.random.Generator) -> None:
        """Take the buffer after a cycle, pop its oldest chunk, push noise; maybe a new prompt.

        Args:
            slot: of the pool.
            latents: after one cycle, (channels, frames, height, width).
            draw: source of the noise and of the prompt.
        """
        self.latents[slot].copy_(latents)
        self.cycles_left[slot] -= 1
        self._push(slot, draw)
        if draw.random() < self._switch_share:
            whole_buffer = draw.random() < 0.5
            first = 0 if whole_buffer else self.latents.shape[2] - self._chunk_size
            self.prompt[slot, first:] = self._draw_prompt(draw)

    def state(self) -> dict[str, Tensor]:
        """Return the pool as tensors."""
        names = ("latents", "num_present", "cycles_left", "prompt")
        return {f"pool-{name}": getattr(self, name) for name in names}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for name in ("latents", "num_present", "cycles_left", "prompt"):
            getattr(self, name).copy_(state[f"pool-{name}"])

    def _push(self, slot: int, draw: np.random.Generator) -> None:
        size = self._chunk_size
        frames = self.latents.shape[2]
        for values, dim in ((self.latents[slot], 1), (self.prompt[slot], 0)):
            values.narrow(dim, 0, frames - size).copy_(
                values.narrow(dim, size, frames - size).clone()
            )
        shape = (self.latents.shape[1], size, *self.latents.shape[3:])
        noise = draw.standard_normal(shape, dtype="float32")
        self.latents[slot, :, frames - size :] = torch.from_numpy(noise)
        self.num_present[slot] = min(int(self.num_present[slot]) + size, frames)

    def _draw_prompt(self, draw: np.random.Generator) -> Tensor:
        uniform = draw.random(3)
        if uniform[0] < self._text_dropout:
            return torch.full((2,), _EMPTY)
        clip = int(uniform[1] * len(self._cache))
        ways = len(self._cache.texts[clip].before)
        way = 0
        if uniform[2] < self._paraphrase_share:
            way = 1 + int(uniform[2] / self._paraphrase_share * (ways - 1))
        return torch.tensor([clip, way])
