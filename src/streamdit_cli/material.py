"""What a video is made from beside words: another video, as far as making one has to know of it.

`EditedVideo` is changed frame by frame, `FirstVideo` is what a stream goes on from. Both are opened
when the size and the rate of the model are known, before its weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_cli.audio_track import AudioTrack
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import ModelConfig

    Config: TypeAlias = ModelConfig | WanModelConfig

__all__ = ["Material"]


class Material:
    """A video that goes into another one; a subclass says what is done with it.

    Attributes:
        ends_stream: whether the stream ends where this video does, and so has no length of its own.
        kept_frames: frames of it that the new video begins with.
    """

    ends_stream = False
    kept_frames = 0

    def open(self, config: Config, *, takes_audio: bool) -> Config:
        """Open the video for a model, and return the configuration with the rate of the new video.

        Args:
            config: of the model.
            takes_audio: whether there is room for sound in the new video.

        Raises:
            UsageError, ConfigError: an option that this model or this video cannot follow.
            InputError: the video cannot be read.
        """
        raise NotImplementedError

    @property
    def num_frames(self) -> int | None:
        """Frames that will come, if `ends_stream` and it is known; else None."""
        return None

    @property
    def line(self) -> str:
        """What it is and what is done with it, in words for people."""
        raise NotImplementedError

    @property
    def metadata(self) -> dict[str, str]:
        """What the new video says about it."""
        raise NotImplementedError

    @property
    def audio(self) -> AudioTrack | None:
        """Sound for the new video."""
        return None

    def stream_words(self) -> dict[str, Any]:
        """Return the arguments of `Stream` that bring it in."""
        raise NotImplementedError

    def opening(self) -> Iterator[Tensor]:
        """Yield the frames that the new video begins with, uint8 (frames, height, width, 3)."""
        return iter(())

    def give_up(self) -> None:
        """Let a read that waits end, in another thread; takes no lock, so a signal may call it."""

    def close(self) -> None:
        """Let go of the video; also when it was never opened."""
