"""Video in files and pipes: containers, codecs and colours, by PyAV.

Frames are uint8 RGB tensors `(frames, height, width, 3)`; they become arrays here and nowhere else.
A file holds BT.709 limited-range pixels and says so; y4m holds BT.601, which is what its readers
assume, since it cannot say; nut, rgb24 and ffv1 hold the RGB values exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from streamdit_cli.audio_track import AudioTrack
from streamdit_cli.errors import InputError
from streamdit_cli.part import PartFile
from streamdit_cli.pipe import GaveUp, Pipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "VideoEncoder",
    "VideoInfo",
    "encode_png",
    "md5_of",
    "probe",
    "read_video",
    "rewrite_metadata",
]

_MUXERS = {
    ".mp4": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    "y4m": "yuv4mpegpipe",
    "nut": "nut",
    "rgb24": "rawvideo",
}
# Sound that is missing holds back so many seconds of pictures, in microseconds.
_PATIENCE = "500000"
# Every packet reaches the file or the reader at once; an mp4 is whole up to its last fragment.
_MUXER_OPTIONS = {
    "mp4": {"movflags": "+hybrid_fragmented+frag_keyframe+default_base_moof"},
    "mov": {"movflags": "+hybrid_fragmented+frag_keyframe+default_base_moof"},
    "matroska": {"cluster_time_limit": "1000"},
}
# swscale averages 2x2 pixels, so a chroma sample lies in the middle of its four.
_X264_OPTIONS = {
    "preset": "medium",
    "crf": "18",
    "bf": "0",
    "rc-lookahead": "0",
    "chroma_sample_location": "center",
}
_TITLE_LENGTH = 80


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
    if codec == "ffv1":
        return _Pixels("ffv1", "bgr0")
    return _Pixels("libx264", "yuv420p", Colorspace.ITU709)


class _Sink:
    """What libav writes into: it never sees an error, so it never tries to repair a full disk.

    After the first error everything is dropped: an end of the file that patched its start while its
    middle is missing would make the whole file unreadable.
    """

    def __init__(self, target: PartFile | Pipe) -> None:
        self.error: BaseException | None = None
        self._target = target

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._target.write(data)
            except (OSError, GaveUp) as error:
                self.error = error
        return len(data)


class _FileSink(_Sink):
    """A sink that libav may also seek in."""

    def __init__(self, target: PartFile) -> None:
        super().__init__(target)
        self._file = target

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return 0 if self.error is not None else self._file.seek(offset, whence)

    def tell(self) -> int:
        return 0 if self.error is not None else self._file.tell()


class VideoEncoder:
    """One growing video: frames in, bytes to a file or a pipe.

    Args:
        target: where the bytes go.
        kind: a file suffix (`.mp4`, `.mov`, `.mkv`) or a pipe format (`y4m`, `nut`, `rgb24`).
        codec: `libx264` or `ffv1`, for files.
        width, height: pixels, both even.
        fps: frames a second; a key frame is set each second.
        metadata: what the video says about itself; `prompt` becomes its title.
        audio: sound that goes with it as far as there are pictures, for files; None for none.
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
    ) -> None:
        self._target = target
        self._sink = _FileSink(target) if isinstance(target, PartFile) else _Sink(target)
        self._muxer = _MUXERS[kind]
        self._pixels = _pixels(kind, codec)
        self._num_frames = 0
        self._fps = fps
        self._audio = audio
        options = {"flush_packets": "1"} | _MUXER_OPTIONS.get(self._muxer, {})
        if audio is not None:
            options["max_interleave_delta"] = _PATIENCE
        self._container = av.open(self._sink, "w", format=self._muxer, options=options)
        self._container.metadata.update(_container_metadata(metadata))
        encoder = self._pixels.encoder
        encoder_options = {"libx264": _X264_OPTIONS}.get(encoder, {})
        if encoder in ("libx264", "ffv1"):
            encoder_options = encoder_options | {"g": str(max(1, round(fps)))}
        added = self._container.add_stream(encoder, rate=fps, options=encoder_options)
        self._stream = cast(VideoStream, added)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = self._pixels.name
        context = self._stream.codec_context
        if self._pixels.matrix is not None:
            context.color_range = ColorRange.MPEG
        if self._pixels.matrix is Colorspace.ITU709:
            context.colorspace = context.color_primaries = context.color_trc = 1
        if encoder == "libx264":  # one slice and thread for each quarter of a megapixel
            context.thread_count = min(4, 1 + width * height // 2**18)
        if audio is not None:
            audio.join(self._container)

    def encode(self, frame: Tensor) -> None:
        """Encode one uint8 frame `(height, width, 3)`.

        Raises:
            OSError, GaveUp: what the target met while writing.
        """
        picture = VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        pixels = self._pixels
        if pixels.matrix is not None:
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
            _cut_after_last_fragment(self._target)
        try:
            return probe(self._target.path).seconds
        except InputError:
            return 0.0

    def _mux(self, picture: VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
        self._raise()

    def _raise(self) -> None:
        if self._sink.error is not None:
            raise self._sink.error


def encode_png(picture: Tensor) -> bytes:
    """Return the bytes of a PNG file of a uint8 RGB picture `(height, width, 3)`."""
    frame = VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    context = cast(VideoCodecContext, CodecContext.create("png", "w"))
    context.width, context.height = frame.width, frame.height
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1, 1)
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def md5_of(frames: Tensor) -> str:
    """Return the md5 of uint8 frames `(frames, height, width, 3)`, byte by byte in that order."""
    data = frames.contiguous().numpy().tobytes()
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _container_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Put the record of a video where mp4, mov and mkv all keep it: a title and a comment."""
    if not metadata:
        return {}
    title = metadata.get("prompt", "").encode(errors="replace").decode()
    if len(title) > _TITLE_LENGTH:
        title = title[: _TITLE_LENGTH - 3] + "..."
    return {"title": title, "comment": json.dumps(metadata)}


def _cut_after_last_fragment(file: PartFile) -> None:
    """Cut an mp4 after its last whole `mdat` box, so that players see a clean end."""
    size = file.seek(0, os.SEEK_END)
    place = whole = 0
    while place + 16 <= size:
        file.seek(place)
        length, kind, long_length = struct.unpack(">I4sQ", file.read(16))
        place += long_length if length == 1 else length
        if length == 0 or place > size:
            break
        if kind == b"mdat":
            whole = place
    if 0 < whole < size:
        file.truncate(whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file says about itself.

    `num_frames` counts the whole frames in the file, also where it was cut short; `record` is what
    this tool wrote into it (prompt, seed, model, versions, plan), empty in other files.
    """

    container: str
    codec: str
    pixels: str
    width: int
    height: int
    fps: float
    num_frames: int
    seconds: float
    color_space: int
    color_range: int
    color_primaries: int
    color_transfer: int
    title: str
    record: dict[str, str]


def probe(path: Path | str) -> VideoInfo:
    """Read what a video says about itself and count its frames, without decoding them.

    Raises:
        InputError: the file cannot be read or holds no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        num_frames = sum(1 for _ in _whole_packets(container))
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        tags = {key.lower(): text for key, text in container.metadata.items()}
        return VideoInfo(
            container=container.format.name,
            codec=context.name,
            pixels=context.pix_fmt or "unknown",
            width=context.width,
            height=context.height,
            fps=fps,
            num_frames=num_frames,
            seconds=num_frames / fps if fps > 0 else 0.0,
            color_space=int(context.colorspace),
            color_range=int(context.color_range),
            color_primaries=int(context.color_primaries),
            color_transfer=int(context.color_trc),
            title=tags.get("title", ""),
            record=_record(tags.get("comment", "")),
        )


def read_video(path: Path | str) -> Iterator[Tensor]:
    """Decode a video frame by frame, colours by its tags; ends at the first damaged frame.

    Yields:
        uint8 RGB `(height, width, 3)`.

    Raises:
        InputError: the file cannot be read or holds no video.
    """
    import torch

    with _open(path) as container:
        try:
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))
        except InvalidDataError:
            return


def rewrite_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Write a finished video anew with another record of itself; its frames stay, bit by bit.

    The file at `path`, which this tool made, is the old one or the whole new one.

    Raises:
        InputError, OutputError, OSError: it cannot be read, is being written, or the disk is full.
    """
    part = PartFile(path, overwrite=True, describe=lambda unfinished: "no video")
    try:
        sink, muxer = _FileSink(part), _MUXERS[path.suffix.lower()]
        with _open(path) as source, av.open(sink, "w", format=muxer) as container:
            container.metadata.update(_container_metadata(metadata))
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
        if sink.error is not None:
            raise sink.error
        part.finish()
    except BaseException:
        part.discard()
        raise


def _open(path: Path | str) -> InputContainer:
    """Open a file for reading: files only, never an address or a protocol."""
    try:
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except FFmpegError as error:
        raise InputError(f"{path} is not a video: {error.strerror}") from error
    except UnicodeDecodeError as error:  # also of a file that was cut inside its header
        raise InputError(f"{path} is not a video: its metadata is no UTF-8 text") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} holds no video")
    return container


def _whole_packets(container: InputContainer) -> Iterator[Packet]:
    """The frames of a file still compressed, up to the first damaged one."""
    try:
        for packet in container.demux(video=0):
            if packet.size and packet.is_corrupt:
                return
            if packet.size:
                yield packet
    except InvalidDataError:
        return


def _record(comment: str) -> dict[str, str]:
    """Read back what `_container_metadata` wrote; other comments give an empty record."""
    try:
        record = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {str(key): str(value) for key, value in record.items()}
