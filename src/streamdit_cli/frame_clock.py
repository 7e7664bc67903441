"""Which frame of a video is seen when, as its time runs at another frame rate.

Times are exact fractions of seconds since the first frame. This file knows times, never pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, TypeVar

__all__ = ["FrameClock"]

Picture = TypeVar("Picture")

# Timestamps in whole milliseconds, which many containers have, are off by half of one.
SLACK = Fraction(1, 1000)
# A frame that is earlier than the one before it by less than this replaces that one, in seconds.
DISORDER = Fraction(1)
# A longer pause than this, or a longer way back than `DISORDER`, is a break in the clock.
LONGEST_PAUSE = Fraction(600)


class FrameClock(Generic[Picture]):
    """Turns frames with times into frames at a constant rate.

    Output frame k belongs to the time k / fps and shows the latest frame that has begun by then,
    give or take the slack; so no frame is shown early, and a frame that ends before its first such
    time is left out. There are round(length * fps) output frames, halves up and one at least,
    where the length reaches from the start of the first frame to the end of the last one.
    A frame is returned as soon as later ones cannot change it.

    Choice: the slack is 1 ms, since timestamps in whole milliseconds are off by up to half of one;
    without it a video that has the wanted rate would stutter.

    Args:
        fps: output frames a second.

    Attributes:
        shift: seconds to add to the times of the input since the last break in its clock.
    """

    def __init__(self, fps: Fraction) -> None:
        self.shift = Fraction(0)
        self._fps = fps
        self._current: Picture | None = None
        self._begin = Fraction(0)  # of the current picture
        self._end = Fraction(0)  # as far as the pictures that have arrived reach
        self._decided = 0
        self._returned = 0
        self._waiting: deque[Picture] = deque()  # decided, but the video may end before their half

    @property
    def end(self) -> Fraction:
        """Seconds from the start of the first frame to the end of the last one so far."""
        return self._end

    def arrive(self, time: Fraction, duration: Fraction, picture: Picture) -> Iterator[Picture]:
        """Take the next frame of the input.

        Args:
            time: seconds since the first frame, 0 for that one.
            duration: seconds for which it is shown, as far as is known; > 0.
            picture: the frame.

        Yields:
            Output frames that are settled now; a clock is to be read to the end of each iterator.
        """
        begin = self._place(time)
        self._end = max(self._end, begin + duration)
        before = self._current
        while before is not None and self._next_time < begin - SLACK:
            yield from self._decide(before)
        self._current, self._begin = picture, begin
        while self._next_time <= begin + SLACK:
            yield from self._decide(picture)
        yield from self._ripe()

    def finish(self) -> Iterator[Picture]:
        """End the input.

        Yields:
            The output frames that are left: the last frame is seen to its end.
        """
        last = self._current
        while last is not None and self._is_within(self._decided):
            yield from self._decide(last)
        yield from self._ripe()
        if last is not None and self._returned == 0:
            self._returned = 1
            yield self._waiting.popleft() if self._waiting else last

    @property
    def _next_time(self) -> Fraction:
        return self._decided / self._fps

    def _place(self, time: Fraction) -> Fraction:
        """Put a time of the input on a line without breaks."""
        if self._current is None:
            return Fraction(0)
        step = time + self.shift - self._begin
        if -DISORDER <= step <= 0:
            return self._begin
        if not 0 < step <= LONGEST_PAUSE:
            self.shift = self._end - time
        return time + self.shift

    def _decide(self, picture: Picture) -> Iterator[Picture]:
        self._waiting.append(picture)
        self._decided += 1
        yield from self._ripe()

    def _ripe(self) -> Iterator[Picture]:
        """Return what is decided and lies in the video with at least its half."""
        while self._waiting and self._is_within(self._returned):
            self._returned += 1
            yield self._waiting.popleft()

    def _is_within(self, number: int) -> bool:
        return number + Fraction(1, 2) <= (self._end + SLACK) * self._fps
