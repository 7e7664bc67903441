"""`train`: from a recipe to a model folder, autoencoder and network, resumable at any time."""

from __future__ import annotations

from streamdit_cli.options import (
    ConfigOption,
    DeviceOption,
    QuietOption,
    RunOption,
    SetOption,
    ThreadsOption,
    VerboseOption,
)
from streamdit_cli.run_options import DryRunOption, InitFromOption, ResumeOption, run_until_signal

__all__ = ["EXAMPLES", "train"]

EXAMPLES = (
    "streamdit train --config presets/train/shapes-64.toml -o runs/shapes-64",
    "streamdit train --config presets/train/shapes-64.toml -o runs/shapes-64 --resume",
    "streamdit train --config presets/train/shapes-64.toml -o runs/try --set base.steps=10",
)


def train(
    config: ConfigOption,
    run: RunOption,
    changes: SetOption = None,
    resume: ResumeOption = False,
    init_from: InitFromOption = None,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model stage by stage from one recipe.

    RUN/model is a model folder from the first checkpoint on, and -m RUN works. Ctrl-C and SIGTERM
    save a checkpoint first; --resume goes on from it bit for bit.
    """
    from streamdit_cli import console
    from streamdit_cli.presets import apply_set, read_toml

    console.configure(quiet=quiet, verbose=verbose)
    table = apply_set(read_toml(config), changes or [])
    from streamdit_model.configuration import from_table
    from streamdit_model.recipes import TrainingRecipe
    from streamdit_model.runs import run_training

    recipe = from_table(TrainingRecipe, table)
    stages = ", ".join(f"{stage.name} {stage.steps}" for stage in recipe.stages)
    console.status(f"steps: autoencoder {recipe.autoencoder.stage.steps}, {stages}")
    if not dry_run:
        run_until_signal(
            lambda options: run_training(recipe, run, options),
            run,
            resume=resume,
            init_from=init_from,
            device=device,
            threads=threads,
        )
