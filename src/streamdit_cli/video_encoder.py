"""Video that is being made, into files and pipes: codecs and colours, by PyAV.

Frames are uint8 RGB tensors `(frames, height, width, 3)`; they become arrays here and nowhere else.
A file holds BT.709 limited-range pixels and says so; y4m holds BT.601, which is what its readers
assume, since it cannot say; nut, rgb24 and ffv1 hold the RGB values exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
from av.bitstream import BitStreamFilterContext
from av.codec import CodecContext, codecs_available
from av.filter import Graph
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from streamdit_cli.audio_track import AudioTrack
from streamdit_cli.errors import InputError, UsageError
from streamdit_cli.muxer import (
    MUXERS,
    FileSink,
    Sink,
    container_metadata,
    cut_after_last_fragment,
)
from streamdit_cli.part import PartFile
from streamdit_cli.pipe import Pipe
from streamdit_cli.video import open_file, probe, whole_packets

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VideoEncoder", "check_encoder", "encode_png"]

# Sound that is missing holds back so many seconds of pictures, in microseconds.
_PATIENCE = "500000"
# Every packet reaches the file or the reader at once; an mp4 is whole up to its last fragment.
_MUXER_OPTIONS = {
    "mp4": {"movflags": "+hybrid_fragmented+frag_keyframe+default_base_moof"},
    "mov": {"movflags": "+hybrid_fragmented+frag_keyframe+default_base_moof"},
    "matroska": {"cluster_time_limit": "1000"},
    "webm": {"cluster_time_limit": "1000"},
    "gif": {"loop": "0"},
    "webp": {"loop": "0"},
}
# swscale averages 2x2 pixels, so a chroma sample lies in the middle of its four.
_X264_OPTIONS = {
    "preset": "medium",
    "crf": "18",
    "bf": "0",
    "rc-lookahead": "0",
    "chroma_sample_location": "center",
}
# No frame is held back, so that a killed run loses as little as with x264.
_VP9_OPTIONS = {
    "deadline": "realtime",
    "cpu-used": "5",
    "row-mt": "1",
    "lag-in-frames": "0",
    "crf": "20",
    "b": "0",
}
_ENCODER_OPTIONS = {
    "libx264": _X264_OPTIONS,
    "libvpx-vp9": _VP9_OPTIONS,
    "libwebp": {"quality": "90", "compression_level": "2"},
}
_WITH_KEY_FRAMES = ("libx264", "ffv1", "libvpx-vp9")


@dataclass(frozen=True, slots=True)
class _Pixels:
    """How pixels are stored, and by which matrix they are made from RGB (None: they are RGB)."""

    encoder: str
    name: str
    matrix: Colorspace | None = None


def _pixels(kind: str, codec: str) -> _Pixels:
    """Choose the pixels of a file suffix (`.mp4`) with its codec, or of a pipe format (`y4m`)."""
    if kind == "y4m":
        return _Pixels("wrapped_avframe", "yuv420p", Colorspace.ITU601)
    if kind in ("nut", "rgb24"):
        return _Pixels("rawvideo", "rgb24")
    exact = {"ffv1": "bgr0", "gif": "pal8", "libwebp": "bgra"}
    if codec in exact:
        return _Pixels(codec, exact[codec])
    return _Pixels(codec, "yuv420p", Colorspace.ITU709)


class VideoEncoder:
    """One growing video: frames in, bytes to a file or a pipe.

    Args:
        target: where the bytes go.
        kind: a file suffix (`.mp4`) or a pipe format (`y4m`, `nut`, `rgb24`).
        codec: an encoder that fits the kind, for files.
        width, height: pixels, both even.
        fps: frames a second; a key frame is set each second.
        metadata: what the video says about itself; `prompt` becomes its title.
        audio: sound that goes with it as far as there are pictures, for files; None for none.
        fresh_every: begin a new encoder, which knows nothing of earlier frames, each time that this
            many frames are in the video; None for never.

    Attributes:
        frames_muxed: frames that have left the encoder.
        frames_safe: frames that are in the file whatever happens: those before the last key frame.
    """

    def __init__(
        self,
        target: PartFile | Pipe,
        kind: str,
        codec: str,
        *,
        width: int,
        height: int,
        fps: Fraction,
        metadata: dict[str, str],
        audio: AudioTrack | None = None,
        fresh_every: int | None = None,
    ) -> None:
        self.frames_muxed = self.frames_safe = 0
        self._fresh_every = fresh_every
        self._size, self._fps = (width, height), fps
        self._target = target
        self._sink = FileSink(target) if isinstance(target, PartFile) else Sink(target)
        self._muxer = MUXERS[kind]
        self._pixels = _pixels(kind, codec)
        self._num_frames = 0
        self._audio = audio
        options = {"flush_packets": "1"} | _MUXER_OPTIONS.get(self._muxer, {})
        if audio is not None:
            options["max_interleave_delta"] = _PATIENCE
        self._container = av.open(self._sink, "w", format=self._muxer, options=options)
        self._container.metadata.update(container_metadata(metadata))
        encoder = self._pixels.encoder
        added = self._container.add_stream(encoder, rate=fps)
        self._stream = cast(VideoStream, added)
        self._context = self._configured(self._stream.codec_context)
        if audio is not None:
            audio.join(self._container)
        self._palette = _PaletteGraph(width, height, fps) if encoder == "gif" else None

    def _configured(self, context: VideoCodecContext) -> VideoCodecContext:
        """Return a codec context with the settings of this video."""
        encoder, (width, height) = self._pixels.encoder, self._size
        context.width, context.height = width, height
        context.pix_fmt = self._pixels.name
        options = dict(_ENCODER_OPTIONS.get(encoder, {}))
        if encoder in _WITH_KEY_FRAMES:
            options["g"] = str(max(1, round(self._fps)))
        context.options = options
        if self._pixels.matrix is not None:
            context.color_range = ColorRange.MPEG
        if self._pixels.matrix is Colorspace.ITU709:
            context.colorspace = context.color_primaries = context.color_trc = 1
        if encoder in ("libx264", "libvpx-vp9"):  # one thread for each quarter of a megapixel
            context.thread_count = min(4, 1 + width * height // 2**18)
        return context

    def take_over(self, path: Path, num_frames: int) -> None:
        """Begin with the first frames of another video of the same settings, without decoding them.

        Args:
            path: the video.
            num_frames: how many; the next one, if there is one, is a key frame.

        Raises:
            InputError: the video has fewer frames, or was encoded in another way.
            OSError, GaveUp: what the target met while writing.
        """
        self._container.start_encoding()
        with open_file(path) as source:
            stream = source.streams.video[0]
            if not _is_same_coding(self._context.extradata, stream.codec_context.extradata):
                raise InputError(f"{path} was made with other settings or another version of PyAV")
            encoded = itertools.islice(whole_packets(source), num_frames)
            for packet in _as_encoded(encoded, stream):
                packet.stream = self._stream
                self._mux_packet(packet)
        if self.frames_muxed < num_frames:
            raise InputError(f"{path} holds {self.frames_muxed} frames; {num_frames} are needed")
        self._num_frames = num_frames

    def encode(self, frame: Tensor) -> None:
        """Encode one uint8 frame `(height, width, 3)`.

        Raises:
            OSError, GaveUp: what the target met while writing.
        """
        every = self._fresh_every
        if every and self._num_frames and self._num_frames % every == 0:
            self._begin_again()
        picture = VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        pixels = self._pixels
        if self._palette is not None:
            picture = self._palette.convert(picture)
        elif pixels.matrix is not None:
            picture = picture.reformat(
                format=pixels.name, dst_colorspace=pixels.matrix, dst_color_range=ColorRange.MPEG
            )
        elif pixels.name != "rgb24":
            picture = picture.reformat(format=pixels.name)
        picture.pts = self._num_frames
        self._num_frames += 1
        if self._audio is not None:  # before the picture, which else would wait for it
            self._container.mux(list(self._audio.packets(self._num_frames / self._fps)))
        self._mux(picture)

    def finish(self, *, flush: bool) -> None:
        """End the video, with the frames the encoder still holds if `flush`.

        Raises:
            OSError, GaveUp: what the target met while writing.
        """
        if flush and self._num_frames:
            self._mux(None)
            if self._audio is not None:
                self._container.mux(list(self._audio.rest(self._num_frames / self._fps)))
        self._container.close()
        self._raise()

    def salvage(self) -> float:
        """Keep what is whole of a video that could not be ended; returns its seconds."""
        if not isinstance(self._target, PartFile):
            return 0.0
        self._container.close()  # writes nothing more when the disk is full
        if self._sink.error is not None and self._muxer in ("mp4", "mov"):
            cut_after_last_fragment(self._target)
        try:
            return probe(self._target.path).seconds
        except InputError:
            return 0.0

    def _begin_again(self) -> None:
        """Empty the encoder and go on with a new one, so that what follows depends on nothing."""
        self._mux(None)
        fresh = cast(VideoCodecContext, CodecContext.create(self._pixels.encoder, "w"))
        fresh.framerate, fresh.time_base = self._fps, 1 / self._fps
        fresh.bit_rate = 0
        fresh.flags = self._context.flags
        self._context = self._configured(fresh)

    def _mux(self, picture: VideoFrame | None) -> None:
        for packet in self._context.encode(picture):
            packet.stream = self._stream
            self._mux_packet(packet)

    def _mux_packet(self, packet: Packet) -> None:
        is_key = packet.is_keyframe
        self._container.mux(packet)
        self._raise()
        if is_key:
            self.frames_safe = self.frames_muxed
        self.frames_muxed += 1

    def _raise(self) -> None:
        if self._sink.error is not None:
            raise self._sink.error


class _PaletteGraph:
    """Turns frames into 256 colours, each with the palette that suits it best.

    Choice: a palette for each frame, since one for the whole video needs all of its frames first.
    """

    def __init__(self, width: int, height: int, fps: Fraction) -> None:
        self._time_base = 1 / fps
        self._graph = graph = Graph()
        source = graph.add_buffer(
            width=width, height=height, format=VideoFormat("rgb24"), time_base=self._time_base
        )
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
        sink = graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        self._source, self._sink, self._count = source, sink, 0

    def convert(self, picture: VideoFrame) -> VideoFrame:
        """Return an RGB frame as a pal8 frame."""
        picture.pts, picture.time_base = self._count, self._time_base
        self._count += 1
        self._source.push(picture)
        return cast(VideoFrame, self._sink.pull())


def check_encoder(codec: str) -> None:
    """Refuse an encoder that this build of PyAV lacks.

    Raises:
        UsageError: it lacks it.
    """
    if codec not in codecs_available:
        raise UsageError(f"this build of PyAV has no encoder {codec}", "another name: -o out.mp4")


def encode_png(picture: Tensor) -> bytes:
    """Return the bytes of a PNG file of a uint8 RGB picture `(height, width, 3)`."""
    frame = VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    context = cast(VideoCodecContext, CodecContext.create("png", "w"))
    context.width, context.height = frame.width, frame.height
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1, 1)
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _as_encoded(packets: Iterable[Packet], stream: VideoStream) -> Iterator[Packet]:
    """The packets of a file as an encoder gives them: H.264 with start codes, not lengths."""
    if stream.codec_context.name != "h264":
        yield from packets
        return
    convert = BitStreamFilterContext("h264_mp4toannexb", stream)
    for packet in packets:
        yield from convert.filter(packet)


def _is_same_coding(ours: bytes | None, theirs: bytes | None) -> bool:
    """Whether packets with the parameters of one encoder can follow those of another.

    The parameter sets of H.264 lie between start codes in an encoder, and otherwise in a file.
    """
    head = b"\0\0\0\1"
    if ours is None or theirs is None or not ours.startswith(head):
        return ours is None or ours == theirs
    units = [unit for unit in ours.split(head) if unit and unit[0] & 0x1F in (7, 8)]
    return all(unit in theirs for unit in units)
