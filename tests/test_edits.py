"""Claim: the score of an edit says what changed as asked and what was kept, by the pixels alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamdit_model import ConfigError, load
from streamdit_model.edits import judge_edit, recolored, report_edits, strength_curve
from streamdit_model.evaluation import evaluation_clips
from streamdit_model.shapes import HELD_OUT, Clip, draw_clip, render

SHAPES = Path(__file__).parents[1] / "presets" / "shapes"
BEFORE = Clip(color="red", background="navy", shape="square", size="large", motion="circling")
AFTER = replace(BEFORE, color="green")


def test_another_color_is_drawn_and_nothing_else_changes() -> None:
    drawn = [(draw_clip(0, index), recolored(draw_clip(0, index), 1, index)) for index in range(99)]
    assert len({after.color for _, after in drawn}) == 8
    for before, after in drawn:
        assert after.color != before.color and replace(after, color=before.color) == before
        assert (after.color, after.shape) not in HELD_OUT


def test_score_tells_an_edit_from_the_input_and_from_another_video() -> None:
    shown = render(BEFORE, 64, 64)
    moved = replace(AFTER, motion="pulsing", background="pink")
    pairs = {
        "edited": (render(AFTER, 64, 64), True, False, True),
        "input": (shown, False, True, True),
        "other": (render(moved, 64, 64), True, False, False),
    }
    scores = []
    for made, changed, unchanged, kept in pairs.values():
        found = judge_edit(BEFORE, AFTER, shown, made)
        assert len(found.windows) == 2
        assert (found.is_right("color"), found.is_unchanged()) == (changed, unchanged)
        assert (found.keeps_all(), found.is_right("all")) == (kept, changed and kept)
        scores.append(found)
    assert scores[0].distance < 0.02 < 0.3 < scores[2].distance
    late = judge_edit(BEFORE, AFTER, shown, render(AFTER, 64, 64, first_frame=4))
    assert late.distance > 0.2  # a quarter of a second of a circle of 0.5 at 2.2 rad/s is 0.27
    blank = judge_edit(BEFORE, AFTER, shown, torch.zeros(64, 64, 64, 3, dtype=torch.uint8))
    assert math.isnan(blank.distance) and not blank.keeps_all()
    report = report_edits([*scores, blank])
    assert report["changed"] == {"right": 2, "total": 4, "share": 0.5, "low": 0.15, "high": 0.85}
    assert report["kept"]["background"]["right"] == 2  # type: ignore[index]
    assert report["right"]["right"] == 1 and report["unchanged"]["right"] == 1  # type: ignore[index]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_curve_of_the_embedded_model_changes_more_where_strength_is_higher() -> None:
    clips = evaluation_clips(2, seed=7)
    low, high = strength_curve(load(SHAPES), clips, strengths=(0.125, 1.0), seconds=4.0)
    assert (low["strength"], high["strength"], low["clips"]) == (0.125, 1.0, 2)
    assert low["unchanged"]["right"] == 2  # type: ignore[index]
    assert high["unchanged"]["right"] == 0  # type: ignore[index]


def test_length_that_windows_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple of 2"):
        next(strength_curve(load(SHAPES), [BEFORE], seconds=5.0))
