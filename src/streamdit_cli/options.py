"""The options that mean the same in every command, as annotated types.

A command writes `model: ModelOption = None`; `None` means "not given". Precedence is flag, then
`STREAMDIT_*`, then the model's own configuration. This file knows words and ranges, never models.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from streamdit_cli.open_options import DecoderOption, LoraOption, RandomWeightsOption

__all__ = [
    "ConfigOption",
    "ContactSheetOption",
    "DecoderOption",
    "DeviceOption",
    "DtypeOption",
    "GuidanceOption",
    "HealthOption",
    "JsonOption",
    "LoraOption",
    "ModelOption",
    "NumFramesOption",
    "OutputOption",
    "OverwriteOption",
    "PreviewOption",
    "PromptOption",
    "QuietOption",
    "RandomWeightsOption",
    "RunOption",
    "SecondsOption",
    "SeedOption",
    "SetOption",
    "ThreadsOption",
    "VerboseOption",
    "complete_model",
    "parse_device",
    "parse_guidance",
    "parse_seconds",
    "parse_seed",
]

# One year of video; a longer stream is written as `inf`.
MAX_SECONDS = 366 * 24 * 3600.0
MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 100.0

_MODEL = "Model"
_OUTPUT = "Output"
_SAMPLING = "Sampling"
_PERFORMANCE = "Performance"


def parse_seconds(text: str) -> float:
    """Read a length of video: `90`, `1.5`, `90s`, `2m`, `1h`, `1:30`, `1:02:03` or `inf`.

    Returns:
        Seconds, greater than 0 and at most 366 days, or `math.inf` for an endless stream.

    Raises:
        typer.BadParameter: anything else.
    """
    words = str(text).strip().lower()
    if words == "inf":
        return math.inf
    allowed = "is not a length of video; allowed: 90, 1.5, 90s, 2m, 1:30, 1:02:03 or inf"
    try:
        seconds = _clock_or_unit(words)
    except ValueError:
        raise typer.BadParameter(f"{text!r} {allowed}") from None
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{text!r} {allowed}")
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} is not longer than 0 seconds")
    if seconds > MAX_SECONDS:
        raise typer.BadParameter(f"{text!r} is longer than 366 days; write inf for no end")
    return seconds


def _clock_or_unit(words: str) -> float:
    """Read `H:M:S`, `M:S`, or a number with an optional unit; ValueError otherwise."""
    if not words.isascii() or "_" in words:
        raise ValueError(words)
    if ":" in words:
        parts = words.split(":")
        numbers = [float(part) for part in parts]
        is_clock = len(parts) <= 3 and all(0 <= number < 60 for number in numbers[1:])
        if not is_clock or numbers[0] < 0 or any(part.strip() != part for part in parts):
            raise ValueError(words)
        return sum(number * 60**place for place, number in enumerate(reversed(numbers)))
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(words[-1:])
    return float(words) if unit is None else float(words[:-1]) * unit


def parse_guidance(text: str) -> float:
    """Read a guidance scale: a finite number from 0 to 100; 1 is off.

    Raises:
        typer.BadParameter: anything else.
    """
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 <= scale <= MAX_GUIDANCE:
        raise typer.BadParameter(f"{text!r} is not a number from 0 to {MAX_GUIDANCE:g}")
    return scale


def parse_seed(text: str) -> int:
    """Read a seed: a whole number from 0 to 2**63 - 1.

    Raises:
        typer.BadParameter: anything else.
    """
    digits = str(text).strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise typer.BadParameter(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    seed = int(digits)
    if seed > MAX_SEED:
        raise typer.BadParameter(f"{text!r} is above 2**63 - 1, the largest seed")
    return seed


def parse_device(text: str) -> str:
    """Read a device name: `cpu`, `mps`, `cuda` or `cuda:N`; whether it is there is asked later.

    Raises:
        typer.BadParameter: anything else.
    """
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", str(text)):
        raise typer.BadParameter(f"{text!r} is not a device; allowed: cpu, cuda, cuda:1, mps")
    return str(text)


def complete_model(incomplete: str) -> list[str]:
    """Return the presets that a shell can complete a word to."""
    from streamdit_cli.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=complete_model,
        show_default=False,
        help="A preset, a folder, a training run, or OWNER/NAME[@REVISION] on the Hub. Without it: "
        "STREAMDIT_MODEL, else rolling-1.3b if it is pulled and a GPU can run it, else shapes.",
        rich_help_panel=_MODEL,
    ),
]

OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Make no connection, as with HF_HUB_OFFLINE=1: what is not here is not downloaded.",
        rich_help_panel=_MODEL,
    ),
]

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        parser=parse_device,
        envvar="STREAMDIT_DEVICE",
        show_default=False,
        help="cpu, cuda, cuda:1 or mps. Without it: a CUDA GPU if there is one, else cpu.",
        rich_help_panel=_PERFORMANCE,
    ),
]

DtypeOption = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        "--dtype",
        envvar="STREAMDIT_DTYPE",
        show_default=False,
        help="The number type of the network. Without it: what is fastest here.",
        rich_help_panel=_PERFORMANCE,
    ),
]

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=4096,
        envvar="STREAMDIT_THREADS",
        show_default=False,
        help="CPU threads of the network. Without it: what suits the cores of this machine.",
        rich_help_panel=_PERFORMANCE,
    ),
]

SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        parser=parse_seed,
        show_default=False,
        help="The number all noise comes from. Without it one is chosen and printed.",
        rich_help_panel=_SAMPLING,
    ),
]

GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        metavar="W",
        parser=parse_guidance,
        show_default=False,
        help="Weight of the prompt, 1 is off. Refused by a distilled model, which has it baked in.",
        rich_help_panel=_SAMPLING,
    ),
]

PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        show_default=False,
        help="What to see. Several share the length equally; @FILE and - (stdin) are read.",
    ),
]

SecondsOption = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        metavar="TIME",
        parser=parse_seconds,
        show_default=False,
        help="Length of video: 90, 90s, 1:30 or inf.",
    ),
]

NumFramesOption = Annotated[
    int | None,
    typer.Option(
        "--num-frames",
        metavar="N",
        min=1,
        show_default=False,
        help="Length in video frames, instead of --seconds.",
    ),
]

OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        show_default=False,
        help="The file to write, or - for standard output.",
        rich_help_panel=_OUTPUT,
    ),
]

RunOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="RUN",
        show_default=False,
        help="The folder of the training run.",
        rich_help_panel=_OUTPUT,
    ),
]

OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        "-y",
        help="Replace an existing output when the new one is complete.",
        rich_help_panel=_OUTPUT,
    ),
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="PATH",
        show_default=False,
        help="Write records for programs to a file, or - for the terminal's stream.",
        rich_help_panel=_OUTPUT,
    ),
]

HealthOption = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="PATH",
        show_default=False,
        help="Look for black, frozen, drifting or blurred video; a JSON line for each 4 s.",
        rich_help_panel=_OUTPUT,
    ),
]

ContactSheetOption = Annotated[
    str | None,
    typer.Option(
        "--contact-sheet",
        metavar="PNG",
        show_default=False,
        help="Also write one picture of at most 48 frames, spread evenly over the video.",
        rich_help_panel=_OUTPUT,
    ),
]

PreviewOption = Annotated[
    bool,
    typer.Option(
        "--preview",
        help="Show a small picture in the terminal, beside the progress.",
        rich_help_panel=_OUTPUT,
    ),
]

QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Only warnings and errors.",
        rich_help_panel=_OUTPUT,
    ),
]

VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="More about each step.",
        rich_help_panel=_OUTPUT,
    ),
]

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        metavar="TOML",
        show_default=False,
        help="The recipe, one TOML file.",
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        show_default=False,
        help="Change one value of the recipe: --set base.steps=100. May be repeated.",
    ),
]
