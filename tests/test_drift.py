"""Claim: what creeps away in a long stream, or never differs between streams, is seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from tiny_streams import tiny_model
from torch import Tensor

from streamdit_model import diversity, drift
from streamdit_model.diversity import diversity_report, ks_probability, quantities, same_words
from streamdit_model.drift import check_minutes, drift_report, score_drift
from streamdit_model.errors import ConfigError
from streamdit_model.latent_streams import stream_latents, stream_video
from streamdit_model.shapes import FPS, MOTIONS, Clip, caption, draw_clip, render

MINUTES = 11.0
SECONDS = 8  # rendered of each "minute"


def clips_with(motions: Sequence[str]) -> list[Clip]:
    """One clip of each motion; the small ones, so that there is room to creep."""
    found = []
    for motion in motions:
        drawn = (draw_clip(41, index) for index in itertools.count())
        found.append(next(c for c in drawn if c.motion == motion and c.size == "small"))
    return found


def drift_of(
    monkeypatch: pytest.MonkeyPatch, clips: list[Clip], late: Callable[[Tensor], Tensor]
) -> dict:
    """The report of streams that are the truth first and `late` of the truth in the end."""

    def shown(model: object, prompts: list[str], *_: object) -> list[Tensor]:
        by_words = {caption(clip): clip for clip in clips}
        truth = torch.stack([render(by_words[p], SECONDS * FPS, 64) for p in prompts])
        return [truth, late(truth)]

    monkeypatch.setattr(drift, "stream_video", shown)
    return drift_report(list(score_drift(tiny_model(), clips, MINUTES, batch=2)), MINUTES)


def test_stream_that_stays_the_same_has_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    report = drift_of(monkeypatch, clips_with(["spinning", "pulsing", "moving left"]), torch.clone)
    assert report["streams"] == 3
    assert report["first_minute"] == report["last_minute"]
    assert report["last_minute"]["all"] == 1.0
    for name in ("accuracy", "speed", "position", "color_error", "edge_energy"):
        assert report[f"{name}_change"] == {"mean": 0.0, "interval": 0.0, "of": 3}


def test_creeping_place_is_measured_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    report = drift_of(monkeypatch, clips_with(["spinning", "pulsing"]), lambda v: v.roll(4, dims=2))
    moved = 4 * 2 / 64 / (MINUTES - 1)  # four pixels down in ten minutes
    assert report["position_change"]["mean"] == pytest.approx(moved, rel=0.1)
    assert report["speed_change"]["mean"] == pytest.approx(0, abs=0.01)


def test_slower_and_softer_and_grayer_ends_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_with(["spinning", "pulsing"])
    slower = torch.arange(SECONDS * FPS).mul(0.9).long()
    report = drift_of(monkeypatch, clips, lambda v: v[:, slower])
    assert report["speed_change"]["mean"] == pytest.approx(-0.1, abs=0.03)

    def soft(video: Tensor) -> Tensor:
        planes = video.float().movedim(4, 2).flatten(0, 1)
        planes = torch.nn.functional.avg_pool2d(planes, 3, 1, 1, count_include_pad=False)
        return planes.round().byte().unflatten(0, video.shape[:2]).movedim(2, 4)

    assert drift_of(monkeypatch, clips, soft)["edge_energy_change"]["mean"] < -0.15
    gray = drift_of(monkeypatch, clips, lambda v: (v.float() * 0.9 + 11).round().byte())
    assert gray["color_error_change"]["mean"] > 2


def test_lost_object_is_an_accuracy_that_falls_and_nothing_unknown_is_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = clips_with(["spinning", "pulsing"])
    report = drift_of(monkeypatch, clips, lambda v: v[:, :, :1, :1].expand(v.shape).clone())
    assert report["first_minute"]["all"] == 1.0 and report["last_minute"]["all"] == 0.0
    assert report["last_minute"]["background"] == 1.0
    assert report["accuracy_change"]["mean"] == -1.0
    assert report["speed_change"] == {"mean": None, "interval": None, "of": 0}


@pytest.mark.parametrize("minutes", [0.0, 1.0, 1.9, math.inf, math.nan])
def test_too_short_for_a_first_and_a_last_minute_is_refused(minutes: float) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        check_minutes(minutes)


def test_spans_of_video_are_those_of_the_whole_stream() -> None:
    model = tiny_model()
    prompts, seeds = ["a cat", "a dog"], [3, 4]
    first, last = stream_video(model, prompts, seeds, [range(2), range(7, 9)])
    (whole,) = stream_video(model, prompts, seeds, [range(9)])
    frames = whole.shape[1] // 9
    assert torch.equal(first, whole[:, : 2 * frames])
    assert torch.equal(last, whole[:, 7 * frames :])
    latents = torch.cat(list(stream_latents(model, prompts, seeds, 9)), dim=2)
    assert model.autoencoder.decode(latents).shape[2] == whole.shape[1]


# Diversity


def test_probability_of_the_test_is_uniform_where_nothing_differs() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.rand(400, 2, 64, generator=generator, dtype=torch.float64).tolist()
    p = torch.tensor([ks_probability(one, other) for one, other in pairs])
    for level in (0.1, 0.5):
        # three deviations of a share of 400, and the steps of 64 values
        assert abs(float((p < level).float().mean()) - level) < 0.1
    assert float((p < 0.01).float().mean()) < 0.03


def test_probability_of_known_distances() -> None:
    values = [i / 64 for i in range(64)]
    assert ks_probability(values, values) == 1.0
    assert ks_probability(values, [v + 2 for v in values]) < 1e-12
    shifted = [v + 0.25 for v in values]  # distance 1/4: argument 1.449, 2 exp(-2 a^2) = 0.030
    assert ks_probability(values, shifted) == pytest.approx(0.030, abs=0.002)


def test_quantities_are_those_of_the_pose() -> None:
    (clip,) = clips_with(["spinning"])
    seen = quantities(render(clip, 4 * FPS, 64))
    assert (seen["x"], seen["y"]) == (
        pytest.approx(clip.x, abs=0.03),
        pytest.approx(clip.y, abs=0.03),
    )
    assert seen["speed"] == pytest.approx(2.5, rel=0.05)
    nothing = quantities(torch.zeros(64, 64, 64, 3, dtype=torch.uint8))
    assert all(math.isnan(value) for value in nothing.values())


def test_same_words_are_other_clips() -> None:
    (clip,) = clips_with(["moving up"])
    others = same_words(clip, 6, 0)
    assert {caption(other) for other in others} == {caption(clip)}
    assert len({(other.x, other.y, other.speed) for other in others}) == 6


def test_world_passes_and_one_video_for_every_seed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "MOTIONS", ("moving right", "pulsing"))

    def world(model: object, clip: Clip, count: int, *_: object) -> list[Tensor]:
        return [render(other, 64, 64) for other in same_words(clip, count, 99)]

    def collapsed(model: object, clip: Clip, count: int, *_: object) -> list[Tensor]:
        return [render(same_words(clip, 1, 99)[0], 64, 64)] * count

    monkeypatch.setattr(diversity, "_streams", world)
    model = SimpleNamespace(config=SimpleNamespace(height=64))  # all that is left to ask for
    for _, compared in diversity_report(model, 24):
        assert all(entry["p"] is None or entry["p"] > 0.01 for entry in compared.values())
        assert any(entry["p"] is not None for entry in compared.values())
    monkeypatch.setattr(diversity, "_streams", collapsed)
    for _, compared in diversity_report(model, 24):
        known = [entry["p"] for entry in compared.values() if entry["p"] is not None]
        assert min(known) < 0.01
    assert set(MOTIONS) >= set(diversity.MOTIONS)
