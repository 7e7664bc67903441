"""Video in files: what one says about itself, its frames, and another record of it, by PyAV.

Frames are uint8 RGB tensors `(frames, height, width, 3)`. Files only: never an address or a pipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from streamdit_cli.errors import InputError
from streamdit_cli.muxer import MUXERS, FileSink, container_metadata, record_of
from streamdit_cli.part import PartFile

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "VideoInfo",
    "md5_of",
    "open_file",
    "probe",
    "read_video",
    "rewrite_metadata",
    "whole_packets",
]


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
    with open_file(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        num_frames = sum(1 for _ in whole_packets(container))
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
            record=record_of(tags.get("comment", "")),
        )


def read_video(path: Path | str) -> Iterator[Tensor]:
    """Decode a video frame by frame, colours by its tags; ends at the first damaged frame.

    Yields:
        uint8 RGB `(height, width, 3)`.

    Raises:
        InputError: the file cannot be read or holds no video.
    """
    import torch

    with open_file(path) as container:
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
        sink, muxer = FileSink(part), MUXERS[path.suffix.lower()]
        with open_file(path) as source, av.open(sink, "w", format=muxer) as container:
            container.metadata.update(container_metadata(metadata))
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


def md5_of(frames: Tensor) -> str:
    """Return the md5 of uint8 frames `(frames, height, width, 3)`, byte by byte in that order."""
    data = frames.contiguous().numpy().tobytes()
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def open_file(path: Path | str) -> InputContainer:
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


def whole_packets(container: InputContainer) -> Iterator[Packet]:
    """The frames of a file still compressed, up to the first damaged one."""
    try:
        for packet in container.demux(video=0):
            if packet.size and packet.is_corrupt:
                return
            if packet.size:
                yield packet
    except InvalidDataError:
        return
