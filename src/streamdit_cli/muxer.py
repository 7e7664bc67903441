"""What libav writes a video into, by which muxer, and what the video says about itself.

A target is a file that is being made or a pipe; neither shows libav its errors.
"""

from __future__ import annotations

import json
import os
import struct

from streamdit_cli.part import PartFile
from streamdit_cli.pipe import GaveUp, Pipe

__all__ = [
    "MUXERS",
    "FileSink",
    "Sink",
    "container_metadata",
    "cut_after_last_fragment",
    "record_of",
]

MUXERS = {
    ".mp4": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".gif": "gif",
    ".webp": "webp",
    "y4m": "yuv4mpegpipe",
    "nut": "nut",
    "rgb24": "rawvideo",
}
_TITLE_LENGTH = 80


class Sink:
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


class FileSink(Sink):
    """A sink that libav may also seek in."""

    def __init__(self, target: PartFile) -> None:
        super().__init__(target)
        self._file = target

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return 0 if self.error is not None else self._file.seek(offset, whence)

    def tell(self) -> int:
        return 0 if self.error is not None else self._file.tell()


def container_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Put the record of a video where mp4, mov and mkv all keep it: a title and a comment."""
    if not metadata:
        return {}
    title = metadata.get("prompt", "").encode(errors="replace").decode()
    if len(title) > _TITLE_LENGTH:
        title = title[: _TITLE_LENGTH - 3] + "..."
    return {"title": title, "comment": json.dumps(metadata)}


def record_of(comment: str) -> dict[str, str]:
    """Read back what `container_metadata` wrote; other comments give an empty record."""
    try:
        record = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {str(key): str(value) for key, value in record.items()}


def cut_after_last_fragment(file: PartFile) -> None:
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
