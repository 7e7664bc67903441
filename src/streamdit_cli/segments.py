"""A stream in several files: each complete, each begun where the last one ended, to the frame.

The files begin at time 0 with a key frame and say which frames of the stream they hold, so that
they play alone and, one after another, are the stream. Each is a file in the making like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli.errors import OutputError, UsageError
from streamdit_cli.pictures import is_pictures, numbered

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_cli.output import Output
    from streamdit_cli.writer import Writer

__all__ = ["SegmentWriter", "Segments", "check_segments", "unnumbered"]


def check_segments(pattern: str, *, overwrite: bool) -> Path:
    """Refuse a pattern whose files are there, in whole or in part; returns the first name.

    Raises:
        UsageError: the pattern has no place for a number.
        OutputError: a file of it exists.
    """
    if pattern == "-" or is_pictures(pattern):
        raise UsageError("--segment needs video files", "-o part-%04d.mp4")
    first = numbered(pattern, 0)
    if overwrite or not first.parent.is_dir():
        return first
    head, tail = re.split(r"%0?\d?d", Path(pattern).name)
    suffix = Path(pattern).suffix
    tail = tail.removesuffix(suffix)
    name = re.compile(rf"{re.escape(head)}\d+{re.escape(tail)}(\.part)?{re.escape(suffix)}")
    for path in sorted(first.parent.iterdir()):
        if name.fullmatch(path.name):
            raise OutputError(f"{path} exists", "another name with -o, or replace it with -y")
    return first


def unnumbered(pattern: str) -> str:
    """Return what all files of a pattern are called together: `part.mp4` of `part-%04d.mp4`."""
    path = Path(pattern)
    name = re.sub(r"[-_.]?%0?\d?d", "", path.stem) or "segments"
    return str(path.with_name(f"{name}{path.suffix}"))


class Segments:
    """The place of a stream in several files; takes the first one at once, as `Output` does.

    Args:
        pattern: with a place for the number of the file, from 0.
        seconds: of each file, greater than 0.
        reserve: takes the place of one file.
        overwrite: replace files that are there.

    Raises:
        UsageError, OutputError: see `check_segments`, and what `reserve` raises.
    """

    def __init__(
        self, pattern: str, seconds: float, reserve: Callable[[str], Output], *, overwrite: bool
    ) -> None:
        first = check_segments(pattern, overwrite=overwrite)
        self._reserve, self._seconds = reserve, seconds
        self._place = reserve(str(first))
        self.name, self.kind = pattern, self._place.kind
        self.codec, self.replaced = self._place.codec, self._place.replaced

    def start(
        self, *, width: int, height: int, fps: float, metadata: dict[str, str]
    ) -> SegmentWriter:
        """Begin the first file; as `Output.start`."""

        def begin(number: int, first_frame: int) -> Writer:
            place = self._place if number == 0 else self._reserve(str(numbered(self.name, number)))
            since = int(metadata.get("first_frame", 0)) + first_frame
            about = {"segment": str(number), "first_frame": str(since)}
            about["first_seconds"] = f"{since / fps:.6g}"
            words = {**metadata, **about} if metadata else {}
            return place.start(width=width, height=height, fps=fps, metadata=words)

        return SegmentWriter(self.name, max(1, round(self._seconds * fps)), begin)

    def release(self) -> None:
        """Let go of the first file when no video was begun."""
        self._place.release()


class SegmentWriter:
    """Writes frames to one file after another; used as a `Writer`.

    Args:
        name: of all of them.
        num_frames: of each file, at least 1.
        begin: begins the file of a number at a frame of the stream.

    Attributes:
        place: what the files are called.
    """

    def __init__(self, name: str, num_frames: int, begin: Callable[[int, int], Writer]) -> None:
        self.place = name
        self._num_frames, self._begin = num_frames, begin
        self._number = self._done = 0  # of the present file; frames in those before it
        self._given = 0  # frames given to the present file
        self._writer = begin(0, 0)

    @property
    def frames_written(self) -> int:
        """Frames that have reached a file."""
        return self._done + self._writer.frames_written

    @property
    def frames_kept(self) -> int:
        """Frames that are there in the end; before it, those that are safe."""
        return self._done + self._writer.frames_kept

    @property
    def seconds_written(self) -> float:
        """Seconds of video handed to the files so far."""
        written = self._writer.frames_written
        rate = self._writer.seconds_written / written if written else 0.0
        return self.frames_written * rate

    @property
    def kept(self) -> str:
        """What there is once the video has ended."""
        before = f", after {self._number} whole files" if self._number else ""
        return f"{self._writer.kept}{before}" if self._writer.kept else ""

    def write(self, frames: Tensor) -> None:
        """Hand over frames; ends a full file and begins the next one on the way.

        Raises:
            OutputError: as `Writer.write`, or the next file cannot be begun.
        """
        while len(frames):
            if self._given == self._num_frames:
                self._next()
            room = self._num_frames - self._given
            self._writer.write(frames[:room])
            self._given += len(frames[:room])
            frames = frames[room:]

    def hurry(self, seconds: float) -> None:
        """Files need no hurry."""

    def close(self) -> None:
        """Write all frames and end the last file; a second call does nothing."""
        self._writer.close()

    def cancel(self) -> None:
        """Let the last file end now; a signal handler may call it."""
        self._writer.cancel()

    def abort(self) -> None:
        """Cancel, and wait a moment for the end; raises nothing."""
        self._writer.abort()

    def _next(self) -> None:
        """End the present file and begin the next one."""
        self._writer.close()
        done = self._done + self._writer.frames_written
        following = self._begin(self._number + 1, done)
        self._writer, self._done = following, done
        self._number, self._given = self._number + 1, 0
