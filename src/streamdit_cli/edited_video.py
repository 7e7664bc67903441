"""The input of `v2v`: the video that is changed, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.material import Material

if TYPE_CHECKING:
    from streamdit_cli.audio_track import AudioTrack
    from streamdit_cli.material import Config
    from streamdit_cli.picture_fit import Fit
    from streamdit_cli.video_input import VideoInput
    from streamdit_cli.video_options import Size

__all__ = ["EditedVideo"]


@dataclass(kw_only=True)
class EditedVideo(Material):
    """A video of which every frame becomes a frame of the new one.

    Args:
        path: a file, or `-`, standard input.
        strength: noise level in (0, 1] at which it is left to the model; None is the model's own.
        fit: see `PictureFit`.
        input_size, input_fps: of raw rgb24 frames.
        every_frame: take each frame once and keep the rate, whatever that of the model is.
        with_audio: take the sound too, where there is room for it.
        seconds, wanted_frames: end earlier; at most one of them.

    Attributes:
        damage: what was wrong with the input so far, in words.
    """

    path: str
    strength: float | None = None
    fit: Fit = "crop"
    input_size: Size | None = None
    input_fps: float | None = None
    every_frame: bool = False
    with_audio: bool = True
    seconds: float | None = None
    wanted_frames: int | None = None
    ends_stream: bool = field(default=True, init=False)
    _video: VideoInput | None = field(default=None, init=False)
    _strength: float = field(default=1.0, init=False)
    _fps: float = field(default=0.0, init=False)

    def open(self, config: Config, *, takes_audio: bool) -> Config:
        """Open it; see `Material.open`."""
        from streamdit_cli.video_input import open_video
        from streamdit_model.strength import entry_level, strength_of

        strength = config.strength if self.strength is None else self.strength
        self._strength = strength_of(config.partition, entry_level(config.partition, strength))
        self._video = open_video(
            self.path,
            size=(config.width, config.height),
            fps=None if self.every_frame else config.fps,
            fit=self.fit,
            seconds=self.seconds,
            num_frames=self.wanted_frames,
            input_size=self.input_size,
            input_fps=self.input_fps,
            audio=self.with_audio and takes_audio,
        )
        if self._video.is_image and self.seconds is None and self.wanted_frames is None:
            console.warn(f"{self._video.name} is one picture: one frame; --seconds makes it last")
        console.detail(f"{self._video.name} is read as {self._video.colour}")
        self._fps = float(self._video.fps) if self.every_frame else config.fps
        return replace(config, fps=self._fps)

    @property
    def damage(self) -> str:
        """What was wrong with the input so far, in words; already said as a warning."""
        return "" if self._video is None else self._video.damage

    @property
    def num_frames(self) -> int | None:
        """As far as the input names its length; see `VideoInput.num_frames`."""
        return None if self._video is None else self._video.num_frames

    @property
    def line(self) -> str:
        """`in.mp4 (640x480, 30 FPS) at strength 0.5`."""
        video = self._opened
        width, height = video.source_size
        parts = [f"{width}x{height}"]
        if video.source_fps is not None and not video.is_image:
            parts.append(f"{float(video.source_fps):.4g} FPS")
        if video.rotation:
            parts.append(f"turned by {video.rotation} degrees")
        return f"{video.name} ({', '.join(parts)}) at strength {self._strength:.3g}"

    @property
    def metadata(self) -> dict[str, str]:
        """Its name without folders, the strength that is used, the rate of the new video."""
        words = {"input": self._opened.name if self.path == "-" else Path(self.path).name}
        if self.fit != "crop":
            words["fit"] = self.fit
        return {**words, "strength": f"{self._strength:.4g}", "fps": f"{self._fps:.6g}"}

    @property
    def audio(self) -> AudioTrack | None:
        """Its sound, if it is wanted and there is room for it."""
        return self._opened.audio

    def stream_words(self) -> dict[str, Any]:
        """The frames, which end the stream, and the strength."""
        return {"source": self._opened, "strength": self._strength, "num_frames": None}

    def give_up(self) -> None:
        """Let a read that waits end; what was read is made to its end."""
        if self._video is not None:
            self._video.give_up()

    def close(self) -> None:
        """Let go of the input."""
        if self._video is not None:
            self._video.close()

    @property
    def _opened(self) -> VideoInput:
        assert self._video is not None
        return self._video
