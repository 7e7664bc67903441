"""The verifier names what was drawn, and refuses what was not."""

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
    MOTIONS,
    SHAPES,
    SIZES,
    VALUES,
    Clip,
    SwitchClip,
    coverage,
    draw_clip,
    parse,
    render,
)
from streamdit_model.verifier import judge, judge_windows, score, score_windows, wilson

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


def test_verifier_sees_a_faint_dot_spin() -> None:
    clip = _clip(shape="circle", size="small", color="white", background="pink", motion="spinning")
    video = _softened(render(clip, FOUR_SECONDS, 64), 2.0, 2.0)
    assert judge(video).motion == "spinning"
    assert judge(video[:1].expand_as(video)).motion == "none"


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


@pytest.mark.parametrize("shape", SHAPES)
def test_verifier_sees_no_spin_in_slow_turning_or_trembling(shape: str) -> None:
    times = torch.arange(FOUR_SECONDS, dtype=torch.float64) / FPS
    still = torch.zeros_like(times)
    for angle in (0.4 * times, 0.2 * torch.sin(9 * times)):
        share = coverage(shape, "large", (still, still, angle, still + 1), 64, True)
        video = (share[..., None] * torch.tensor(COLORS["red"])).round().byte()
        assert judge(video).motion == "none"


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
