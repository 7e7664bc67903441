"""When a frame may leave: no earlier than its time in the video minus a lead.

So a player has a little in hand and no more, and a prompt typed now is seen in seconds. This file
is arithmetic on a clock; it never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["DEFAULT_LEAD", "Pace"]

DEFAULT_LEAD = 0.5  # seconds


class Pace:
    """The schedule of a video that is watched while it is made.

    The first frame leaves as soon as it is there and begins the schedule. A frame that comes after
    its time (the viewer has waited for it) moves all later ones back, so that what was lost is
    never made up by a burst and nothing piles up before the viewer.

    Choice: design.md 3 says when frames leave at the earliest; moving the schedule keeps that and
    the delay between a prompt and the picture small after a pause.

    Args:
        fps: frames a second.
        lead: seconds that a frame may leave before its time, 0 or more.
        clock: the time in seconds; tests pass their own.
    """

    def __init__(
        self, fps: float, lead: float = DEFAULT_LEAD, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fps = fps
        self._lead = lead
        self._clock = clock
        self._began: float | None = None

    def delay(self, frame: int) -> float:
        """Return how many seconds a frame still has to wait, 0 when it may leave.

        Args:
            frame: number of the frame, from 0.
        """
        if self._began is None:
            return 0.0
        return max(0.0, self._began + frame / self._fps - self._lead - self._clock())

    def left(self, frame: int) -> None:
        """Note that a frame leaves now; a late one moves the schedule."""
        now, at = self._clock(), frame / self._fps
        if self._began is None or now > self._began + at:
            self._began = now - at
