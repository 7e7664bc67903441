"""A chunk of video, and which frames of the whole it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from streamdit_model.prompt_timeline import Receipt

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["VideoChunk", "chunk_times", "chunks_of", "first_frame_of"]


@dataclass(frozen=True)
class VideoChunk:
    """What a stream yields.

    Args:
        number: of the chunk, from 0.
        frames: uint8 (frames, height, width, 3) on the CPU; the last chunk may be shorter.
        first_frame: number of its first video frame, from 0.
        seconds: video time of that frame.
        prompt: the prompt that had the most weight when the chunk was finished; None for none.
        receipts: what became of prompt events with this chunk.
        statistics: `denoise_ms` and `decode_ms`, the wall time of the two stages.
    """

    number: int
    frames: Tensor
    first_frame: int
    seconds: float
    prompt: str | None
    receipts: list[Receipt]
    statistics: dict[str, float]

    def split(self, num_frames: int, *, fps: float) -> tuple[VideoChunk, VideoChunk | None]:
        """Return the first frames, and a chunk of those left over or None."""
        if num_frames >= len(self.frames):
            return self, None
        first_frame = self.first_frame + num_frames
        rest = replace(
            self,
            frames=self.frames[num_frames:],
            first_frame=first_frame,
            seconds=first_frame / fps,
            receipts=[],
        )
        return replace(self, frames=self.frames[:num_frames]), rest


def first_frame_of(model: StreamModel, chunk: int, follows_video: bool = False) -> int:
    """Return the number of the first video frame of a chunk, as the autoencoder counts them.

    Args:
        model: gives the autoencoder.
        chunk: its number.
        follows_video: latents were decoded before frame 0, so that no chunk is shorter.
    """
    before = 1 if follows_video else 0
    latents = before + chunk * model.config.partition.chunk_size
    shape = model.autoencoder.video_shape
    return shape(latents, 1, 1)[0] - shape(before, 1, 1)[0]


def chunks_of(model: StreamModel, num_frames: int, follows_video: bool = False) -> int:
    """Return how many chunks hold so many video frames; the inverse of `first_frame_of`."""
    first, second = (first_frame_of(model, chunk, follows_video) for chunk in (1, 2))
    later = second - first  # every chunk but the first, which may be shorter
    return -(-(num_frames + later - first) // later)


def chunk_times(model: StreamModel, follows_video: bool) -> dict[str, float]:
    """Return the seconds of a chunk, and by how many the first one is shorter."""
    first, second = (first_frame_of(model, chunk, follows_video) for chunk in (1, 2))
    frames, fps = second - first, model.config.fps
    return {"chunk_seconds": frames / fps, "missing_seconds": (frames - first) / fps}
