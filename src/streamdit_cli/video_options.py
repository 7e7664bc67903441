"""The options of the commands that make video, beside those in `options.py` that all share."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

import typer

__all__ = [
    "CodecOption",
    "DryRunOption",
    "NegativePromptOption",
    "NoPromptOption",
    "PipeFormatOption",
    "Size",
    "SizeOption",
    "StartOption",
    "parse_size",
]

_LARGEST_SIDE = 16384


class Size(NamedTuple):
    """Of a video, in pixels. Not a plain tuple, which Typer reads as two words."""

    width: int
    height: int


def parse_size(text: str) -> Size:
    """Read a size in pixels, `640x480`.

    Raises:
        typer.BadParameter: anything else.
    """
    found = re.fullmatch(r"([0-9]{1,5})[x*]([0-9]{1,5})", str(text).strip().lower(), re.ASCII)
    width, height = (int(number) for number in found.groups()) if found else (0, 0)
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise typer.BadParameter(f"{text!r} is not a size; write WIDTHxHEIGHT, as in 640x480")
    return Size(width, height)


NoPromptOption = Annotated[bool, typer.Option("--no-prompt", help="Make video without words.")]

NegativePromptOption = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        "-n",
        metavar="TEXT",
        show_default=False,
        help="What not to see. Refused by a distilled model, which has guidance baked in.",
        rich_help_panel="Sampling",
    ),
]

SizeOption = Annotated[
    Size | None,
    typer.Option(
        "--size",
        metavar="WxH",
        parser=parse_size,
        show_default=False,
        help="Pixels; only a size the model has, and of open weights multiples of 16 or 32.",
    ),
]

StartOption = Annotated[
    Literal["ramp", "clip"] | None,
    typer.Option(
        "--start",
        show_default=False,
        help="How the stream begins. Without it: as the model was trained.",
        rich_help_panel="Sampling",
    ),
]

PipeFormatOption = Annotated[
    Literal["y4m", "nut", "rgb24"],
    typer.Option(
        "--pipe-format",
        help="For -o - and FIFOs: y4m plays everywhere, nut is exact, rgb24 is raw.",
        rich_help_panel="Output",
    ),
]

CodecOption = Annotated[
    Literal["libx264", "ffv1"] | None,
    typer.Option(
        "--codec",
        show_default=False,
        help="For files: libx264, or ffv1, lossless, in .mkv.",
        rich_help_panel="Output",
    ),
]

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, say what would be made, and stop.",
        rich_help_panel="Output",
    ),
]
