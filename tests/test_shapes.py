"""The shapes world draws and says what its description promises."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from streamdit_model.errors import ConfigError
from streamdit_model.shapes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    FPS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    SIZES,
    VALUES,
    Clip,
    SwitchClip,
    caption,
    coverage,
    draw_clip,
    paraphrase,
    parse,
    pose,
    render,
    render_batch,
    switch,
)

AREAS = {"circle": 3.14, "square": 2.88, "triangle": 1.6, "star": 1.32, "ring": 2.0, "cross": 1.6}


# The world


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_area_of_a_shape_is_that_of_the_table_at_any_angle(shape: str, size: str) -> None:
    angle = torch.linspace(0, 2, 9, dtype=torch.float64)
    still = torch.zeros_like(angle)
    share = coverage(shape, size, (still, still, angle, still + 1), 128, False)
    area = share.mean((1, 2)) * 4 / SIZES[size] ** 2
    assert (area / AREAS[shape] - 1).abs().max() < 0.01


@pytest.mark.parametrize("shape", ["circle", "ring"])
def test_dot_of_a_round_object_takes_its_area_and_spares_the_rim(shape: str) -> None:
    place = tuple(torch.tensor([value], dtype=torch.float64) for value in (0, 0, 0.3, 1))
    with_dot, without = (coverage(shape, "large", place, 128, dot) for dot in (True, False))
    missing = (without - with_dot)[0]
    assert float(missing.sum()) * (2 / 128) ** 2 == pytest.approx(
        math.pi * (0.12 * SIZES["large"]) ** 2, rel=0.05
    )
    assert torch.equal(with_dot[without < 0.9], without[without < 0.9])


def test_moving_objects_keep_their_speed_and_their_line() -> None:
    times = torch.arange(320, dtype=torch.float64) / FPS
    for clip in (draw_clip(1, index) for index in range(400)):
        if not clip.motion.startswith("moving"):
            continue
        x, y, angle, scale = pose(clip, times)
        along, across = (x, y) if clip.motion in ("moving left", "moving right") else (y, x)
        sign = 1 if clip.motion in ("moving right", "moving down") else -1
        steps = torch.diff(along) * FPS * sign
        going = steps[steps > 0]  # a wrap jumps back
        assert 0.7 <= clip.speed <= 1.0
        assert torch.allclose(going, torch.full_like(going, clip.speed))
        assert len(steps) - len(going) <= 20
        assert bool((across == across[0]).all() and (angle == 0).all() and (scale == 1).all())


def test_moving_object_reenters_only_when_wholly_out() -> None:
    for clip in (draw_clip(2, index) for index in range(80)):
        if not clip.motion.startswith("moving"):
            continue
        times = torch.arange(96, dtype=torch.float64) / FPS
        area = coverage(clip.shape, clip.size, pose(clip, times), 64, False).mean((1, 2)) * 4
        # In one frame no more appears than a stripe as wide as the way that is gone in it.
        assert torch.diff(area).abs().max() < 2 * SIZES[clip.size] * 1.2 * (1.0 / FPS + 1 / 64)
        assert int((area == 0).sum()) <= 8
        assert area.max() > 0.12


def test_other_motions_follow_their_laws() -> None:
    times = torch.arange(960, dtype=torch.float64) / FPS
    seen = set()
    for clip in (draw_clip(3, index) for index in range(200)):
        x, y, angle, scale = pose(clip, times)
        match clip.motion:
            case "bouncing":
                height = (y.max() - y) / (y.max() - y.min())
                expected = torch.sin(1.6 * times + clip.phase).abs()
                assert torch.allclose(height, expected, atol=0.01)
                assert y.max() - y.min() > 0.7
            case "circling":
                assert torch.allclose(torch.hypot(x, y), torch.full_like(x, 0.5))
                turn = torch.remainder(torch.diff(torch.atan2(y, x)), math.tau)
                assert torch.allclose(turn * FPS, torch.full_like(turn, 2.2))
            case "spinning":
                assert torch.allclose(torch.diff(angle) * FPS, torch.tensor(2.5).double())
            case "pulsing":
                assert torch.allclose(scale, 1 + 0.4 * torch.sin(4 * times + clip.phase))
        seen.add(clip.motion)
    assert seen == set(MOTIONS)


def test_resting_objects_stay_inside_the_frame() -> None:
    for clip in (draw_clip(4, index) for index in range(200)):
        if clip.motion not in ("bouncing", "spinning", "pulsing"):
            continue
        video = render(clip, 32, 128)
        background = torch.tensor(BACKGROUNDS[clip.background]).byte()
        assert bool((video[:, [0, -1]] == background).all()), clip
        assert bool((video[:, :, [0, -1]] == background).all()), clip


def test_held_out_pairs_are_never_drawn_nor_entered_by_a_switch() -> None:
    for index in range(6000):
        clip = draw_clip(5, index)
        assert (clip.color, clip.shape) not in HELD_OUT
        if index % 6:
            continue
        after = switch(clip, 5, index, frame=20).after
        assert (after.color, after.shape) not in HELD_OUT


def test_held_out_draws_are_the_six_pairs() -> None:
    drawn = Counter(
        (c.color, c.shape) for c in (draw_clip(6, i, held_out=True) for i in range(600))
    )
    assert set(drawn) == HELD_OUT
    assert min(drawn.values()) > 60


def test_values_are_drawn_equally_often() -> None:
    clips = [draw_clip(7, index) for index in range(4200)]
    pairs = Counter((clip.color, clip.shape) for clip in clips)
    assert len(pairs) == 8 * 6 - 6
    assert 60 < min(pairs.values()) <= max(pairs.values()) < 140
    for name in ("background", "size", "motion"):
        counts = Counter(getattr(clip, name) for clip in clips)
        assert set(counts) == set(VALUES[name])
        assert max(counts.values()) < 1.25 * min(counts.values())


def test_draw_depends_on_seed_and_index_alone() -> None:
    first = [draw_clip(8, index) for index in range(20)]
    assert [draw_clip(8, index) for index in reversed(range(20))] == first[::-1]
    assert len({*first, *(draw_clip(9, index) for index in range(20))}) == 40
    assert caption(draw_clip(0, 0)) == "a small green star moving up on a navy background"


def test_unknown_value_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown color: 'mauve'; allowed: red, green"):
        Clip(color="mauve", background="navy", shape="star", size="large", motion="spinning")


# The renderer


def test_any_part_of_a_clip_equals_that_part_of_the_whole() -> None:
    for index in range(20):
        clip = draw_clip(10, index)
        for shown in (clip, switch(clip, 10, index, frame=23)):
            whole = render(shown, 48, 64)
            assert torch.equal(render(shown, 11, 64, first_frame=17), whole[17:28])
            assert torch.equal(render(shown, 9, 64, first_frame=30), whole[30:39])


def test_clip_looks_the_same_at_every_resolution() -> None:
    for clip in (draw_clip(11, index) for index in range(30)):
        coarse = render(clip, 8, 64).float()
        fine = render(clip, 8, 192).float().view(8, 64, 3, 64, 3, 3).mean((2, 4))
        assert (coarse - fine).abs().mean() < 0.3
        assert (coarse - fine).abs().max() < 80  # at a sharp corner


def test_interior_and_background_have_exactly_the_palette_colors() -> None:
    for clip in (draw_clip(12, index) for index in range(24)):
        clip = replace(clip, motion="pulsing", x=0.0, y=0.0)
        video = render(clip, 16, 64)
        codes, counts = (video.long() @ torch.tensor([65536, 256, 1])).unique(return_counts=True)
        most = set(codes[counts.topk(2).indices].tolist())
        expected = (COLORS[clip.color], BACKGROUNDS[clip.background])
        assert most == {65536 * red + 256 * green + blue for red, green, blue in expected}


def test_batch_is_the_clips_one_by_one() -> None:
    clips = [draw_clip(13, 0), switch(draw_clip(13, 1), 13, 1, frame=6)]
    video = render_batch(clips, 10, 48, first_frame=3)
    assert video.shape == (2, 10, 48, 48, 3)
    assert torch.equal(video[1], render(clips[1], 10, 48, first_frame=3))


def test_no_frames_or_too_few_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 frames"):
        render(draw_clip(0, 0), 0, 64)


# Switch clips


def _switches(count: int) -> list[SwitchClip]:
    return [switch(draw_clip(14, i), 14, i, frame=10 + i % 40) for i in range(count)]


def test_switch_changes_one_attribute_and_all_of_them_occur() -> None:
    changed = Counter()
    for clip in _switches(300):
        before, after = clip.before.attributes, clip.after.attributes
        names = [name for name in ATTRIBUTES if before[name] != after[name]]
        assert len(names) == 1
        changed.update(names)
    assert set(changed) == set(ATTRIBUTES)


def test_pose_continues_across_a_switch() -> None:
    for clip in _switches(400):
        now = torch.tensor([clip.frame / FPS], dtype=torch.float64)
        before, after = pose(clip.before, now), pose(clip.after, now)
        for old, new in zip(before[:2] + before[3:], after[:2] + after[3:], strict=True):
            assert float((old - new).abs()) < 1e-9, clip
        turn = math.tau / {"triangle": 3, "star": 5, "square": 4, "cross": 4}.get(
            clip.after.shape, 1
        )
        assert abs(math.remainder(float(before[2] - after[2]), turn)) < 1e-9, clip


def test_object_moves_no_faster_after_a_switch_than_a_glide() -> None:
    for clip in _switches(200):
        times = torch.arange(64, dtype=torch.float64) / FPS + clip.frame / FPS
        x, y, _, _ = pose(clip.after, times)
        step = torch.hypot(torch.diff(x), torch.diff(y))
        inside = step[step < 2.0]  # a wrap is longer
        assert inside.max() < 0.3, clip


def test_motion_after_a_switch_comes_to_its_own_law() -> None:
    later = torch.arange(32, dtype=torch.float64) / FPS + 6.0
    for clip in _switches(200):
        own = replace(clip.after, offset=(0.0, 0.0, 0.0, 0.0))
        for new, lawful in zip(pose(clip.after, later), pose(own, later), strict=True):
            assert float((new - lawful).abs().max()) < 1e-3, clip


# Captions


def test_captions_are_unique_and_read_back() -> None:
    captions = set()
    for values in itertools.product(*VALUES.values()):
        attributes = dict(zip(VALUES, values, strict=True))
        text = caption(Clip(**attributes))
        captions.add(text)
        assert parse(text) == attributes
    assert len(captions) == 8 * 4 * 6 * 2 * 8


def test_paraphrases_read_back_in_many_forms() -> None:
    forms = set()
    for index in range(2000):
        clip = draw_clip(15, index)
        text = paraphrase(clip, 15, index)
        assert parse(text) == clip.attributes, text
        forms.add(text)
    assert len(forms) > 1900
    starts = Counter(text.lower().split()[0] for text in forms)
    assert {"a", "on", "there", "tiny", "navy", "sliding"} <= set(starts)
    assert any(text.isupper() for text in forms)


def test_paraphrases_of_one_clip_differ() -> None:
    clip = draw_clip(16, 0)
    assert len({paraphrase(clip, 16, index) for index in range(40)}) > 30


@pytest.mark.parametrize(
    ("prompt", "attributes"),
    [
        ("A red STAR.", {"color": "red", "shape": "star"}),
        ("a ball floats to the left over dark blue", {"motion": "moving left"}),
        ("the plus sign is going around in a circle", {"shape": "cross", "motion": "circling"}),
        ("huge donut, rotating!", {"shape": "ring", "size": "large", "motion": "spinning"}),
    ],
)
def test_plain_english_within_the_world_is_read(prompt: str, attributes: dict[str, str]) -> None:
    read = parse(prompt)
    assert read is not None
    assert attributes.items() <= read.items()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat on a skateboard",
        "red",
        "a red star and a blue ring",
        "a red star on a green background",
        "a large red star bouncing on a navy background, oil painting",
    ],
)
def test_prompt_from_outside_the_world_is_told(prompt: str) -> None:
    assert parse(prompt) is None
