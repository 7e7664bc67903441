"""`--start FILE`: the image or the video that a stream goes on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamdit_cli.errors import UsageError
from streamdit_cli.material import Material

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_cli.material import Config
    from streamdit_cli.video_input import VideoInput

__all__ = ["FirstVideo", "read_start"]


@dataclass(kw_only=True)
class FirstVideo(Material):
    """A video that a stream goes on from.

    It is read twice when it is kept, so that a long one needs no more memory than a short one.

    Args:
        path: of a file, or `-`, standard input, which cannot be kept.
        keep: begin the new video with its frames, scaled and at the model's rate, without sound.
    """

    path: str
    keep: bool = False
    kept_frames: int = field(default=0, init=False)
    _last: Tensor | None = field(default=None, init=False)
    _config: Config | None = field(default=None, init=False)
    _line: str = field(default="", init=False)

    def open(self, config: Config, *, takes_audio: bool) -> Config:
        """Read it to its end and keep its last frames; see `Material.open`."""
        import torch

        from streamdit_model.known_frames import most_start_frames

        self._config = config
        last: deque[Tensor] = deque(maxlen=most_start_frames(config))
        count = 0
        with self._read(config) as video:
            for frame in video:
                last.append(frame)
                count += 1
            width, height = video.source_size
            length = "an image" if video.is_image else f"{count / config.fps:.1f} s"
            self._line = f"{video.name} ({width}x{height}, {length})"
        self._last = torch.cat(list(last))
        self.kept_frames = count if self.keep else 0
        return config

    @property
    def line(self) -> str:
        """`cat.mp4 (640x480, 3.0 s)`, and whether it is kept."""
        return f"{self._line}{', kept' if self.keep else ''}"

    @property
    def metadata(self) -> dict[str, str]:
        """Its name without folders."""
        return {"start_video": "standard input" if self.path == "-" else Path(self.path).name}

    def stream_words(self) -> dict[str, Any]:
        """Its last frames, which are given away."""
        last, self._last = self._last, None
        return {"first_video": last, "start": None}

    def opening(self) -> Iterator[Tensor]:
        """Yield its frames, read again, if they are kept."""
        if self.keep and self._config is not None:
            with self._read(self._config) as video:
                for number, frame in enumerate(video):
                    if number == self.kept_frames:  # it grew meanwhile
                        return
                    yield frame

    def _read(self, config: Config) -> VideoInput:
        from streamdit_cli.video_input import open_video

        size = (config.width, config.height)
        return open_video(self.path, size=size, fps=config.fps, audio=False)


def read_start(
    words: str | None, *, keep: bool, goes_on: bool
) -> tuple[Literal["ramp", "clip"] | None, FirstVideo | None]:
    """Tell the ways to begin, `ramp` and `clip`, from the name of a file.

    Args:
        words: of `--start`.
        keep: of `--keep-start`.
        goes_on: whether a stream is resumed, which has begun.

    Raises:
        UsageError: nothing to keep, or what cannot be.
    """
    plain: Literal["ramp", "clip"] | None = None
    if words == "ramp" or words == "clip":
        plain = words
    if words is None or plain is not None:
        if keep:
            raise UsageError("--keep-start needs a file to keep", "--start FILE --keep-start")
        return plain, None
    if goes_on:
        raise UsageError(f"--start {words} has no effect on a stream that goes on")
    if keep and words == "-":
        hint = "name a file; standard input can be read once"
        raise UsageError("--keep-start cannot keep standard input", hint)
    return None, FirstVideo(path=words, keep=keep)
