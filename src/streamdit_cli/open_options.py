"""The options of open weights: which decoder, what is merged, how much memory there is."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer

__all__ = [
    "DecoderOption",
    "LoraOption",
    "OffloadOption",
    "RandomWeightsOption",
    "VramOption",
    "parse_vram",
]

_MODEL = "Model"
_LEAST_GB, _MOST_GB = 1.0, 10_000.0


def parse_vram(text: str) -> float:
    """Read an amount of memory in GB, `12` or `11.5`; `auto` is 0, what is free.

    Raises:
        typer.BadParameter: anything else.
    """
    words = str(text).strip().lower()
    if words == "auto":
        return 0.0
    try:
        amount = float(words.removesuffix("gb").rstrip())
    except ValueError:
        amount = math.nan
    if not _LEAST_GB <= amount <= _MOST_GB:
        raise typer.BadParameter(f"{text!r} is not an amount of memory in GB; write 12, or auto")
    return amount


DecoderOption = Annotated[
    Literal["small", "full"] | None,
    typer.Option(
        "--decoder",
        show_default=False,
        help="Open weights: full looks best, small needs less memory and time.",
        rich_help_panel=_MODEL,
    ),
]

LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:SCALE]",
        show_default=False,
        help="Open weights: a safetensors file to merge into the network; more than one may be.",
        rich_help_panel=_MODEL,
    ),
]

RandomWeightsOption = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Open weights: random ones, to try size and speed without a download.",
        rich_help_panel=_MODEL,
    ),
]

OffloadOption = Annotated[
    Literal["none", "text", "cpu"] | None,
    typer.Option(
        "--offload",
        show_default=False,
        help="Open weights: what leaves the GPU; cpu: also the network's blocks, one by one.",
        rich_help_panel=_MODEL,
    ),
]

VramOption = Annotated[
    float | None,
    typer.Option(
        "--vram",
        metavar="auto|GB",
        parser=parse_vram,
        show_default=False,
        help="Open weights: use at most so much memory. Without it: what is free.",
        rich_help_panel=_MODEL,
    ),
]
