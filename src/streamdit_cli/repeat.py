"""`--from`: what a video says about itself, as the settings that make it again.

What stands in a file comes from outside: every value goes through the checks that the same words on
a command line go through, a model is only ever a preset's name, and nothing is downloaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from streamdit_cli import console
from streamdit_cli.errors import InputError
from streamdit_cli.options import parse_device, parse_guidance, parse_seed
from streamdit_cli.prompts import check_prompt
from streamdit_cli.script import Script, Stage, parse_stages
from streamdit_cli.settings import Settings
from streamdit_cli.video_options import Size

if TYPE_CHECKING:
    from streamdit_cli.video import VideoInfo

__all__ = ["repeat", "script_of", "typed_names", "warn_of_changes"]

_MOST_THREADS = 4096
# What decides about the bits of a video beside what can be asked for.
_VERSIONS = ("streamdit", "torch", "machine", "weights")


def typed_names(ctx: typer.Context) -> set[str]:
    """Return the names of `Settings` that stood on a command line, not in the environment."""
    names = {"prompt": "prompts", "no_prompt": "prompts", "lora": "loras"}
    return {
        names.get(name, name)
        for name in ctx.params
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def repeat(
    settings: Settings, path: Path, typed: Collection[str]
) -> tuple[Settings, dict[str, str]]:
    """Fill in what was not typed from a video.

    Args:
        settings: of the command line and the environment.
        path: of a video that this tool made.
        typed: names of `Settings` that stood on the command line, which win.

    Returns:
        The settings, and what the file says about itself.

    Raises:
        InputError: no video, one that says too little, or a value that cannot be.
    """
    from streamdit_cli.video import probe

    video = probe(path)
    if "seed" not in video.record:
        raise InputError(
            f"{path} does not say how it was made", "--from takes a video of streamdit generate"
        )
    found = _read(video, path, typed)
    taken = {key: value for key, value in found.items() if key not in typed}
    if {"prompts", "script"} & set(typed):
        taken = {key: value for key, value in taken.items() if key not in ("prompts", "script")}
    if {"seconds", "num_frames"} & set(typed):
        taken.pop("num_frames", None)
    return replace(settings, **taken), video.record


def _read(video: VideoInfo, path: Path, typed: Collection[str]) -> dict[str, Any]:
    """Return all settings that a video says."""
    record = video.record
    _require_no_other_video(record, path, typed)
    if record.get("lora") and "loras" not in typed:
        raise InputError(
            f"{path} was made with a LoRA, whose file is not in it", f"--lora {record['lora']}"
        )
    script = script_of(record, str(path))
    found: dict[str, Any] = {
        "script": script,
        "prompts": [] if script is None else script.prompts,
        "num_frames": _made_frames(record, video.num_frames),
        "size": Size(video.width, video.height),
        "random_weights": record.get("weights") == "random",
    }
    readers: dict[str, Callable[[str], Any]] = {
        "seed": parse_seed,
        "guidance_scale": parse_guidance,
        "device": parse_device,
        "dtype": _one_of("float32", "bfloat16"),
        "start": _one_of("ramp", "clip"),
        "decoder": _one_of("small", "full"),
        "threads": _threads,
        "negative_prompt": lambda text: check_prompt(text, InputError, "the negative prompt"),
    }
    for key, read in readers.items():
        if key in record and key not in typed:
            try:
                found[key] = read(record[key])
            except (typer.BadParameter, InputError) as error:
                raise InputError(
                    f"{path}: {key}: {error}", f"say --{key.replace('_', '-')}"
                ) from None
    if "model" not in typed:
        found["model"] = _model(record, path)
    return found


def _require_no_other_video(record: Mapping[str, str], path: Path, typed: Collection[str]) -> None:
    """Refuse a video that was made from another one, which is not in it.

    Raises:
        InputError: the other one was not named.
    """
    if "input" in record:
        hint = "streamdit v2v with the same input, prompt, --seed and --strength"
        raise InputError(f"{path} was made from the video {record['input']!r} by v2v", hint)
    if "start_video" in record and "start" not in typed:
        keep = " --keep-start" if record.get("first_frame", "").startswith("-") else ""
        message = f"{path} goes on from {record['start_video']!r}, which is not in it"
        raise InputError(message, f"say where it is: --start FILE{keep}")


def _made_frames(record: Mapping[str, str], num_frames: int) -> int:
    """Return how many of the frames of a video were made, and not kept of its start."""
    kept = record.get("first_frame", "")
    is_known = kept[:1] == "-" and kept[1:].isdecimal() and len(kept) < 12
    return max(1, num_frames + int(kept) if is_known else num_frames)


def script_of(record: Mapping[str, str], name: str) -> Script | None:
    """Return the prompts over time that a video says; None for no prompt.

    Args:
        record: of `probe`.
        name: what messages call the video.

    Raises:
        InputError: they are no script.
    """
    if "timeline" in record:
        try:
            stages = json.loads(record["timeline"])
        except (ValueError, RecursionError):
            stages = None
        if not isinstance(stages, list):
            raise InputError(f"{name}: its timeline is not a list of stages")
        return parse_stages(stages, f"the timeline of {name}") if stages else None
    if not record.get("prompt"):
        return None
    prompt = check_prompt(record["prompt"], InputError, f"the prompt of {name}")
    return Script((Stage(prompt=prompt),))


def warn_of_changes(record: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say which frames will not be the same because the machine or a version is another one.

    Args:
        record: what the file says about itself.
        now: what the new one will say.
    """
    changes = [
        f"{key} {record[key]} is now {now[key]}"
        for key in _VERSIONS
        if key in record and key in now and record[key] != now[key]
    ]
    if changes:
        console.warn(f"frames may differ: {', '.join(changes)}")


def _model(record: Mapping[str, str], path: Path) -> str:
    """Return the preset that a video was made with."""
    from streamdit_cli.presets import preset_names

    name = record.get("preset", record.get("model", ""))
    if name not in preset_names():
        message = f"{path} was made with the model {name!r}, which is no preset"
        raise InputError(message, "say which folder holds it: -m FOLDER")
    return name


def _threads(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= 4
    if not is_number or not 1 <= int(text) <= _MOST_THREADS:
        raise InputError(f"{text[:40]!r} is not a number from 1 to {_MOST_THREADS}")
    return int(text)


def _one_of(*words: str) -> Callable[[str], str]:
    """Return what reads one word of a few."""

    def read(text: str) -> str:
        if text not in words:
            raise InputError(f"{text[:40]!r} is not one of {', '.join(words)}")
        return text

    return read
