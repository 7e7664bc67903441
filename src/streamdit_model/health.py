"""Whether a stream stays well: black, white, frozen, clipped, drifting, blurred, with seams.

uint8 frames go in, a record for each window of 4 s comes out; memory does not depend on the length.
It judges pixels alone and knows no model. Statistics that compare one time with another (drift,
blur, clipping) begin anew at every cut and prompt change, since one cut looks like a drift; such a
stretch is a *scene* here.

Choice: the thresholds are those proposed in reliability.md section 4, calibrated on the shapes
world, where `tests/test_health.py` counts the false alarms. They are not calibrated on footage.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.frame_measures import FrameMeasures, FrameMeter

__all__ = ["FLAGS", "Health", "HealthSummary", "HealthWindow"]

FLAGS = ("black", "white", "frozen", "clipped", "exposure", "saturation", "blur", "seam")

WINDOW_SECONDS = 4.0
SETTLE_SECONDS = 8.0  # a prompt change may take so long to be seen everywhere
MEMORY = 15  # windows of a scene that drift is judged by: one minute

FLAT = 1.0  # deviation of the luma in a black or white frame
BLACK, WHITE = 8.0, 247.0  # its mean is below, above
LEAST_BLACK = 2  # frames in a row
STILL, LIFELESS = 0.25, 1.5  # levels, mean and in the liveliest block; below both: no motion
FROZEN_SECONDS = 1.0
CLIPPED, CLIPPED_RATIO = 0.10, 2.0  # share of the pixels, and to that of the scene's first window
EXPOSURE_SLOPE, EXPOSURE_SECONDS = 0.25, 20.0  # levels a second
SATURATION_SLOPE, SATURATION_SECONDS = 20.0, 40.0  # percent a minute
LEAST_SATURATION = 16.0  # levels; what is greyer is compared with this
AGREEMENT = 0.9  # share of all pairs of windows that drift in the same direction
BLURRED = 0.5  # of the sharpness of the scene's first window
LEAST_SLOPE = 0.1  # mean square; less detail has no sharpness
SEAM_RATIO, SEAM_FLOOR, LEAST_SEAMS = 2.0, 0.25, 3
CUT_RATIO, CUT_FLOOR, LEAST_BEFORE_CUT = 5.0, 6.0, 3

Beginning = Literal["start", "window", "cut", "prompt"]
Step = tuple[float, float]  # mean of the picture, and in its median block


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthWindow:
    """What was seen in a window: 4 s, or less before a cut, a prompt change and the end.

    Attributes:
        first_frame, num_frames: which frames, from 0.
        seconds: video time of the first one.
        begins_with: why it begins there; "window" is the end of the window before.
        prompt: under which all its frames were made.
        luma, deviation: means over the window, in levels 0 to 255.
        saturation: mean difference of the largest and smallest channel, in levels.
        motion: median of the mean absolute differences of neighbouring frames, in levels.
        sharpness: second to first differences in squares, 0 to 4; None without detail.
        bright: mean share of pixels of at least 251.
        exposure_slope: levels a second over the scene so far, at most a minute; None below 20 s.
        saturation_slope: percent a minute, of the most saturated pixels; None below 40 s.
        seam: median over the chunk borders of the step there to the larger of the steps before and
            after; None with fewer than three borders.
        flags: which of `FLAGS` hold.
    """

    first_frame: int
    num_frames: int
    seconds: float
    begins_with: Beginning
    prompt: str | None
    luma: float
    deviation: float
    saturation: float
    motion: float
    sharpness: float | None
    bright: float
    exposure_slope: float | None
    saturation_slope: float | None
    seam: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthSummary:
    """The whole video: for each flag that was raised, in how many windows and at what second."""

    num_frames: int
    seconds: float
    num_windows: int
    num_cuts: int
    num_prompt_changes: int
    flagged_windows: dict[str, int]
    first_seconds: dict[str, float]


@dataclass(slots=True)
class _Window:
    """The window that is being filled."""

    first_frame: int
    begins_with: Beginning
    prompt: str | None = None
    measures: list[FrameMeasures] = field(default_factory=list)
    seams: list[float] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Scene:
    """What is remembered since the last cut or prompt change.

    `points` are (seconds, middle luma, vivid saturation) of its undisturbed windows. Choice: both
    are measures that an object hardly moves by coming and going, as the means are moved; something
    that passes in nearly the length of a window would look like a drift.
    """

    settled_at: int
    first: HealthWindow | None = None
    points: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=MEMORY))


class Health:
    """Watches one video, frame by frame, in constant memory.

    Args:
        fps: frames in a second, above 0.

    Raises:
        ConfigError: another fps.
    """

    def __init__(self, fps: float) -> None:
        if not 0 < fps < math.inf:
            raise ConfigError(f"fps {fps} is not a number above 0")
        self._fps = fps
        self._window_frames = max(2, round(WINDOW_SECONDS * fps))
        self._meter = FrameMeter()
        self._frame = 0
        self._prompt: str | None = None
        self._dark = self._light = self._still = 0  # frames in a row
        self._steps: deque[float] = deque(maxlen=max(LEAST_BEFORE_CUT, round(fps)))
        self._before: Step = (0.0, 0.0)  # the step to the last frame
        self._seam: tuple[Step, Step] | None = None  # the step before a border and the one at it
        self._jumped_at_border = False
        self._window = _Window(0, "start")
        self._scene = _Scene(0)
        self._done: list[HealthWindow] = []
        self._counts: dict[str, int] = {}
        self._first_seconds: dict[str, float] = {}
        self._begun: dict[Beginning, int] = {"start": 0, "window": 0, "cut": 0, "prompt": 0}

    def update(
        self, frames: Tensor, *, prompt: str | None = None, is_border: bool = False
    ) -> list[HealthWindow]:
        """Take the next frames.

        Args:
            frames: uint8 (frames, height, width, 3).
            prompt: under which they were made; another one than before is a prompt change.
            is_border: whether the first of them begins a chunk, where a seam may be.

        Returns:
            The windows that ended with them, oldest first.

        Raises:
            ConfigError: frames of another kind or size than before.
        """
        is_changed = self._frame > 0 and prompt != self._prompt
        self._prompt = prompt
        for index, measures in enumerate(self._meter.measure(frames)):
            first = index == 0
            self._take(measures, is_changed=is_changed and first, is_border=is_border and first)
        done, self._done = self._done, []
        return done

    def finish(self) -> list[HealthWindow]:
        """Return the last window, which may be short; nothing if there is none."""
        self._close("window")
        done, self._done = self._done, []
        return done

    def summary(self) -> HealthSummary:
        """Sum up all windows that have ended."""
        return HealthSummary(
            num_frames=self._frame,
            seconds=self._frame / self._fps,
            num_windows=sum(self._begun.values()),
            num_cuts=self._begun["cut"],
            num_prompt_changes=self._begun["prompt"],
            flagged_windows=dict(self._counts),
            first_seconds=dict(self._first_seconds),
        )

    def _take(self, measures: FrameMeasures, *, is_changed: bool, is_border: bool) -> None:
        """Put one frame in its window and scene."""
        is_cut = self._frame > 0 and self._is_cut(measures.motion, is_border)
        step = (measures.motion, measures.common)
        if is_cut or is_changed:
            settle = round(SETTLE_SECONDS * self._fps) if is_changed else 0
            settled_at = max(self._frame + settle, self._scene.settled_at)
            self._close("prompt" if is_changed else "cut")
            self._scene = _Scene(settled_at)
            self._steps.clear()
            self._seam = None
        elif self._frame > 0:
            self._note_seam(step, is_border)
            self._steps.append(measures.motion)
        self._before = step
        self._note_runs(measures)
        if not self._window.measures:
            self._window.prompt = self._prompt
        self._window.measures.append(measures)
        self._frame += 1
        if len(self._window.measures) == self._window_frames:
            self._close("window")

    def _is_cut(self, step: float, is_border: bool) -> bool:
        """Whether another picture begins: a step far above those of the last second.

        Steps at one chunk border after the other are no cuts but seams; only the first one counts.
        """
        is_jump = (
            len(self._steps) >= LEAST_BEFORE_CUT
            and step > CUT_FLOOR
            and step > CUT_RATIO * statistics.median(self._steps)
        )
        if not is_border:
            return is_jump
        is_seam, self._jumped_at_border = is_jump and self._jumped_at_border, is_jump
        return is_jump and not is_seam

    def _note_seam(self, step: Step, is_border: bool) -> None:
        """Compare the step at a border with its neighbours, one frame after it."""
        if self._seam is not None:
            steps = zip(*self._seam, step, strict=True)
            ratios = [across / max(before, after, SEAM_FLOOR) for before, across, after in steps]
            self._window.seams.append(max(ratios))
        self._seam = (self._before, step) if is_border and self._steps else None

    def _note_runs(self, measures: FrameMeasures) -> None:
        """Count black, white and motionless frames in a row."""
        is_flat = measures.deviation < FLAT
        self._dark = self._dark + 1 if is_flat and measures.mean < BLACK else 0
        self._light = self._light + 1 if is_flat and measures.mean > WHITE else 0
        is_still = measures.motion < STILL and measures.liveliest < LIFELESS
        is_counted = self._frame > 0 and is_still and not (self._dark or self._light)
        self._still = self._still + 1 if is_counted else 0
        runs = {
            "black": self._dark >= LEAST_BLACK,
            "white": self._light >= LEAST_BLACK,
            "frozen": self._still >= max(1, round(FROZEN_SECONDS * self._fps)),
        }
        self._window.flags.update(name for name, holds in runs.items() if holds)

    def _close(self, next_begins_with: Beginning) -> None:
        """End the window, judge it and begin the next one."""
        if self._window.measures:
            window = self._judge(self._window)
            self._done.append(window)
            self._begun[window.begins_with] += 1
            for flag in window.flags:
                self._counts[flag] = self._counts.get(flag, 0) + 1
                self._first_seconds.setdefault(flag, window.seconds)
        self._window = _Window(self._frame, next_begins_with)

    def _judge(self, window: _Window) -> HealthWindow:
        """Make the record of a window, after it became part of its scene."""
        all_measures, scene = window.measures, self._scene
        count = len(all_measures)
        luma, deviation, middle, saturation, bright, slope, bend = (
            math.fsum(getattr(measures, name) for measures in all_measures) / count
            for name in ("mean", "deviation", "middle", "saturation", "bright", "slope", "bend")
        )
        flags = set(window.flags)
        seconds = window.first_frame / self._fps
        is_fit = not flags and window.first_frame >= scene.settled_at
        if is_fit and count >= self._window_frames // 2:
            vivid = statistics.median(measures.vivid for measures in all_measures)
            scene.points.append((seconds + count / self._fps / 2, middle, vivid))
        exposure = _slope([(time, level) for time, level, _ in scene.points], EXPOSURE_SECONDS)
        colour = _slope([(time, level) for time, _, level in scene.points], SATURATION_SECONDS)
        if colour is not None:
            usual = statistics.median(level for _, _, level in scene.points)
            colour *= 100 * 60 / max(usual, LEAST_SATURATION)
        enough = len(window.seams) >= LEAST_SEAMS
        steps = [measures.motion for measures in all_measures]
        record = HealthWindow(
            first_frame=window.first_frame,
            num_frames=count,
            seconds=seconds,
            begins_with=window.begins_with,
            prompt=window.prompt,
            luma=luma,
            deviation=deviation,
            saturation=saturation,
            motion=statistics.median(steps[1:] or steps),
            sharpness=bend / slope if slope > LEAST_SLOPE else None,
            bright=bright,
            exposure_slope=exposure,
            saturation_slope=colour,
            seam=statistics.median(window.seams) if enough else None,
            flags=(),
        )
        flags |= _flags(record, scene.first if is_fit else None)
        if is_fit and scene.first is None and count >= self._window_frames // 2:
            scene.first = record
        return _with_flags(record, flags)


def _flags(window: HealthWindow, first: HealthWindow | None) -> set[str]:
    """Return the flags that a window's numbers raise, beside the scene's first window."""
    found = set()
    if window.exposure_slope is not None and abs(window.exposure_slope) > EXPOSURE_SLOPE:
        found.add("exposure")
    if window.saturation_slope is not None and abs(window.saturation_slope) > SATURATION_SLOPE:
        found.add("saturation")
    if window.seam is not None and window.seam > SEAM_RATIO:
        found.add("seam")
    if first is None:
        return found
    if window.bright > max(CLIPPED, CLIPPED_RATIO * first.bright):
        found.add("clipped")
    sharpness = math.inf if window.sharpness is None else window.sharpness
    if sharpness < BLURRED * (first.sharpness or 0.0):
        found.add("blur")
    return found


def _with_flags(window: HealthWindow, flags: set[str]) -> HealthWindow:
    """Return the same record with these flags, in the order of `FLAGS`."""
    fields = {name: getattr(window, name) for name in HealthWindow.__dataclass_fields__}
    return HealthWindow(**{**fields, "flags": tuple(flag for flag in FLAGS if flag in flags)})


def _slope(points: list[tuple[float, float]], least_seconds: float) -> float | None:
    """Return how fast a level drifts, per second: Theil-Sen, the median over all pairs of windows.

    Returns:
        None for a shorter time; 0 where the pairs do not agree on a direction, as after a jump that
        was no cut, or in a level that swings.
    """
    if len(points) * WINDOW_SECONDS < least_seconds:
        return None
    slopes = [
        (later - earlier) / (end - start)
        for index, (start, earlier) in enumerate(points)
        for end, later in points[index + 1 :]
    ]
    middle = statistics.median(slopes)
    agreeing = sum(slope * middle > 0 for slope in slopes)
    return middle if agreeing >= AGREEMENT * len(slopes) else 0.0
