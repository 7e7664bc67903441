"""Latent frames that are known while a stream runs: kept on the way from their noise to themselves.

A known frame at tau is tau of its clean latents and the rest of its own birth noise, which is where
a flow that ends in it would be. `VideoEntry` holds the frames of a video to be edited there until
they reach the level of entry, `StartVideo` those before the first frame of a stream to the end.

Paper: video to video by SDEdit (paper.md 7.2).
Choice: the birth noise at every level, so that a frame moves on a straight line and enters at the
same point whatever the micro step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder
from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import SIGMA_MIN, Noise, interpolate
from streamdit_model.model_config import ModelConfig
from streamdit_model.video_input import VideoInput

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel
    from streamdit_model.wan.model_config import WanModelConfig

__all__ = ["NoisePath", "StartVideo", "VideoEntry", "most_start_frames", "start_frames"]


class NoisePath:
    """Mixes clean latents with their birth noise, as the sampler of the model does.

    Args:
        model: says the partition, the stepper and the device.
        noise: of the stream.

    Choice: sigma_min is that of training for our own models; open weights have none.
    """

    def __init__(self, model: StreamModel, noise: Noise) -> None:
        self._tau = model.config.partition.gamma_table().float().to(model.device)
        self._sigma_min = SIGMA_MIN if model.config.stepper == "euler" else 0.0
        self._noise = noise
        self._born: dict[int, Tensor] = {}  # of the last call: drawing is what takes time here

    def at(self, clean: Tensor, levels: tuple[int, ...], first_frame: int) -> Tensor:
        """Return known frames at their levels.

        Args:
            clean: float32 (1, channels, frames, height, width).
            levels: of each frame, 0 .. T.
            first_frame: absolute number of the first one.
        """
        born, self._born = self._born, {}
        for frame in range(first_frame, first_frame + len(levels)):
            self._born[frame] = born[frame] if frame in born else self._noise(frame, 0)
        noise = torch.stack(list(self._born.values()), dim=2)
        return interpolate(clean, noise, self._tau[list(levels)], self._sigma_min)


class VideoEntry:
    """Streaming SDEdit: an arriving frame follows the input until it reaches the level of entry.

    Args:
        video: gives the clean latents.
        path: puts them at a level.
        level: of entry, 0 .. T-1; a frame that has reached it is denoised freely from there.
    """

    def __init__(self, video: VideoInput, path: NoisePath, level: int) -> None:
        self.video, self.level = video, level
        self._path = path

    def rebuild(self, latents: Tensor, levels: tuple[int, ...], first_frame: int) -> range:
        """Put the frames that have not passed the level of entry back on their way, in place.

        A frame at level 0 is its birth noise already, so the input need not have it yet.

        Args:
            latents: (1, channels, frames, height, width), levels never rising along the frames.
            levels: of each frame.
            first_frame: absolute number of the first one.

        Returns:
            The frames put back, in absolute numbers.
        """
        places = [place for place, level in enumerate(levels) if 0 < level <= self.level]
        if not places:
            return range(0)
        place, stop = places[0], places[-1] + 1
        first = first_frame + place
        clean = self.video.latents(first, stop - place)
        latents[:, :, place:stop].copy_(self._path.at(clean, levels[place:stop], first))
        return range(first, first_frame + stop)

    def forget_passed(self, buffer: StreamBuffer) -> None:
        """Drop the latents of frames that stand beyond the level of entry at the next cycle."""
        partition = buffer.partition
        chunks = self.level // partition.micro_steps + 1
        self.video.forget(buffer.next_frame - chunks * partition.chunk_size)


class StartVideo:
    """The latent frames just before a stream, and what the decoder remembers of them.

    They fill the buffer, each at the level of its chunk, and stay on their way while they move to
    the head and leave it clean, not emitted. So the first frame of the stream follows the last one
    of the video: the buffer never saw anything else.

    Args:
        model: encodes the video.
        frames: of `start_frames`.
        path: of the stream's noise; the frames have negative numbers.

    Choice: the stream begins behind the video and not with a second version of its last seconds,
    so that nothing is shown twice when the video is put before it.
    """

    @torch.inference_mode()
    def __init__(self, model: StreamModel, frames: Tensor, path: NoisePath) -> None:
        self._length = model.config.partition.buffer_length
        self._path = path
        video = VideoInput(model, iter([frames]))
        length = self._length + _lead_in(model)
        latents = video.latents(0, length)
        self._latents = latents[:, :, -self._length :]
        dtype = next(model.autoencoder.parameters()).dtype
        self.decoder_state: dict[str, Tensor] | None = None
        for latent in latents.to(dtype).split(1, dim=2):
            _, self.decoder_state = model.autoencoder.decode_step(latent, self.decoder_state)

    def fill(self, buffer: StreamBuffer) -> None:
        """Fill an empty buffer, as it would stand N cycles before frame 0 is emitted."""
        partition = buffer.partition
        levels = partition.levels(0)
        buffer.fill(self._path.at(self._latents, levels, -self._length), -self._length)

    def rebuild(self, latents: Tensor, levels: tuple[int, ...], first_frame: int) -> range:
        """Put the frames of the video back on their way, in place; as in `VideoEntry`."""
        count = min(-first_frame, len(levels))
        if count <= 0:
            return range(0)
        first = first_frame + self._length
        clean = self._latents[:, :, first : first + count]
        latents[:, :, :count].copy_(self._path.at(clean, levels[:count], first_frame))
        return range(first_frame, first_frame + count)


def start_frames(model: StreamModel, frames: Tensor) -> Tensor:
    """Return the frames of a start video that fill the buffer and what the encoder looks back on.

    Args:
        model: says how many.
        frames: uint8 (frames, height, width, 3), at least 1: an image or a video. Of a longer video
            the last frames are taken; before a shorter one its first frame is shown.

    Raises:
        ConfigError: no frame, or frames of another kind.

    Choice: a still before a short video, since its end must be where the stream goes on.
    """
    size = (model.config.height, model.config.width, 3)
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1:] != size:
        raise ConfigError(
            f"a start video of shape {tuple(frames.shape)}, {frames.dtype}; the model takes uint8 "
            f"(frames, {size[0]}, {size[1]}, 3)"
        )
    if not len(frames):
        raise ConfigError("the start video has no frames; at least 1 is needed")
    length = model.config.partition.buffer_length + _lead_in(model)
    wanted = model.autoencoder.video_shape(length, 1, 1)[0]
    still = frames[:1].expand(max(0, wanted - len(frames)), -1, -1, -1)
    return torch.cat([still, frames[-wanted:]]).cpu()


def most_start_frames(config: ModelConfig | WanModelConfig) -> int:
    """Return how many of the last frames of a start video a model looks at, at most."""
    lead_in = config.autoencoder.encoder_lead_in if isinstance(config, ModelConfig) else 0
    return TIME_FACTOR * (config.partition.buffer_length + lead_in)


def _lead_in(model: StreamModel) -> int:
    """Return the latent frames encoded before those that fill the buffer.

    Our own models know frames from the middle of a stream; open weights begin with a first frame.
    """
    autoencoder = model.autoencoder
    return autoencoder.encoder_lead_in if isinstance(autoencoder, Autoencoder) else 0
