"""`distill`: several guided steps of a trained model become one, in each segment at once."""

from __future__ import annotations

from typing import Annotated

import typer

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

__all__ = ["EXAMPLES", "distill"]

EXAMPLES = (
    "streamdit distill --config presets/train/shapes-64-distill.toml "
    "--teacher runs/shapes-64 -o runs/student",
    "streamdit distill --config presets/train/shapes-64-distill.toml "
    "--teacher runs/shapes-64 -o runs/student --resume",
)

TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher",
        metavar="RUN",
        show_default=False,
        help="The model to shorten: a training run or a model folder, not distilled.",
    ),
]


def distill(
    config: ConfigOption,
    teacher: TeacherOption,
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
    """Shorten a trained model to one network call for each chunk.

    The student needs no guidance: that of its teacher is baked in. RUN/model is a model folder
    from the first checkpoint on; --resume goes on from the newest one bit for bit.
    """
    from streamdit_cli import console
    from streamdit_cli.presets import apply_set, find_model, read_toml

    console.configure(quiet=quiet, verbose=verbose)
    table = apply_set(read_toml(config), changes or [])
    folder = find_model(teacher)[0]
    from streamdit_model.configuration import from_table
    from streamdit_model.recipes import DistillationRecipe
    from streamdit_model.runs import run_distillation

    recipe = from_table(DistillationRecipe, table)
    console.status(f"{recipe.stage.steps} steps from the teacher in {folder}")
    if not dry_run:
        run_until_signal(
            lambda options: run_distillation(recipe, folder, run, options),
            run,
            resume=resume,
            init_from=init_from,
            device=device,
            threads=threads,
            teacher=teacher,
        )
