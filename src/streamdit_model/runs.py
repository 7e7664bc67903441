"""A run from a recipe to an upload-ready model folder, stage after stage, resumable everywhere.

RUN/recipe.json         what the run was started with; it goes on with nothing else
RUN/autoencoder/        checkpoints and metrics of the autoencoder stage
RUN/latents/            the latent cache
RUN/checkpoints/, RUN/metrics.jsonl   of the network
RUN/model/              the averaged weights in bfloat16, written with every checkpoint
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamdit_model.autoencoder import Autoencoder
from streamdit_model.configuration import to_table
from streamdit_model.data import ClipSet, LatentCache, encode_shapes, fingerprint, is_cache_of
from streamdit_model.distillation import DistillationTask
from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.model_config import ModelConfig
from streamdit_model.recipes import DataRecipe, DistillationRecipe, TrainingRecipe
from streamdit_model.reconstruction import ReconstructionTask
from streamdit_model.storage import remove_leftovers
from streamdit_model.text import TextEncoder
from streamdit_model.trainer import LoopConfig, Stage, Task, Trainer
from streamdit_model.training import FlowTask, check_clip_length
from streamdit_model.transformer import StreamDiT
from streamdit_model.weights import load_states, meta_modules, save

__all__ = ["RunOptions", "run_distillation", "run_training"]

States = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run is run, whatever its recipe.

    Args:
        device: where it trains.
        resume: go on with what the folder holds; without it the folder must be new.
        init_from: a model folder whose weights the run begins with; its autoencoder is kept.
        report: called with one line at each turn of the run.
        should_stop: asked before each step; True saves a checkpoint and ends the run.
        base_model: the Hub repository that the weights come from, for the model card.
    """

    device: str = "cpu"
    resume: bool = False
    init_from: Path | None = None
    report: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    base_model: str = ""


def run_training(recipe: TrainingRecipe, folder: Path, options: RunOptions) -> bool:
    """Train autoencoder and network; return False when the run was stopped before its end.

    Raises:
        ConfigError: the folder holds a run and `resume` was not given, or another recipe.
        WeightsError: a damaged checkpoint, or weights in `init_from` that do not fit.
        NumericsError: the loss is no longer finite.
    """
    lead_in = _encoder_lead_in(recipe.model)
    check_clip_length(recipe.data.latent_frames, recipe.model.transformer.grid[0], lead_in)
    states = None if options.init_from is None else load_states(options.init_from)[1]
    _open_run(folder, to_table(recipe) | _origin("init_from", states), options.resume)
    autoencoder = _train_autoencoder(recipe, folder, options, states)
    if autoencoder is None:
        return False
    clips = _clip_set(recipe.data, recipe.model, recipe.seed)
    cache = _latents(clips, folder / "latents", autoencoder, recipe.loop.precision, options)
    if cache is None:
        return False
    task = _flow_task(recipe, cache, lead_in, options.device, states)

    def export(averages: States, step: int) -> None:
        parts = (averages["transformer"], autoencoder.state_dict(), averages["text"])
        how = "trained with mixed partitions"
        card = _card(recipe.model, step, how, options.base_model)
        save(folder / "model", recipe.model, *parts, card=card)

    return _train(task, recipe.stages, recipe.loop, folder, export, options)


def _flow_task(
    recipe: TrainingRecipe,
    cache: LatentCache,
    lead_in: int,
    device: str,
    states: States | None,
) -> FlowTask:
    """Build the networks, with new weights or those that were given, and what trains them."""
    torch.manual_seed(recipe.seed + 1)
    transformer = StreamDiT(recipe.model.transformer).to(device)
    text_encoder = TextEncoder(recipe.model.text).to(device)
    if states is not None:
        _take_weights(transformer, states, "transformer")
        _take_weights(text_encoder, states, "text")
    return FlowTask(
        transformer,
        text_encoder,
        cache,
        {stage.name: stage.mix for stage in recipe.stages},
        lead_in=lead_in,
        seed=recipe.seed,
        gamma=recipe.model.partition.gamma,
        gamma_parameter=recipe.model.partition.gamma_parameter,
        compile_blocks=recipe.compile,
    )


def run_distillation(
    recipe: DistillationRecipe, teacher_folder: Path, folder: Path, options: RunOptions
) -> bool:
    """Distil a trained model into one step a segment; return False when stopped before the end.

    Args:
        recipe: how.
        teacher_folder: a model folder, undistilled; latents beside it (RUN/latents) are used when
            its autoencoder made them.
        folder: of the new run.
        options: how the run is run; `init_from` gives the student other first weights.

    Raises:
        ConfigError: as `run_training`, or the teacher is distilled already.
        WeightsError: as `run_training`.
        NumericsError: the loss is no longer finite.
    """
    config, states = load_states(teacher_folder)
    if config.distilled:
        raise ConfigError(f"the model {config.name} is distilled already; give its teacher")
    first = None if options.init_from is None else load_states(options.init_from)[1]
    origins = _origin("teacher", states) | _origin("init_from", first)
    _open_run(folder, to_table(recipe) | origins, options.resume)
    torch.manual_seed(recipe.seed)
    autoencoder = Autoencoder(config.autoencoder).to(options.device).eval()
    _take_weights(autoencoder, states, "autoencoder")
    beside = teacher_folder.parent / "latents"
    latents = beside if is_cache_of(beside, autoencoder) else folder / "latents"
    clips = _clip_set(recipe.data, config, recipe.seed)
    cache = _latents(clips, latents, autoencoder, recipe.loop.precision, options)
    if cache is None:
        return False
    student = replace(
        config,
        name=recipe.name,
        partition=replace(config.partition, micro_steps=1),
        distilled=True,
        guidance_scale=1.0,
        strength=recipe.strength,
    )
    task = _distillation_task(recipe, student, cache, options.device, states, first or states)

    def export(averages: States, step: int) -> None:
        parts = (averages["transformer"], states["autoencoder"], states["text"])
        card = _card(student, step, f"distilled from {config.name}", options.base_model)
        save(folder / "model", student, *parts, card=card)

    stages = (replace(recipe.stage, name="distill"),)
    return _train(task, stages, recipe.loop, folder, export, options)


def _distillation_task(
    recipe: DistillationRecipe,
    student: ModelConfig,
    cache: LatentCache,
    device: str,
    teacher_states: States,
    student_states: States,
) -> DistillationTask:
    networks = []
    for states in (student_states, teacher_states):
        network = StreamDiT(student.transformer).to(device)
        _take_weights(network, states, "transformer")
        networks.append(network)
    text_encoder = TextEncoder(student.text).to(device)
    _take_weights(text_encoder, teacher_states, "text")
    return DistillationTask(
        networks[0],
        networks[1],
        text_encoder,
        cache,
        student.partition,
        recipe.distillation,
        batch_size=recipe.loop.batch_size,
        lead_in=_encoder_lead_in(student),
        seed=recipe.seed,
        compile_blocks=recipe.compile,
    )


def _train(
    task: Task,
    stages: tuple[Stage, ...],
    loop: LoopConfig,
    folder: Path,
    export: Callable[[States, int], None],
    options: RunOptions,
) -> bool:
    """Run the stages, exporting a model with every checkpoint; False when stopped before the end.

    Args:
        export: writes `folder/model` from the averages and the step.
    """

    def on_sample(step: int) -> None:
        export(trainer.averages.values, step)
        options.report(f"step {step} of {trainer.total_steps}: wrote {folder / 'model'}")

    trainer = Trainer(
        task, stages, loop, folder, on_sample=on_sample, should_stop=options.should_stop
    )
    if trainer.resume():
        options.report(f"going on from step {trainer.step} of {trainer.total_steps}")
    return trainer.run()


def _open_run(folder: Path, recipe: dict[str, Any], resume: bool) -> None:
    """Make the folder of a new run, or check that the recipe is the one it was started with."""
    path = folder / "recipe.json"
    text = json.dumps(recipe, indent=1) + "\n"
    if path.exists():
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already", "go on with --resume, or choose another folder"
            )
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != json.loads(text):
            keys = sorted(set(_changed(before, json.loads(text))))
            raise ConfigError(
                f"the recipe of {folder} differs in {', '.join(keys[:3])}",
                "go on with the recipe the run was started with, or start another from its "
                "weights with --init-from",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, re.compile(r"recipe\.json"))
    temporary = path.with_name(f"recipe.json.partial-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _changed(before: object, after: object, where: str = "") -> list[str]:
    """Name the keys in which two tables differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [f"{where}.{key}" if where else str(key) for key in before.keys() | after.keys()]
        pairs = [(before.get(key), after.get(key)) for key in before.keys() | after.keys()]
        return [
            found
            for name, (old, new) in zip(names, pairs, strict=True)
            for found in _changed(old, new, name)
        ]
    return [] if before == after else [where]


def _train_autoencoder(
    recipe: TrainingRecipe, folder: Path, options: RunOptions, states: States | None
) -> Autoencoder | None:
    """Return the autoencoder as the model folder will hold it, or None when stopped before."""
    torch.manual_seed(recipe.seed)
    autoencoder = Autoencoder(recipe.model.autoencoder).to(options.device)
    if states is not None:
        _take_weights(autoencoder, states, "autoencoder")
        return autoencoder.eval()
    task = ReconstructionTask(autoencoder, recipe.autoencoder.reconstruction, recipe.seed)
    trainer = Trainer(
        task,
        (replace(recipe.autoencoder.stage, name="autoencoder"),),
        recipe.autoencoder.loop,
        folder / "autoencoder",
        should_stop=options.should_stop,
    )
    if trainer.resume():
        options.report(f"autoencoder: going on from step {trainer.step}")
    if not trainer.run():
        return None
    autoencoder.load_state_dict(trainer.averages.values["autoencoder"])
    return _rounded(autoencoder).eval()


@torch.no_grad()
def _rounded(module: nn.Module) -> Autoencoder:
    """Round the weights to bfloat16, as the model folder will hold them."""
    for value in module.state_dict().values():
        value.copy_(value.to(torch.bfloat16))
    assert isinstance(module, Autoencoder)
    return module


def _clip_set(data: DataRecipe, model: ModelConfig, seed: int) -> ClipSet:
    return ClipSet(
        number=data.clips,
        latent_frames=data.latent_frames,
        resolution=model.height,
        switch_share=data.switch_share,
        seed=seed,
    )


def _latents(
    clips: ClipSet, folder: Path, autoencoder: Autoencoder, precision: str, options: RunOptions
) -> LatentCache | None:
    """Open the latents of a folder, encoded first where they are missing; None when stopped."""
    if not (folder / "index.json").is_file():
        options.report(f"encoding {clips.number} clips to {folder}")
        is_complete = encode_shapes(
            folder,
            autoencoder,
            clips,
            precision=precision,
            on_progress=lambda done: options.report(f"{done} clips encoded"),
            should_stop=options.should_stop,
        )
        if not is_complete:
            return None
    return LatentCache.open(folder, autoencoder)


def _encoder_lead_in(config: ModelConfig) -> int:
    autoencoder = meta_modules(config)["autoencoder"]
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder.encoder_lead_in


def _origin(name: str, states: States | None) -> dict[str, str]:
    """What recipe.json says of weights that a run began with, so that it goes on with no others."""
    if states is None:
        return {}
    every = {f"{part}.{key}": t for part, state in states.items() for key, t in state.items()}
    return {name: fingerprint(every)}


def _take_weights(module: nn.Module, states: States, part: str) -> None:
    """Load a part of a model.

    Raises:
        WeightsError: names or shapes differ from the module's; some are named.
    """
    found = {name: tuple(value.shape) for name, value in states[part].items()}
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names = found.keys() | expected.keys()
    wrong = sorted(name for name in names if found.get(name) != expected.get(name))
    if wrong:
        raise WeightsError(
            f"the {part} to begin with does not fit the model: {', '.join(wrong[:3])}",
            "its configuration must be that of the model to be trained",
        )
    module.load_state_dict(states[part])


def _card(config: ModelConfig, step: int, how: str, base_model: str) -> str:
    """Return the model card, with the head that the Hub reads."""
    partition = config.partition
    base = f"base_model: {base_model}\n" if base_model else ""
    return (
        "---\nlicense: apache-2.0\nlibrary_name: streamdit\npipeline_tag: text-to-video\n"
        f"{base}---\n"
        f"# {config.name}\n\n"
        f"A StreamDiT (arXiv 2507.03745) of the shapes world, {how}, {step} steps.\n"
        f"{config.width}x{config.height} at {config.fps:g} fps; N={partition.num_chunks}, "
        f"c={partition.chunk_size}, s={partition.micro_steps}.\n\n"
        'Use: `streamdit generate -m FOLDER -p "a large red star bouncing on a navy background"`\n'
    )
