"""A folder of PNG files instead of one video: exact colours, each picture whole or absent.

`frames/` is a folder of `000000.png` and so on, `name-%05d.png` says the names itself. Memory does
not grow, and a killed run loses nothing but the picture it was writing. The record of the video
stands as text in the first picture.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli.errors import OutputError, UsageError
from streamdit_cli.video_encoder import encode_png

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PictureEncoder", "PictureFolder", "is_pictures", "numbered"]

_NUMBER = re.compile(r"%(0[1-9])?d")
_DEFAULT = "%06d.png"
_HEAD = 33  # bytes of a PNG file before the place of its texts: signature and IHDR


def is_pictures(output: str) -> bool:
    """Whether an output names pictures: a folder with a slash at its end, or a pattern of PNGs."""
    return output.endswith(("/", os.sep)) or output.lower().endswith(".png")


def numbered(pattern: str, number: int) -> Path:
    """Return the file of a number, where the pattern has `%d` or, with leading zeros, `%05d`.

    Raises:
        UsageError: the pattern has not exactly one of them, or has it in the name of a folder.
    """
    if len(_NUMBER.findall(pattern)) != 1 or pattern.replace("%%", "").count("%") != 1:
        stem = Path(pattern)
        hint = f"write -o {stem.with_name(f'{stem.stem}-%04d{stem.suffix}')}"
        raise UsageError(f"{pattern!r} has no place for one number", hint)
    if not _NUMBER.search(Path(pattern).name):
        raise UsageError(f"{pattern!r} has its number in the name of a folder")
    return Path(pattern % number)


class PictureFolder:
    """The files of one video as pictures, of which none is ever replaced unless that was asked for.

    Args:
        output: a folder with a slash at its end, made if it is not there, or a pattern.
        overwrite: replace pictures that are there.

    Raises:
        UsageError: a pattern without a number.
        OutputError: the first picture is there, or the folder is not or cannot be written to.

    Attributes:
        final: what the video is called.
        path: the same.
        replaced: empty.
    """

    def __init__(self, output: str, *, overwrite: bool) -> None:
        self.pattern = check_pictures(output, overwrite=overwrite)
        self.final = self.path = Path(output)
        self.replaced = ""
        self._overwrite = overwrite
        self._made: Path | None = None
        if output.endswith(("/", os.sep)) and not self.final.is_dir():
            try:
                self.final.mkdir()
            except OSError as error:
                raise OutputError(f"{output} cannot be made: {error.strerror}") from error
            self._made = self.final

    def add(self, number: int, data: bytes) -> None:
        """Write one picture, whole or not at all.

        Raises:
            OSError: the disk is full, or the picture is there.
        """
        path = numbered(self.pattern, number)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            partial.write_bytes(data)
            if self._overwrite:
                os.replace(partial, path)
            else:
                _link(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def finish(self) -> Path:
        """Return the name of the video; its pictures have theirs already."""
        return self.final

    def keep(self) -> None:
        """Leave the pictures as they are."""

    def discard(self) -> None:
        """Remove the folder if it was made for this video and holds nothing."""
        if self._made is not None and not any(self._made.iterdir()):
            self._made.rmdir()


def check_pictures(output: str, *, overwrite: bool) -> str:
    """Check what can be known of pictures without making any; returns their pattern.

    Raises:
        UsageError, OutputError: see `PictureFolder`.
    """
    is_folder = output.endswith(("/", os.sep))
    pattern = output.replace("%", "%%") + _DEFAULT if is_folder else output
    first = numbered(pattern, 0)
    parent = Path(output).parent if is_folder else first.parent
    if not parent.is_dir():
        hint = f"make it first: mkdir -p {parent}"
        raise OutputError(f"the folder {parent} does not exist", hint)
    if is_folder and os.path.lexists(output.rstrip("/" + os.sep)) and not Path(output).is_dir():
        raise OutputError(f"{output} is a file, not a folder")
    if os.path.lexists(first) and not overwrite:
        raise OutputError(f"{first} exists", "another name with -o, or replace it with -y")
    return pattern


class PictureEncoder:
    """Frames in, PNG files out; an `Encoder` of `writer.py`.

    Args:
        folder: of the pictures.
        fps: frames a second, which pictures cannot say.
        metadata: what the video says about itself.

    Attributes:
        frames_muxed, frames_safe: frames that are on the disk.
    """

    def __init__(self, folder: PictureFolder, fps: Fraction, metadata: Mapping[str, str]) -> None:
        self.frames_muxed = self.frames_safe = 0
        self._folder, self._fps, self._metadata = folder, fps, metadata

    def encode(self, frame: Tensor) -> None:
        """Write one uint8 frame `(height, width, 3)` as a picture; OSError where it cannot be."""
        data = encode_png(frame)
        if self.frames_muxed == 0 and self._metadata:
            text = b"Comment\0" + json.dumps(dict(self._metadata)).encode("ascii")
            data = data[:_HEAD] + _chunk(b"tEXt", text) + data[_HEAD:]
        self._folder.add(self.frames_muxed, data)
        self.frames_muxed = self.frames_safe = self.frames_muxed + 1

    def finish(self, *, flush: bool) -> None:
        """Do nothing: every picture is whole."""

    def salvage(self) -> float:
        """Return the seconds of the pictures that are there."""
        return float(self.frames_muxed / self._fps)


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _link(partial: Path, path: Path) -> None:
    """Give a file its name without ever replacing another one.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(17, "File exists") from None
        os.rename(partial, path)
