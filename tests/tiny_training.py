"""Tiny recipes, latents, networks and tasks: what the tests of training share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_transformer import randomize
from torch import Tensor, nn

from streamdit_cli.presets import apply_set, read_toml
from streamdit_model.checkpoint import load_checkpoint, newest_checkpoint
from streamdit_model.configuration import from_table
from streamdit_model.data import ClipText, LatentCache
from streamdit_model.recipes import DistillationRecipe, TrainingRecipe
from streamdit_model.text import TextConfig, TextEncoder
from streamdit_model.transformer import StreamDiT, TransformerConfig

TESTS = Path(__file__).parent
TRAIN, DISTILL = TESTS / "tiny-train.toml", TESTS / "tiny-distill.toml"
BUFFER = 8  # latent frames
CHANNELS, HEIGHT, WIDTH = 4, 4, 4


def training_recipe(*changes: str) -> TrainingRecipe:
    """Return the recipe of `tiny-train.toml` with `key.key=value` changes."""
    return from_table(TrainingRecipe, apply_set(read_toml(TRAIN), changes))


def distillation_recipe(*changes: str) -> DistillationRecipe:
    """Return the recipe of `tiny-distill.toml` with `key.key=value` changes."""
    return from_table(DistillationRecipe, apply_set(read_toml(DISTILL), changes))


class ExactCache(LatentCache):
    """Latents that are handed out in float64, so that a loss can be compared to 1e-10."""

    def window(self, clip: int, first: int, length: int) -> Tensor:
        return super().window(clip, first, length).double()


def cache_of(
    clips: int = 6, frames: int = 12, *, switch: int = -1, exact: bool = False
) -> LatentCache:
    """Return random latents of clips that say their number in three ways; all switch, or none."""
    generator = torch.Generator().manual_seed(9)
    latents = torch.randn(clips, CHANNELS, frames, HEIGHT, WIDTH, generator=generator).bfloat16()
    texts = [
        ClipText(
            tuple(f"clip {number} before, way {way}" for way in range(3)),
            tuple(f"clip {number} after, way {way}" for way in range(3)) if switch >= 0 else (),
            switch,
        )
        for number in range(clips)
    ]
    return (ExactCache if exact else LatentCache)(latents, texts)


def transformer_config(**changes: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {
        "latent_channels": CHANNELS,
        "grid": (BUFFER, HEIGHT, WIDTH),
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_width": 24,
        "text_width": 8,
        "tau_width": 16,
    }
    return TransformerConfig(**(sizes | changes))


def text_config() -> TextConfig:
    return TextConfig(width=8, byte_width=8, depth=1, num_heads=2, max_bytes=64)


def networks(
    dtype: torch.dtype = torch.float32, seed: int = 0, kind: type[StreamDiT] = StreamDiT
) -> tuple[StreamDiT, TextEncoder]:
    """Return a transformer and a text encoder without a zero among their weights."""
    transformer, text = kind(transformer_config()).to(dtype), TextEncoder(text_config()).to(dtype)
    randomize(transformer, seed)
    randomize(text, seed + 1)
    return transformer, text


class Line(nn.Module):
    """A linear map with a statistic that every forward pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.mean.lerp_(y.detach().float().mean(0), 0.1)
        return y


class LineTask:
    """A small task with numbered samples, which writes down what it is asked.

    Args:
        spoil: what becomes of the input of a step; it may make it not finite.
    """

    def __init__(self, spoil: Callable[[int, Tensor], Tensor] = lambda step, x: x) -> None:
        torch.manual_seed(0)
        self.line = Line()
        self.modules: dict[str, nn.Module] = {"line": self.line}
        self.spoil = spoil
        self.begun: list[str] = []
        self.seen: list[tuple[int, list[int]]] = []
        self.committed: list[int] = []

    def begin(self, stage: str) -> None:
        self.begun.append(stage)

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        self.seen.append((step, list(samples)))
        numbers = torch.tensor([[1.0, float(sample), float(step)] for sample in samples]) / 8
        output = self.line(self.spoil(step, numbers))
        loss = (output - numbers[:, :2]).square().mean(1).sum()
        return loss, {"first_sample": float(samples[0])}

    def after_step(self, step: int) -> None:
        self.committed.append(step)

    def state(self) -> dict[str, Tensor]:
        return {"committed": torch.tensor(self.committed, dtype=torch.long)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.committed = state["committed"].tolist()


def checkpoint_of(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """Return what the newest checkpoint of a run holds."""
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None, run
    return load_checkpoint(newest)


def assert_same_tensors(
    found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for group, tensors in expected.items():
        assert found[group].keys() == tensors.keys(), group
        for name, value in tensors.items():
            assert torch.equal(found[group][name], value), f"{group} {name}"


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_same_run(run: Path, expected: Path) -> None:
    """The newest checkpoint, the losses and the model of two runs are equal bit for bit."""
    for found, wanted in zip(checkpoint_of(run), checkpoint_of(expected), strict=True):
        if "random" in wanted:
            assert_same_tensors(found, wanted)  # type: ignore[arg-type]
        else:
            assert found == wanted
    assert metrics_of(run) == metrics_of(expected)
    assert files_of(run / "model") == files_of(expected / "model")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return math.sqrt(float((found - expected).square().mean() / expected.square().mean()))
