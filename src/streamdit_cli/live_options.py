"""The options of prompts over time, of a viewer who watches meanwhile, and of repeating a video."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer

__all__ = [
    "FromOption",
    "InteractiveOption",
    "LeadOption",
    "PromptsFromOption",
    "RealtimeOption",
    "ScriptOption",
    "TransitionOption",
    "TransitionSecondsOption",
    "parse_lead",
    "parse_transition_seconds",
]

LONGEST_LEAD = 60.0  # seconds
LONGEST_TRANSITION = 3600.0  # seconds
_TIME = "Prompts over time"


def _seconds_up_to(text: str, most: float) -> float:
    """Read seconds from 0 to a limit; typer.BadParameter otherwise."""
    try:
        seconds = float(str(text).strip().removesuffix("s"))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= most:
        raise typer.BadParameter(f"{text!r} is not a time from 0 to {most:g} seconds")
    return seconds


def parse_lead(text: str) -> float:
    """Read a lead: 0 to 60 seconds.

    Raises:
        typer.BadParameter: anything else.
    """
    return _seconds_up_to(text, LONGEST_LEAD)


def parse_transition_seconds(text: str) -> float:
    """Read the length of a transition: 0 to 3600 seconds.

    Raises:
        typer.BadParameter: anything else.
    """
    return _seconds_up_to(text, LONGEST_TRANSITION)


ScriptOption = Annotated[
    str | None,
    typer.Option(
        "--script",
        metavar="FILE",
        show_default=False,
        help="Prompts with their times: TOML with a stage table each, or JSON lines; - is stdin.",
        rich_help_panel=_TIME,
    ),
]

TransitionOption = Annotated[
    Literal["replace", "blend", "chunks"] | None,
    typer.Option(
        "--transition",
        show_default=False,
        help="How a prompt follows another: at once, blended, or for new frames only.",
        rich_help_panel=_TIME,
    ),
]

TransitionSecondsOption = Annotated[
    float | None,
    typer.Option(
        "--transition-seconds",
        metavar="S",
        parser=parse_transition_seconds,
        show_default=False,
        help="Length of a blend; 2 without it.",
        rich_help_panel=_TIME,
    ),
]

InteractiveOption = Annotated[
    bool,
    typer.Option(
        "--interactive",
        help="Every line typed is the new prompt, :help shows commands; without a length no end.",
        rich_help_panel=_TIME,
    ),
]

PromptsFromOption = Annotated[
    str | None,
    typer.Option(
        "--prompts-from",
        metavar="PATH",
        show_default=False,
        help="The same from a FIFO, a file that grows, or - (stdin).",
        rich_help_panel=_TIME,
    ),
]

RealtimeOption = Annotated[
    bool | None,
    typer.Option(
        "--realtime/--no-realtime",
        show_default=False,
        help="Frames leave when a viewer needs them; so with --interactive -o -.",
        rich_help_panel=_TIME,
    ),
]

LeadOption = Annotated[
    float | None,
    typer.Option(
        "--lead",
        metavar="S",
        parser=parse_lead,
        show_default=False,
        help="With --realtime, frames leave at most so long before their time; 0.5 without it.",
        rich_help_panel=_TIME,
    ),
]

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="VIDEO",
        show_default=False,
        help="Make a video again: what is not given comes from what the file says about itself.",
        rich_help_panel=_TIME,
    ),
]
