"""`evaluate`: streams for captions of the shapes world, judged from their pixels."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamdit_model.evaluation import StreamScore
    from streamdit_model.shapes import Clip
    from streamdit_model.weights import Model

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = (
    "streamdit evaluate -m shapes --prompts 64 --seconds 20",
    "streamdit evaluate -m runs/shapes-64 --prompts 24 --seconds 8 --json scores.json",
    "streamdit evaluate -m shapes --drift 10 --diversity 64",
)

GROUPS = {"unseen captions": False, "held-out pairs": True}

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


def evaluate(
    model: ModelOption = None,
    prompts: PromptsOption = 64,
    seconds: SecondsOption = 20.0,
    batch: BatchOption = 16,
    drift: DriftOption = None,
    diversity: DiversityOption = None,
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
    from streamdit_cli.making import load_model
    from streamdit_cli.presets import find_model

    console.configure(quiet=quiet)
    _check_json_path(json_path, overwrite=overwrite)
    folder = find_model(model)[0]
    from streamdit_model.evaluation import (
        autoencoder_report,
        check_seconds,
        evaluation_clips,
        report,
    )

    check_seconds(seconds)
    if drift is not None:
        from streamdit_model.drift import check_minutes

        check_minutes(drift)
    loaded = load_model(folder, device=device, dtype=dtype, threads=threads)
    started = time.perf_counter()
    first_seed = 0 if seed is None else seed
    _print_cost(loaded, prompts, seconds, batch, guidance_scale)
    record: dict[str, Any] = {"model": loaded.config.name, "seconds": seconds, "seed": first_seed}
    for name, held_out in GROUPS.items():
        clips = evaluation_clips(prompts, first_seed + 1_000_003, held_out=held_out)
        scores = _scored(loaded, clips, seconds, first_seed, batch, guidance_scale, name)
        record[name] = report(scores)
    record["autoencoder"] = autoencoder_report(
        loaded, evaluation_clips(min(prompts, 16), first_seed + 2_000_003)
    )
    if drift is not None:
        record["drift"] = _drift(loaded, prompts, drift, first_seed, batch)
    if diversity is not None:
        record["diversity"] = _diversity(loaded, diversity, first_seed, batch)
    record["minutes"] = round((time.perf_counter() - started) / 60, 2)
    text = json.dumps(record, indent=1, allow_nan=False)
    if json_path == "-":
        console.result(text)
    else:
        _print_table(record)
        if json_path is not None:
            _write_json(Path(json_path), text + "\n")


def _check_json_path(json_path: str | None, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold."""
    from streamdit_cli.errors import OutputError

    if json_path in (None, "-"):
        return
    path = Path(json_path or "")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"--json {path} cannot be written", "choose another file")
    if path.exists() and not overwrite:
        raise OutputError(f"--json {path} exists", "another name, or replace it with -y")


def _write_json(path: Path, text: str) -> None:
    from streamdit_cli.errors import OutputError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json {path}: {error.strerror}") from error


def _print_cost(
    model: Model, prompts: int, seconds: float, batch: int, guidance_scale: float | None
) -> None:
    """Say how many network calls are ahead, before they are made."""
    from streamdit_cli import console

    partition = model.config.partition
    cycles = seconds * model.config.fps / (4 * partition.chunk_size) + partition.num_chunks - 1
    scale = model.config.guidance_scale if guidance_scale is None else guidance_scale
    calls = cycles * partition.micro_steps * (1 if scale == 1 else 2)
    rounds = -(-prompts // batch) * len(GROUPS)
    console.status(
        f"{prompts} streams of {seconds:g} s in {len(GROUPS)} groups: about "
        f"{calls * rounds:.0f} network calls of {min(batch, prompts)} streams"
    )


def _scored(
    model: Model,
    clips: Sequence[Clip],
    seconds: float,
    seed: int,
    batch: int,
    guidance_scale: float | None,
    name: str,
) -> list[StreamScore]:
    from streamdit_cli import console
    from streamdit_model.evaluation import score_streams

    scores = []
    for item in score_streams(
        model, clips, seconds, seed=seed, batch=batch, guidance_scale=guidance_scale
    ):
        scores.append(item)
        if len(scores) % batch == 0 or len(scores) == len(clips):
            right = sum(score.is_right() for score in scores)
            console.status(f"{name}: {len(scores)} of {len(clips)} streams, {right} right")
    return scores


def _drift(model: Model, prompts: int, minutes: float, seed: int, batch: int) -> dict[str, object]:
    from streamdit_cli import console
    from streamdit_model.drift import drift_report, score_drift
    from streamdit_model.evaluation import evaluation_clips

    clips = evaluation_clips(prompts, seed + 3_000_003)
    scores = []
    for item in score_drift(model, clips, minutes, seed=seed, batch=batch):
        scores.append(item)
        console.status(f"drift: {len(scores)} of {prompts} streams of {minutes:g} minutes")
    return drift_report(scores, minutes)


def _diversity(model: Model, num_seeds: int, seed: int, batch: int) -> dict[str, Any]:
    from streamdit_cli import console
    from streamdit_model.diversity import diversity_report

    record = {}
    for prompt, compared in diversity_report(model, num_seeds, seed=seed, batch=batch):
        record[prompt] = compared
        console.status(f"diversity: {num_seeds} streams of {prompt!r}")
    return record


def _print_table(record: dict[str, Any]) -> None:
    from streamdit_cli import console

    rows = []
    for name in GROUPS:
        group = record[name]
        entries = {"all five": group["clips_right"], **group["attributes"]}
        rows += [[name, attribute, *_percent(entry)] for attribute, entry in entries.items()]
    title = f"{record['model']}, {record['seconds']:g} s streams"
    console.table(title, ["captions", "attribute", "right", "95 % interval"], rows)
    autoencoder = record["autoencoder"]
    speed = record["unseen captions"]["speed"]
    measures = [
        ["right in the first half of windows", f"{record['unseen captions']['first_half']:.1%}"],
        ["right in the last half of windows", f"{record['unseen captions']['last_half']:.1%}"],
        ["speed within a tenth of the world's", "{} ({})".format(*_percent(speed))],
        ["autoencoder PSNR at frame 64", f"{autoencoder['psnr_frame_64']} dB"],
        ["autoencoder PSNR at frame 1000", f"{autoencoder['psnr_frame_1000']} dB"],
        ["edge energy over round-tripped truth", _ratio(record, "edge_energy")],
        ["step at chunk borders over round-tripped truth", _ratio(record, "border_step")],
        ["step at latent borders over round-tripped truth", _ratio(record, "latent_step")],
    ]
    console.table("measures", ["measure", "value"], measures)
    if "drift" in record:
        _print_drift(record["drift"])
    if "diversity" in record:
        _print_diversity(record["diversity"])


def _print_drift(drift: dict[str, Any]) -> None:
    from streamdit_cli import console

    first, last = drift["first_minute"], drift["last_minute"]
    rows = [[name, f"{first[name]:.1%}", f"{last[name]:.1%}", ""] for name in first]
    for name, value in drift.items():
        if isinstance(value, dict) and "interval" in value:
            mean, interval = value["mean"], value["interval"]
            change = "unknown" if mean is None else f"{mean:+.4f}"
            sure = "" if interval is None else f" +- {interval:.4f}"
            rows.append([name.replace("_", " "), "", "", f"{change}{sure} ({value['of']} streams)"])
    title = f"drift: {drift['streams']} streams of {drift['minutes']:g} minutes"
    console.table(title, ["measure", "first minute", "last minute", "change"], rows)


def _print_diversity(diversity: dict[str, Any]) -> None:
    from streamdit_cli import console

    rows = []
    for prompt, compared in diversity.items():
        for name, entry in compared.items():
            p = "too few seen" if entry["p"] is None else f"{entry['p']:.4f}"
            rows.append([prompt, name, p, f"{entry['made']} and {entry['world']}"])
    columns = ["prompt", "quantity", "p (Kolmogorov-Smirnov)", "measured, model and world"]
    console.table("diversity against the world", columns, rows)


def _percent(entry: dict[str, float]) -> tuple[str, str]:
    return f"{entry['share']:.1%}", f"{entry['low']:.1%} to {entry['high']:.1%}"


def _ratio(record: dict[str, Any], name: str) -> str:
    made, truth = record["unseen captions"][name], record["autoencoder"][name]
    return "no object seen" if made is None or not truth else f"{made / truth:.3f}"
