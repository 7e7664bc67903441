"""A video that somebody else made, opened with care: a file, an image, or standard input.

Only regular files and standard input are read, never an address; only demuxers and decoders of a
short list are used, since a video may have been made to break one of the others.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from streamdit_cli.errors import InputError, UsageError

__all__ = ["AUDIO_DECODERS", "STDIN", "ByteSource", "OpenedInput", "allowed_rate", "open_input"]

STDIN = "-"
HIGHEST_FPS = 240
# Choice: 4096x2304, so that a small file cannot ask for much memory.
MOST_PIXELS = 4096 * 2304
# Demuxers by their names in libav; every part of a name such as `mov,mp4,m4a` counts.
DEMUXERS = (
    *("mov", "matroska", "avi", "mpegts", "nut", "yuv4mpegpipe", "rawvideo", "gif"),
    *("png_pipe", "jpeg_pipe", "webp_pipe"),
)
KINDS = "mp4, mov, mkv, webm, avi, mpegts, nut, y4m, gif, png, jpeg, webp"
VIDEO_DECODERS = (
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mjpeg"),
    *("rawvideo", "ffv1", "prores", "png", "webp", "gif"),
)
AUDIO_DECODERS = (
    *(
        "aac",
        "mp2",
        "mp2float",
        "mp3",
        "mp3float",
        "opus",
        "libopus",
        "vorbis",
        "flac",
        "ac3",
        "eac3",
        "alac",
    ),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_u8"),
)
_IMAGES = {b"\x89PNG": "png_pipe", b"\xff\xd8\xff": "jpeg_pipe", b"RIFF": "webp_pipe"}
_MPEGTS = b"G"  # the first byte of each of its packets
# How often a blocked read looks whether it was given up, in seconds.
GLANCE = 0.1
_STEP = 1 << 16
_LONGEST_Y4M_HEADER = 256
_CONVERT = "if ffmpeg can read it: ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p in.mp4"
_REMUX = "pass the file by its name, or first: ffmpeg -i IN.mp4 -c copy -movflags +faststart in.mp4"


class ByteSource:
    """Standard input as libav reads it: whatever has come, and an end when it is given up.

    Args:
        descriptor: open for reading; closed by `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self.head = b""  # the first bytes that were read
        self.num_bytes = 0
        self._kept = b""  # read, but not given out yet
        self._descriptor = descriptor
        self._is_given_up = False
        self._poll = None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.seek: Callable[..., int] = self._seek  # libav asks whether these are there
            self.tell: Callable[[], int] = self._tell
        elif hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)

    @property
    def is_pipe(self) -> bool:
        """Whether what has been read cannot be read again."""
        return not hasattr(self, "seek")

    @property
    def is_mp4(self) -> bool:
        """Whether it begins as mp4 and mov do."""
        return self.head[4:8] == b"ftyp"

    def peek(self) -> bytes:
        """Return the first bytes of a pipe, which are read again; none of a file."""
        if self.is_pipe and not self.num_bytes:
            self._kept = self._receive(_STEP)
        return self._kept

    def read(self, size: int) -> bytes:
        """Return at most this many bytes, as soon as there are some; none at the end."""
        if self._kept:
            data, self._kept = self._kept[:size], self._kept[size:]
            return data
        return self._receive(min(size, _STEP))

    def _receive(self, size: int) -> bytes:
        while self._poll is not None and not self._poll.poll(GLANCE * 1000):
            if self._is_given_up:
                return b""
        data = b"" if self._is_given_up else os.read(self._descriptor, size)
        self.num_bytes += len(data)
        if len(self.head) < _LONGEST_Y4M_HEADER:
            self.head += data[:_LONGEST_Y4M_HEADER]
        return data

    def give_up(self) -> None:
        """End a read that waits, in another thread."""
        self._is_given_up = True

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def _tell(self) -> int:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)


class OpenedInput:
    """A container that holds video which this tool decodes.

    Attributes:
        name: what messages call it.
        container, video: as PyAV has them.
        source: the bytes of standard input; None for a file.
        is_image: whether it is one picture.
    """

    def __init__(
        self, name: str, container: InputContainer, source: ByteSource | None, *, is_image: bool
    ) -> None:
        self.name = name
        self.container = container
        self.source = source
        self.is_image = is_image
        self.video = _video_of(name, container)

    @property
    def is_y4m(self) -> bool:
        """Whether it is yuv4mpegpipe, which cannot say by which matrix its pixels were made."""
        return self.container.format.name == "yuv4mpegpipe"

    def nothing_shown(self, why: str) -> InputError:
        """Return the error of an input that opens but gives no frame.

        Args:
            why: what was wrong with it, in words.
        """
        if self.source is not None and self.source.is_mp4 and self.source.is_pipe:
            return _index_at_the_end()
        return InputError(f"{self.name} shows nothing: {why}", "does it play elsewhere?")

    @property
    def num_bytes(self) -> int:
        """Size of a file, or of what has been read of standard input."""
        return self.container.size if self.source is None else self.source.num_bytes

    def close(self) -> None:
        """Close the container and standard input."""
        self.container.close()
        if self.source is not None:
            self.source.close()


def open_input(
    path: str, *, input_size: tuple[int, int] | None = None, input_fps: float | None = None
) -> OpenedInput:
    """Open a video for reading.

    Args:
        path: a file, or `-`, standard input.
        input_size: width and height of raw rgb24 frames without any header.
        input_fps: how many of those are a second.

    Raises:
        UsageError: one of the two without the other, or out of range.
        InputError: it cannot be read, or holds no video that is decoded here.
    """
    raw = _raw_options(input_size, input_fps)
    if path == STDIN:
        return _open_stdin(raw)
    with _regular_file(path) as file:
        head = file.read(_LONGEST_Y4M_HEADER)
    image = next((name for magic, name in _IMAGES.items() if head.startswith(magic)), None)
    if image == "webp_pipe" and head[8:12] != b"WEBP":  # an AVI begins in the same way
        image = None
    _check_y4m(path, head)
    demuxer = "rawvideo" if raw else image
    container = _open(path, f"file:{path}", demuxer, raw)
    return _checked(path, container, None, is_image=image is not None)


def allowed_rate(rate: Fraction | float | None) -> bool:
    """Whether this is a number of frames a second that a video may have."""
    return rate is not None and 0 < rate <= HIGHEST_FPS


def _raw_options(size: tuple[int, int] | None, fps: float | None) -> dict[str, str]:
    """Return what libav must know of raw frames; empty when they are not raw."""
    if size is None and fps is None:
        return {}
    if size is None or fps is None:
        has, lacks = (
            ("--input-fps", "--input-size")
            if size is None
            else (
                "--input-size",
                "--input-fps",
            )
        )
        raise UsageError(f"{has} is for raw rgb24 frames and needs {lacks} too", f"add {lacks}")
    if not allowed_rate(fps):
        raise UsageError(f"--input-fps {fps:g} is out of range; allowed: above 0, at most 240")
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise UsageError(f"--input-size {size[0]}x{size[1]} is out of range; at most 4096x2304")
    rate = Fraction(fps).limit_denominator(1001)
    return {
        "video_size": f"{size[0]}x{size[1]}",
        "pixel_format": "rgb24",
        "framerate": f"{rate.numerator}/{rate.denominator}",
    }


def _regular_file(path: str) -> Any:
    """Open a file as bytes, after saying of anything else what to type instead."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder, not a video", "name a file in it")
        if not stat.S_ISREG(mode):
            hint = f"read it as standard input: streamdit v2v - < {path}"
            raise InputError(f"{path} is not a regular file", hint)
        if os.stat(path).st_size == 0:
            raise InputError(f"{path} is empty, not a video", "make it again, or check the name")
        return open(path, "rb")
    except FileNotFoundError as error:
        if "://" in path:
            hint = f"ffmpeg -i {path} -f yuv4mpegpipe -pix_fmt yuv420p - | streamdit v2v - ..."
            raise InputError(f"{path} is an address; only files are read", hint) from error
        hint = "check the name; - reads standard input"
        raise InputError(f"{path} is not there", hint) from error
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}", "check the name") from error


def _open_stdin(raw: dict[str, str]) -> OpenedInput:
    """Open standard input, which libav may look at only once unless it is a file."""
    name = "standard input"
    try:
        descriptor = os.dup(0)
    except OSError as error:
        raise InputError("standard input is closed", "name a file instead of -") from error
    source = ByteSource(descriptor)
    if os.isatty(descriptor):
        source.close()
        hint = "ffmpeg -i INPUT -f yuv4mpegpipe -pix_fmt yuv420p - | streamdit v2v - ..."
        raise InputError("standard input is a terminal, not a video", hint)
    try:
        # Look at little before the first frame; mpegts alone needs two of them to know its rate.
        waited = "2" if source.peek().startswith(_MPEGTS) else "0"
        live = {"probesize": "1000000", "analyzeduration": "500000", "fpsprobesize": waited}
        container = _open(name, source, "rawvideo" if raw else None, raw | live)
        _check_y4m(name, source.head)
        return _checked(name, container, source, is_image=container.format.name in _IMAGES.values())
    except BaseException:
        source.close()
        raise


def _open(
    name: str, file: str | ByteSource, demuxer: str | None, options: dict[str, str]
) -> InputContainer:
    """Open a container, with nothing but the demuxers and decoders of the lists."""
    guards = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(DEMUXERS),
        "codec_whitelist": ",".join(VIDEO_DECODERS + AUDIO_DECODERS),
    }
    try:
        return av.open(
            file,
            "r",
            format=demuxer,
            options=options | guards,
            metadata_errors="replace",
        )
    except (OSError, FFmpegError) as error:
        raise _not_read(name, file, error) from error


def _not_read(name: str, file: str | ByteSource, error: Exception) -> InputError:
    """Say why a container cannot be opened, and what to do."""
    if isinstance(file, ByteSource):
        if not file.head:
            hint = "the program before the | wrote nothing; does it work on its own?"
            return InputError("standard input is empty, not a video", hint)
        if file.is_mp4 and file.is_pipe:
            return _index_at_the_end()
        hint = "send y4m, nut, mpegts, mkv or fragmented mp4; raw rgb24 needs --input-size"
        return InputError(f"{name} is not a video that is read here", hint)
    if isinstance(error, PermissionError):
        return InputError(f"{name} cannot be read: {error.strerror}", "check its permissions")
    return InputError(f"{name} is not a video that is read here; allowed: {KINDS}", _CONVERT)


def _index_at_the_end() -> InputError:
    return InputError("an mp4 with its index at the end cannot be read from a pipe", _REMUX)


def _check_y4m(name: str, head: bytes) -> None:
    """Refuse a y4m header without a frame rate, which libav takes for 25."""
    if not head.startswith(b"YUV4MPEG2 "):
        return
    words = head.split(b"\n", 1)[0].split(b" ")
    rate = next((word[1:].decode("ascii", "replace") for word in words if word[:1] == b"F"), "")
    try:
        above, below = (int(number) for number in rate.split(":"))
        is_allowed = below > 0 and allowed_rate(Fraction(above, below))
    except ValueError:
        is_allowed = False
    if not is_allowed:
        message = f"{name} has the frame rate {rate or 'none'!r}; allowed: above 0, at most 240"
        raise InputError(message, "say it where the y4m is made: ffmpeg -i INPUT -r 25 ...")


def _checked(
    name: str, container: InputContainer, source: ByteSource | None, *, is_image: bool
) -> OpenedInput:
    try:
        return OpenedInput(name, container, source, is_image=is_image)
    except BaseException:
        container.close()
        raise


def _video_of(name: str, container: InputContainer) -> VideoStream:
    """Return the first stream of moving pictures, which covers of music are not.

    Raises:
        InputError: there is none, or its codec or size is not accepted.
    """
    cover = 0x0400  # AV_DISPOSITION_ATTACHED_PIC
    streams = [video for video in container.streams.video if not int(video.disposition) & cover]
    if not streams:
        has = "sound but no video" if container.streams.audio else "no video, or is cut off"
        raise InputError(f"{name} holds {has}", "name a file with moving pictures")
    video = streams[0]
    context = video.codec_context
    codec = context.name if context is not None else "unknown"
    if context is None or codec not in VIDEO_DECODERS:
        raise InputError(f"{name}: the codec {codec} is not accepted", _CONVERT)
    if context.width * context.height > MOST_PIXELS:
        message = f"{name} is {context.width}x{context.height}; at most 4096x2304 is accepted"
        raise InputError(message, "make it smaller: ffmpeg -i INPUT -vf scale=1280:-2 in.mp4")
    context.options = {"max_pixels": str(MOST_PIXELS)}
    return video
