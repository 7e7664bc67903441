"""Which model is taken where none is named.

`STREAMDIT_MODEL` if set; else `rolling-1.3b` if it is pulled, a CUDA GPU is there and it fits; else
`shapes`. Finding out costs a look at some files, and torch is asked only when they are there.
"""

from __future__ import annotations

import os
from typing import Any

from streamdit_cli.catalogue import survey
from streamdit_cli.errors import DownloadError
from streamdit_cli.presets import DEFAULT_MODEL, find_preset, preset_names

__all__ = ["REAL_VIDEO", "default_model"]

REAL_VIDEO = "rolling-1.3b"
GIGABYTE = 1e9


def default_model(device: str | None = None) -> str:
    """Return what `-m` is where it is left out.

    Args:
        device: that was asked for; None is any.

    Raises:
        UsageError: the preset of the model for real video cannot be read.
    """
    named = os.environ.get("STREAMDIT_MODEL")
    if named:
        return named
    if REAL_VIDEO not in preset_names() or not (device or "cuda").startswith("cuda"):
        return DEFAULT_MODEL
    preset = find_preset(REAL_VIDEO)
    return REAL_VIDEO if _is_here(preset) and _fits(preset, device) else DEFAULT_MODEL


def _is_here(preset: dict[str, Any]) -> bool:
    """Whether every file was pulled and verified; a spoiled lock file is the business of a pull."""
    try:
        return survey(preset).state == "yes"
    except DownloadError:
        return False


def _fits(preset: dict[str, Any], device: str | None) -> bool:
    """Whether a CUDA GPU has the free memory that the smallest profile is estimated to need."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        free = torch.cuda.mem_get_info(torch.device(device or "cuda"))[0]
    except (RuntimeError, AssertionError, ValueError):  # no such device, or one that fails
        return False
    return free >= GIGABYTE * min(profile["estimate"] for profile in preset["profiles"])
