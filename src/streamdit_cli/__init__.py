"""The `streamdit` command: words, files, colours and exit codes.

For Python there are two functions: `load` finds a model by name as `-m` does, and `write_video`
writes what a stream yields. torch is imported when they are called.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdit_model import Model, VideoChunk
    from streamdit_model.wan.model import WanModel

__all__ = ["load", "write_video"]


def load(
    name: str | None = None, *, device: str | None = None, dtype: str | None = None
) -> Model | WanModel:
    """Load a model as `streamdit generate -m NAME` does.

    Args:
        name: a preset, a model folder, a training run, or OWNER/NAME[@REVISION] of the Hub; nothing
            is downloaded. None is what `generate` takes without `-m`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None is a CUDA GPU if there is one.
        dtype: `float32` or `bfloat16`; None is what is fastest here.

    Raises:
        UsageError: there is no such model.
        MissingWeights: the model has no weights here.
        StreamDiTError: the weights or the device are not as they must be.
    """
    from streamdit_cli.model_source import find_source

    source = find_source(name)
    return source.load(prompts=(), size=None, device=device, dtype=dtype, threads=None)


def write_video(
    chunks: Iterable[VideoChunk], path: Path | str, *, fps: float, overwrite: bool = False
) -> int:
    """Write what a stream yields to a video file, which is playable while it grows.

    Args:
        chunks: a `Stream`, or any part of one.
        path: ends in .mp4, .mov or .mkv.
        fps: frames in a second, `model.config.fps`.
        overwrite: replace an existing file when the new one is complete.

    Returns:
        The number of frames written.

    Raises:
        UsageError: an unknown container.
        OutputError: the file exists or cannot be written, or there are no frames.
    """
    from streamdit_cli.errors import OutputError
    from streamdit_cli.output import open_writer

    writer = None
    try:
        for chunk in chunks:
            if writer is None:
                height, width = chunk.frames.shape[1:3]
                writer = open_writer(
                    str(path), width=width, height=height, fps=fps, overwrite=overwrite
                )
            writer.write(chunk.frames)
        if writer is None:
            raise OutputError(f"there are no frames for {path}")
        writer.close()
        return writer.frames_written
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
