"""How a long stream changes: its last minute against its first.

What the caption says is judged as everywhere; beside it stands what no caption says and what may
creep away unseen: speed, resting place, color, outlines.

Paper: section 6 shows streams of minutes and gives no measure of drift. Choice: the measures of the
verifier, pairwise per stream, so that what differs between streams does not hide what changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.captions import caption
from streamdit_model.errors import ConfigError
from streamdit_model.latent_streams import stream_video
from streamdit_model.shapes import ATTRIBUTES, Clip
from streamdit_model.verifier import Verdict, judge_windows, score
from streamdit_model.weights import Model

__all__ = ["DriftScore", "check_minutes", "drift_report", "score_drift"]

MINUTE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class DriftScore:
    """One long stream.

    Args:
        clip: what the prompt was made from.
        first: what was seen in each 2 s of its first minute.
        last: what was seen in each 2 s of its last minute.
    """

    clip: Clip
    first: tuple[Verdict, ...]
    last: tuple[Verdict, ...]


def check_minutes(minutes: float) -> None:
    """Refuse a length whose first and last minute are the same.

    Raises:
        ConfigError: fewer than 2 minutes, or no number.
    """
    if not 2 <= minutes < math.inf:
        raise ConfigError(f"{minutes:g} minutes; at least 2, since the first is compared")


def score_drift(
    model: Model, clips: Sequence[Clip], minutes: float, *, seed: int = 0, batch: int = 16
) -> Iterator[DriftScore]:
    """Run a long stream for each clip's caption and judge its first and last minute.

    Args:
        model: of the shapes world.
        clips: whose canonical captions are the prompts.
        minutes: length of each stream, at least 2.
        seed: the streams have seeds from here on.
        batch: streams run side by side.

    Yields:
        The scores in order.

    Raises:
        ConfigError: a length below two minutes.
        NumericsError: the model made video that is not finite.
    """
    check_minutes(minutes)
    chunk_seconds = model.config.partition.chunk_size * TIME_FACTOR / model.config.fps
    minute, total = (round(time / chunk_seconds) for time in (MINUTE, minutes * MINUTE))
    spans = [range(minute), range(total - minute, total)]
    for start in range(0, len(clips), batch):
        some = clips[start : start + batch]
        seeds = [seed + start + index for index in range(len(some))]
        first, last = stream_video(model, [caption(clip) for clip in some], seeds, spans)
        for clip, early, late in zip(some, first, last, strict=True):
            yield DriftScore(clip, tuple(judge_windows(early)), tuple(judge_windows(late)))


def drift_report(scores: Sequence[DriftScore], minutes: float) -> dict[str, object]:
    """Sum up as plain values for JSON; an interval is 95 % of the mean over streams.

    Returns:
        Shares of right windows in the first and last minute; changes from the first to the last
        minute: of the share of right windows, of the speed (share), of the resting place (half
        frames a minute), of the color error (delta E) and of the outline energy (share).
    """
    span = minutes - 1
    return {
        "streams": len(scores),
        "minutes": minutes,
        "first_minute": {name: _right(scores, "first", name) for name in (*ATTRIBUTES, "all")},
        "last_minute": {name: _right(scores, "last", name) for name in (*ATTRIBUTES, "all")},
        "accuracy_change": _change(scores, lambda s: _share(s, "last") - _share(s, "first")),
        "speed_change": _change(scores, lambda s: _relative(s, "speed")),
        "position_change": _change(scores, lambda s: _moved(s) / span),
        "color_error_change": _change(
            scores, lambda s: _middle(s.last, "color_error") - _middle(s.first, "color_error")
        ),
        "edge_energy_change": _change(scores, lambda s: _relative(s, "edge_energy")),
    }


def _right(scores: Sequence[DriftScore], minute: str, attribute: str) -> float:
    return round(mean(_share(item, minute, attribute) for item in scores), 4)


def _share(item: DriftScore, minute: str, attribute: str = "all") -> float:
    verdicts = getattr(item, minute)
    return mean(score(verdict, item.clip.attributes)[attribute] for verdict in verdicts)


def _middle(verdicts: Sequence[Verdict], name: str) -> float:
    """Median over the windows in which it is known; nan when in none."""
    known = [v for v in (getattr(verdict, name) for verdict in verdicts) if math.isfinite(v)]
    return median(known) if known else math.nan


def _relative(item: DriftScore, name: str) -> float:
    first, last = _middle(item.first, name), _middle(item.last, name)
    return last / first - 1 if first else math.nan


def _moved(item: DriftScore) -> float:
    """How far the resting place went, along the axes in which there is one."""
    moves = [_middle(item.last, name) - _middle(item.first, name) for name in ("rest_x", "rest_y")]
    known = [move for move in moves if math.isfinite(move)]
    return math.hypot(*known) if known else math.nan


def _change(
    scores: Sequence[DriftScore], measure: Callable[[DriftScore], float]
) -> dict[str, float | int | None]:
    """Mean over the streams in which the measure is known, with its interval."""
    known = [value for value in map(measure, scores) if math.isfinite(value)]
    if len(known) < 2:
        return {"mean": round(known[0], 4) if known else None, "interval": None, "of": len(known)}
    interval = 1.96 * stdev(known) / math.sqrt(len(known))
    return {"mean": round(mean(known), 4), "interval": round(interval, 4), "of": len(known)}
