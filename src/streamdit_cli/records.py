"""The records of a video for programs: one JSON line for what was asked, each chunk, and the end.

A chunk is recorded when its frames have reached the file or the reader, not before, so that the
records of a killed run never promise what is not there.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from streamdit_cli.errors import OutputError
from streamdit_cli.video import md5_of

if TYPE_CHECKING:
    from streamdit_model.stream import VideoChunk

__all__ = ["LineFile", "Records"]


class LineFile:
    """A file of JSON lines that this run alone writes; each line reaches it at once.

    Args:
        option: what asked for it, for messages.
        path: a file, `-` for standard error, or None for nowhere.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists or cannot be written.
    """

    def __init__(self, option: str, path: str | None, *, overwrite: bool) -> None:
        self._name = f"{option} {path}"
        self._file = _open(self._name, path, overwrite) if path is not None else None

    @property
    def is_open(self) -> bool:
        """Whether lines go anywhere."""
        return self._file is not None

    def write(self, line: Mapping[str, object]) -> None:
        """Write one line.

        Raises:
            OutputError: the disk is full or the device failed.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            broken, self._file = self._file, None
            if broken is sys.stderr:  # nobody reads it: not a reason to end a video
                return
            with contextlib.suppress(OSError):
                broken.close()
            raise OutputError(f"{self._name}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None and self._file is not sys.stderr:
            self._file.close()
        self._file = None


class Records:
    """Writes the records of one video; a context manager that closes the file.

    Args:
        path: a file, `-` for standard error, or None for nowhere.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists or cannot be written.
    """

    def __init__(self, path: str | None, *, overwrite: bool = False) -> None:
        self._pending: deque[tuple[int, dict[str, object]]] = deque()
        self._file = LineFile("--json", path, overwrite=overwrite)

    def header(self, fields: Mapping[str, object]) -> None:
        """Record what was asked, and what decides about the frames."""
        self._file.write({"record": "header", **fields})

    def chunk(self, chunk: VideoChunk, *, step_ms: float) -> None:
        """Note a chunk as it left the stream; it is written by `reached`."""
        if not self._file.is_open:
            return
        line = {
            "record": "chunk",
            "number": chunk.number,
            "first_frame": chunk.first_frame,
            "num_frames": len(chunk.frames),
            "seconds": chunk.seconds,
            "prompt": chunk.prompt,
            "md5": md5_of(chunk.frames),
            "step_ms": round(step_ms, 3),
            "denoise_ms": round(chunk.statistics["denoise_ms"], 3),
            "decode_ms": round(chunk.statistics["decode_ms"], 3),
        }
        self._pending.append((chunk.first_frame + len(chunk.frames), line))

    def prompt(self, fields: Mapping[str, object], frame: int) -> None:
        """Note what became of a prompt with the chunk that begins with a frame."""
        if self._file.is_open:
            self._pending.append((frame + 1, {"record": "prompt", **fields}))

    def reached(self, num_frames: int) -> None:
        """Record the chunks among the first frames of the video, which have reached their place."""
        while self._pending and self._pending[0][0] <= num_frames:
            self._file.write(self._pending.popleft()[1])

    def summary(self, fields: Mapping[str, object]) -> None:
        """Record what was made."""
        self._file.write({"record": "summary", **fields})

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _open(name: str, path: str, overwrite: bool) -> TextIO | None:
    if path == "-":
        return sys.stderr
    try:
        return open(path, "w" if overwrite else "x", encoding="utf-8")
    except FileExistsError:
        hint = "another name, or replace it with -y"
        raise OutputError(f"{name} exists", hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{name} cannot be written: {reason}") from error
