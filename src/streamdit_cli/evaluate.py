"""`evaluate`: streams for captions of the shapes world, judged from their pixels."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from streamdit_cli.options import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
    parse_seconds,
)

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = (
    "streamdit evaluate -m shapes --prompts 64 --seconds 20",
    "streamdit evaluate -m runs/shapes-64 --drift 10 --diversity 64 --json scores.json",
    "streamdit evaluate --suite paper -m runs/shapes-64 --student shapes --prompts 16 --seconds 8",
)

PromptsOption = Annotated[
    int, typer.Option("--prompts", metavar="N", min=1, max=100_000, help="Captions in each group.")
]

SecondsOption = Annotated[
    float,
    typer.Option("--seconds", metavar="TIME", parser=parse_seconds, help="Length of each stream."),
]

BatchOption = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, max=4096, help="Streams run side by side.")
]

DriftOption = Annotated[
    float | None,
    typer.Option(
        "--drift",
        metavar="MINUTES",
        help="Also compare last and first minute of --prompts streams this long.",
    ),
]

DiversityOption = Annotated[
    int | None,
    typer.Option(
        "--diversity",
        metavar="SEEDS",
        min=8,
        max=100_000,
        help="Also compare so many streams of one prompt, for each motion, with the world.",
    ),
]


SuiteOption = Annotated[
    Literal["paper"] | None,
    typer.Option(
        "--suite",
        help="Compare the ways to make long video instead: -m is the teacher, not distilled.",
        rich_help_panel="Suite",
        show_default=False,
    ),
]

StudentOption = Annotated[
    str | None,
    typer.Option(
        "--student",
        metavar="MODEL",
        show_default=False,
        help="Of --suite: the model distilled from -m.",
        rich_help_panel="Suite",
    ),
]

AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="NAME=MODEL",
        show_default=False,
        help="Of --suite: one more undistilled model; repeatable.",
        rich_help_panel="Suite",
    ),
]


def evaluate(
    model: ModelOption = None,
    prompts: PromptsOption = 64,
    seconds: SecondsOption = 20.0,
    batch: BatchOption = 16,
    drift: DriftOption = None,
    diversity: DiversityOption = None,
    suite: SuiteOption = None,
    student: StudentOption = None,
    against: AgainstOption = None,
    seed: SeedOption = None,
    guidance_scale: GuidanceOption = None,
    json_path: JsonOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Score a model: does its video show what the captions say?

    Captions are of the shapes world, none seen in training: half of them of known pairs of color
    and shape, half of held-out pairs. A stream is right when all attributes are, in every 2 s.
    """
    from streamdit_cli import console
    from streamdit_cli.answers import check_answer
    from streamdit_cli.score_tables import print_scores, print_suite
    from streamdit_cli.scoring import Scoring, check_lengths, score_model, score_suite

    console.configure(quiet=quiet)
    check_answer(json_path, overwrite=overwrite)
    loading = {"device": device, "dtype": dtype, "threads": threads}
    scoring = Scoring(prompts=prompts, seconds=seconds, seed=seed or 0, batch=batch)
    started = time.perf_counter()
    if suite is None:
        _refuse({"--student": student, "--against": against}, "without --suite paper")
        check_lengths(seconds, drift)
        record = score_model(
            model, loading, scoring, guidance_scale, drift=drift, diversity=diversity
        )
    else:
        others = {"--drift": drift, "--diversity": diversity, "--guidance-scale": guidance_scale}
        _refuse(others, "with --suite")
        check_lengths(seconds, None)
        record = score_suite(model, student, against or (), loading, scoring)
    record["minutes"] = round((time.perf_counter() - started) / 60, 2)
    text = json.dumps(record, indent=1, allow_nan=False)
    if json_path == "-":
        console.result(text)
        return
    print_scores(record) if suite is None else print_suite(record)
    if json_path is not None:
        _write_json(Path(json_path), text + "\n")


def _refuse(given: dict[str, object], where: str) -> None:
    """Refuse options that would have no effect."""
    from streamdit_cli.errors import UsageError

    for option, value in given.items():
        if value is not None and value != []:
            raise UsageError(f"{option} has no effect {where}", f"leave out {option}")


def _write_json(path: Path, text: str) -> None:
    from streamdit_cli.errors import OutputError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json {path}: {error.strerror}") from error
