"""The moving buffer: latent frames in static memory, oldest first.

One tensor of B slots is allocated once and changed in place. The frames present always end at the
tail: memory index = slot on the full grid of B. Frames are counted in absolute numbers from the
start of the stream. The buffer holds no tau: `Partition` tells it from what is present. It is
always float32; only what enters a network is cast.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition

__all__ = ["StreamBuffer"]


class StreamBuffer:
    """K reference frames and N chunks that move from the tail to the head.

    It begins empty. `push` appends noise at the tail, which moves everything else one chunk toward
    the head; `pop` hands out the oldest chunk, whose frames stay as references while K allows.

    Args:
        partition: how the buffer is cut.
        batch: streams held side by side.
        channels: latent channels.
        height: latent rows.
        width: latent columns.
        device: where the memory lies.

    Raises:
        ConfigError: a size below 1.

    Paper: section 3.2 and supplement 8.
    """

    def __init__(
        self,
        partition: Partition,
        batch: int,
        channels: int,
        height: int,
        width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, channels, partition.buffer_length, height, width)
        if min(shape) < 1:
            raise ConfigError(f"a buffer of shape {shape} is empty; every size is at least 1")
        self.partition = partition
        self.num_chunks_present = 0
        self.num_reference_present = 0
        self._next_frame = 0
        with torch.inference_mode(False):  # a stream may be read and resumed outside that mode
            self._memory = torch.zeros(shape, dtype=torch.float32, device=device)

    @property
    def num_frames(self) -> int:
        """Latent frames present, references included."""
        chunks = self.num_chunks_present * self.partition.chunk_size
        return self.num_reference_present + chunks

    @property
    def latents(self) -> Tensor:
        """The frames present: a view (batch, channels, frames, height, width) of the memory."""
        return self._memory[:, :, self.partition.buffer_length - self.num_frames :]

    @property
    def slots(self) -> Tensor:
        """Slot of each frame present on the full grid of B: long (frames,), on the device."""
        length = self.partition.buffer_length
        return torch.arange(length - self.num_frames, length, device=self.device)

    @property
    def first_frame(self) -> int:
        """Absolute number of the first frame present, references included."""
        return self._next_frame - self.num_frames

    @property
    def next_frame(self) -> int:
        """Absolute number of the first frame of the chunk to be pushed next."""
        return self._next_frame

    @property
    def device(self) -> torch.device:
        """Where the memory lies."""
        return self._memory.device

    def push(self, chunk: Tensor) -> None:
        """Append a chunk at the tail; everything present moves one chunk toward the head.

        Args:
            chunk: noise, (batch, channels, c, height, width).

        Raises:
            ConfigError: the buffer is full, or the shape is another.
        """
        if self.num_chunks_present == self.partition.num_chunks:
            raise ConfigError(
                f"push to a full buffer: {self.num_chunks_present} of "
                f"{self.partition.num_chunks} chunks are present",
                hint="pop the oldest chunk first",
            )
        self._check_shape(chunk, self.partition.chunk_size)
        self._shift()
        self._memory[:, :, -self.partition.chunk_size :].copy_(chunk)
        self.num_chunks_present += 1
        self._next_frame += self.partition.chunk_size

    def pop(self) -> Tensor:
        """Take out the oldest chunk; its frames join the references, whose oldest leave.

        Returns:
            A copy of the chunk, (batch, channels, c, height, width).

        Raises:
            ConfigError: the buffer is not full, so that its oldest chunk is not finished.
        """
        if self.num_chunks_present != self.partition.num_chunks:
            raise ConfigError(
                f"pop from a buffer with {self.num_chunks_present} of {self.partition.num_chunks} "
                "chunks; only the oldest chunk of a full buffer is finished"
            )
        first, size = self.num_reference_present, self.partition.chunk_size
        chunk = self.latents[:, :, first : first + size].clone()
        self.num_chunks_present -= 1
        self.num_reference_present = min(self.partition.num_reference, first + size)
        return chunk

    def fill(self, latents: Tensor, first_frame: int) -> None:
        """Replace everything present, aligned to the tail.

        Args:
            latents: (batch, channels, frames, height, width), oldest first: whole chunks, and
                before N of them up to K references.
            first_frame: absolute number of the first of them.

        Raises:
            ConfigError: a number of frames that the partition cannot hold, or another shape.
        """
        frames, size = latents.shape[2], self.partition.chunk_size
        chunks = min(frames // size, self.partition.num_chunks)
        reference = frames - chunks * size
        allowed = self.partition.num_reference if chunks == self.partition.num_chunks else 0
        if chunks < 1 or reference > allowed:
            raise ConfigError(
                f"{frames} frames do not fill a buffer of {self.partition.num_chunks} chunks of "
                f"{size} with {self.partition.num_reference} reference frames"
            )
        self._check_shape(latents, frames)
        self.num_chunks_present, self.num_reference_present = chunks, reference
        self._next_frame = first_frame + frames
        self.latents.copy_(latents)

    def state(self) -> dict[str, Tensor | int]:
        """Return all that `load` needs to go on exactly: a copy, nothing of it shared.

        Meant for the end of a cycle; a position within one is the caller's to keep.
        """
        return {
            "latents": self.latents.clone(),
            "num_chunks_present": self.num_chunks_present,
            "num_reference_present": self.num_reference_present,
            "next_frame": self._next_frame,
        }

    def load(self, state: Mapping[str, Tensor | int]) -> None:
        """Restore what `state` returned, in a buffer of the same sizes.

        Raises:
            ConfigError: a key is missing, or the numbers do not belong together or here.
        """
        latents = state.get("latents")
        names = ("num_chunks_present", "num_reference_present", "next_frame")
        numbers = [state.get(name) for name in names]
        if not isinstance(latents, Tensor) or any(number is None for number in numbers):
            raise ConfigError(f"buffer state has {sorted(state)}; latents and {names} are needed")
        chunks, reference, next_frame = (int(number) for number in numbers if number is not None)
        cut = self.partition
        if not (0 <= chunks <= cut.num_chunks and 0 <= reference <= cut.num_reference):
            raise ConfigError(
                f"buffer state of {chunks} chunks and {reference} reference frames is not of a "
                f"buffer of {cut.num_chunks} chunks and {cut.num_reference} reference frames"
            )
        self._check_shape(latents, reference + chunks * cut.chunk_size)
        self.num_chunks_present, self.num_reference_present = chunks, reference
        self._next_frame = next_frame
        self.latents.copy_(latents)

    def _shift(self) -> None:
        """Move the memory one chunk toward the head, piece by piece: copies must not overlap."""
        size, length = self.partition.chunk_size, self.partition.buffer_length
        for start in range(0, length - size, size):
            stop = min(start + size, length - size)
            self._memory[:, :, start:stop].copy_(self._memory[:, :, start + size : stop + size])

    def _check_shape(self, latents: Tensor, frames: int) -> None:
        """Refuse latents of another shape than this buffer's with that number of frames."""
        batch, channels, _, height, width = self._memory.shape
        expected = (batch, channels, frames, height, width)
        if tuple(latents.shape) != expected:
            raise ConfigError(f"latents of shape {tuple(latents.shape)} are not {expected}")
