"""The sound of an input video on its way into the output: copied, or encoded anew as AAC.

Packets come in from the thread that reads the input and leave in the thread that encodes the video,
as far as the video has been made. No more is held than lies between the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec import CodecContext
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from streamdit_cli import console

__all__ = ["AudioTrack"]

# Codecs that players expect in a container; others are encoded anew.
_COPIED = {
    "mp4": {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus"},
    "mov": {"aac", "ac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le"},
    "matroska": {
        *("aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "vorbis", "flac"),
        *("pcm_s16le", "pcm_s24le", "pcm_f32le"),
    },
}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# Bytes of sound that may wait for the video; a file whose two parts lie further apart loses sound.
MOST_WAITING = 64 << 20


class AudioTrack:
    """One track of sound between the reader of an input and the encoder of an output.

    Its time 0 is that of the first video frame of the output. Sound before that is left out, and
    so is sound after the end of the video, packet by packet (about 0.02 s).

    Args:
        stream: of the input.
    """

    def __init__(self, stream: AudioStream) -> None:
        context = stream.codec_context
        self._stream = stream
        self._codec = context.name
        self._extradata = context.extradata
        self._rate = context.sample_rate
        self._layout = context.layout.name
        self._channels = context.layout.nb_channels
        self._waiting: deque[tuple[Fraction, Packet]] = deque()
        self._waiting_bytes = 0
        self._is_lossy = False
        self._out: AudioStream | None = None
        self._recoder: _Recoder | None = None
        self._last_dts: int | None = None

    def put(self, packet: Packet, time: Fraction) -> None:
        """Take a packet from the reader.

        Args:
            packet: of the stream.
            time: seconds of its start in the output; negative before its video.
        """
        if time < 0 or packet.pts is None:
            return
        if self._waiting_bytes + packet.size > MOST_WAITING:
            if not self._is_lossy:
                console.warn("sound is lost: in the input it lies too far before its pictures")
            self._is_lossy = True
            return
        self._waiting_bytes += packet.size
        self._waiting.append((time, packet))

    def skip(self, seconds: Fraction) -> None:
        """Move time 0 by some seconds, before any sound is returned; what lies before it goes."""
        waiting = [(time - seconds, packet) for time, packet in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        for time, packet in waiting:
            self.put(packet, time)

    def join(self, container: OutputContainer) -> None:
        """Add the track to an output that has not been begun.

        The input must still be open.
        """
        # AAC without a header of its own comes with one in each packet, which files cannot take.
        is_bare = self._codec == "aac" and not self._extradata
        if self._codec in _COPIED[container.format.name] and not is_bare:
            self._out = container.add_stream_from_template(self._stream, opaque=True)
            return
        console.detail(f"the sound is encoded anew: {self._codec} as aac")
        rate = self._rate if self._rate in _AAC_RATES else 48000
        layout = "mono" if self._channels == 1 else "stereo"
        self._out = container.add_stream("aac", rate=rate, layout=layout)
        self._recoder = _Recoder(self._decoder(), self._out.codec_context)

    def packets(self, until: Fraction) -> Iterator[Packet]:
        """Return the sound that begins before a time and was not returned yet, ready to be muxed.

        Args:
            until: seconds of the output.
        """
        assert self._out is not None
        while self._waiting and self._waiting[0][0] < until:
            time, packet = self._waiting.popleft()
            self._waiting_bytes -= packet.size
            if self._recoder is None:
                yield from self._stamped(packet, time)
            else:
                for fresh in self._recoder.feed(packet, time):
                    yield from self._stamped(fresh, _time_of(fresh))

    def rest(self, until: Fraction) -> Iterator[Packet]:
        """Return the same as `packets`, and what the encoder still holds, at the end of a video."""
        yield from self.packets(until)
        for fresh in self._recoder.flush() if self._recoder is not None else ():
            time = _time_of(fresh)
            if time < until:
                yield from self._stamped(fresh, time)

    def _stamped(self, packet: Packet, time: Fraction) -> Iterator[Packet]:
        """Put a packet at its time; leaves out what would go back, and what encoders begin with."""
        stamp = round(time / packet.time_base)
        if time < 0 or (self._last_dts is not None and stamp <= self._last_dts):
            return
        self._last_dts = packet.pts = packet.dts = stamp
        assert self._out is not None
        packet.stream = self._out
        yield packet

    def _decoder(self) -> AudioCodecContext:
        """Return a decoder of its own, which outlives the input."""
        decoder = cast(AudioCodecContext, CodecContext.create(self._codec, "r"))
        decoder.extradata = self._extradata
        decoder.sample_rate = self._rate
        decoder.layout = self._layout
        return decoder


def _time_of(packet: Packet) -> Fraction:
    """Return the seconds at which a packet begins; those of an encoder always say."""
    assert packet.pts is not None
    return packet.pts * packet.time_base


class _Recoder:
    """Decodes packets and encodes them as AAC, with silence where the input has none."""

    def __init__(self, decoder: AudioCodecContext, encoder: AudioCodecContext) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._resampler = AudioResampler(
            format="fltp", layout=encoder.layout.name, rate=encoder.sample_rate
        )

    def feed(self, packet: Packet, time: Fraction) -> Iterator[Packet]:
        """Return what is encoded after a packet that begins at a time of the output, in seconds."""
        packet.pts = packet.dts = round(time / packet.time_base)
        try:
            frames = self._decoder.decode(packet)
        except FFmpegError as error:
            console.detail(f"a damaged piece of sound was left out: {error.strerror}")
            return
        for frame in frames:
            yield from self._encode(self._resampler.resample(frame))

    def flush(self) -> Iterator[Packet]:
        """Return what is left in the encoder."""
        yield from self._encode(self._resampler.resample(None))
        yield from self._encoder.encode(None)

    def _encode(self, frames: list[AudioFrame]) -> Iterator[Packet]:
        for frame in frames:
            yield from self._encoder.encode(frame)
