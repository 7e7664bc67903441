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
from typing import TYPE_CHECKING, NamedTuple

from av.error import EOFError as AvEndOfFile
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from streamdit_cli import console
from streamdit_cli.audio_track import AudioTrack
from streamdit_cli.errors import InputError
from streamdit_cli.frame_clock import FrameClock
from streamdit_cli.input_container import OpenedInput, allowed_rate, open_input
from streamdit_cli.picture_fit import Fit, PictureFit, describe_colour

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VideoInput", "open_video"]

# Seconds that `close` waits for a read in another thread.
CLOSE_SECONDS = 1.0
# Seconds of pictures that are read beyond the last wanted one, for the sound that lies behind it.
SOUND_SECONDS = Fraction(1)
# A file may say that it is this much longer than it is, in seconds.
LENGTH_SLACK = 1.0
# Shapes of pixels that are believed; others are taken for square.
_MOST_PIXEL_ASPECT = 8


def open_video(
    path: str,
    *,
    size: tuple[int, int],
    fps: float | None,
    fit: Fit = "crop",
    seconds: float | None = None,
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
        input_size, input_fps: of raw rgb24 without a header.
        audio: keep the sound.

    Raises:
        UsageError: raw frames that are described only in part.
        InputError: nothing to decode; one line that says why, and what to type instead.
    """
    opened = open_input(path, input_size=input_size, input_fps=input_fps)
    try:
        return VideoInput(opened, size=size, fps=fps, fit=fit, seconds=seconds, audio=audio)
    except BaseException:
        opened.close()
        raise


class _Timed(NamedTuple):
    """A decoded frame with seconds since the first one, and seconds that it lasts."""

    time: Fraction
    duration: Fraction
    frame: VideoFrame


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
        audio: the sound, None if there is none or it was not wanted.
        damage: what was wrong with the input, in words; empty so far if nothing was. It is also
            said as a warning at the end.
    """

    def __init__(
        self,
        opened: OpenedInput,
        *,
        size: tuple[int, int],
        fps: float | None,
        fit: Fit,
        seconds: float | None,
        audio: bool,
    ) -> None:
        self.name = opened.name
        self.is_image = opened.is_image
        self.damage = ""
        self._opened = opened
        self._is_closed = False
        self._reading = threading.Lock()
        self._skipped = Fraction(0)
        self._read_frames = 0
        self._read_until = 0.0  # seconds, of the packets of all streams
        video = opened.video
        opened.video.thread_type = "AUTO" if opened.source is None else "SLICE"
        self.source_fps = _rate_of(opened)
        self.fps = _output_rate(fps, self.source_fps, opened.name)
        self._aspect = _pixel_aspect(video.sample_aspect_ratio)
        sound = opened.container.streams.audio[:1] if audio else ()
        self._sound = sound[0] if sound else None
        self.audio = AudioTrack(self._sound) if self._sound is not None else None
        self._clock: FrameClock[VideoFrame] = FrameClock(self.fps, tick=video.time_base or 0)
        self._origin: Fraction | None = None
        self._early_sound: list[Packet] = []
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            why = self.damage or "it has no frames"
            raise InputError(f"{self.name} shows nothing: {why}", "does it play elsewhere?")
        self.source_size = (first.frame.width, first.frame.height)
        self.rotation = round(first.frame.rotation / 90) % 4 * 90
        self.colour = describe_colour(first.frame, is_y4m=opened.is_y4m)
        self.duration = _duration(opened)
        self._fit = PictureFit(*size, fit, is_y4m=opened.is_y4m)
        self._limit = None if seconds is None else max(1, round(seconds * self.fps))
        self._given = 0
        self._shown = self._shown_frames(first, by_time=fps is not None)
        self._last: tuple[VideoFrame, Tensor] | None = None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound for the output."""
        return self.audio is not None

    @property
    def num_frames(self) -> int | None:
        """How many frames will come out, if the input names its length rightly; None if not."""
        length = None if self.duration is None else max(1, round(self.duration * float(self.fps)))
        if self._limit is None:
            return 1 if self.is_image else length
        return self._limit if self.is_image or length is None else min(self._limit, length)

    def skip(self, frames: int) -> int:
        """Leave out frames, and the sound beside them, before the next one is asked for.

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
            return skipped

    def close(self) -> None:
        """Let go of the input; a read that waits in another thread ends."""
        self._is_closed = True
        if self._opened.source is not None:
            self._opened.source.give_up()
        if self._reading.acquire(timeout=CLOSE_SECONDS):  # never close what is being read
            self._opened.close()

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

    def _shown_frames(self, first: _Timed, *, by_time: bool) -> Iterator[VideoFrame]:
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

    def _by_time(self, first: _Timed) -> Iterator[VideoFrame]:
        yield from self._clock.arrive(*first)
        for timed in self._frames:
            yield from self._clock.arrive(*timed)
        yield from self._clock.finish()
        while self.is_image and self._limit is not None:
            yield first.frame

    def _every(self, first: _Timed) -> Iterator[VideoFrame]:
        yield first.frame
        yield from (timed.frame for timed in self._frames)
        while self.is_image and self._limit is not None:
            yield first.frame

    def _read_sound(self) -> None:
        """Read on to the sound that belongs to the last frames and lies behind them in the file."""
        end = self._given / self.fps
        if self._sound is not None and not self.is_image:
            for timed in self._frames:
                if timed.time + self._clock.shift > end + SOUND_SECONDS:
                    return

    def _decoded(self) -> Iterator[_Timed]:
        """Decode the video and pass the sound on, to the end or to what cannot be read."""
        video, is_shown = self._opened.video, False
        rate = self.source_fps or Fraction(25)
        time = Fraction(-1) / rate
        for packet in self._packets():
            if packet.stream is self._sound:
                self._pass_on(packet)
                continue
            for frame in self._decode(packet):
                # Before the first key frame of a stream that was joined in its middle.
                if frame.is_corrupt and not is_shown:
                    continue
                self._note_damage(frame.is_corrupt, "a damaged place")
                tick = frame.time_base or video.time_base or 1 / rate
                stamp = frame.pts if frame.pts is not None else frame.dts
                if self._origin is None:
                    self._begin_at(Fraction(0) if stamp is None else stamp * tick)
                assert self._origin is not None
                time = time + 1 / rate if stamp is None else stamp * tick - self._origin
                duration = frame.duration * tick if frame.duration else 1 / rate
                is_shown = True
                self._read_frames += 1
                yield _Timed(time, duration, frame)
        self._check_length()

    def _packets(self) -> Iterator[Packet]:
        """What the container holds of the two streams, to its end or to what cannot be read."""
        streams = [stream for stream in (self._opened.video, self._sound) if stream is not None]
        packets = self._opened.container.demux(streams)
        while not self._is_closed:
            try:
                packet = next(packets, None)
            except AvEndOfFile:
                return
            except (OSError, FFmpegError) as error:
                self._note_damage(True, f"it cannot be read further ({error.strerror})")
                packet = None
            if packet is None:
                return
            if packet.pts is not None:
                tick = float(packet.time_base)
                self._read_until = max(
                    self._read_until, (packet.pts + (packet.duration or 0)) * tick
                )
            yield packet

    def _decode(self, packet: Packet) -> list[VideoFrame]:
        """Decode one packet; a damaged one gives no frames."""
        if packet.size and packet.is_corrupt:
            self._note_damage(True, "it is cut off or damaged")
        try:
            return packet.decode()  # type: ignore[return-value]
        except AvEndOfFile:
            return []
        except FFmpegError:
            self._note_damage(True, "a damaged place")
            return []

    def _begin_at(self, origin: Fraction) -> None:
        """Take the time of the first frame for 0, and pass on the sound that came before it."""
        self._origin = origin
        early, self._early_sound = self._early_sound, []
        for packet in early:
            self._pass_on(packet)

    def _pass_on(self, packet: Packet) -> None:
        """Give a packet of sound to the track, at its time in the output."""
        if self._origin is None:
            self._early_sound = [*self._early_sound[-999:], packet]
        elif self.audio is not None and packet.pts is not None:
            time = packet.pts * packet.time_base - self._origin + self._clock.shift
            self.audio.put(packet, time - self._skipped)

    def _note_damage(self, is_there: bool, what: str) -> None:
        if is_there and not self.damage:
            seconds = self._read_frames / (self.source_fps or 25)
            self.damage = f"{what} after {self._read_frames} frames ({float(seconds):.1f} s)"

    def _check_length(self) -> None:
        """Note that a file ended before the length that it names."""
        if self._opened.source is not None or self.is_image or self._is_closed:
            return
        named = self._opened.video.frames
        if "mov" in self._opened.container.format.name:
            self._note_damage(self._read_frames < named, f"it ends early, of {named} frames,")
        elif self._opened.container.format.name.startswith("matroska") and self.duration:
            is_short = self._read_until < self.duration - LENGTH_SLACK
            self._note_damage(is_short, f"it ends early, of {self.duration:.1f} s,")


def _rate_of(opened: OpenedInput) -> Fraction | None:
    """Return the mean frame rate that an input names, if it may be one."""
    rates = (opened.video.average_rate, opened.video.guessed_rate, opened.video.base_rate)
    return next((Fraction(rate) for rate in rates if rate and allowed_rate(rate)), None)


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


def _duration(opened: OpenedInput) -> float | None:
    """Return the seconds of video that an input names."""
    video, whole = opened.video, opened.container.duration
    if opened.source is not None or opened.is_image:
        return None
    if video.duration and video.time_base:
        return float(video.duration * video.time_base)
    return whole / 1_000_000 if whole else None
