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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from streamdit_model.autoencoder import Autoencoder
from streamdit_model.configuration import to_table
from streamdit_model.data import LatentCache, encode_shapes
from streamdit_model.distillation import DistillationTask
from streamdit_model.errors import ConfigError
from streamdit_model.model_config import ModelConfig
from streamdit_model.recipes import DataRecipe, DistillationRecipe, TrainingRecipe
from streamdit_model.reconstruction import ReconstructionTask
from streamdit_model.text import TextEncoder
from streamdit_model.trainer import LoopConfig, Trainer
from streamdit_model.training import FlowTask
from streamdit_model.transformer import StreamDiT
from streamdit_model.weights import load_states, save

__all__ = ["RunOptions", "run_distillation", "run_training"]

TrainedStates = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run is run, whatever its recipe.

    Args:
        device: where it trains.
        resume: go on with what the folder holds; without it the folder must be new.
        init_from: a model folder whose weights the run begins with; its autoencoder is kept.
        report: called with one line at each turn of the run.
        should_stop: asked before each step; True saves a checkpoint and ends the run.
    """

    device: str = "cpu"
    resume: bool = False
    init_from: Path | None = None
    report: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False


def run_training(recipe: TrainingRecipe, folder: Path, options: RunOptions) -> bool:
    """Train autoencoder and network; return False when the run was stopped before its end.

    Raises:
        ConfigError: the folder holds a run and `resume` was not given, or another recipe.
        WeightsError: a damaged checkpoint, or weights in `init_from` that do not fit.
        NumericsError: the loss is no longer finite.
    """
    _open_run(folder, to_table(recipe), options.resume)
    states = load_states(options.init_from)[1] if options.init_from is not None else None
    autoencoder = _train_autoencoder(recipe, folder, options, states)
    if autoencoder is None:
        return False
    size = recipe.model.height
    cache = _latents(
        recipe.data, folder / "latents", autoencoder, size, recipe.seed, recipe.loop, options
    )
    torch.manual_seed(recipe.seed + 1)
    transformer = StreamDiT(recipe.model.transformer).to(options.device)
    text_encoder = TextEncoder(recipe.model.text).to(options.device)
    if states is not None:
        transformer.load_state_dict(states["transformer"])
        text_encoder.load_state_dict(states["text"])
    task = FlowTask(
        transformer,
        text_encoder,
        cache,
        {stage.name: stage.mix for stage in recipe.stages},
        lead_in=autoencoder.encoder_lead_in,
        seed=recipe.seed,
        gamma=recipe.model.partition.gamma,
        gamma_parameter=recipe.model.partition.gamma_parameter,
        compile_blocks=recipe.compile,
    )

    def export(step: int) -> None:
        averages = trainer.averages.values
        parts = (averages["transformer"], autoencoder.state_dict(), averages["text"])
        card = _card(recipe.model, step, "trained with mixed partitions")
        save(folder / "model", recipe.model, *parts, card=card)
        options.report(f"step {step} of {trainer.total_steps}: wrote {folder / 'model'}")

    trainer = Trainer(
        task,
        recipe.stages,
        recipe.loop,
        folder,
        on_sample=export,
        should_stop=options.should_stop,
    )
    if trainer.resume():
        options.report(f"going on from step {trainer.step} of {trainer.total_steps}")
    return trainer.run()


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
    _open_run(folder, to_table(recipe), options.resume)
    parts = {name: {k: v.float() for k, v in state.items()} for name, state in states.items()}
    first = load_states(options.init_from)[1] if options.init_from is not None else parts
    networks = [StreamDiT(config.transformer).to(options.device) for _ in range(2)]
    for network, state in zip(networks, (first["transformer"], parts["transformer"]), strict=True):
        network.load_state_dict(state)
    text_encoder = TextEncoder(config.text).to(options.device)
    text_encoder.load_state_dict(parts["text"])
    autoencoder = Autoencoder(config.autoencoder).to(options.device).eval()
    autoencoder.load_state_dict(parts["autoencoder"])
    beside = teacher_folder.parent / "latents"
    latents = beside if (beside / "index.json").is_file() else folder / "latents"
    cache = _latents(
        recipe.data, latents, autoencoder, config.height, recipe.seed, recipe.loop, options
    )
    student_config = replace(
        config,
        name=recipe.name,
        partition=replace(config.partition, micro_steps=1),
        distilled=True,
        guidance_scale=1.0,
        strength=recipe.strength,
    )
    task = DistillationTask(
        networks[0],
        networks[1],
        text_encoder,
        cache,
        student_config.partition,
        recipe.distillation,
        batch_size=recipe.loop.batch_size,
        lead_in=autoencoder.encoder_lead_in,
        seed=recipe.seed,
        compile_blocks=recipe.compile,
    )

    def export(step: int) -> None:
        student = trainer.averages.values["transformer"]
        card = _card(student_config, step, f"distilled from {config.name}")
        save(
            folder / "model",
            student_config,
            student,
            parts["autoencoder"],
            parts["text"],
            card=card,
        )
        options.report(f"step {step} of {trainer.total_steps}: wrote {folder / 'model'}")

    trainer = Trainer(
        task,
        (replace(recipe.stage, name="distill"),),
        recipe.loop,
        folder,
        on_sample=export,
        should_stop=options.should_stop,
    )
    if trainer.resume():
        options.report(f"going on from step {trainer.step} of {trainer.total_steps}")
    return trainer.run()


def _open_run(folder: Path, recipe: dict[str, object], resume: bool) -> None:
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
    temporary = path.with_name(f"recipe.json.{os.getpid()}")
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
    recipe: TrainingRecipe, folder: Path, options: RunOptions, states: TrainedStates | None
) -> Autoencoder | None:
    """Return the autoencoder as the model folder will hold it, or None when stopped before."""
    torch.manual_seed(recipe.seed)
    autoencoder = Autoencoder(recipe.model.autoencoder).to(options.device)
    if states is not None:
        autoencoder.load_state_dict(states["autoencoder"])
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


def _latents(
    data: DataRecipe,
    folder: Path,
    autoencoder: Autoencoder,
    resolution: int,
    seed: int,
    loop: LoopConfig,
    options: RunOptions,
) -> LatentCache:
    if not (folder / "index.json").is_file():
        options.report(f"encoding {data.clips} clips to {folder}")
        encode_shapes(
            folder,
            autoencoder,
            clips=data.clips,
            latent_frames=data.latent_frames,
            resolution=resolution,
            switch_share=data.switch_share,
            seed=seed,
            precision=loop.precision,
            on_progress=lambda done: options.report(f"{done} clips encoded"),
        )
    return LatentCache.open(folder, autoencoder)


def _card(config: ModelConfig, step: int, how: str) -> str:
    """Return the model card."""
    partition = config.partition
    return (
        f"# {config.name}\n\n"
        f"A StreamDiT (arXiv 2507.03745) of the shapes world, {how}, {step} steps.\n"
        f"{config.width}x{config.height} at {config.fps:g} fps; N={partition.num_chunks}, "
        f"c={partition.chunk_size}, s={partition.micro_steps}.\n\n"
        'Use: `streamdit generate -m FOLDER -p "a large red star bouncing on a navy background"`\n'
    )
