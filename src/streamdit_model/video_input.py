"""A video that arrives: frames in, latent frames out, one at a time and no earlier than needed.

Frame k of the input is frame k of what is made from it, since latent frame n is encoded from the
video frames that it is decoded to (and from earlier ones). Behind its last frame the input is a
still, so that a buffer can be filled beyond it. Nothing is kept but the latents that are still to
be used, what the encoder remembers, and one frame.

Choice: an input that fails is an input that ends there: what was read is made to its end, and the
error comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["VideoInput"]

_ENCODER = "encoder."  # names of the encoder's memories in a state


class VideoInput:
    """Frames of an iterator as latent frames of a model.

    Args:
        model: gives the autoencoder and the size.
        pieces: uint8 (frames, height, width, 3) each, of any lengths, possibly for ever; asked for
            in the caller's thread. A piece is not to be changed after it was given.
    """

    def __init__(self, model: StreamModel, pieces: Iterator[Tensor]) -> None:
        self._autoencoder, self._device = model.autoencoder, model.device
        self._dtype = next(model.autoencoder.parameters()).dtype
        self._size = (model.config.height, model.config.width)
        self._pieces = pieces
        self._rest = torch.zeros(0, *self._size, 3, dtype=torch.uint8)
        self._last: Tensor | None = None  # frame that was encoded last
        self._memory: dict[str, Tensor] | None = None  # of the encoder
        self._latents: dict[int, Tensor] = {}
        self._next = 0  # latent frame to be encoded next
        self._frames_read = 0
        self._is_over = False
        self._failure: Exception | None = None

    @property
    def frames_read(self) -> int:
        """Video frames encoded so far; from the next one on a resumed stream reads."""
        return self._frames_read

    def frames_until(self, end: int) -> int:
        """Return how many of the first `end` video frames there are, after reading as far."""
        while not self._is_over and self._frames_read < end:
            self._encode_next()
        return min(end, self._frames_read)

    def require_sound_end(self) -> None:
        """Raise what ended the input.

        Raises:
            Exception: that of the iterator.
            ConfigError: the input gave no frame at all, or frames of another kind.
        """
        if self._failure is not None:
            raise self._failure
        if not self._frames_read:
            raise ConfigError("the input video has no frames; at least 1 is needed")

    def latents(self, first_frame: int, frames: int) -> Tensor:
        """Return clean latents, float32 (1, channels, frames, height, width).

        Args:
            first_frame: absolute number of the first latent frame, not forgotten; before frame 0
                the input shows its first latent frame.
            frames: how many, at least 1.
        """
        while self._next < first_frame + frames:
            self._encode_next()
        wanted = range(first_frame, first_frame + frames)
        return torch.stack([self._latents[max(frame, 0)] for frame in wanted], dim=2)

    def forget(self, before: int) -> None:
        """Drop the latent frames before an absolute number."""
        self._latents = {f: latent for f, latent in self._latents.items() if f >= before}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what `load` needs to go on exactly: tensors by name, and JSON-able numbers."""
        tensors = {f"{_ENCODER}{name}": tensor for name, tensor in (self._memory or {}).items()}
        if self._last is not None:
            tensors["last"] = self._last
        if self._latents:
            tensors["latents"] = torch.stack(list(self._latents.values()), dim=2)
        numbers = {
            "frames_read": self._frames_read,
            "next": self._next,
            "is_over": self._is_over,
        }
        return tensors, numbers

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the iterator goes on at `frames_read`."""
        self._frames_read, self._next = numbers["frames_read"], numbers["next"]
        self._is_over = numbers["is_over"]
        memory = {n.removeprefix(_ENCODER): t for n, t in tensors.items() if n.startswith(_ENCODER)}
        self._memory = memory or None
        self._last = tensors["last"].cpu() if "last" in tensors else None
        waiting = tensors["latents"].unbind(dim=2) if "latents" in tensors else ()
        self._latents = dict(enumerate(waiting, start=self._next - len(waiting)))

    def _encode_next(self) -> None:
        """Encode one latent frame more; of the still behind the end when that is passed."""
        count = self._autoencoder.frames_to_encode(1, self._memory)
        frames = self._take(count)
        self._frames_read += len(frames)
        if len(frames):
            self._last = frames[-1].clone()
        if self._last is None:
            return
        still = self._last.expand(count - len(frames), -1, -1, -1)
        video = torch.cat([frames, still]).to(self._device).permute(3, 0, 1, 2)[None].float() / 255
        latents, self._memory = self._autoencoder.encode_step(video.to(self._dtype), self._memory)
        self._latents[self._next] = latents[:, :, 0].float()
        self._next += 1

    def _take(self, count: int) -> Tensor:
        """Return the next frames, fewer than asked for at the end only."""
        while len(self._rest) < count and not self._is_over:
            try:
                piece = next(self._pieces, None)
                if piece is not None:
                    self._rest = torch.cat([self._rest, self._checked(piece)])
            except Exception as error:  # whatever it is, it comes after the frames before it
                self._failure, piece = error, None
            self._is_over = piece is None
        frames, self._rest = self._rest[:count], self._rest[count:]
        return frames

    def _checked(self, piece: Tensor) -> Tensor:
        shape = tuple(piece.shape)
        if shape[1:] != (*self._size, 3) or piece.dtype != torch.uint8:
            raise ConfigError(
                f"frames of shape {shape}, {piece.dtype}; the model takes uint8 (frames, "
                f"{self._size[0]}, {self._size[1]}, 3)"
            )
        return piece.cpu()
