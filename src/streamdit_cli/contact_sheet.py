"""A contact sheet: one picture of frames spread evenly over a video, made while the video is.

The length of the video need not be known and memory does not depend on it: one tile a second, and
whenever there are more than 48, every second one goes and the others come half as often.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import OutputError, UsageError
from streamdit_cli.part import PartFile

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_model.stream import VideoChunk

__all__ = ["ContactSheet"]

MOST_TILES = 48
LARGEST_TILE = 256  # pixels
GAP = 4
SHADE = 24  # of the gaps and the empty tiles


class ContactSheet:
    """Writes a PNG at the end of a video; a watcher.

    Args:
        path: ends in .png.
        overwrite: replace an existing file.

    Raises:
        UsageError: another ending.
        OutputError: the file exists or cannot be written.
    """

    def __init__(self, path: str, *, overwrite: bool) -> None:
        if Path(path).suffix.lower() != ".png":
            raise UsageError(f"--contact-sheet {path!r} does not end in .png")
        try:
            self._file = PartFile(Path(path), overwrite=overwrite, describe=_leftover)
        except OutputError as error:
            hint = "another name, or replace it with -y"
            raise OutputError(f"--contact-sheet {error}", hint) from error
        self._tiles: list[Tensor] = []
        self._frames_a_tile = 0

    def begin(self, fps: float, progress: console.Progress) -> None:
        """Learn the frames of a second."""
        self._frames_a_tile = max(1, round(fps))

    def chunk(self, chunk: VideoChunk) -> None:
        """Take the frames that become tiles."""
        step = self._frames_a_tile
        for number in range(chunk.first_frame, chunk.first_frame + len(chunk.frames)):
            if number % self._frames_a_tile == 0:
                self._tiles.append(_tile(chunk.frames[number - chunk.first_frame]))
            if len(self._tiles) > MOST_TILES:
                del self._tiles[1::2]
                self._frames_a_tile = 2 * step

    def reached(self, num_frames: int) -> None:
        """Nothing: a frame that was made may be shown."""

    def end(self) -> None:
        """Write the sheet and give it its name; without a frame there is none.

        Raises:
            OutputError: the disk is full, the device failed, or the name was taken meanwhile.
        """
        from streamdit_cli.video_encoder import encode_png

        if not self._tiles:
            return
        try:
            self._file.write(encode_png(_arrange(self._tiles)))
        except OSError as error:
            reason = error.strerror
            raise OutputError(f"--contact-sheet {self._file.final}: {reason}") from error
        name = self._file.finish()
        console.status(f"contact sheet of {len(self._tiles)} frames -> {name}")
        self._tiles = []

    def close(self) -> None:
        """Remove the file where there is no sheet."""
        self._file.discard()


def _leftover(path: Path) -> str:
    """Say what an unfinished sheet holds."""
    return "no picture yet"


def _tile(frame: Tensor) -> Tensor:
    """Return a frame made smaller by a whole factor: uint8 (height, width, 3), 256 at most."""
    from torch.nn import functional

    factor = math.ceil(max(frame.shape[:2]) / LARGEST_TILE)
    if factor == 1:
        return frame.clone()
    pixels = functional.avg_pool2d(frame.permute(2, 0, 1).float(), factor)
    return pixels.permute(1, 2, 0).round().byte().contiguous()


def _arrange(tiles: list[Tensor]) -> Tensor:
    """Return the tiles in rows, oldest first, as about as many columns as rows."""
    height, width = tiles[0].shape[:2]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    size = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = tiles[0].new_full(size, SHADE)
    for number, tile in enumerate(tiles):
        top = GAP + number // columns * (height + GAP)
        left = GAP + number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
