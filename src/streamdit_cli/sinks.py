"""Where `bench` sends frames: into a file as commands write it, in a folder that is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from streamdit_cli import machine
from streamdit_cli.output import reserve
from streamdit_cli.part import PartFile
from streamdit_cli.video_encoder import VideoEncoder
from streamdit_cli.writer import Writer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import ModelConfig

__all__ = ["open_encoder", "open_writer", "peak_memory"]

_FOLDER = "streamdit-bench-"


@contextmanager
def open_encoder(config: ModelConfig | WanModelConfig) -> Iterator[Callable[[Tensor], None]]:
    """Open the encoder that files are made with, to be called in the caller's own thread.

    Args:
        config: of the model: size and frames a second.

    Returns:
        What takes frames, uint8 (frames, height, width, 3), and returns when they are encoded.
    """
    with TemporaryDirectory(prefix=_FOLDER) as folder:
        target = PartFile(Path(folder) / "bench.mp4", overwrite=False, describe=str)
        rate = Fraction(config.fps).limit_denominator(1001)
        width, height = config.width, config.height
        encoder = VideoEncoder(
            target, ".mp4", "libx264", width=width, height=height, fps=rate, metadata={}
        )

        def encode(frames: Tensor) -> None:
            for frame in frames:
                encoder.encode(frame)

        try:
            yield encode
            encoder.finish(flush=True)
        finally:
            target.discard()


@contextmanager
def open_writer(config: ModelConfig | WanModelConfig) -> Iterator[Writer]:
    """Open a file with its own encoder thread, as commands do.

    Args:
        config: of the model: size and frames a second.
    """
    with TemporaryDirectory(prefix=_FOLDER) as folder:
        place = reserve(str(Path(folder) / "bench.mp4"))
        width, height = config.width, config.height
        writer = place.start(width=width, height=height, fps=config.fps, metadata={})
        try:
            yield writer
        finally:
            writer.abort()


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes ever in use, of a CUDA GPU or else of this process, so far."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return machine.peak_bytes()
