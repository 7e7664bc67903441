"""The options of streams that are kept: their state, their segments, what a file says of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from streamdit_cli.options import parse_seconds

__all__ = [
    "ContinueOption",
    "FullStateOption",
    "NoMetadataOption",
    "ResumeStateOption",
    "SaveEveryOption",
    "SaveStateOption",
    "SegmentOption",
]

_KEEPING = "Keeping"


def parse_part(text: str) -> float:
    """Read a length of video that is not endless, as `parse_seconds`.

    Raises:
        typer.BadParameter: anything else.
    """
    seconds = parse_seconds(text)
    if math.isinf(seconds):
        raise typer.BadParameter(f"{text!r} has no end; allowed: 90, 90s, 10m or 1:30")
    return seconds


SaveStateOption = Annotated[
    Path | None,
    typer.Option(
        "--save-state",
        metavar="FILE",
        show_default=False,
        help="At the end, also of Ctrl-C, write all that --resume-state needs to go on.",
        rich_help_panel=_KEEPING,
    ),
]

SaveEveryOption = Annotated[
    float | None,
    typer.Option(
        "--save-every",
        metavar="TIME",
        parser=parse_part,
        show_default=False,
        help="Save the state each so much video: for --continue, and into --save-state FILE.",
        rich_help_panel=_KEEPING,
    ),
]

FullStateOption = Annotated[
    bool,
    typer.Option(
        "--full-state",
        help="Rolling models: keep their whole context in states, gigabytes, for equal frames.",
        rich_help_panel=_KEEPING,
    ),
]

ResumeStateOption = Annotated[
    Path | None,
    typer.Option(
        "--resume-state",
        metavar="FILE",
        show_default=False,
        help="Go on from a saved state, in a new video; -p gives new prompts from there.",
        rich_help_panel=_KEEPING,
    ),
]

ContinueOption = Annotated[
    bool,
    typer.Option(
        "--continue",
        help="Go on with the video -o after a crash; it was begun with --save-every.",
        rich_help_panel=_KEEPING,
    ),
]

SegmentOption = Annotated[
    float | None,
    typer.Option(
        "--segment",
        metavar="TIME",
        parser=parse_part,
        show_default=False,
        help="Begin a new file each so much video: --segment 10m -o part-%04d.mp4.",
        rich_help_panel=_KEEPING,
    ),
]

NoMetadataOption = Annotated[
    bool,
    typer.Option(
        "--no-metadata",
        help="Write neither prompt nor seed nor versions into the video.",
        rich_help_panel=_KEEPING,
    ),
]
