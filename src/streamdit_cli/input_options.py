"""The options of a video that goes into another one: how it is read, and what is done with it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer

from streamdit_cli.video_options import Size, parse_size

__all__ = [
    "FitOption",
    "FpsOption",
    "InputArgument",
    "InputFpsOption",
    "InputSizeOption",
    "KeepStartOption",
    "NoAudioOption",
    "StartVideoOption",
    "StrengthOption",
    "parse_input_fps",
    "parse_strength",
]

_INPUT = "Input"
_SAMPLING = "Sampling"


def _number(text: str) -> float:
    """Read a number; nan for anything else."""
    try:
        return float(str(text).strip())
    except ValueError:
        return math.nan


def parse_strength(text: str) -> float:
    """Read a strength, above 0 and at most 1; which of them a model has is asked later.

    Raises:
        typer.BadParameter: anything else.
    """
    strength = _number(text)
    if not 0 < strength <= 1:
        raise typer.BadParameter(f"{text!r} is not a number above 0 and at most 1")
    return strength


def parse_input_fps(text: str) -> float:
    """Read a rate of raw frames: a number or a fraction such as 30000/1001.

    Raises:
        typer.BadParameter: anything that is not above 0 and at most 240.
    """
    above, _, below = str(text).partition("/")
    divisor = _number(below or "1")
    rate = _number(above) / divisor if divisor else math.nan
    if not 0 < rate <= 240:
        raise typer.BadParameter(f"{text!r} is not a rate above 0 and at most 240, as in 25")
    return rate


InputArgument = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="A video or an image, or - for standard input: y4m, nut, mpegts, mkv, raw rgb24.",
    ),
]

StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        parser=parse_strength,
        show_default=False,
        help="How much is changed: near 0 nothing, 1 forgets the input. Without it: the model's.",
        rich_help_panel=_SAMPLING,
    ),
]

FitOption = Annotated[
    Literal["crop", "pad", "stretch"],
    typer.Option(
        "--fit",
        help="Where the shapes differ: cut two sides, add black, or change the shape.",
        rich_help_panel=_INPUT,
    ),
]

InputSizeOption = Annotated[
    Size | None,
    typer.Option(
        "--input-size",
        metavar="WxH",
        parser=parse_size,
        show_default=False,
        help="The input is raw rgb24 of this size; with --input-fps.",
        rich_help_panel=_INPUT,
    ),
]

InputFpsOption = Annotated[
    float | None,
    typer.Option(
        "--input-fps",
        metavar="N",
        parser=parse_input_fps,
        show_default=False,
        help="Frames a second of raw rgb24: 30 or 30000/1001.",
        rich_help_panel=_INPUT,
    ),
]

FpsOption = Annotated[
    Literal["source"] | None,
    typer.Option(
        "--fps",
        show_default=False,
        help="source: change every frame and keep the rate of the input, not that of the model.",
        rich_help_panel=_INPUT,
    ),
]

NoAudioOption = Annotated[
    bool,
    typer.Option(
        "--no-audio",
        help="Leave out the sound.",
        rich_help_panel=_INPUT,
    ),
]

StartVideoOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="ramp|clip|FILE",
        show_default=False,
        help="How the stream begins, or the image or video that it goes on from.",
        rich_help_panel=_SAMPLING,
    ),
]

KeepStartOption = Annotated[
    bool,
    typer.Option(
        "--keep-start",
        help="Begin with all frames of --start FILE; the length is of what follows them.",
        rich_help_panel=_SAMPLING,
    ),
]
