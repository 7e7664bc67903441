"""StreamDiT (arXiv 2507.03745) as a library: tensors in, tensors out.

`load(folder)` gives a model, `Stream(model, prompt, seed=0)` an iterator of video chunks. torch is
imported when the first of these names is used, so that the errors can be had without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamdit_model.errors import (
    ConfigError,
    DeviceError,
    NumericsError,
    StreamDiTError,
    WeightsError,
)

if TYPE_CHECKING:
    from streamdit_model.partition import Partition
    from streamdit_model.prompt_timeline import PromptEvent, Receipt
    from streamdit_model.stream import Stream, VideoChunk
    from streamdit_model.stream_state import load_state, save_state
    from streamdit_model.weights import Model, load

__all__ = [
    "ConfigError",
    "DeviceError",
    "Model",
    "NumericsError",
    "Partition",
    "PromptEvent",
    "Receipt",
    "Stream",
    "StreamDiTError",
    "VideoChunk",
    "WeightsError",
    "load",
    "load_state",
    "save_state",
]


def __getattr__(name: str) -> object:
    """Import what needs torch at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streamdit_model import partition, prompt_timeline, stream, stream_state, weights

    homes = (weights, stream, prompt_timeline, stream_state, partition)
    return next(getattr(home, name) for home in homes if name in home.__all__)
