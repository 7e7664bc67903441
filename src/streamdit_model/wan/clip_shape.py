"""Sizes of a clip in pixels and in latents, for every autoencoder of the Wan family.

The first latent frame is one video frame, every later one is four.
Reference: open-weights.md 4.5 and 4.6.
"""

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.errors import ConfigError

__all__ = ["latent_shape", "video_shape"]


def latent_shape(
    video_frames: int, height: int, width: int, space_factor: int
) -> tuple[int, int, int]:
    """Return (latent frames, height, width) of a video.

    Args:
        video_frames: 1 + 4(n - 1) for n latent frames.
        height, width: in pixels.
        space_factor: pixels a latent pixel, along each axis.

    Raises:
        ConfigError: a length is not one that latents can have.
    """
    if video_frames < 1 or (video_frames - 1) % TIME_FACTOR:
        raise ConfigError(
            f"frames {video_frames} is not 1 more than a multiple of {TIME_FACTOR}",
            hint=f"use {1 + TIME_FACTOR * (max(video_frames, 1) // TIME_FACTOR)} frames",
        )
    for name, size in {"height": height, "width": width}.items():
        if size < space_factor or size % space_factor:
            raise ConfigError(
                f"{name} {size} is not a multiple of {space_factor}",
                hint=f"use {max(size // space_factor, 1) * space_factor}",
            )
    frames = 1 + (video_frames - 1) // TIME_FACTOR
    return frames, height // space_factor, width // space_factor


def video_shape(
    latent_frames: int, height: int, width: int, space_factor: int
) -> tuple[int, int, int]:
    """Return (video frames, height, width) of latents; the inverse of `latent_shape`.

    No latent frames are no video frames, so that the frames of latents m to n of a stream are the
    difference of two calls.
    """
    frames = 1 + TIME_FACTOR * (latent_frames - 1) if latent_frames else 0
    return frames, height * space_factor, width * space_factor
