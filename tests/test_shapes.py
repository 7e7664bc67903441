"""The shapes world draws what shapes-world.md says, and the verifier sees what was drawn."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
from streamdit_model.verifier import judge, judge_windows, score, score_windows, wilson

AREAS = {"circle": 3.14, "square": 2.88, "triangle": 1.6, "star": 1.32, "ring": 2.0, "cross": 1.6}
FOUR_SECONDS = 4 * FPS


def _clip(**changes: str) -> Clip:
    """A clip drawn for these attributes: start, phase and speed come from its own draw."""
    draws = (draw_clip(77, index) for index in itertools.count())
    return next(c for c in draws if changes.items() <= c.attributes.items())


def _softened(video: Tensor, sigma: float, noise: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    planes = F.pad(video.permute(0, 3, 1, 2).float(), (4, 4, 4, 4), mode="replicate")
    planes = F.conv2d(planes.flatten(0, 1)[:, None], kernel[None, None])
    planes += noise * torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    pixels = planes.clamp(0, 255).round().byte().view(len(video), 3, *video.shape[1:3])
    return pixels.permute(0, 2, 3, 1).contiguous()


def _wrong(clips: list[Clip], resolution: int, sigma: float = 0.0, noise: float = 0.0) -> Counter:
    """Count the wrong verdicts on rendered clips by attribute."""
    wrong: Counter[str] = Counter()
    for clip in clips:
        video = render(clip, FOUR_SECONDS, resolution)
        if sigma:
            video = _softened(video, sigma, noise)
        right = score(judge(video), clip.attributes)
        wrong.update(name for name, is_right in right.items() if not is_right)
    return wrong


def _video(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """A small red object on navy along any path."""
    still = torch.zeros_like(x)
    share = coverage(shape, "small", (x, y, still, still + 1), 64, False)[..., None]
    red, navy = torch.tensor(COLORS["red"]), torch.tensor(BACKGROUNDS["navy"])
    return (navy + share * (red - navy)).round().byte()


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
        pixels = render(clip, 16, 64).flatten(0, 2).tolist()
        most = {color for color, _ in Counter(map(tuple, pixels)).most_common(2)}
        assert most == {COLORS[clip.color], BACKGROUNDS[clip.background]}


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


# The verifier on ground truth


def test_verifier_is_right_on_ground_truth() -> None:
    clips = [draw_clip(20, index, held_out=index % 8 == 0) for index in range(208)]
    assert _wrong(clips, 64) == {}


def test_verifier_is_right_at_other_resolutions() -> None:
    clips = [draw_clip(21, index) for index in range(24)]
    assert _wrong(clips, 32) == {}
    assert _wrong(clips, 128) == {}


def test_verifier_is_right_after_mild_blur_and_noise() -> None:
    clips = [draw_clip(22, index) for index in range(60)]
    assert _wrong(clips, 64, sigma=1.0, noise=6.0) == {}


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [64, 128])
def test_verifier_is_right_on_999_of_1000_attributes(resolution: int) -> None:
    clips = [draw_clip(23, index, held_out=index % 8 == 0) for index in range(2000)]
    wrong = _wrong(clips, resolution)
    assert max((wrong[name] for name in ATTRIBUTES), default=0) <= 2


def test_verifier_measures_what_was_drawn() -> None:
    for motion in MOTIONS:
        clip = _clip(motion=motion)
        verdict = judge(render(clip, FOUR_SECONDS, 64))
        speeds = {"bouncing": 1.6, "circling": 2.2, "spinning": 2.5, "pulsing": 4.0}
        assert verdict.speed == pytest.approx(speeds.get(motion, clip.speed), rel=0.06)
        assert verdict.radius == pytest.approx(SIZES[clip.size], rel=0.06)
        assert verdict.color_error < 1
        assert verdict.background_error < 1
        assert 0.55 < verdict.edge_energy < 0.8
        if motion in ("spinning", "pulsing"):
            assert verdict.rest_x == pytest.approx(clip.x, abs=0.02)
            assert verdict.rest_y == pytest.approx(clip.y, abs=0.02)
        if motion in ("moving left", "moving right"):
            assert verdict.rest_y == pytest.approx(clip.y, abs=0.02)
            assert math.isnan(verdict.rest_x)
        if motion == "circling":
            assert math.hypot(verdict.rest_x, verdict.rest_y) < 0.03


def test_blur_lowers_the_edge_energy_and_nothing_else() -> None:
    video = render(_clip(shape="square", size="large", motion="spinning"), FOUR_SECONDS, 64)
    sharp, soft = judge(video), judge(_softened(video, 1.5, 0.0))
    assert soft.edge_energy < 0.6 * sharp.edge_energy
    assert soft.radius == pytest.approx(sharp.radius, rel=0.05)


# The verifier fails on purpose


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_verifier_refuses_a_wrong_attribute_and_only_that(name: str) -> None:
    for index in range(6):
        clip = draw_clip(30, index)
        values = [value for value in VALUES[name] if value != getattr(clip, name)]
        other = replace(clip, **{name: values[index % len(values)]})
        if name in ("motion", "shape", "size"):
            other = _clip(**other.attributes)
        right = score(judge(render(other, FOUR_SECONDS, 64)), clip.attributes)
        assert [key for key, is_right in right.items() if not is_right] == [name, "all"]


def test_verifier_sees_no_attribute_of_two_objects() -> None:
    for index in range(12):
        first, second = draw_clip(31, 2 * index), draw_clip(31, 2 * index + 1)
        second = replace(second, background=first.background)
        base, over = render(first, FOUR_SECONDS, 64), render(second, FOUR_SECONDS, 64)
        is_second = (over != torch.tensor(BACKGROUNDS[first.background]).byte()).any(-1)
        verdict = judge(torch.where(is_second[..., None], over, base))
        right = score(verdict, first.attributes)
        assert not right["all"], (first, second)


def test_verifier_says_none_of_two_objects_side_by_side() -> None:
    still = torch.zeros(FOUR_SECONDS, dtype=torch.float64)
    one, two = _video("star", still - 0.5, still), _video("star", still + 0.5, still)
    verdict = judge(torch.maximum(one, two))
    assert (verdict.color, verdict.shape, verdict.size, verdict.motion) == ("none",) * 4
    assert verdict.background == "navy"


def test_verifier_says_none_of_an_empty_frame() -> None:
    video = torch.tensor(BACKGROUNDS["pink"]).byte().expand(FOUR_SECONDS, 64, 64, 3)
    verdict = judge(video)
    assert (verdict.color, verdict.shape, verdict.size, verdict.motion) == ("none",) * 4
    assert verdict.background == "pink"
    assert verdict.seen == 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_verifier_sees_no_motion_in_a_frozen_clip(motion: str) -> None:
    clip = _clip(motion=motion)
    for frame in (0, 21, 42):
        video = render(clip, 1, 64, first_frame=frame).expand(FOUR_SECONDS, -1, -1, -1)
        assert judge(video).motion == "none"


@pytest.mark.parametrize(
    ("motion", "reverse"),
    [
        ("moving left", "moving right"),
        ("moving right", "moving left"),
        ("moving up", "moving down"),
        ("moving down", "moving up"),
    ],
)
def test_verifier_sees_a_reversed_clip_go_the_other_way(motion: str, reverse: str) -> None:
    video = render(_clip(motion=motion), FOUR_SECONDS, 64)
    assert judge(video.flip(0)).motion == reverse


def test_verifier_sees_the_sense_of_turning_reversed() -> None:
    for motion in ("circling", "spinning"):
        video = render(_clip(motion=motion), FOUR_SECONDS, 64)
        forth, back = judge(video), judge(video.flip(0))
        assert back.motion == motion
        assert back.speed == pytest.approx(-forth.speed, rel=0.05)


def test_verifier_sees_no_motion_in_a_path_without_a_law() -> None:
    times = torch.arange(FOUR_SECONDS, dtype=torch.float64) / FPS
    generator = torch.Generator().manual_seed(3)
    jumps = torch.rand(2, FOUR_SECONDS // 8, generator=generator).double() * 1.2 - 0.6
    paths = {
        "diagonal": (0.3 * times - 0.6, 0.3 * times - 0.6),
        "crawling": (0.15 * times - 0.3, 0 * times),
        "jumping": tuple(jumps.repeat_interleave(8, 1)),
        "to and fro": (0.5 * torch.sin(3 * times), 0 * times),
    }
    for name, (x, y) in paths.items():
        assert judge(_video("square", x, y)).motion == "none", name


def test_verifier_names_no_color_far_from_the_palette() -> None:
    video = render(_clip(color="red", background="black", motion="spinning"), FOUR_SECONDS, 64)
    brown = (video.float() * torch.tensor([0.45, 1.5, 0.9])).byte()
    assert judge(brown).color == "none"


# Long streams


def test_windows_follow_a_prompt_switch() -> None:
    before = _clip(color="red", shape="star", motion="moving left", size="small")
    for name in ATTRIBUTES:
        value = {"motion": "pulsing", "shape": "ring"}.get(name, VALUES[name][-1])
        after = replace(before, **{name: value})
        if name == "motion":
            after = replace(after, x=0.1, y=0.1)
        video = render(SwitchClip(before=before, after=after, frame=8 * FPS), 16 * FPS, 64)
        old = score_windows(video, before.attributes)
        new = score_windows(video, after.attributes)
        assert len(old) == len(new) == 8
        assert all(right["all"] for right in old[:3])
        assert all(right["all"] for right in new[5:])
        assert not any(right[name] for right in [*old[5:], *new[:3]])


def test_windows_of_a_long_stream_are_all_right() -> None:
    for index in range(8):
        clip = draw_clip(40, index)
        video = render(clip, 20 * FPS, 64, first_frame=100_000)
        scores = score_windows(video, clip.attributes)
        assert len(scores) == 10
        assert all(right["all"] for right in scores), clip


def test_drift_shows_as_a_curve() -> None:
    video = render(_clip(color="green", motion="spinning"), 12 * FPS, 64).float()
    fade = torch.linspace(1, 0.7, len(video))[:, None, None, None]
    errors = [verdict.color_error for verdict in judge_windows((video * fade).byte())]
    assert errors == sorted(errors)
    assert errors[-1] > 10


def test_only_named_attributes_are_scored() -> None:
    clip = _clip(color="red", shape="star")
    verdict = judge(render(clip, FOUR_SECONDS, 64))
    named = parse("a red star")
    assert named is not None
    assert score(verdict, named) == {"color": True, "shape": True, "all": True}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(31, 64, 64, 3, dtype=torch.uint8), "31 frames are too few"),
        (torch.zeros(64, 64, 96, 3, dtype=torch.uint8), "64x96"),
        (torch.zeros(64, 3, 64, 64, dtype=torch.uint8), "allowed: uint8"),
        (torch.zeros(64, 64, 64, 3), "float32"),
    ],
)
def test_frames_that_cannot_be_judged_are_refused(frames: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge(frames)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(50, 100, 0.40383, 0.59617), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (0, 0, 0.0, 1.0)],
)
def test_interval_is_wilsons(successes: int, total: int, low: float, high: float) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-4)
