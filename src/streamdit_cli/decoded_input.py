"""The frames of an input as they were made, with their times, and the sound between them.

One pass over a container serves both: what is read for the sake of the next frame is decoded or put
into the track of sound. Nothing is read before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from av.audio.stream import AudioStream
from av.error import EOFError as AvEndOfFile
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from streamdit_cli import console
from streamdit_cli.audio_track import AudioTrack
from streamdit_cli.input_container import AUDIO_DECODERS, OpenedInput, allowed_rate

__all__ = ["DecodedInput", "TimedFrame"]

# Without a frame rate and without timestamps a video has this rate, as libav has it.
DEFAULT_RATE = Fraction(25)
# Packets of sound that are kept before the first frame has come.
MOST_EARLY = 1000
# A file may say that it is this much longer than it is, in seconds.
LENGTH_SLACK = 1.0


class TimedFrame(NamedTuple):
    """A decoded frame with seconds since the first one, and seconds that it lasts."""

    time: Fraction
    duration: Fraction
    frame: VideoFrame


class DecodedInput:
    """Decodes an input in one pass, frame by frame; an iterator of `TimedFrame`.

    Frames before the first whole one of a stream that was joined in its middle are left out. After
    a damaged place come the frames that the decoder could make, at their own times.

    Args:
        opened: not read yet; closed by `close`.
        with_audio: keep the sound.

    Attributes:
        rate: mean frames a second that the input names; None if it names none.
        audio: the sound; None if there is none, or none that is accepted.
        sound_shift: seconds that the sound read from now on moves, later if positive.
        damage: what was wrong with the input, in words; empty so far if nothing was.
    """

    def __init__(self, opened: OpenedInput, *, with_audio: bool) -> None:
        self.damage = ""
        self.sound_shift = Fraction(0)
        self.rate = _rate_of(opened)
        self._opened = opened
        self._is_closed = False
        self._origin: Fraction | None = None
        self._early_sound: list[Packet] = []
        self._num_frames = 0
        self._read_until = 0.0  # seconds, of the packets of all streams
        self._read_bytes = 0  # up to the end of the last packet
        self._sound = _sound_of(opened) if with_audio else None
        self.audio = AudioTrack(self._sound) if self._sound is not None else None
        opened.video.thread_type = "AUTO" if opened.source is None else "SLICE"
        self._frames = self._decoded()

    @property
    def duration(self) -> float | None:
        """Seconds of video that the input names; None if it names none."""
        video, whole = self._opened.video, self._opened.container.duration
        if self._opened.source is not None or self._opened.is_image:
            return None
        if video.duration and video.time_base:
            return float(video.duration * video.time_base)
        return whole / 1_000_000 if whole else None

    def __iter__(self) -> DecodedInput:
        return self

    def __next__(self) -> TimedFrame:
        """Return the next frame; waits for a live pipe."""
        return next(self._frames)

    def give_up(self) -> None:
        """End a read that waits, in another thread."""
        self._is_closed = True
        if self._opened.source is not None:
            self._opened.source.give_up()

    def close(self) -> None:
        """Let go of the input, which nobody may be reading."""
        self._opened.close()

    def _decoded(self) -> Iterator[TimedFrame]:
        """Decode the video and pass the sound on, to the end or to what cannot be read."""
        video, is_shown = self._opened.video, False
        rate = self.rate or DEFAULT_RATE
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
                self._num_frames += 1
                yield TimedFrame(time, duration, frame)
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
            self._note_reach(packet)
            yield packet

    def _note_reach(self, packet: Packet) -> None:
        """Remember how far the input has been read."""
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self._read_until = max(self._read_until, end)
        if packet.size:
            self._read_bytes = (packet.pos or 0) + packet.size

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
            self._early_sound = [*self._early_sound[1 - MOST_EARLY :], packet]
        elif self.audio is not None and packet.pts is not None:
            time = packet.pts * packet.time_base - self._origin
            self.audio.put(packet, time + self.sound_shift)

    def _note_damage(self, is_there: bool, what: str) -> None:
        if is_there and not self.damage:
            seconds = float(self._num_frames / (self.rate or DEFAULT_RATE))
            where = f" after {self._num_frames} frames ({seconds:.1f} s)" if seconds else ""
            self.damage = what + where

    def _check_length(self) -> None:
        """Note that a file ended before the length that it names."""
        opened, container = self._opened, self._opened.container
        if self._is_closed:
            return
        if container.format.name in ("yuv4mpegpipe", "rawvideo"):  # the last frame may be a part
            self._note_damage(self._read_bytes < opened.num_bytes, "it is cut off")
        if opened.source is not None or opened.is_image:
            return
        index = opened.video.index_entries
        if "mov" in container.format.name and len(index):
            self._note_damage(index[-1].pos + index[-1].size > opened.num_bytes, "it is cut off")
        elif container.format.name.startswith("matroska") and self.duration:
            is_short = self._read_until < self.duration - LENGTH_SLACK
            self._note_damage(is_short, f"it is cut off, of {self.duration:.1f} s,")


def _rate_of(opened: OpenedInput) -> Fraction | None:
    """Return the mean frame rate that an input names, if it may be one."""
    rates = (opened.video.average_rate, opened.video.guessed_rate, opened.video.base_rate)
    return next((Fraction(rate) for rate in rates if rate and allowed_rate(rate)), None)


def _sound_of(opened: OpenedInput) -> AudioStream | None:
    """Return the first track of sound, unless it cannot be read; that is said."""
    tracks = opened.container.streams.audio
    if not tracks:
        return None
    context = tracks[0].codec_context
    codec = context.name if context is not None else "unknown"
    is_known = context is not None and context.sample_rate and context.layout.nb_channels
    if codec not in AUDIO_DECODERS or not is_known:
        console.warn(f"{opened.name}: its sound is left out, as its codec {codec} is not accepted")
        return None
    return tracks[0]
