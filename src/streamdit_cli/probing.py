"""`doctor --probe`: a clip goes through a model once, and what comes out is judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import Model, ModelConfig

__all__ = ["probe_model"]

WINDOWS = 2
_RANDOM = "random weights: the machinery works, and the errors say nothing"
_FITS = "our convention fits: its error is lowest at every level"


def probe_model(
    name: str, video: Path | None, *, random_weights: bool
) -> tuple[dict[str, Any], list[str], list[list[str]]]:
    """Load a model, put a clip through it, and say which convention its weights follow.

    Args:
        name: as `-m`.
        video: a file with any content; None is a clip of the shapes world.
        random_weights: of open weights, to try the machinery.

    Returns:
        A record for programs, and the columns and rows of a table. `fits` of the record is None for
        random weights.

    Raises:
        TerminalError, StreamDiTError: the model is not there or does not load, the video cannot be
            read or is too short, or a prediction is not finite.
    """
    import torch

    from streamdit_cli import console
    from streamdit_cli.model_source import find_source
    from streamdit_model.frame_text import FrameText
    from streamdit_model.prompt_keys import PromptKeys, encode_now
    from streamdit_model.wan.probe import probe

    source = find_source(name, random_weights=random_weights)
    config = source.read_config()
    frames, prompt = _shapes_clip(config) if video is None else (_video(video, config), "")
    source_words = "a clip of the shapes world" if video is None else str(video)
    console.status(f"probing {config.name} with {source_words}")
    model = source.load(prompts=[prompt], size=None, device=None, dtype=None, threads=None)
    with torch.inference_mode():
        latents = _encoded(model, frames)
        keys = PromptKeys(model, encode_now, size=1).join((prompt,))
        text = FrameText(keys, torch.zeros(1, dtype=torch.long, device=model.device))
        found = probe(model.velocity, latents, config.partition, text=text)
    if random_weights:
        verdict = _RANDOM
    elif found.fits:
        verdict = _FITS
    elif found.best != "ours":
        verdict = f"these weights look {found.best}: that convention has the lowest error"
    else:
        places = ", ".join(f"{tau:.3g}" for tau in found.beaten_at)
        verdict = f"unclear: ours is best in the mean, but not at tau {places}; try another video"
    record = {
        "kind": "probe",
        "model": config.name,
        "video": source_words,
        "tau": list(found.taus),
        "errors": {key: list(values) for key, values in found.errors.items()},
        "best": found.best,
        "fits": None if random_weights else found.fits,
        "verdict": verdict,
    }
    columns = ["convention", *(f"tau {tau:.3g}" for tau in found.taus), "mean"]
    rows = [
        [key, *(f"{value:.4g}" for value in values), f"{sum(values) / len(values):.4g}"]
        for key, values in found.errors.items()
    ]
    return record, columns, rows


def _num_frames(config: ModelConfig | WanModelConfig) -> int:
    """Return how many video frames are read: of two windows, and before them one to warm up."""
    from streamdit_model.autoencoder import TIME_FACTOR

    return TIME_FACTOR * config.partition.buffer_length * (WINDOWS + 1)


def _shapes_clip(config: ModelConfig | WanModelConfig) -> tuple[Tensor, str]:
    """Return a clip that does not look the same backwards, uint8 (frames, h, w, 3), in words too.

    It is rendered as a square and cut at top and bottom, or at the sides.
    """
    from streamdit_model.captions import caption
    from streamdit_model.shapes import Clip, render

    clip = Clip(
        color="red", background="navy", shape="star", size="large", motion="moving right", x=-0.4
    )
    side = max(config.height, config.width)
    video = render(clip, _num_frames(config), max(side, 8))
    top, left = (side - config.height) // 2, (side - config.width) // 2
    cut = video[:, top : top + config.height, left : left + config.width]
    return cut, caption(clip)


def _video(path: Path, config: ModelConfig | WanModelConfig) -> Tensor:
    """Return a video at the model's rate and size, uint8 (frames, height, width, 3).

    Raises:
        InputError: it cannot be read, or is shorter than a window.
    """
    import torch

    least = 4 * config.partition.buffer_length
    found = [_fitted(frame, config) for frame in _at_rate(path, config.fps, _num_frames(config))]
    if len(found) < least:
        raise InputError(
            f"{path} has {len(found) / config.fps:.1f} s of video; {config.name} needs "
            f"{least / config.fps:.1f} s"
        )
    return torch.stack(found)


def _at_rate(path: Path, fps: float, count: int) -> Iterator[Tensor]:
    """Yield at most so many frames of a video, at another rate: the nearest one before each."""
    from streamdit_cli.video import probe, read_video

    step = fps / (probe(path).fps or fps)
    made = 0
    for number, frame in enumerate(read_video(path), start=1):
        while made < min(count, round(number * step)):
            made += 1
            yield frame
        if made == count:
            return


def _fitted(frame: Tensor, config: ModelConfig | WanModelConfig) -> Tensor:
    """Scale a frame until it covers the model's size, and cut what is too much."""
    import math

    from torch.nn.functional import interpolate

    height, width, _ = frame.shape
    scale = max(config.height / height, config.width / width)
    size = math.ceil(height * scale), math.ceil(width * scale)
    scaled = interpolate(
        frame.permute(2, 0, 1)[None].float(), size=size, mode="bilinear", antialias=True
    )
    top, left = (size[0] - config.height) // 2, (size[1] - config.width) // 2
    cut = scaled[0, :, top : top + config.height, left : left + config.width]
    return cut.permute(1, 2, 0).round().clamp(0, 255).byte()


def _encoded(model: Model | WanModel, frames: Tensor) -> Tensor:
    """Return the latents of whole windows, float32; the first window, if another one is left, is
    there to fill the encoder's memory, since a stream has a past."""
    import torch

    from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder

    autoencoder, length = model.autoencoder, model.config.partition.buffer_length
    first = TIME_FACTOR if isinstance(autoencoder, Autoencoder) else 1
    parts, state, begin = [], None, 0
    while begin + (step := first if state is None else TIME_FACTOR) <= len(frames):
        piece = frames[begin : begin + step].to(model.device).permute(3, 0, 1, 2)[None]
        latents, state = autoencoder.encode_step((piece.float() / 255).to(model.dtype), state)
        parts.append(latents.float())
        begin += step
    whole = torch.cat(parts, dim=2)
    return whole[:, :, length:] if whole.shape[2] >= 2 * length else whole
