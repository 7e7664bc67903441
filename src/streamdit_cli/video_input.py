"""The input of video to video: frames of the model's size and rate, as the model asks for them.

A frame is decoded when it is asked for, so memory does not depend on the length and a live pipe is
read as fast as the model works. Sound is read in the same pass and waits in an `AudioTrack` for the
encoder of the output.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING

from av.video.frame import VideoFrame

from streamdit_cli import console
from streamdit_cli.audio_track import AudioTrack
from streamdit_cli.decoded_input import DecodedInput, TimedFrame
from streamdit_cli.errors import InputError
from streamdit_cli.frame_clock import FrameClock
from streamdit_cli.input_container import OpenedInput, open_input
from streamdit_cli.picture_fit import Fit, PictureFit, describe_colour

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VideoInput", "open_video"]

# Seconds that `close` waits for a read in another thread.
CLOSE_SECONDS = 1.0
# Seconds of pictures that are read beyond the last wanted one, for the sound that lies behind it.
SOUND_SECONDS = Fraction(1)
# Shapes of pixels that are believed; others are taken for square.
_MOST_PIXEL_ASPECT = 8


def open_video(
    path: str,
    *,
    size: tuple[int, int],
    fps: float | None,
    fit: Fit = "crop",
    seconds: float | None = None,
    num_frames: int | None = None,
    input_size: tuple[int, int] | None = None,
    input_fps: float | None = None,
    audio: bool = True,
) -> VideoInput:
    """Open a video and decode its first frame.

    Args:
        path: a video file, an image, or `-`, standard input.
        size: width and height of the frames that come out, in pixels.
        fps: of the frames that come out: those of the input are taken by their timestamps, see
            `FrameClock`. None is `--fps source`: every frame of the input once, whatever its time,
            at the mean rate that the input names.
        fit: what is done where the shapes differ, see `PictureFit`.
        seconds: end after this length of output; an image lasts so long. None is to the end.
        num_frames: the same in frames of output.
        input_size, input_fps: of raw rgb24 without a header.
        audio: keep the sound.

    Raises:
        UsageError: raw frames that are described only in part.
        InputError: nothing to decode; one line that says why, and what to type instead.
    """
    opened = open_input(path, input_size=input_size, input_fps=input_fps)
    try:
        length = {"seconds": seconds, "num_frames": num_frames}
        return VideoInput(opened, size=size, fps=fps, fit=fit, **length, audio=audio)
    except BaseException:
        opened.close()
        raise


class VideoInput:
    """Frames of a video at one size and one rate; an iterator of uint8 `(1, height, width, 3)`.

    Sound and pictures of the input keep their distance: time 0 of both is the first frame. Frames
    after a damaged place show what the decoder made of it, at their own times. `open_video` makes
    one.

    Attributes:
        name: of the input, for messages.
        fps: frames a second that come out.
        source_size: width and height as the input stores them, before rotation and pixel shape.
        source_fps: mean frames a second that the input names; None if it names none.
        rotation: degrees counter-clockwise by which the frames are turned.
        colour: how the pixels are read, in words.
        duration: seconds of the input if it names them, else None; no promise.
        is_image: whether the input is one picture.
    """

    def __init__(
        self,
        opened: OpenedInput,
        *,
        size: tuple[int, int],
        fps: float | None,
        fit: Fit,
        seconds: float | None,
        num_frames: int | None,
        audio: bool,
    ) -> None:
        self.name = opened.name
        self.is_image = opened.is_image
        self._decoded = DecodedInput(opened, with_audio=audio)
        self.source_fps = self._decoded.rate
        self.fps = _output_rate(fps, self.source_fps, opened.name)
        self.duration = self._decoded.duration
        self._is_closed = False
        self._reading = threading.Lock()
        first = next(self._decoded, None)
        if first is None:
            raise opened.nothing_shown(self.damage or "it has no frames")
        self.source_size = (first.frame.width, first.frame.height)
        self.rotation = round(first.frame.rotation / 90) % 4 * 90
        self.colour = describe_colour(first.frame, is_y4m=opened.is_y4m)
        self._aspect = _pixel_aspect(opened.video.sample_aspect_ratio)
        self._fit = PictureFit(*size, fit, is_y4m=opened.is_y4m)
        self._clock: FrameClock[VideoFrame] = FrameClock(self.fps)
        by_time = None if seconds is None else max(1, round(seconds * self.fps))
        self._limit = by_time if num_frames is None else num_frames
        self._given = 0
        self._skipped = Fraction(0)
        self._shown = self._shown_frames(first, by_time=fps is not None)
        self._last: tuple[VideoFrame, Tensor] | None = None

    @property
    def audio(self) -> AudioTrack | None:
        """The sound; None if there is none or it was not wanted."""
        return self._decoded.audio

    @property
    def damage(self) -> str:
        """What was wrong with the input so far, in words; also said as a warning at the end."""
        return self._decoded.damage

    @property
    def has_audio(self) -> bool:
        """Whether there is sound for the output."""
        return self._decoded.audio is not None

    @property
    def num_frames(self) -> int | None:
        """How many frames will come out, if the input names its length rightly; None if not."""
        length = None if self.duration is None else max(1, round(self.duration * float(self.fps)))
        if self._limit is None:
            return 1 if self.is_image else length
        return self._limit if self.is_image or length is None else min(self._limit, length)

    def skip(self, frames: int) -> int:
        """Leave out frames, and the sound beside them, before the output is begun.

        Time 0 of the output is the next frame; the wanted length counts what is left out here.

        Args:
            frames: how many.

        Returns:
            How many there were; fewer at the end of the input.
        """
        with self._reading:
            skipped = 0
            while skipped < frames and next(self._shown, None) is not None:
                skipped += 1
            self._skipped += skipped / self.fps
            self._shift_sound()
            if self.audio is not None:
                self.audio.skip(skipped / self.fps)
            return skipped

    def give_up(self) -> None:
        """End at the next frame, also where a read waits; takes no lock."""
        self._is_closed = True
        self._decoded.give_up()

    def close(self) -> None:
        """Let go of the input; a read that waits in another thread ends."""
        self.give_up()
        if self._reading.acquire(timeout=CLOSE_SECONDS):  # never close what is being read
            self._decoded.close()

    def __iter__(self) -> VideoInput:
        return self

    def __next__(self) -> Tensor:
        """Return the next frame; waits for a live pipe.

        Raises:
            InputError: a frame whose shape cannot be fitted.
            StopIteration: the input or the wanted length is at its end, or it was closed.
        """
        import torch

        with self._reading:
            frame = None if self._is_closed else next(self._shown, None)
            if frame is None:
                raise StopIteration
            if self._last is None or self._last[0] is not frame:
                picture = self._fit.apply(frame, pixel_aspect=self._aspect)
                self._last = frame, torch.from_numpy(picture)[None]
            return self._last[1]

    def __enter__(self) -> VideoInput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _shown_frames(self, first: TimedFrame, *, by_time: bool) -> Iterator[VideoFrame]:
        """The frames that come out, not yet fitted; at their end, what was wrong is said."""
        frames = self._by_time(first) if by_time else self._every(first)
        for frame in frames:
            yield frame
            self._given += 1
            if self._given == self._limit:
                self._read_sound()
                return
        if self.damage and not self._is_closed:
            console.warn(f"{self.name}: {self.damage}")

    def _by_time(self, first: TimedFrame) -> Iterator[VideoFrame]:
        yield from self._clock.arrive(*first)
        for timed in self._decoded:
            yield from self._clock.arrive(*timed)
            self._shift_sound()
        yield from self._clock.finish()
        while self.is_image and self._limit is not None:
            yield first.frame

    def _every(self, first: TimedFrame) -> Iterator[VideoFrame]:
        yield first.frame
        for timed in self._decoded:
            yield timed.frame
        while self.is_image and self._limit is not None:
            yield first.frame

    def _shift_sound(self) -> None:
        self._decoded.sound_shift = self._clock.shift - self._skipped

    def _read_sound(self) -> None:
        """Read on to the sound that belongs to the last frames and lies behind them in the file."""
        end = self._given / self.fps + SOUND_SECONDS
        if self.has_audio and not self.is_image:
            for timed in self._decoded:
                if timed.time + self._clock.shift > end:
                    return


def _output_rate(fps: float | None, source_fps: Fraction | None, name: str) -> Fraction:
    """Return the rate of the output.

    Raises:
        InputError: it should be that of the input, which names none.
    """
    if fps is not None:
        return Fraction(fps).limit_denominator(1001)
    if source_fps is None:
        raise InputError(f"{name} names no frame rate", "leave out --fps source")
    return source_fps.limit_denominator(1001)


def _pixel_aspect(aspect: Fraction | None) -> Fraction:
    """Return the shape of a pixel, width over height, 1 if it is not named or not believed."""
    if aspect and 1 / _MOST_PIXEL_ASPECT <= aspect <= _MOST_PIXEL_ASPECT:
        return Fraction(aspect)
    return Fraction(1)
