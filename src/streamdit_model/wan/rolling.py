"""A Wan transformer with a context as a velocity of the sampler: the open rolling models.

`RollingVelocity` predicts the velocity of a window that sees the clean frames emitted before it.
After an emission the chunk goes once more through the network, at tau = 1, and the keys and values
of that clean pass join the context. The pass is made when the next window asks for it, so that the
last chunk of a stream, and every growing window, costs none.

What the context holds was computed under a prompt. When the prompt changes, the clean frames held
go through the network again under the new one, as if they were the whole video.

Reference: open-weights.md 2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText
from streamdit_model.partition import Partition
from streamdit_model.sampling import Window
from streamdit_model.wan.context import ContextRing, ContextSizes
from streamdit_model.wan.transformer import WanTransformer

__all__ = ["RollingVelocity", "rolling_partition"]


def rolling_partition(num_levels: int, chunk_size: int = 3) -> Partition:
    """Return the partition of a rolling model: one micro step for each level.

    Args:
        num_levels: 4 (tau 0, 1/16, 1/6, 3/8) or 5 (0, 1/21, 2/17, 3/13, 4/9) were trained.
        chunk_size: latent frames of a chunk.

    Reference: open-weights.md 2.1. Its warp by 5 of evenly spaced steps is gamma `shift` of 5.
    """
    return Partition(
        num_chunks=num_levels,
        chunk_size=chunk_size,
        micro_steps=1,
        gamma="shift",
        gamma_parameter=5.0,
    )


class RollingVelocity:
    """velocity(window) with a context, and the `commit` that feeds it; one for each stream.

    Args:
        transformer: in evaluation mode.
        sizes: how much of the past a pass sees.

    Choice: the context reads one prompt at a time, the one that has the larger share in the oldest
    frame of the window. So prompts that change by chunk or blend cost one rebuilding each. A null
    text of guidance would rebuild it twice a window: rolling models are distilled and have none.
    """

    def __init__(self, transformer: WanTransformer, sizes: ContextSizes | None = None) -> None:
        self.transformer = transformer
        self.sizes = sizes or ContextSizes()
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next window begins another one at any frame."""
        self._ring: ContextRing | None = None
        self._chunks: list[Tensor] = []  # clean latents of the chunks held, oldest first
        self._pending: list[Tensor] = []  # emitted, not yet passed
        self._seen: FrameText | None = None  # text of the last window
        self._text: FrameText | None = None  # and the prompt of it that the context reads
        self._next_frame: int | None = None
        self._stale = False  # the keys and values are not those of the chunks
        self._passed_under: tuple[Tensor, Tensor] | None = None  # of a state that was loaded

    def __call__(self, window: Window) -> Tensor:
        """Return the velocity of a window, float32, shape of its latents.

        Args:
            window: its text is a `FrameText`.

        Raises:
            ConfigError: the window does not begin where the context ends.
        """
        text = window.text
        assert isinstance(text, FrameText), type(text)
        if self._next_frame is not None and window.first_frame != self._next_frame:
            raise ConfigError(
                f"a window begins at latent frame {window.first_frame}, its context ends at "
                f"{self._next_frame}",
                hint="call reset() before another stream",
            )
        self._refresh(text)
        frames = window.latents.shape[2]
        context = None if self._ring is None else self._ring.for_window(frames)
        first = 0 if context is None else context.num_frames
        positions = torch.arange(first, first + frames)
        latents = window.latents.to(self._dtype)
        return self.transformer(latents, window.tau, positions, text, context=context).float()

    def commit(self, chunk: Tensor, first_frame: int) -> None:
        """Take note of an emitted chunk, to be passed when the next window is asked for.

        Args:
            chunk: clean latents, (batch, channels, c, height, width); it is copied.
            first_frame: its absolute number.

        Raises:
            ConfigError: another number of frames, or not the frames that come next.
        """
        if chunk.shape[2] != self.sizes.chunk:
            raise ConfigError(
                f"a chunk of {chunk.shape[2]} latent frames was emitted; the context takes "
                f"{self.sizes.chunk}"
            )
        if self._next_frame not in (None, first_frame):
            raise ConfigError(
                f"latent frame {first_frame} was emitted where {self._next_frame} comes next",
                hint="call reset() before another stream",
            )
        self._next_frame = first_frame + self.sizes.chunk
        self._pending.append(chunk.detach().clone())

    def state(self, *, full: bool = False) -> dict[str, Tensor | int]:
        """Return what `load` needs to go on, at the end of a cycle.

        Args:
            full: with the keys and values held and what they were computed under, so that the
                stream goes on exactly; at full size these are gigabytes. Without, they are rebuilt
                from the clean frames, which gives others as soon as a frame has left the context;
                `is_exact` says whether one has.
        """
        chunks = self._chunks + self._pending
        if self._next_frame is None or not chunks:
            return {}
        state: dict[str, Tensor | int] = {
            "context": torch.cat(chunks, dim=2),
            "next_frame": self._next_frame,
        }
        state["is_exact"] = self._has_all() or (full and not self._stale)
        if full and not self._stale and self._ring is not None and self._chunks:
            assert self._text is not None
            state |= {"keys_values": self._ring.dump(), "num_pending": len(self._pending)}
            state["text_key"], state["text_value"] = _rows(self._text)
        return state

    def _has_all(self) -> bool:
        """Whether all that the keys and values were computed from is held, to be passed again."""
        chunks = self._chunks + self._pending
        passed = 0 if self._ring is None else self._ring.num_chunks
        return passed == len(self._chunks) and len(self._trim(chunks)) == len(chunks)

    def load(self, state: Mapping[str, Tensor | int]) -> None:
        """Take over what `state` returned.

        Raises:
            ConfigError: it is not of whole chunks, or of a context of other sizes.
        """
        self.reset()
        if not state:
            return
        latents, next_frame = state.get("context"), state.get("next_frame")
        if not isinstance(latents, Tensor) or next_frame is None:
            raise ConfigError(f"context state has {sorted(state)}; it lacks context or next_frame")
        if latents.dim() != 5 or latents.shape[2] % self.sizes.chunk:
            raise ConfigError(
                f"context state of shape {tuple(latents.shape)} is not whole chunks of "
                f"{self.sizes.chunk} latent frames"
            )
        device = self.transformer.head.weight.device
        chunks = list(latents.to(device).split(self.sizes.chunk, dim=2))
        keys_values, num_pending = state.get("keys_values"), int(state.get("num_pending", 0))
        self._next_frame = int(next_frame)
        rows = state.get("text_key"), state.get("text_value")
        if isinstance(keys_values, Tensor):
            if isinstance(rows[0], Tensor) and isinstance(rows[1], Tensor):
                self._passed_under = rows[0].to(device), rows[1].to(device)
            self._ring = self._new_ring(chunks[0])
            self._ring.restore(keys_values)
            passed = len(chunks) - num_pending
            self._chunks, self._pending = chunks[:passed], chunks[passed:]
        else:
            self._pending, self._stale = chunks, True

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.head.weight.dtype

    @torch.no_grad()
    def _refresh(self, text: FrameText) -> None:
        """Bring the context up to date: all of it after a new prompt, else what is pending."""
        if text is not self._seen:
            leading = _leading_prompt(text)
            if self._text is not None and not _same_prompt(self._text, leading):
                self._stale = True
            if self._passed_under is not None:
                self._stale = not _equal_rows(self._passed_under, _rows(leading))
                self._passed_under = None
            self._seen, self._text = text, leading
        if self._stale:
            self._pending = self._trim(self._chunks + self._pending)
            self._chunks = []
            if self._ring is not None:
                self._ring.clear()
        self._stale = True  # until all passes are through
        while self._pending:
            self._pass_clean(self._pending[0])
            self._chunks = self._trim([*self._chunks, self._pending.pop(0)])
        self._stale = False

    def _pass_clean(self, chunk: Tensor) -> None:
        """Run the network over a clean chunk and keep its keys and values."""
        ring = self._ring = self._ring or self._new_ring(chunk)
        assert self._text is not None
        context = ring.for_clean_pass()
        first = 0 if context is None else context.num_frames
        self.transformer(
            chunk.to(self._dtype),
            torch.ones(len(chunk), 1, device=chunk.device),
            torch.arange(first, first + self.sizes.chunk),
            self._text,
            context=context,
            keep=ring.writer(),
        )
        ring.admit()

    def _new_ring(self, chunk: Tensor) -> ContextRing:
        config, (batch, _, _, height, width) = self.transformer.config, chunk.shape
        tokens = height // config.patch[1] * (width // config.patch[2])
        return ContextRing(config, self.sizes, batch, tokens, chunk.device, self._dtype)

    def _trim(self, chunks: list[Tensor]) -> list[Tensor]:
        """Keep the sink and the last chunks, as the ring does."""
        sink, last = self.sizes.sink_chunks, self.sizes.last_chunks
        return [*chunks[:sink], *chunks[sink:][-last:]]


def _leading_prompt(text: FrameText) -> FrameText:
    """Return the prompt with the larger share in the first frame, of every sample."""
    index = text.first if text.first.dim() == 1 else text.first[:, 0]
    if text.second is not None and text.weight is not None:
        second = text.second if text.second.dim() == 1 else text.second[:, 0]
        index = torch.where(text.weight[:, 0].to(index.device) > 0.5, second, index)
    return FrameText(text.keys, index)


def _same_prompt(one: FrameText, other: FrameText) -> bool:
    """Say whether two texts of one prompt per sample read the same tokens.

    Prompts are told apart by the keys and values of the first block, since the same prompt may be
    handed in with others beside it and under another number.
    """
    if one.keys is other.keys and torch.equal(one.first, other.first):
        return True
    return _equal_rows(_rows(one), _rows(other))


def _rows(text: FrameText) -> tuple[Tensor, Tensor]:
    """Return the keys and values of the first block that tell the prompts of a text apart."""
    keys, index = text.keys, text.first.to(text.keys.keys[0].device)
    return keys.keys[0].index_select(0, index), keys.values[0].index_select(0, index)


def _equal_rows(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))
