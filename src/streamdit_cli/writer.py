"""The encoder's thread: frames go in behind a short queue, a finished video comes out.

A slow reader slows the model down, and memory stays, because the queue holds one chunk. This file
knows how a video ends in every case; it knows neither containers (`video.py`) nor names and locks
(`part.py`).
"""

from __future__ import annotations

import queue
import threading
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from streamdit_cli.errors import OutputError
from streamdit_cli.pipe import GaveUp, Pipe

if TYPE_CHECKING:
    from torch import Tensor

    from streamdit_cli.pacing import Pace
    from streamdit_cli.part import PartFile
    from streamdit_cli.pictures import PictureFolder

__all__ = ["Encoder", "Writer"]

# Seconds that ending may take after a second signal.
ABORT_SECONDS = 1.0
# How often the waiting thread looks whether it is cancelled, in seconds.
GLANCE = 0.1
# How often a frame that has to wait for its time looks whether it still has to, in seconds.
PACE_GLANCE = 0.02


class Encoder(Protocol):
    """One growing video: frames in, bytes to its target.

    Attributes:
        frames_muxed: frames that have left the encoder.
        frames_safe: the first frames, those that a kill of the process leaves in the file.
    """

    frames_muxed: int
    frames_safe: int

    def encode(self, frame: Tensor) -> None:
        """Encode one uint8 frame `(height, width, 3)`; OSError or GaveUp from the target."""

    def finish(self, *, flush: bool) -> None:
        """End the video, with the frames the encoder still holds if `flush`."""

    def salvage(self) -> float:
        """Keep what is whole of a video that could not be ended; returns its seconds."""
        ...


class Writer:
    """Writes frames to a file, a FIFO, a device or standard output, in a thread of its own.

    Every ordered end goes through `close` (all frames) or `abort` (the frames encoded so far); both
    leave a file under its final name. What stopped the thread is raised by the next call.

    Args:
        encoder: of the video.
        target: where its bytes go.
        fps: frames a second.
        frames_taken: that are in the file already.

    Attributes:
        place: the file as it is called at the end, or the pipe.
        frames_written: frames that have reached the file or the reader.
        frames_kept: frames that are there once the video has ended; before, those that a kill of
            the process would leave.
        kept: what there is of the video once it has ended, e.g. "1.5 s are kept in out.mp4".
        is_named: whether a file has got its final name.
        pace: when frames may leave, to be set before the first `write`; None is at once. With it
            `write` returns when its frames have left, so that nothing is made far ahead.
    """

    def __init__(
        self,
        encoder: Encoder,
        target: PartFile | Pipe | PictureFolder,
        fps: Fraction,
        *,
        frames_taken: int = 0,
    ) -> None:
        self._name = target.name if isinstance(target, Pipe) else str(target.final)
        self.place = self._name
        self.kept = ""
        self.frames_written = frames_taken
        self.is_named = False
        self.pace: Pace | None = None
        self._frames_given = 0
        self._frames_kept: int | None = None
        self._encoder = encoder
        self._target = target
        self._fps = fps
        self._failure: BaseException | None = None
        self._is_cancelled = threading.Event()
        self._is_closed = False
        self._queue: queue.Queue[Tensor | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def seconds_written(self) -> float:
        """Seconds of video handed to the file or the reader so far."""
        return float(self.frames_written / self._fps)

    @property
    def frames_kept(self) -> int:
        """Frames that are there in the end; before it, those that are safe."""
        return self._encoder.frames_safe if self._frames_kept is None else self._frames_kept

    def write(self, frames: Tensor) -> None:
        """Hand over frames, uint8 `(frames, height, width, 3)`; waits while the queue is full.

        Raises:
            OutputError: the disk is full or the device failed; names what was kept.
            BrokenPipeError: the reader has closed its end.
        """
        self._raise()
        self._frames_given += len(frames)
        self._queue.put(frames)
        while self.pace is not None and self._is_behind():
            time.sleep(PACE_GLANCE)
        self._raise()

    def hurry(self, seconds: float) -> None:
        """Pace no more, and give a pipe whose reader has stopped these seconds."""
        self.pace = None
        if isinstance(self._target, Pipe):
            self._target.hurry(seconds)

    def close(self) -> None:
        """Write all frames, end the video and give a file its name; a second call does nothing.

        Raises:
            OutputError: the disk is full, the device failed, or the name was taken meanwhile.
            BrokenPipeError: the reader has closed its end.
        """
        if not self._is_closed:
            self._queue.put(None)
            self._thread.join()
            self._is_closed = True
            self._raise()

    def cancel(self) -> None:
        """Let the video end now, with the frames encoded so far; a signal handler may call it."""
        self._is_cancelled.set()
        self.hurry(0.0)

    def abort(self) -> None:
        """Cancel, and wait a moment for the end; raises nothing."""
        if not self._is_closed:
            self.cancel()
            self._thread.join(ABORT_SECONDS)
            self._is_closed = True

    def _run(self) -> None:
        """The thread: encode until the end or a failure, end the video, then only drain."""
        failure: BaseException | None = None
        is_ended = False
        try:
            while not is_ended:
                frames = self._next()
                is_ended = frames is None
                if frames is not None:
                    self._encode(frames)
            self._encoder.finish(flush=not self._is_cancelled.is_set())
        except Exception as error:  # raised again by the owner's next call
            failure = error
        try:
            self._let_go(failure)
        except Exception as error:
            failure = failure or error
        self._failure = failure
        while not is_ended:
            is_ended = self._next() is None

    def _next(self) -> Tensor | None:
        """Return the next frames; None at the end, and when the video was cancelled."""
        while not self._is_cancelled.is_set():
            try:
                return self._queue.get(timeout=GLANCE)
            except queue.Empty:
                continue
        return None

    def _encode(self, frames: Tensor) -> None:
        for frame in frames:
            if self._is_cancelled.is_set():
                return
            if isinstance(self._target, Pipe) and self._target.is_late:
                raise GaveUp
            self._hold()
            self._encoder.encode(frame)
            self.frames_written += 1

    def _hold(self) -> None:
        """Return when the next frame may leave."""
        pace = self.pace
        while pace is not None and not self._is_cancelled.is_set():
            delay = pace.delay(self.frames_written)
            if delay <= 0:
                pace.left(self.frames_written)
                return
            time.sleep(min(delay, PACE_GLANCE))
            pace = self.pace

    def _is_behind(self) -> bool:
        """Whether frames that were handed over are still to leave."""
        is_over = self._failure is not None or self._is_cancelled.is_set()
        return not is_over and self.frames_written < self._frames_given

    def _let_go(self, failure: BaseException | None) -> None:
        """Give a file its name, or keep what is whole of it; close a pipe."""
        target, seconds = self._target, self.seconds_written
        self._frames_kept = self.frames_written
        if isinstance(target, Pipe):
            target.close()
            self.kept = f"{seconds:.1f} s were written"
            return
        if failure is not None:
            seconds = self._encoder.salvage()
            self._frames_kept = round(seconds * self._fps)
        elif self._is_cancelled.is_set():
            self._frames_kept = self._encoder.frames_muxed
        if seconds == 0:
            target.discard()
            self.kept = "nothing was kept"
            return
        self.place = str(target.path)
        if isinstance(failure, OSError):
            target.keep()
        else:
            self.place = str(target.finish())
            self.is_named = True
        self.kept = f"{seconds:.1f} s are kept in {self.place}"

    def _raise(self) -> None:
        """Raise what stopped the thread, in the words of the command line."""
        failure = self._failure
        if failure is None or isinstance(failure, GaveUp):
            return
        if isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError):
            reason = failure.strerror or failure
            hint = "make room or choose another place with -o"
            kept = f"; {self.kept}" if self.kept else ""
            raise OutputError(f"{self._name}: {reason}{kept}", hint) from failure
        raise failure
