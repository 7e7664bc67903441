"""What `train` and `distill` share: their options, and a run that signals end with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamdit_cli.errors import OutputError, Stopped

if TYPE_CHECKING:
    from streamdit_model.runs import RunOptions

__all__ = ["DryRunOption", "InitFromOption", "ResumeOption", "run_until_signal"]

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run.")
]

InitFromOption = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="MODEL",
        show_default=False,
        help="Begin with the weights of another model; its autoencoder is kept.",
    ),
]

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check the recipe, say what would be done, and stop.")
]


def run_until_signal(
    work: Callable[[RunOptions], bool],
    run: Path,
    *,
    resume: bool,
    init_from: str | None,
    device: str | None,
    threads: int | None,
    teacher: str | None = None,
) -> None:
    """Do the work of a run; a signal asks it to save a checkpoint and leave.

    Args:
        work: gets the options, returns False when it was stopped.
        run: the folder.
        resume, init_from, device, threads, teacher: as on the command line.

    Raises:
        Stopped: a signal came, and a checkpoint was saved.
        OutputError: the folder cannot be written.
    """
    import torch

    from streamdit_cli import console
    from streamdit_cli.presets import find_model, find_repository
    from streamdit_cli.signals import Signals
    from streamdit_model.runs import RunOptions

    if threads is not None:
        torch.set_num_threads(threads)
    with Signals() as signals:
        asked: list[bool] = []
        base = teacher or init_from
        options = RunOptions(
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            resume=resume,
            init_from=None if init_from is None else find_model(init_from)[0],
            report=console.status,
            should_stop=lambda: bool(asked),
            base_model=base if base and find_repository(base) is not None else "",
        )
        signals.be_patient(lambda: asked.append(True))
        try:
            finished = work(options)
        except OSError as error:
            raise OutputError(
                f"cannot write {error.filename or run}: {error.strerror or error}",
                "what was saved before is whole; make room and go on with --resume",
            ) from error
        if not finished and signals.received is not None:
            raise Stopped(
                signals.received,
                f"stopped by {signals.name}; a checkpoint is in {run}",
                "go on with --resume",
            )
    console.summary(f"done: {run / 'model'}")
