"""Claim: a score says what the video shows: right for the truth, wrong for anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_streams import tiny_model
from torch import Tensor

from streamdit_cli.app import main
from streamdit_model import evaluation
from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.errors import ConfigError, NumericsError
from streamdit_model.evaluation import (
    Share,
    StreamScore,
    autoencoder_report,
    check_seconds,
    evaluation_clips,
    report,
    score_streams,
)
from streamdit_model.partition import Partition
from streamdit_model.shapes import ATTRIBUTES, FPS, VALUES, Clip, caption, draw_clip, render
from streamdit_model.text import TextConfig, TextEncoder
from streamdit_model.transformer import StreamDiT, TransformerConfig
from streamdit_model.verifier import Verdict, judge_windows
from streamdit_model.weights import Model, ModelConfig, save

SIDE = 64


def config(side: int = SIDE) -> ModelConfig:
    partition = Partition(num_chunks=4, chunk_size=2, micro_steps=1)
    return ModelConfig(
        name="tiny-64",
        fps=16.0,
        height=side,
        width=side,
        partition=partition,
        start="ramp",
        stepper="euler",
        distilled=False,
        guidance_scale=2.0,
        strength=0.5,
        transformer=TransformerConfig(
            latent_channels=4,
            grid=(partition.buffer_length, side // 8, side // 8),
            width=16,
            depth=1,
            num_heads=2,
            mlp_width=16,
            text_width=8,
            tau_width=16,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=4, widths=(8, 8, 4), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)
        ),
        text=TextConfig(width=8, byte_width=8, depth=1, num_heads=2, max_bytes=96),
    )


def random_states(seed: int = 0) -> list[dict[str, Tensor]]:
    """States of transformer, autoencoder and text encoder without a zero among them."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for part in (
        StreamDiT(config().transformer),
        Autoencoder(config().autoencoder),
        TextEncoder(config().text),
    ):
        state = part.state_dict()
        for name, tensor in state.items():
            fan = tensor[0].numel() if tensor.dim() > 1 else 4
            state[name] = torch.randn(tensor.shape, generator=generator) * fan**-0.5
        states.append(state)
    return states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model of 64 x 64 pixels."""
    path = tmp_path_factory.mktemp("models") / "tiny-64"
    save(path, config(), *random_states(), dtype=torch.float32)
    return path


def clips_of_every_motion() -> list[Clip]:
    """One clip for each motion, so that every shape, size and background comes up too."""
    clips, index = {}, 0
    while len(clips) < len(VALUES["motion"]):
        clip = draw_clip(12, index)
        clips.setdefault(clip.motion, clip)
        index += 1
    return list(clips.values())


class Oracle:
    """Renders the truth in place of a model, or what `shown` makes of it."""

    def __init__(self, clips: Sequence[Clip], shown: dict[str, str] | None = None) -> None:
        self.by_words = {caption(clip): clip for clip in clips}
        self.shown = shown or {}
        self.asked: list[tuple[list[str], list[int]]] = []

    def __call__(
        self,
        model: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
        guidance_scale: float | None,
    ) -> Tensor:
        self.asked.append((list(prompts), list(seeds)))
        frames = round(seconds * FPS)
        clips = [replace(self.by_words[words], **self.shown) for words in prompts]
        return torch.stack([render(clip, frames, SIDE) for clip in clips])


def scores_of(
    monkeypatch: pytest.MonkeyPatch, oracle: Oracle, clips: Sequence[Clip], seconds: float = 4.0
) -> list[StreamScore]:
    monkeypatch.setattr(evaluation, "_videos", oracle)
    return list(score_streams(tiny_model(), clips, seconds, batch=3))


# Right and wrong


def test_truth_is_right_in_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of_every_motion()
    oracle = Oracle(clips)
    scores = scores_of(monkeypatch, oracle, clips, seconds=6.0)
    assert [score.clip for score in scores] == clips
    assert all(len(score.windows) == 3 for score in scores)
    summary = report(scores)
    assert summary["clips_right"] == Share(8, 8).to_dict()
    assert all(summary["attributes"][name]["share"] == 1.0 for name in ATTRIBUTES)
    assert summary["windows"] == {name: [1.0] * 3 for name in (*ATTRIBUTES, "all")}
    assert summary["first_half"] == summary["last_half"] == 1.0
    assert summary["by_motion"] == {clip.motion: Share(1, 1).to_dict() for clip in clips}
    assert summary["color_error"] < 2 and 0.5 < summary["edge_energy"] < 0.8


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_wrong_attribute_makes_every_stream_wrong(
    attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"shape": "square", "motion": "circling"}.get(attribute, VALUES[attribute][0])
    clips = [clip for clip in clips_of_every_motion() if getattr(clip, attribute) != value]
    summary = report(scores_of(monkeypatch, Oracle(clips, {attribute: value}), clips))
    assert summary["clips_right"]["right"] == 0
    assert summary["attributes"][attribute]["right"] == 0
    assert summary["first_half"] == summary["last_half"] == 0.0
    others = [name for name in ATTRIBUTES if name != attribute]
    right = sum(summary["attributes"][name]["right"] for name in others)
    assert len(clips) >= 3 and right >= 4 * len(clips) - 2  # shape and motion help each other


def test_stream_that_goes_wrong_is_right_in_its_first_half_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = clips_of_every_motion()[0]
    other = replace(clip, background="pink" if clip.background != "pink" else "gray")

    def drifting(*_: object) -> Tensor:
        return torch.cat([render(clip, 64, SIDE), render(other, 64, SIDE, first_frame=64)])[None]

    monkeypatch.setattr(evaluation, "_videos", drifting)
    (score,) = score_streams(tiny_model(), [clip], 8.0)
    summary = report([score])
    assert summary["windows"]["background"] == [1.0, 1.0, 0.0, 0.0]
    assert (summary["first_half"], summary["last_half"]) == (1.0, 0.0)
    assert not score.is_right() and not score.is_right("background") and score.is_right("color")
    assert summary["clips_right"]["right"] == 0


def test_streams_have_their_own_seeds_and_words_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = clips_of_every_motion()[:5]
    words = [caption(clip) for clip in clips]
    oracle = Oracle(clips)
    monkeypatch.setattr(evaluation, "_videos", oracle)
    scores = list(score_streams(tiny_model(), clips, 4.0, seed=40, batch=2, keep_frames=True))
    assert oracle.asked == [(words[:2], [40, 41]), (words[2:4], [42, 43]), (words[4:], [44])]
    for clip, score in zip(clips, scores, strict=True):
        assert score.frames is not None and torch.equal(score.frames, render(clip, 64, SIDE))
    oracle.by_words["another way to say it"] = clips[0]
    (score,) = score_streams(tiny_model(), clips[:1], 4.0, prompts=["another way to say it"])
    assert score.is_right() and score.frames is None
    assert oracle.asked[-1][0] == ["another way to say it"]


# Numbers


def score_of(
    clip: Clip, rights: Sequence[bool], verdict: Verdict, border_step: float = 1.0
) -> StreamScore:
    windows = tuple(dict.fromkeys((*ATTRIBUTES, "all"), right) for right in rights)
    return StreamScore(clip, windows, (verdict,) * len(windows), border_step, border_step)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return judge_windows(render(draw_clip(12, 0), 64, SIDE))[0]


def test_report_counts_streams_windows_and_kinds(verdict: Verdict) -> None:
    first, second = clips_of_every_motion()[:2]
    rights = [(first, (1, 1, 1)), (first, (1, 0, 1)), (second, (1, 1, 1)), (second, (0, 0, 0))]
    scores = [score_of(clip, [bool(right) for right in row], verdict) for clip, row in rights]
    summary = report(scores)
    assert summary["streams"] == 4
    assert summary["clips_right"] == Share(2, 4).to_dict()
    assert summary["windows"]["all"] == [0.75, 0.5, 0.75]
    assert (summary["first_half"], summary["last_half"]) == (0.75, 0.625)
    assert summary["by_motion"][first.motion] == Share(1, 2).to_dict()
    shapes = {clip.shape for clip, _ in rights}
    assert summary["by_shape"].keys() == shapes


def test_share_carries_the_interval_of_wilson() -> None:
    share = Share(45, 50).to_dict()
    assert (share["right"], share["total"], share["share"]) == (45, 50, 0.9)
    assert (share["low"], share["high"]) == (0.7864, 0.9565)
    assert Share(0, 0).to_dict()["share"] == 0.0


def test_measures_of_streams_without_an_object_are_none_and_the_report_is_json(
    verdict: Verdict,
) -> None:
    empty = replace(verdict, color="none", color_error=math.nan, edge_energy=math.nan)
    clip = draw_clip(12, 0)
    nothing = report([score_of(clip, [False, False], empty, border_step=math.nan)])
    assert nothing["color_error"] is nothing["edge_energy"] is nothing["border_step"] is None
    json.dumps(nothing, allow_nan=False)
    scores = [score_of(clip, [False, False], empty), score_of(clip, [True, True], verdict)]
    assert report(scores)["color_error"] == round(verdict.color_error, 2)


def test_step_at_chunk_borders_is_compared_with_that_inside() -> None:
    levels = torch.arange(24) + 5 * (torch.arange(24) // 8)  # a jump of 6 after each 8 frames
    frames = levels[:, None, None, None].expand(-1, 8, 8, 3).to(torch.uint8)
    assert evaluation._border_step(frames, 8) == pytest.approx(6.0)
    assert evaluation._border_step(frames[:8], 4) == pytest.approx(1.0)
    assert evaluation._border_step(torch.zeros(24, 8, 8, 3, dtype=torch.uint8), 8) == 1.0


@pytest.mark.parametrize("seconds", [0.0, 2.0, 3.0, 5.0, 4.5, math.inf, math.nan])
def test_length_that_windows_do_not_divide_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="multiple of 2 and at least 4"):
        check_seconds(seconds)
    with pytest.raises(ConfigError, match="multiple of 2 and at least 4"):
        next(score_streams(tiny_model(), [draw_clip(0, 0)], seconds))


def test_evaluation_clips_are_those_of_their_seed() -> None:
    assert evaluation_clips(5, 7) == evaluation_clips(9, 7)[:5]
    assert evaluation_clips(5, 7) != evaluation_clips(5, 8)
    assert len({caption(clip) for clip in evaluation_clips(40, 7)}) > 30


# Models


def model_with(change: str = "") -> Model:
    transformer, autoencoder, text = (
        StreamDiT(config().transformer),
        Autoencoder(config().autoencoder),
        TextEncoder(config().text),
    )
    states = random_states()
    if change:
        states[1]["decoder_out.bias"][0] = float(change)
    for part, state in zip((transformer, autoencoder, text), states, strict=True):
        part.load_state_dict(state)
        part.eval().requires_grad_(False)
    return Model(config(), transformer, autoencoder, text, torch.device("cpu"), torch.float32)


def test_stream_of_a_model_is_judged_at_its_full_length() -> None:
    clips = evaluation_clips(2, 3)
    scores = list(score_streams(model_with(), clips, 4.0, batch=2, keep_frames=True))
    for score in scores:
        assert score.frames is not None
        assert score.frames.shape == (64, SIDE, SIDE, 3) and score.frames.dtype == torch.uint8
        assert len(score.windows) == 2
    alone = next(score_streams(model_with(), clips[:1], 4.0, batch=1, keep_frames=True))
    assert alone.frames is not None and scores[0].frames is not None
    difference = alone.frames.int() - scores[0].frames.int()
    assert difference.abs().max() <= 1


def test_video_that_is_not_finite_gives_no_score() -> None:
    with pytest.raises(NumericsError, match="not finite"):
        next(score_streams(model_with("nan"), evaluation_clips(1, 3), 4.0))


def test_autoencoder_report_is_that_of_the_clip_through_the_whole_autoencoder() -> None:
    model, clip = model_with(), draw_clip(12, 1)
    found = autoencoder_report(model, [clip])
    truth = render(clip, 1024, SIDE)
    with torch.no_grad():
        video = truth.permute(3, 0, 1, 2)[None].float() / 255
        output = model.autoencoder.decode(model.autoencoder.encode(video[:, :, 940:1012]))
        error = (output[0].clamp(0, 1) - video[0, :, 940:1012])[:, -20:-4].square().mean()
    assert found["clips"] == 1
    # Rounding to uint8 is a step of 1/255; frames 992 to 1007 are far behind the lead-in.
    assert found["psnr_frame_1000"] == pytest.approx(10 * math.log10(1 / float(error)), abs=0.05)
    assert set(found["attributes"]) == set(ATTRIBUTES)


# The command


def test_evaluate_command_prints_its_cost_and_then_tables(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scores.json"
    words = ["evaluate", "-m", str(folder), "--prompts", "1", "--seconds", "4", "--seed", "3"]
    assert main([*words, "--json", str(path)]) == 0
    output = capsys.readouterr()
    # 8 chunks and 3 growing cycles, two calls each for guidance, in two groups.
    assert "about 44 network calls of 1 streams" in output.err.splitlines()[0]
    for text in ("unseen captions", "held-out pairs", "all five", "95 % interval", "PSNR"):
        assert text in output.out
    assert "nan" not in output.out.lower()
    record = json.loads(path.read_text())
    assert record["model"] == "tiny-64" and record["seconds"] == 4.0 and record["seed"] == 3
    for group in ("unseen captions", "held-out pairs"):
        assert record[group]["streams"] == 1
    before = path.read_bytes()
    assert main([*words, "--json", str(path)]) == 6
    assert "exists" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_evaluate_command_with_json_to_stdout_prints_nothing_else_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "-m", str(folder), "--prompts", "1", "--seconds", "4", "--json", "-"]
    assert main([*words, "--guidance-scale", "1"]) == 0
    output = capsys.readouterr()
    record = json.loads(output.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert record.keys() == {
        "model",
        "seconds",
        "seed",
        "unseen captions",
        "held-out pairs",
        "autoencoder",
        "minutes",
    }
    assert "about 22 network calls" in output.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seconds", "5"], 2, "not a multiple of 2"),
        (["--seconds", "inf"], 2, "not a multiple of 2"),
        (["--prompts", "0"], 2, "--prompts"),
        (["--json", "no/such/folder/scores.json"], 6, "cannot be written"),
        (["--json", "."], 6, "cannot be written"),
    ],
)
def test_evaluate_command_refuses_before_a_model_is_loaded(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("never read")
    assert main(["evaluate", "-m", "model", *words]) == code
    assert message in capsys.readouterr().err
