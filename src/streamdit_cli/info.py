"""`info`: show a model, preset, run, video or state, check its health, or draw a partition.

It loads no weights: a model is described by its configuration and the sizes of its files.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamdit_cli.options import JsonOption, OverwriteOption

if TYPE_CHECKING:
    from streamdit_model.partition import Partition

__all__ = ["EXAMPLES", "info"]

EXAMPLES = (
    "streamdit info shapes",
    "streamdit info star.mp4 --health",
    "streamdit info --partition K=0,N=8,c=2,s=1",
)

_LARGEST_DRAWING = 20_000  # cells
_LONGEST_LINE = 65_536  # bytes at the end of metrics.jsonl that are looked at
_PRESET_WORDS = ("summary", "licence", "needs", "measured")

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]",
        show_default=False,
        help="A preset, model folder, run, video, state, or OWNER/NAME that was pulled. Without "
        "it: the default model.",
    ),
]

PartitionOption = Annotated[
    str | None,
    typer.Option(
        "--partition",
        metavar="K=0,N=8,c=2,s=1",
        show_default=False,
        help="Draw tau of every latent frame at every micro step instead.",
    ),
]

HealthOption = Annotated[
    bool,
    typer.Option(
        "--health",
        help="Watch a video to its end: black, white, frozen, drifting, blurred, with seams?",
    ),
]


def info(
    target: TargetArgument = None,
    partition: PartitionOption = None,
    health: HealthOption = False,
    json_path: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show a model, preset, run or video, or draw a partition.

    The answer is a table on standard output, or JSON with --json. With --health a video is judged
    in windows of 4 s; the exit code tells whether it could be read, not whether it is well.
    """
    from streamdit_cli.answers import answer
    from streamdit_cli.errors import UsageError

    if partition is not None and target is not None:
        raise UsageError(f"--partition draws a partition by itself; {target!r} has no place here")
    if health and (partition is not None or target is None or not _is_file(target)):
        what = "no target" if target is None else repr(target)
        raise UsageError(f"--health needs a video file, not {what}", "info VIDEO --health")
    if health and target is not None:
        from streamdit_cli.health_log import describe_health

        title, record, columns, rows = describe_health(Path(target))
    elif partition is not None:
        title, record, columns, rows = _describe_partition(partition)
    elif target is not None and _is_file(target):
        is_state = _is_state(Path(target))
        describe = _describe_state if is_state else _describe_video
        title, record, columns, rows = describe(Path(target))
    else:
        title, record, columns, rows = _describe_model(target)
    answer(title, record, columns, rows, json_path, overwrite=overwrite)


Description = tuple[str, dict[str, Any], list[str], list[list[str]]]


def _is_file(target: str) -> bool:
    """Whether the target is something that can be read as a video; a preset name never is."""
    from streamdit_cli.presets import preset_names

    try:
        return target not in preset_names() and Path(target).exists() and not Path(target).is_dir()
    except (OSError, ValueError):
        return False


def _describe_partition(text: str) -> Description:
    """Return the schedule of a partition: a row for each chunk, a column for each micro step."""
    from streamdit_cli.errors import UsageError
    from streamdit_model.partition import Partition

    partition = Partition.from_text(text)
    if partition.num_chunks * partition.micro_steps > _LARGEST_DRAWING:
        raise UsageError(
            f"{partition.num_chunks} chunks x {partition.micro_steps} micro steps are too many "
            f"to draw; at most {_LARGEST_DRAWING}"
        )
    steps = range(partition.micro_steps)
    columns = ["chunk", "latent frames", *(f"step {step}" for step in steps), "then"]
    rows = []
    for row in partition.rows():
        first, last = row.frames[0], row.frames[-1]
        frames = str(first) if first == last else f"{first}-{last}"
        if row.chunk is None:
            name, then = "reference", "forgotten"
        else:
            name, then = str(row.chunk), f"chunk {row.chunk - 1}" if row.chunk else "leaves"
        rows.append([name, frames, *(f"{tau:.4g}" for tau in row.tau), then])
    record = {
        "kind": "partition",
        **asdict(partition),
        "buffer_length": partition.buffer_length,
        "total_steps": partition.total_steps,
        "rows": [asdict(row) for row in partition.rows()],
    }
    return f"{_partition_words(partition)}; tau: 0 noise, 1 video", record, columns, rows


def _partition_words(partition: Partition) -> str:
    """Return `K=0 N=8 c=2 s=1: buffer of B=16 latent frames, T=8 steps`."""
    return (
        f"K={partition.num_reference} N={partition.num_chunks} c={partition.chunk_size} "
        f"s={partition.micro_steps}: buffer of B={partition.buffer_length} latent frames, "
        f"T={partition.total_steps} steps"
    )


def _is_state(path: Path) -> bool:
    """Whether a file begins as safetensors do: a length, and JSON; no video does."""
    try:
        with open(path, "rb") as file:
            return file.read(10)[8:] == b'{"'
    except OSError:
        return False


def _describe_state(path: Path) -> Description:
    """Return what the state of a stream can be gone on with."""
    from streamdit_cli.keeping import read_kept

    kept = read_kept(path)
    settings, about = kept.settings, kept.about
    fps = about.get("fps")
    record = {
        "kind": "state",
        "path": str(path),
        "num_frames": kept.num_frames,
        "seconds": kept.num_frames / fps if fps else None,
        "prompts": kept.history,
        "length": settings["num_frames"],
        **{key: settings[key] for key in ("seed", "guidance_scale", "negative_prompt")},
        "model": about.get("model"),
        "fingerprint": kept.fingerprint,
        "plan": kept.plan,
        "bytes": path.stat().st_size,
    }
    made = "" if not fps else f", {kept.num_frames / fps:.2f} s at {fps:g} FPS"
    rows = [
        ["state of", record["model"] or f"a model {kept.fingerprint[:12]}"],
        ["made", f"{kept.num_frames} frames{made}"],
        ["length", "without end" if record["length"] is None else f"{record['length']} frames"],
    ]
    rows += [[f"prompt at {seconds:g} s", prompt or "none"] for prompt, seconds in kept.history]
    rows += [
        [key, str(settings[key])]
        for key in ("seed", "start", "guidance_scale", "negative_prompt")
        if settings[key] is not None
    ]
    rows += [[key, value] for key, value in kept.plan.items() if key != "start"]
    rows.append(["file", f"{record['bytes'] / 1e6:.1f} MB"])
    return str(path), record, ["", ""], rows


def _describe_video(path: Path) -> Description:
    """Return what a video says about itself."""
    from streamdit_cli.video import probe

    video = probe(path)
    record = {"kind": "video", "path": str(path), **asdict(video)}
    rows = [
        ["container", video.container],
        ["codec", f"{video.codec}, {video.pixels}"],
        ["size", f"{video.width}x{video.height}"],
        ["length", f"{video.seconds:.2f} s, {video.num_frames} frames at {video.fps:g} FPS"],
    ]
    if video.title and "prompt" not in video.record:
        rows.append(["title", video.title])
    told = _timeline_rows(video.record, str(path))
    shown = video.record.keys() - ({"prompt", "prompts", "timeline"} if told else set())
    rows += told + [[key, value] for key, value in video.record.items() if key in shown]
    return str(path), record, ["", ""], rows


def _timeline_rows(record: dict[str, str], name: str) -> list[list[str]]:
    """Return the prompts of a video over time, a row each; none where it tells of one at most."""
    from streamdit_cli.errors import InputError
    from streamdit_cli.repeat import script_of

    if "timeline" not in record:
        return []
    try:
        script = script_of(record, name)
    except InputError:  # shown as it stands
        return []
    rows = []
    for stage in () if script is None else script.stages:
        blend = stage.transition_seconds
        how = stage.transition or ""
        how += f" over {blend:g} s" if how == "blend" and blend is not None else ""
        words = f"{stage.at or 0:.1f} s  {stage.prompt}{f' ({how})' if how else ''}"
        rows.append(["" if rows else "prompts", words])
    return rows


def _describe_model(target: str | None) -> Description:
    """Return what a model is, from its configuration; a preset may have no weights."""
    from streamdit_cli.catalogue import is_open, open_facts, open_rows
    from streamdit_cli.default_model import default_model
    from streamdit_cli.presets import find_model, find_preset, preset_names

    target = target or default_model()
    preset = find_preset(target) if target in preset_names() else None
    if preset is not None and is_open(preset):
        return preset["name"], open_facts(preset), ["", ""], open_rows(preset)
    if preset is not None and "none" in preset["weights"]:
        facts, folder = _facts_without_weights(preset), None
    else:
        if training := _last_metrics(Path(target)):
            return _describe_run(Path(target), training)
        folder, preset = find_model(target)
        facts = _facts(folder)
    words = {} if preset is None else {key: preset[key] for key in _PRESET_WORDS}
    record = {"kind": "model", "folder": folder and str(folder), **words, **facts}
    rows = [["folder", "no weights" if folder is None else str(folder)]]
    rows += [[key, value] for key, value in words.items()]
    return facts["name"], record, ["", ""], rows + _model_rows(facts)


def _describe_run(run: Path, training: dict[str, Any]) -> Description:
    """Return how far a training run is, and its model if it has one."""
    rows = [["run", ", ".join(f"{key} {value}" for key, value in training.items())]]
    record: dict[str, Any] = {"kind": "run", "folder": str(run), "last": training}
    if (run / "model" / "config.json").is_file():
        record["model"] = _facts(run / "model")
        rows += [["model", record["model"]["name"]], *_model_rows(record["model"])]
    else:
        rows.append(["model", "none yet"])
    return str(run), record, ["", ""], rows


def _last_metrics(run: Path) -> dict[str, Any]:
    """Return where a run was when it last wrote its metrics; empty when it is no run."""
    for path in (run / "metrics.jsonl", run / "autoencoder" / "metrics.jsonl"):
        try:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LONGEST_LINE))
                lines = file.read().splitlines()
        except (OSError, ValueError):
            continue
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # cut short
                continue
            if isinstance(record, dict):
                return {key: record[key] for key in ("stage", "step", "loss") if key in record}
    return {}


def _facts(folder: Path) -> dict[str, Any]:
    """Return name, config, parameters, bytes and dtypes of a model folder."""
    from streamdit_model.weights import describe

    return describe(folder)


def _facts_without_weights(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the same of a configuration that has no weights, without memory for them."""
    import torch

    from streamdit_model.autoencoder import Autoencoder
    from streamdit_model.model_config import ModelConfig
    from streamdit_model.text import TextEncoder
    from streamdit_model.transformer import StreamDiT

    config = ModelConfig.from_dict(preset["model"])
    with torch.device("meta"):
        parts = {
            "transformer": StreamDiT(config.transformer),
            "autoencoder": Autoencoder(config.autoencoder),
            "text": TextEncoder(config.text),
        }
    counts = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in parts.items()
    }
    counts["total"] = sum(counts.values())
    return {"name": config.name, "config": config.to_dict(), "parameters": counts}


def _model_rows(facts: dict[str, Any]) -> list[list[str]]:
    """Return the facts of a model in words."""
    from streamdit_model.model_config import ModelConfig

    config = ModelConfig.from_dict(facts["config"])
    guidance = "baked in" if config.distilled else f"{config.guidance_scale:g}"
    window = config.transformer.window
    rows = [
        ["video", f"{config.width}x{config.height} at {config.fps:g} FPS"],
        ["partition", _partition_words(config.partition)],
        ["sampling", f"start {config.start}, stepper {config.stepper}, guidance {guidance}"],
        ["attention", f"windows of {'x'.join(map(str, window))} tokens" if window else "full"],
    ]
    for part, count in facts["parameters"].items():
        size = f", {facts['bytes'][part] / 1e6:.1f} MB" if "bytes" in facts else ""
        rows.append([part, f"{count:,} parameters{size}"])
    if "dtypes" in facts:
        rows.append(["stored as", ", ".join(facts["dtypes"])])
    return rows
