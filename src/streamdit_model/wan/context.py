"""The context ring: keys and values of clean frames that have left the buffer.

It holds the first frames of the stream, the sink, and the last ones, and nothing between. Keys are
stored as they were before their rotary embedding; a pass numbers what it sees anew, from 0 in order
of time, so that a stream has no longest length.

Memory is allocated once. The chunk that is written takes the place of the oldest one that its own
pass reads, layer by layer after that layer has read.

Reference: open-weights.md 2.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.wan.config import WanConfig
from streamdit_model.wan.transformer import KeepLayer

__all__ = ["ContextRing", "ContextSizes", "ContextView"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSizes:
    """How much of the past a pass sees, in latent frames.

    Args:
        chunk: frames of a chunk.
        sink: first frames of the stream, kept for ever; a multiple of the chunk, at least one.
        span: frames that one pass may see, its own included; a multiple of the chunk.
        held: frames in memory, the sink included, a multiple of the chunk; None is all that a pass
            can see. Fewer save memory: the window sees the same as long as its working frames are
            held, a clean pass sees less of the past than the models were trained with.

    Raises:
        ConfigError: a number out of range.

    Reference: open-weights.md 2.4: chunk 3, sink 3, span 21.
    """

    chunk: int = 3
    sink: int = 3
    span: int = 21
    held: int | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.sink < 1 or self.sink % self.chunk or self.span % self.chunk:
            raise ConfigError(
                f"context sizes sink {self.sink} and span {self.span} must be multiples of the "
                f"chunk {self.chunk}, and none is 0"
            )
        if self.span < self.sink + 2 * self.chunk:
            raise ConfigError(
                f"context span {self.span} leaves no room beside the sink {self.sink}; it must be "
                f"at least {self.sink + 2 * self.chunk}"
            )
        most = self.sink + self.span - self.chunk
        if self.held is not None and (
            self.held % self.chunk or not self.sink + self.chunk <= self.held <= most
        ):
            raise ConfigError(
                f"context of {self.held} latent frames must be a multiple of {self.chunk} from "
                f"{self.sink + self.chunk} to {most}"
            )

    @property
    def sink_chunks(self) -> int:
        """Chunks of the sink."""
        return self.sink // self.chunk

    @property
    def last_chunks(self) -> int:
        """Chunks before its own that a clean pass sees, and so the last ones that are held."""
        if self.held is not None:
            return (self.held - self.sink) // self.chunk
        return self.span // self.chunk - 1

    @property
    def frames_held(self) -> int:
        """Frames whose keys and values are in memory, the sink included."""
        return (self.sink_chunks + self.last_chunks) * self.chunk


@dataclass(frozen=True, slots=True)
class ContextView:
    """What one pass reads of a ring: some of its frames, in order of time from position 0.

    Args:
        keys: per layer (batch, heads, frames held, tokens of a frame, head width).
        values: same shapes.
        frames: (frames,) long, on the device of the keys: where the frames lie.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    frames: Tensor

    @property
    def num_frames(self) -> int:
        """Frames seen; the window comes after them, from this position on."""
        return len(self.frames)

    @property
    def positions(self) -> Tensor:
        """(frames,) long, 0, 1, 2 and so on."""
        return torch.arange(self.num_frames)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys (normed, not rotated) and values of a layer, copied."""
        return (
            self.keys[layer].index_select(2, self.frames),
            self.values[layer].index_select(2, self.frames),
        )


class ContextRing:
    """Keys and values of the sink and the last frames of a stream, for every layer.

    Args:
        config: of the network.
        sizes: how many frames.
        batch: streams side by side.
        tokens: tokens of a frame.
        device: where the memory lies.
        dtype: of keys and values.
    """

    def __init__(
        self,
        config: WanConfig,
        sizes: ContextSizes,
        batch: int,
        tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.sizes = sizes
        self.num_chunks = 0
        shape = (batch, config.num_heads, sizes.frames_held, tokens, config.head_width)
        with torch.inference_mode(False):  # a stream may be read and resumed outside that mode
            self._keys, self._values = (
                [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.depth)]
                for _ in range(2)
            )

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(x.nbytes for x in (*self._keys, *self._values))

    def clear(self) -> None:
        """Forget all chunks."""
        self.num_chunks = 0

    def for_window(self, num_frames: int) -> ContextView | None:
        """Return what a pass over noisy frames sees: the sink, then the working frames.

        Working frames are the last ones, as many as the span leaves room for.

        Args:
            num_frames: frames of the window.

        Returns:
            The view, or None while nothing is held.
        """
        room = (self.sizes.span - num_frames) // self.sizes.chunk - self.sizes.sink_chunks
        sink = range(min(self.sizes.sink_chunks, self.num_chunks))
        room = min(max(room, 0), self.sizes.last_chunks)
        working = range(max(self.num_chunks - room, len(sink)), self.num_chunks)
        return self._view([*sink, *working])

    def for_clean_pass(self) -> ContextView | None:
        """Return what the next chunk's clean pass sees: the last frames before it.

        The sink is among them only as long as it is one of them.
        """
        return self._view(range(max(0, self.num_chunks - self.sizes.last_chunks), self.num_chunks))

    def writer(self) -> KeepLayer:
        """Return what stores the next chunk's keys and values; `admit` it after the pass."""
        first = self._place(self.num_chunks)
        place = slice(first, first + self.sizes.chunk)

        def keep(layer: int, key: Tensor, value: Tensor) -> None:
            self._keys[layer][:, :, place].copy_(key)
            self._values[layer][:, :, place].copy_(value)

        return keep

    def admit(self) -> None:
        """Count the chunk that was written."""
        self.num_chunks += 1

    def held(self) -> list[int]:
        """Return the numbers of the chunks held, oldest first, counted from the last `clear`."""
        sink = range(min(self.sizes.sink_chunks, self.num_chunks))
        last = range(max(len(sink), self.num_chunks - self.sizes.last_chunks), self.num_chunks)
        return [*sink, *last]

    def dump(self) -> Tensor:
        """Return a copy of all that is held, oldest first.

        Its shape is (keys and values, layers, batch, heads, frames, tokens, head width).
        """
        view = self._view(self.held())
        if view is None:
            raise ConfigError("an empty context has nothing to save")
        pairs = [view.read(layer) for layer in range(len(self._keys))]
        return torch.stack([torch.stack(column) for column in zip(*pairs, strict=True)])

    def restore(self, dumped: Tensor) -> None:
        """Take over what `dump` returned, in a ring of the same sizes.

        Raises:
            ConfigError: another shape, or more frames than are held.
        """
        size, shape = self.sizes.chunk, self._keys[0].shape
        frames = dumped.shape[4] if dumped.dim() == 7 else 0
        expected = (2, len(self._keys), *shape[:2], frames, *shape[3:])
        chunks = frames // size
        if tuple(dumped.shape) != expected or frames % size or not 0 < frames <= shape[2]:
            raise ConfigError(
                f"context of shape {tuple(dumped.shape)} does not fit one of up to {shape[2]} "
                f"frames, {(2, len(self._keys), *shape)}"
            )
        self.clear()
        for chunk in range(chunks):
            keep, part = self.writer(), dumped[:, :, :, :, chunk * size : (chunk + 1) * size]
            for layer in range(len(self._keys)):
                keep(layer, part[0, layer], part[1, layer])
            self.admit()

    def _place(self, chunk: int) -> int:
        """Return where the first frame of a chunk lies."""
        sink = self.sizes.sink_chunks
        place = chunk if chunk < sink else sink + (chunk - sink) % self.sizes.last_chunks
        return place * self.sizes.chunk

    def _view(self, chunks: Sequence[int]) -> ContextView | None:
        if not chunks:
            return None
        size = self.sizes.chunk
        frames = [self._place(chunk) + frame for chunk in chunks for frame in range(size)]
        index = torch.tensor(frames, device=self._keys[0].device)
        return ContextView(self._keys, self._values, index)
