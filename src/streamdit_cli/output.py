"""Where a video goes: a file, a FIFO, a device or standard output, taken before a model is loaded.

The words of an output (its container, codec or pipe format) are checked here, and the place is
reserved, so that no other process can take it and nothing else reaches a pipe.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli.errors import InputError, UsageError
from streamdit_cli.part import PartFile, check_free
from streamdit_cli.pictures import PictureEncoder, PictureFolder, check_pictures, is_pictures
from streamdit_cli.pipe import Pipe, is_direct, open_direct, open_stdout
from streamdit_cli.video import probe
from streamdit_cli.video_encoder import VideoEncoder, check_encoder
from streamdit_cli.writer import Writer

if TYPE_CHECKING:
    from streamdit_cli.audio_track import AudioTrack

__all__ = [
    "CODECS",
    "CONTAINERS",
    "GROWING",
    "PIPE_FORMATS",
    "Output",
    "check_container",
    "check_output",
    "free_name",
    "is_reserved",
    "open_writer",
    "reserve",
    "slug_of",
]

PIPE_FORMATS = ("y4m", "nut", "rgb24")
CODECS = ("libx264", "ffv1")
# Suffix of a file -> the codecs it can hold here, the default first.
CONTAINERS = {
    ".mp4": ("libx264",),
    ".mov": ("libx264",),
    ".mkv": ("libx264", "ffv1"),
    ".webm": ("libvpx-vp9",),
    ".gif": ("gif",),
    ".webp": ("libwebp",),
}
# Containers that can be gone on with after a kill: what is before their last key frame is there.
GROWING = (".mp4", ".mov", ".mkv", ".webm")
_LONGEST_SLUG = 60
_RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")  # device names on Windows


@dataclass
class Output:
    """A place for video that is taken before any model is loaded: `reserve` makes it."""

    name: str
    kind: str
    codec: str
    target: PartFile | Pipe | PictureFolder

    @property
    def replaced(self) -> str:
        """What an unfinished file of an earlier run held that this one replaces; else empty."""
        return "" if isinstance(self.target, Pipe) else self.target.replaced

    @property
    def takes_audio(self) -> bool:
        """Whether there is room for sound beside the pictures."""
        return self.kind in CONTAINERS

    def start(
        self,
        *,
        width: int,
        height: int,
        fps: float,
        metadata: dict[str, str],
        audio: AudioTrack | None = None,
        fresh_every: int | None = None,
        taken: tuple[Path, int] | None = None,
    ) -> Writer:
        """Begin the video.

        Args:
            width, height: pixels, both even.
            fps: frames a second.
            metadata: what the file says about itself; `prompt` becomes its title.
            audio: sound that goes with it; only where `takes_audio`.
            fresh_every: frames after which a file begins a new encoder; see `VideoEncoder`.
            taken: another file, and how many of its first frames this one begins with.
        """
        if width % 2 or height % 2:
            raise UsageError(f"{width}x{height} is not even in both directions, as video must be")
        rate = Fraction(fps).limit_denominator(1001)
        if isinstance(self.target, PictureFolder):
            return Writer(PictureEncoder(self.target, rate, metadata), self.target, rate)
        encoder = VideoEncoder(
            self.target,
            self.kind,
            self.codec,
            width=width,
            height=height,
            fps=rate,
            metadata=metadata,
            audio=audio,
            fresh_every=fresh_every,
        )
        if taken is not None:
            encoder.take_over(*taken)
        return Writer(encoder, self.target, rate, frames_taken=taken[1] if taken else 0)

    def release(self) -> None:
        """Let go of the place when no video was begun."""
        if isinstance(self.target, Pipe):
            self.target.close()
        else:
            self.target.discard()


def _kind_and_codec(output: str, codec: str | None, pipe_format: str) -> tuple[str, str]:
    """Check the words of an output: its container and codec, or its pipe format.

    Raises:
        UsageError: a container, codec or pipe format that is not known, or does not fit.
    """
    if pipe_format not in PIPE_FORMATS:
        allowed = ", ".join(PIPE_FORMATS)
        raise UsageError(f"pipe format {pipe_format!r} is not known; allowed: {allowed}")
    if codec is not None and codec not in CODECS:
        raise UsageError(f"codec {codec!r} is not known; allowed: {', '.join(CODECS)}")
    if output == "-" or is_direct(Path(output)):
        if codec is not None:
            raise UsageError(f"codec {codec} needs a file; a pipe takes raw frames")
        return pipe_format, "raw"
    if is_pictures(output):
        if codec is not None:
            raise UsageError(f"codec {codec} does not go into PNG files")
        return "png", "png"
    suffix = Path(output).suffix.lower()
    if suffix not in CONTAINERS:
        allowed = f"{', '.join(CONTAINERS)}, -%05d.png, or a folder with / at its end"
        hint = "other containers: streamdit generate ... -o - | ffmpeg -i - OUTPUT"
        raise UsageError(f"{output!r} has no known container; allowed: {allowed}", hint=hint)
    return check_container(suffix, codec)


def check_container(suffix: str, codec: str | None) -> tuple[str, str]:
    """Return a known container and the codec in it.

    Raises:
        UsageError: the codec does not go into it.
    """
    suffix = suffix.lower()
    codecs = CONTAINERS[suffix]
    if codec is not None and codec not in codecs:
        hint = "ffv1 needs .mkv"
        raise UsageError(f"codec {codec} does not go into {suffix}", hint=hint)
    check_encoder(codec or codecs[0])
    return suffix, codec or codecs[0]


def check_output(
    output: str, *, codec: str | None = None, pipe_format: str = "y4m", overwrite: bool = False
) -> None:
    """Check everything about an output that can be known without creating it.

    Raises:
        UsageError: an unknown container, codec or pipe format.
        OutputError: the file exists or is unfinished, or its folder is missing.
    """
    kind, _ = _kind_and_codec(output, codec, pipe_format)
    if kind == "png":
        check_pictures(output, overwrite=overwrite)
    elif kind in CONTAINERS:
        check_free(Path(output), overwrite=overwrite, describe=_describe_leftover)


def reserve(
    output: str,
    *,
    codec: str | None = None,
    pipe_format: str = "y4m",
    overwrite: bool = False,
    part: Path | None = None,
) -> Output:
    """Take an output, so that no other process can and nothing else reaches a pipe.

    Args:
        output: a file that ends as one of `CONTAINERS`; pictures, see `is_pictures`; a FIFO or
            device; or `-`, standard output.
        codec: `libx264` or `ffv1` (lossless, .mkv); None takes what fits the file.
        pipe_format: `y4m`, `nut` or `rgb24`, for everything that is not a file.
        overwrite: replace an existing file when the new one is complete.
        part: the name of a file while it grows, where it is not the usual one.

    Raises:
        UsageError: an unknown container, codec or pipe format, or a terminal.
        OutputError: the file exists, is unfinished, is written by another process, or cannot be.
        BrokenPipeError: standard output is closed.
    """
    kind, codec_name = _kind_and_codec(output, codec, pipe_format)
    if output == "-":
        return Output("standard output", kind, codec_name, open_stdout())
    path = Path(output)
    if is_direct(path):
        return Output(output, kind, codec_name, open_direct(path))
    if kind == "png":
        return Output(output, kind, codec_name, PictureFolder(output, overwrite=overwrite))
    file = PartFile(path, overwrite=overwrite, describe=_describe_leftover, path=part)
    return Output(output, kind, codec_name, file)


def open_writer(
    output: str,
    *,
    width: int,
    height: int,
    fps: float,
    codec: str | None = None,
    pipe_format: str = "y4m",
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
) -> Writer:
    """Take an output and begin a video in it; see `reserve` and `Output.start`."""
    place = reserve(output, codec=codec, pipe_format=pipe_format, overwrite=overwrite)
    try:
        return place.start(width=width, height=height, fps=fps, metadata=metadata or {})
    except BaseException:
        place.release()
        raise


def free_name(prompt: str) -> str:
    """Return a name for the video of a prompt that nothing in this folder has yet.

    Only lower-case letters, digits and hyphens of the prompt are kept, so that it is one plain name
    on every system; it does not depend on the model.
    """
    slug = slug_of(prompt)
    names = (slug if number == 1 else f"{slug}-{number}" for number in itertools.count(1))
    return next(
        f"{name}.mp4"
        for name in names
        if not any(os.path.lexists(f"{name}{end}") for end in (".mp4", ".part.mp4"))
    )


def slug_of(text: str) -> str:
    """Return the lower-case letters, digits and hyphens of a text, at most 60; never empty."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:_LONGEST_SLUG].strip("-") or "video"
    return f"video-{slug}" if is_reserved(slug) else slug


def is_reserved(name: str) -> bool:
    """Whether a name without its suffix is a device on Windows."""
    return _RESERVED.fullmatch(name.lower()) is not None


def _describe_leftover(path: Path) -> str:
    """Say how much video an unfinished file holds."""
    try:
        return f"{probe(path).seconds:.1f} s of video"
    except InputError:
        return "no video yet"
