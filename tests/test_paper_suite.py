"""The suite compares what it says: same captions, seeds and steps, each baseline at its best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_evaluate import config
from torch import Tensor

from streamdit_cli.app import main
from streamdit_model import paper_suite
from streamdit_model.autoencoder import Autoencoder
from streamdit_model.errors import ConfigError
from streamdit_model.evaluation import evaluation_clips
from streamdit_model.latent_streams import stream_latents
from streamdit_model.paper_suite import (
    best_way,
    clip_ways,
    paper_ways,
    queue_ways,
    score_way,
    suite_report,
)
from streamdit_model.shapes import render
from streamdit_model.text import TextEncoder
from streamdit_model.transformer import StreamDiT
from streamdit_model.weights import Model, save


def model(*, distilled: bool = False) -> Model:
    torch.manual_seed(5)
    what = config()
    if distilled:
        what = replace(what, distilled=True, guidance_scale=1.0)
    else:
        what = replace(what, partition=replace(what.partition, micro_steps=2))
    parts = StreamDiT(what.transformer), TextEncoder(what.text), Autoencoder(what.autoencoder)
    for part in parts:
        part.eval().requires_grad_(False)
    transformer, text_encoder, autoencoder = parts
    return Model(
        config=what,
        transformer=transformer,
        text_encoder=text_encoder,
        autoencoder=autoencoder,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def teacher() -> Model:
    return model()


@pytest.fixture(autouse=True)
def few_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_suite, "PILOT_PROMPTS", 1)


def test_every_chunk_size_costs_the_same_and_takes_the_same_steps(teacher: Model) -> None:
    ways = [way for way in paper_ways(teacher, None, {}, 4.0) if way.name.startswith("teacher, c")]
    assert [way.name for way in ways] == [f"teacher, c={size}" for size in (1, 2, 4, 8)]
    assert {way.calls for way in ways} == {2.0}  # T = B here, each step twice for guidance
    assert {way.model.config.partition.total_steps for way in ways} == {8}
    assert [way.border_frames for way in ways] == [4, 8, 16, 32]


def test_suite_names_teacher_student_references_baselines_and_others(teacher: Model) -> None:
    ways = list(paper_ways(teacher, model(distilled=True), {"diagonal": teacher}, 4.0))
    names = [way.name for way in ways]
    assert names[4:6] == ["teacher, K=2", "student"]
    assert names[6].startswith("FIFO-style") and names[7].startswith("clip by clip")
    assert names[8:] == ["diagonal, c=1", "diagonal, c=2"]
    assert ways[5].calls == 0.5  # one call for two latent frames, no guidance


def test_way_of_the_model_itself_is_its_own_stream(teacher: Model) -> None:
    way = next(way for way in paper_ways(teacher, None, {}, 4.0) if way.name == "teacher, c=2")
    own = stream_latents(teacher, ["a red circle"], [3], 2)
    made = way.latents(["a red circle"], [3])
    for _ in range(2):
        assert torch.equal(next(made), next(own))


def test_baselines_are_tried_in_all_their_settings(teacher: Model) -> None:
    assert [way.calls for way in queue_ways(teacher)] == [2, 4, 4, 8]
    clips = clip_ways(teacher, 4)
    assert [way.border_frames for way in clips] == [24, 16]  # overlaps 2 and 4 of 8 frames
    assert clips[0].calls == pytest.approx(2 * 4 / 6)


def test_best_way_has_the_most_windows_right(
    teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = evaluation_clips(1, paper_suite.PILOT_SEED)
    truth = render(clips[0], 64, teacher.config.height)[None]
    ways = queue_ways(teacher)
    right = replace(ways[2], name="right")

    def decode(model: Model, latents: object, num_frames: int) -> Tensor:
        return truth if model is right_model else torch.zeros_like(truth)

    right_model = replace(teacher)
    right = replace(right, model=right_model)
    monkeypatch.setattr(paper_suite, "decode_latents", decode)
    assert best_way([ways[0], right, ways[1]], 4.0) is right
    assert best_way([ways[3], ways[0], ways[1]], 4.0) is ways[0]  # none is right: the cheapest


def test_score_of_a_way_is_a_report_with_its_cost(teacher: Model) -> None:
    way = clip_ways(teacher, 2)[0]
    clips = evaluation_clips(2, 9)
    entry = suite_report(way, list(score_way(way, clips, 4.0, seed=1, batch=2)))
    assert entry["way"] == way.name and entry["calls_per_latent_frame"] == 0.667
    assert entry["streams"] == 2
    json.dumps(entry, allow_nan=False)


def test_models_of_the_wrong_kind_are_refused(teacher: Model) -> None:
    student = model(distilled=True)
    with pytest.raises(ConfigError, match="is distilled"):
        next(paper_ways(student, None, {}, 4.0))
    with pytest.raises(ConfigError, match="is not distilled"):
        next(paper_ways(teacher, teacher, {}, 4.0))


def test_command_prints_one_line_a_way_and_writes_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher: Model
) -> None:
    for name, one in (("teacher", teacher), ("student", model(distilled=True))):
        states = [part.state_dict() for part in (one.transformer, one.autoencoder)]
        save(tmp_path / name, one.config, *states, one.text_encoder.state_dict())
    words = ["evaluate", "--suite", "paper", "-m", str(tmp_path / "teacher")]
    words += ["--student", str(tmp_path / "student"), "--prompts", "1", "--seconds", "4"]
    words += ["--json", str(tmp_path / "suite.json"), "--dtype", "float32"]
    assert main(words) == 0
    record = json.loads((tmp_path / "suite.json").read_text())
    assert [way["way"] for way in record["ways"]][:2] == ["teacher, c=1", "teacher, c=2"]
    printed = capsys.readouterr()
    for way in record["ways"]:
        assert way["way"].split(",")[0] in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "shapes"], "--student has no effect without --suite"),
        (["--suite", "paper", "--drift", "2"], "--drift has no effect with --suite"),
        (["--suite", "paper", "--against", "runs"], "is not NAME=MODEL"),
        (["--suite", "paper", "-m", "shapes", "--prompts", "1"], "shapes-64 is distilled"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
