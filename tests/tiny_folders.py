"""A tiny model of all parts, its states, and its folder."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.partition import Partition
from streamdit_model.text import TextConfig, TextEncoder
from streamdit_model.transformer import StreamDiT, TransformerConfig
from streamdit_model.weights import ModelConfig, load_states, save

States = dict[str, dict[str, Tensor]]
PARTS = ("transformer", "autoencoder", "text")


def tiny_config(**changes: Any) -> ModelConfig:
    parts: dict[str, Any] = {
        "name": "tiny",
        "fps": 16.0,
        "height": 16,
        "width": 32,
        "partition": Partition(num_chunks=2, chunk_size=2, micro_steps=1),
        "start": "ramp",
        "stepper": "euler",
        "distilled": False,
        "guidance_scale": 3.0,
        "strength": 0.5,
        "transformer": TransformerConfig(
            latent_channels=2,
            grid=(4, 2, 4),
            width=8,
            depth=2,
            num_heads=2,
            mlp_width=12,
            text_width=8,
            window=(2, 1, 2),
            mask_wrapped="time",
            tau_width=8,
        ),
        "autoencoder": AutoencoderConfig(
            latent_channels=2,
            widths=(4, 4, 4),
            encoder_blocks=(1, 1, 1),
            decoder_blocks=(1, 1, 1),
        ),
        "text": TextConfig(width=8, byte_width=8, depth=1, num_heads=2, max_bytes=16),
    }
    return ModelConfig(**{**parts, **changes})


def tiny_modules() -> dict[str, torch.nn.Module]:
    config = tiny_config()
    return {
        "transformer": StreamDiT(config.transformer),
        "autoencoder": Autoencoder(config.autoencoder),
        "text": TextEncoder(config.text),
    }


def tiny_states(seed: int = 0) -> States:
    """Return states in which no value is zero by construction, exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return {
        part: {
            name: torch.rand(shape, generator=generator).add(0.5).bfloat16().float()
            for name, shape in shapes.items()
        }
        for part, shapes in tiny_shapes().items()
    }


@cache
def tiny_shapes() -> dict[str, dict[str, torch.Size]]:
    return {
        part: {name: value.shape for name, value in module.state_dict().items()}
        for part, module in tiny_modules().items()
    }


def save_tiny(folder: Path, seed: int = 0, **options: Any) -> Path:
    states = tiny_states(seed)
    save(folder, tiny_config(), *(states[part] for part in PARTS), **options)
    return folder


def assert_loads_as(folder: Path, seed: int) -> None:
    _, states = load_states(folder)
    expected = tiny_states(seed)
    for part in PARTS:
        assert states[part].keys() == expected[part].keys()
        assert all(torch.equal(states[part][n], value) for n, value in expected[part].items())


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the table of `tiny_config` with one value changed; the path is dotted."""
    table = tiny_config().to_dict()
    *outer, last = path.split(".")
    inner = table
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return table


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")
