"""Score video to video in the shapes world: what changed as asked, what was kept, by strength.

Clips are rendered, shown to the model with a caption that names another color, and judged by the
verifier in windows of 2 s from the first frame on. An attribute counts for a clip when it is right
in every window.

Paper: shows edits of videos and gives no score. Choice: one attribute changes, so that everything
else in the caption says what an edit must keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import torch
from torch import Tensor

from streamdit_model.evaluation import WINDOW_SECONDS, Share, check_seconds
from streamdit_model.shapes import ATTRIBUTES, COLORS, FPS, HELD_OUT, Clip, caption, render
from streamdit_model.silhouette import measure
from streamdit_model.stream import Stream
from streamdit_model.strength import strength_levels
from streamdit_model.verifier import judge_windows, score
from streamdit_model.weights import Model

__all__ = ["EditScore", "judge_edit", "recolored", "report_edits", "score_edits", "strength_curve"]


@dataclass(frozen=True, slots=True)
class EditScore:
    """One judged edit.

    Args:
        before: what the input shows.
        after: what was asked for.
        windows: for each window, attribute to whether it is that of `after`.
        colors: the color seen in each window.
        distance: from the object of the input to that of the edit, median over the frames that show
            both whole, in half frames; nan when none does.
    """

    before: Clip
    after: Clip
    windows: tuple[dict[str, bool], ...]
    colors: tuple[str, ...]
    distance: float

    def is_right(self, attribute: str) -> bool:
        """Whether an attribute, or "all", is right in every window."""
        return all(window[attribute] for window in self.windows)

    def keeps_all(self) -> bool:
        """Whether everything but the color is right in every window."""
        return all(self.is_right(name) for name in ATTRIBUTES if name != "color")

    def is_unchanged(self) -> bool:
        """Whether the color of the input is still there in every window."""
        return all(color == self.before.color for color in self.colors)


def recolored(clip: Clip, seed: int, index: int) -> Clip:
    """Draw another color for a clip, never one that makes a held-out pair with its shape.

    The draw is keyed by (seed, index).
    """
    allowed = [
        color for color in COLORS if color != clip.color and (color, clip.shape) not in HELD_OUT
    ]
    return replace(clip, color=Random(f"shapes recolor {seed} {index}").choice(allowed))


def judge_edit(before: Clip, after: Clip, shown: Tensor, made: Tensor) -> EditScore:
    """Judge one edit.

    Args:
        before: what the input shows.
        after: what was asked for.
        shown: the input, uint8 (frames, height, width, 3), at least 2 s.
        made: the edit, as many frames.
    """
    verdicts = judge_windows(made, WINDOW_SECONDS)
    tracks = measure(shown), measure(made)
    both = tracks[0].whole & tracks[1].whole
    apart = (tracks[0].center - tracks[1].center).square().sum(1).sqrt()[both]
    return EditScore(
        before=before,
        after=after,
        windows=tuple(score(verdict, after.attributes) for verdict in verdicts),
        colors=tuple(verdict.color for verdict in verdicts),
        distance=float(apart.median()) if len(apart) else float("nan"),
    )


def score_edits(
    model: Model, clips: Sequence[Clip], strength: float, *, seconds: float = 6.0, seed: int = 0
) -> Iterator[EditScore]:
    """Recolor each clip and judge the result.

    Args:
        model: of the shapes world.
        clips: to be rendered.
        strength: as in `Stream`.
        seconds: length of each clip, a multiple of 2 and at least 4.
        seed: of the new colors; the streams have seeds from here on.

    Yields:
        The scores in order.

    Raises:
        ConfigError: a length that windows of 2 s do not divide, or a strength the model lacks.
    """
    check_seconds(seconds)
    for index, before in enumerate(clips):
        after = recolored(before, seed, index)
        shown = render(before, round(seconds * FPS), model.config.height)
        how = {"seed": seed + index, "strength": strength, "synchronous": True}
        with Stream(model, caption(after), source=[shown], **how) as stream:
            made = torch.cat([chunk.frames for chunk in stream])
        yield judge_edit(before, after, shown, made)


def report_edits(scores: Sequence[EditScore]) -> dict[str, object]:
    """Sum up edits at one strength as plain values for JSON; shares are of clips.

    `changed` has the new color in every window, `unchanged` the old one; `kept` is each other
    attribute, `kept_all` all of them, `right` all of them and the new color.
    """

    def share(is_right: Callable[[EditScore], bool]) -> dict[str, float | int]:
        return Share(sum(map(is_right, scores)), len(scores)).to_dict()

    known = [item.distance for item in scores if item.distance == item.distance]
    return {
        "clips": len(scores),
        "changed": share(lambda item: item.is_right("color")),
        "unchanged": share(EditScore.is_unchanged),
        "kept": {
            name: share(lambda item, name=name: item.is_right(name))
            for name in ATTRIBUTES
            if name != "color"
        },
        "kept_all": share(EditScore.keeps_all),
        "right": share(lambda item: item.is_right("all")),
        "distance": round(median(known), 4) if known else None,
    }


def strength_curve(
    model: Model,
    clips: Sequence[Clip],
    *,
    strengths: Sequence[float] | None = None,
    seconds: float = 6.0,
    seed: int = 0,
) -> Iterator[dict[str, object]]:
    """Report the edits of the same clips at one strength after another.

    Args:
        model: as in `score_edits`, like the rest.
        clips: the same at every strength, with the same new colors and noise.
        strengths: None is every level of the model, rising.
        seconds: as in `score_edits`.
        seed: as in `score_edits`.

    Yields:
        `report_edits` with the strength beside it.
    """
    for strength in strengths or strength_levels(model.config.partition):
        scores = list(score_edits(model, clips, strength, seconds=seconds, seed=seed))
        yield {"strength": strength, **report_edits(scores)}
