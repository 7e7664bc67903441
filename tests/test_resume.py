"""Claim: a training run goes on bit for bit, however it ended, and never with anything else."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from launcher import Launcher
from tiny_training import (
    DISTILL,
    TRAIN,
    LineTask,
    assert_same_run,
    assert_same_tensors,
    checkpoint_of,
    distillation_recipe,
    files_of,
    metrics_of,
    training_recipe,
)
from torch import Tensor

from streamdit_cli.app import main
from streamdit_model.autoencoder import Autoencoder
from streamdit_model.checkpoint import newest_checkpoint
from streamdit_model.errors import ConfigError, NumericsError, WeightsError
from streamdit_model.runs import RunOptions, _card, run_distillation, run_training
from streamdit_model.trainer import LoopConfig, Stage, Trainer
from streamdit_model.weights import load, load_states

STEPS = 12  # of the network in both recipes
FOREVER = 600.0  # seconds; the machine may be busy

# Run in the child: a signal the n-th time that a file of the run is about to be written or renamed.
SIGNAL_AT_OPERATION = """
import os, signal, sys
left = {number}
def hook(event, args):
    global left
    if event not in ("open", "os.rename", "os.mkdir") or not str(args[0]).startswith({run!r}):
        return
    if event == "open" and not set(args[1] or "") & set("wxa+"):
        return
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.{name})
sys.addaudithook(hook)
"""

LOSS_FROM_STEP = """
from streamdit_model.training import FlowTask
real = FlowTask.loss
def loss(self, step, samples):
    value, logs = real(self, step, samples)
    return value * (float("nan") if step >= {step} else 1.0), logs
FlowTask.loss = loss
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits are promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run in one go."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert run_training(training_recipe(), run, RunOptions())
    return run


@pytest.fixture(scope="module")
def distilled(trained: Path) -> Path:
    """A distillation in one go."""
    run = trained.parent / "distilled"
    assert run_distillation(distillation_recipe(), trained / "model", run, RunOptions())
    return run


@pytest.fixture(scope="module")
def trainer_launcher() -> Iterator[Launcher]:
    """A launcher whose children need not import what training needs."""
    modules = ("torch._dynamo", "streamdit_model.runs", "streamdit_cli.train")
    with Launcher(preloaded=modules) as server:
        yield server


def stop_at(ask: int) -> Callable[[], bool]:
    """Return a `should_stop` that says so the n-th time it is asked."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= ask

    return should_stop


def train(run: Path, ask: int = 10_000, *changes: str, resume: bool = True) -> bool:
    options = RunOptions(resume=resume, should_stop=stop_at(ask))
    return run_training(training_recipe(*changes), run, options)


def assert_same_training(run: Path, expected: Path) -> None:
    """Both stages, the latents and the model are equal bit for bit."""
    assert_same_run(run, expected)
    assert_same_run(run / "autoencoder", expected / "autoencoder")
    assert files_of(run / "latents") == files_of(expected / "latents")


# Stopped and taken up


def test_training_stopped_after_every_two_steps_goes_on_bit_for_bit(
    trained: Path, tmp_path: Path
) -> None:
    stops = 0
    while not train(tmp_path / "run", ask=3):
        stops += 1
    # Thrice in the autoencoder, once before the network, and at the border of every stage.
    assert stops == 9
    assert_same_training(tmp_path / "run", trained)


def test_training_stopped_in_the_middle_goes_on_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asks_before = 6 + 2  # steps of the autoencoder, and twice while clips are encoded
    assert not train(run, ask=asks_before + 7, resume=False)
    assert checkpoint_of(run)[1]["step"] == 6
    assert train(run)
    assert_same_training(run, trained)


def test_distillation_stopped_on_its_way_goes_on_bit_for_bit(
    trained: Path, distilled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stops = 0
    for ask in (7, 2, 2, 4, 100):
        options = RunOptions(resume=True, should_stop=stop_at(ask))
        stops += not run_distillation(distillation_recipe(), trained / "model", run, options)
    assert stops == 4
    assert_same_run(run, distilled)
    assert any("pool" in name for name in checkpoint_of(run)[0]["task"])


def test_model_card_has_the_head_that_the_hub_reads(trained: Path, distilled: Path) -> None:
    for run in (trained, distilled):
        _, head, text = (run / "model" / "README.md").read_text().split("---\n", 2)
        said = dict(line.split(": ", 1) for line in head.splitlines())
        assert said == {
            "license": "apache-2.0",
            "library_name": "streamdit",
            "pipeline_tag": "text-to-video",
        }
        assert text.startswith("# ")
    assert "base_model: owner/teacher\n" in _card(
        load_states(distilled / "model")[0], 3, "distilled", "owner/teacher"
    )


def test_losses_of_a_run_are_not_all_alike(trained: Path, distilled: Path) -> None:
    for run in (trained, trained / "autoencoder", distilled):
        losses = [line["loss"] for line in metrics_of(run)]
        assert len(set(losses)) == len(losses) > 5


def test_run_stopped_twice_at_the_same_step_is_not_harmed(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for ask in (1, 1, 3, 1, 6 + 2, 3, 1, 1):
        assert not train(run, ask=ask)
    assert (run / "model" / "config.json").is_file()  # -m RUN works from the first stop on
    assert train(run)
    assert_same_training(run, trained)


def test_stop_at_a_step_that_was_just_saved_is_an_ordinary_stop(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert not train(run, ask=6 + 2 + 5)  # checkpoint_every is 4
    assert checkpoint_of(run)[1]["step"] == 4
    assert train(run)
    assert_same_training(run, trained)


def test_finished_run_is_left_as_it_is(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert train(run)
    assert_same_training(run, trained)


def test_run_that_was_killed_before_its_last_model_was_written_writes_it(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "model")
    assert train(run)
    assert files_of(run / "model") == files_of(trained / "model")


def test_damaged_checkpoint_costs_one_interval_and_changes_nothing(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert not train(run, ask=6 + 2 + 7)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None and newest.name == "step-00000006"
    file = newest / "optimizer-muon.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with caplog.at_level(logging.WARNING):
        assert train(run)
    assert "set aside" in caplog.text
    assert_same_training(run, trained)


def test_metrics_of_steps_that_are_made_again_are_dropped(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not train(run, ask=6 + 2 + 7)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    assert train(run)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, STEPS + 1))
    assert_same_training(run, trained)


def test_files_in_the_making_of_a_dead_process_are_removed(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not train(run, ask=6 + 2 + 7)
    (run / "latents" / "index.json").unlink()  # so that the cache is gone through once more
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    places = ("metrics.jsonl", "latents/latents-00000.safetensors", "latents/index.json")
    for name in places:
        (run / f"{name}.partial-{dead.pid}").write_bytes(b"half")
    assert train(run)
    assert not list(run.rglob("*.partial-*"))
    assert_same_training(run, trained)


# Killed


def killed_until_done(
    launcher: Launcher, words: list[str], run: Path, random: Random, most: int
) -> int:
    """Kill a command at random file operations, take it up again, and return how often."""
    for kills in range(1000):
        number = random.randint(1, most)
        code = SIGNAL_AT_OPERATION.format(number=number, run=str(run), name="SIGKILL")
        ended = launcher.run([*words, "--resume"], cwd=run.parent, code=code, seconds=FOREVER)
        if ended.code == 0:
            return kills
        assert ended.code == -signal.SIGKILL, ended.stderr
    raise AssertionError("the run never ended")


def words_of(run: Path) -> list[str]:
    return ["train", "--config", str(TRAIN), "-o", str(run), "--device", "cpu", "--threads", "1"]


def test_killed_training_goes_on_bit_for_bit(
    trained: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kills = killed_until_done(trainer_launcher, words_of(run), run, Random(1), most=70)
    assert kills >= 5
    assert_same_training(run, trained)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_training_goes_on_bit_for_bit_from_everywhere(
    seed: int, trained: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kills = killed_until_done(trainer_launcher, words_of(run), run, Random(100 + seed), most=45)
    assert kills >= 5
    assert_same_training(run, trained)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_distillation_goes_on_bit_for_bit(
    seed: int, trained: Path, distilled: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["distill", "--config", str(DISTILL), "--teacher", str(trained), "-o", str(run)]
    words += ["--device", "cpu", "--threads", "1"]
    kills = killed_until_done(trainer_launcher, words, run, Random(seed), most=45)
    assert kills >= 2
    assert_same_run(run, distilled)


def terminated_until_done(launcher: Launcher, run: Path, numbers: list[int]) -> None:
    """End a training with SIGTERM at these file operations, one run after the other."""
    for number in numbers:
        code = SIGNAL_AT_OPERATION.format(number=number, run=str(run), name="SIGTERM")
        words = [*words_of(run), "--resume"]
        ended = launcher.run(words, cwd=run.parent, code=code, seconds=FOREVER)
        assert ended.code == 143, ended.stderr
        assert f"stopped by SIGTERM; a checkpoint is in {run}" in ended.stderr
        assert not ended.errors and not ended.stdout and "Traceback" not in ended.stderr
        for stage in (run, run / "autoencoder"):
            kept = sorted((stage / "checkpoints").glob("*")) if stage.exists() else []
            assert all(re.fullmatch(r"step-\d{8}", path.name) for path in kept), kept
        whole = [newest_checkpoint(s / "checkpoints") for s in (run, run / "autoencoder")]
        assert any(path is not None for path in whole)
    ended = launcher.run([*words_of(run), "--resume"], cwd=run.parent, seconds=FOREVER)
    assert ended.code == 0, ended.stderr


def test_sigterm_leaves_143_and_a_whole_checkpoint(
    trained: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    terminated_until_done(trainer_launcher, run, [12, 75])  # in the autoencoder, in the network
    assert_same_training(run, trained)


@pytest.mark.slow
def test_sigterm_at_20_moments_leaves_143_and_a_whole_checkpoint(
    trained: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    random = Random(2)
    for case in range(10):
        run = tmp_path / f"run-{case}"
        numbers = [random.randint(3, 40), random.randint(45, 90)]
        terminated_until_done(trainer_launcher, run, numbers)
        assert_same_training(run, trained)


# With nothing else


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=4", "seed"),
        ("loop.batch_size=8", "loop.batch_size"),
        ("quality.steps=30", "quality.steps"),
        ("task.mix.growth_share=0.3", "task.mix.growth_share"),
        ("model.partition.micro_steps=4", "model.partition.micro_steps"),
    ],
)
def test_another_recipe_is_refused_by_the_name_of_its_key(
    change: str, key: str, trained: Path
) -> None:
    before = files_of(trained)
    with pytest.raises(ConfigError, match=rf"differs in {re.escape(key)}$"):
        train(trained, 10_000, change)
    assert files_of(trained) == before


def test_run_that_exists_is_refused_without_resume(trained: Path) -> None:
    before = files_of(trained)
    with pytest.raises(ConfigError, match="holds a run already") as error:
        train(trained, resume=False)
    assert "--resume" in error.value.hint
    assert files_of(trained) == before


def test_another_teacher_is_refused(trained: Path, distilled: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    assert train(tmp_path / "other", 10_000, "seed=8", "task.steps=1")
    options = RunOptions(resume=True)
    with pytest.raises(ConfigError, match="differs in teacher"):
        run_distillation(distillation_recipe(), tmp_path / "other" / "model", distilled, options)
    # The same weights elsewhere are the same teacher.
    assert run_distillation(distillation_recipe(), tmp_path / "model", distilled, options)


def test_distilled_teacher_is_refused(distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distilled already"):
        run_distillation(distillation_recipe(), distilled / "model", tmp_path / "run", RunOptions())
    assert not (tmp_path / "run").exists()


NO_STEPS = tuple(f"{stage}.steps=0" for stage in ("base", "task", "generalize", "quality"))


def test_run_begins_with_the_weights_it_is_given_and_goes_on_with_no_others(
    trained: Path, tmp_path: Path
) -> None:
    run, given = tmp_path / "run", trained / "model"
    assert run_training(training_recipe(*NO_STEPS), run, RunOptions(init_from=given))
    found, expected = (load_states(path)[1] for path in (run / "model", given))
    assert_same_tensors(found, expected)
    assert not (run / "autoencoder").exists()  # the one that was given is kept
    with pytest.raises(ConfigError, match="differs in init_from"):
        train(run, 10_000, *NO_STEPS)
    again = RunOptions(init_from=given, resume=True)
    assert run_training(training_recipe(*NO_STEPS), run, again)


def test_weights_that_do_not_fit_are_refused_by_name(trained: Path, tmp_path: Path) -> None:
    wider = training_recipe("model.transformer.width=32")
    with pytest.raises(WeightsError, match=r"transformer to begin with .* blocks\.0\."):
        run_training(wider, tmp_path / "run", RunOptions(init_from=trained / "model"))


def test_student_begins_as_its_teacher_in_one_step_a_chunk(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = distillation_recipe("stage.steps=0")
    assert run_distillation(recipe, trained / "model", run, RunOptions())
    student, teacher = load(run / "model"), load(trained / "model")
    assert_same_tensors(
        {"all": student.transformer.state_dict()}, {"all": teacher.transformer.state_dict()}
    )
    assert student.config.distilled and student.config.guidance_scale == 1.0
    assert student.config.partition.micro_steps == 1
    assert student.config.partition.num_chunks == teacher.config.partition.num_chunks
    assert (student.config.name, student.config.strength) == ("tiny-student", 0.5)


def test_model_of_a_run_holds_averages_and_the_autoencoder_that_made_the_latents(
    trained: Path,
) -> None:
    _, states = load_states(trained / "model")
    tensors, _ = checkpoint_of(trained)
    for part in ("transformer", "text"):
        averages = {name: value.bfloat16() for name, value in tensors[f"average-{part}"].items()}
        found = {name: value.bfloat16() for name, value in states[part].items()}
        assert_same_tensors({"all": found}, {"all": averages})
        weights = {name: value.bfloat16() for name, value in tensors[f"model-{part}"].items()}
        assert any(not torch.equal(found[name], weights[name]) for name in weights)
    tensors, _ = checkpoint_of(trained / "autoencoder")
    averages = tensors["average-autoencoder"]
    rounded = {name: value.bfloat16().float() for name, value in averages.items()}
    assert_same_tensors({"all": states["autoencoder"]}, {"all": rounded})


def test_latents_beside_a_teacher_are_used_when_its_autoencoder_made_them(
    trained: Path, tmp_path: Path
) -> None:
    recipe = distillation_recipe("stage.steps=0")
    run_distillation(recipe, trained / "model", tmp_path / "one", RunOptions())
    assert not (tmp_path / "one" / "latents").exists()
    assert train(tmp_path / "other", 10_000, "seed=8", *NO_STEPS)
    shutil.copytree(trained / "model", tmp_path / "mixed" / "model")
    shutil.copytree(tmp_path / "other" / "latents", tmp_path / "mixed" / "latents")
    before = files_of(tmp_path / "mixed")
    run_distillation(recipe, tmp_path / "mixed" / "model", tmp_path / "two", RunOptions())
    assert (tmp_path / "two" / "latents" / "index.json").is_file()
    assert files_of(tmp_path / "mixed") == before


# Recipes that could not run to their end


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("task.mix.chunk_sizes=[1, 2, 3, 8]", "task.mix.chunk_sizes: 3 does not divide"),
        ("model.width=64;model.transformer.grid=[8, 4, 8]", "height 32 is not width 64"),
        ("data.latent_frames=4", "latent_frames 4 is not more than 4"),
        ("data.clips=0", "at least 1 clip"),
        ("quality.decay_share=2.0", "decay_share 2.0"),
        ("loop.batch_sise=4", "did you mean batch_size"),
    ],
)
def test_recipe_that_could_not_run_to_its_end_is_refused(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training_recipe(*change.split(";"))


def test_recipe_with_references_is_refused() -> None:
    changes = ("model.partition.num_reference=2", "model.partition.num_chunks=3")
    with pytest.raises(ConfigError, match="num_reference 2"):
        training_recipe(*changes)


def test_clips_too_short_for_windows_are_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="9 latent frames are too short"):
        train(tmp_path / "run", 10_000, "data.latent_frames=9")
    assert not (tmp_path / "run").exists()


# What is not finite


def line_trainer(task: LineTask, folder: Path, steps: int, **changes: int) -> Trainer:
    stage = Stage(name="line", steps=steps, learning_rate=0.05)
    config = LoopConfig(batch_size=4, accumulation=2, precision="float32", log_every=1, **changes)
    return Trainer(task, (stage,), config, folder)


def spoil_from(step: int, last: int = 10_000) -> Callable[[int, Tensor], Tensor]:
    return lambda now, x: x / 0 - x / 0 if step <= now <= last else x


def test_step_with_a_loss_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert line_trainer(LineTask(), tmp_path / "good", 3).run()
    with caplog.at_level(logging.WARNING):
        assert line_trainer(LineTask(spoil_from(3)), tmp_path / "bad", 4).run()
    good, bad = checkpoint_of(tmp_path / "good"), checkpoint_of(tmp_path / "bad")
    assert_same_tensors(bad[0], good[0])  # weights, statistics, averages, optimizer, task
    assert bad[1] == {"step": 4, "skipped": 1}
    lines = metrics_of(tmp_path / "bad")
    assert lines[3]["skipped"] == 1 and lines[3]["loss"] == "nan"
    assert all("skipped" not in line for line in lines[:3])
    assert "step 3 skipped" in caplog.text


def test_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    class Steep(LineTask):
        def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
            loss, logs = super().loss(step, samples)
            edge = (self.line.linear.weight.sum() * 0).sqrt() if step == 3 else 0
            return loss + edge, logs

    assert line_trainer(LineTask(), tmp_path / "good", 3).run()
    assert line_trainer(Steep(), tmp_path / "bad", 4).run()
    assert_same_tensors(checkpoint_of(tmp_path / "bad")[0], checkpoint_of(tmp_path / "good")[0])
    assert metrics_of(tmp_path / "bad")[3]["gradient_norm"] == "nan"


def test_training_goes_on_after_bad_steps(tmp_path: Path) -> None:
    task = LineTask(spoil_from(2, last=4))
    trainer = line_trainer(task, tmp_path, 10, max_skipped=3)
    assert trainer.run()
    assert trainer.skipped == 3
    assert task.committed == [0, 1, 5, 6, 7, 8, 9]


def test_run_ends_with_the_last_good_weights_after_too_many_bad_steps(tmp_path: Path) -> None:
    assert line_trainer(LineTask(), tmp_path / "good", 2).run()
    with pytest.raises(NumericsError, match=r"3 steps .* the last at step 5"):
        task = LineTask(spoil_from(2))
        line_trainer(task, tmp_path / "bad", 10, max_skipped=2, checkpoint_every=5).run()
    good, bad = checkpoint_of(tmp_path / "good"), checkpoint_of(tmp_path / "bad")
    assert_same_tensors(bad[0], good[0])
    assert bad[1] == {"step": 5, "skipped": 3}


def test_run_that_had_too_many_bad_steps_ends_again_at_the_next_one_only(tmp_path: Path) -> None:
    task = LineTask(spoil_from(2, last=4))
    with pytest.raises(NumericsError):
        line_trainer(task, tmp_path, 10, max_skipped=2).run()
    again = line_trainer(LineTask(spoil_from(8)), tmp_path, 10, max_skipped=2)
    assert again.resume() and again.step == 5
    with pytest.raises(NumericsError, match=r"4 steps .* the last at step 9"):
        again.run()


def test_statistics_of_the_autoencoder_are_kept_from_what_is_not_finite(tmp_path: Path) -> None:
    recipe = training_recipe()
    torch.manual_seed(0)
    autoencoder = Autoencoder(recipe.model.autoencoder)
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}

    class Bad(LineTask):
        def __init__(self) -> None:
            super().__init__()
            self.modules = {"autoencoder": autoencoder.train()}

        def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
            video = torch.full((1, 3, 4, 16, 16), float("inf"))
            return autoencoder.encode(video).square().mean(), {}

    assert line_trainer(Bad(), tmp_path, 1).run()
    assert_same_tensors({"all": autoencoder.state_dict()}, {"all": before})


def test_command_ends_with_8_after_too_many_bad_steps(
    trained: Path, trainer_launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert not train(run, ask=6 + 2 + 1)  # before the first step of the network
    ended = trainer_launcher.run(
        [*words_of(run), "--resume"],
        cwd=tmp_path,
        code=LOSS_FROM_STEP.format(step=4),
        seconds=FOREVER,
    )
    assert ended.code == 8, ended.stderr
    assert len(ended.errors) == 1 and "6 steps" in ended.errors[0]
    tensors, record = checkpoint_of(run)
    assert record == {"step": 10, "skipped": 6}
    assert all(bool(t.isfinite().all()) for t in tensors["model-transformer"].values())


# The commands


def test_dry_run_says_what_would_be_done_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(TRAIN), "-o", str(tmp_path / "run"), "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr()
    assert "autoencoder 6, base 2, task 4, generalize 4, quality 2" in output.err
    assert output.out == "" and not (tmp_path / "run").exists()


def test_command_on_a_run_that_exists_ends_with_2_and_a_hint(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(trained)) == 2
    errors = capsys.readouterr().err
    assert f"error: {trained} holds a run already" in errors
    assert "hint: go on with --resume" in errors


def test_command_with_another_recipe_names_the_key(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words_of(trained), "--resume", "--set", "loop.batch_size=8"]) == 2
    assert "differs in loop.batch_size" in capsys.readouterr().err


def test_distill_command_makes_a_student_of_a_run(
    trained: Path, distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["distill", "--config", str(DISTILL), "--teacher", str(trained), "-o", str(run)]
    assert main([*words, "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert f"done: {run / 'model'}" in output.err and output.out == ""
    assert_same_run(run, distilled)


def test_recipe_of_a_run_is_written_whole(trained: Path) -> None:
    written = json.loads((trained / "recipe.json").read_text())
    assert written["loop"]["gradient_clip"] == 1.0  # defaults too
    assert written["task"]["mix"]["chunk_sizes"] == [1, 2, 4, 8]
