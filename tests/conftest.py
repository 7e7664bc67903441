"""What several test files share: a tiny model on disk with random weights, and the launcher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launcher import Launcher

from streamdit_cli import console
from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.partition import Partition
from streamdit_model.text import TextConfig, TextEncoder
from streamdit_model.transformer import StreamDiT, TransformerConfig
from streamdit_model.weights import ModelConfig, save

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real Hub, whatever it types
TINY_SIDE = 32  # pixels
TINY_CHUNK = 8  # video frames
TINY_FPS = 16


def tiny_config() -> ModelConfig:
    """A distilled model of 32 x 32 pixels with chunks of 8 video frames and one call a chunk."""
    partition = Partition(num_chunks=4, chunk_size=2, micro_steps=1)
    return ModelConfig(
        name="tiny",
        fps=float(TINY_FPS),
        height=TINY_SIDE,
        width=TINY_SIDE,
        partition=partition,
        start="ramp",
        stepper="euler",
        distilled=True,
        guidance_scale=1.0,
        strength=0.5,
        transformer=TransformerConfig(
            latent_channels=4,
            grid=(partition.buffer_length, TINY_SIDE // 8, TINY_SIDE // 8),
            width=16,
            depth=2,
            num_heads=2,
            mlp_width=32,
            text_width=16,
            tau_width=16,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=4,
            widths=(8, 8, 8),
            encoder_blocks=(1, 1, 1),
            decoder_blocks=(1, 1, 1),
        ),
        text=TextConfig(width=16, byte_width=8, depth=1, num_heads=2, max_bytes=64),
    )


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was() -> Iterator[None]:
    """No test sees what another one said to the terminal's settings or to torch's threads."""
    threads = torch.get_num_threads()
    yield
    console.configure()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model whose random weights make its video depend on every input."""
    config = tiny_config()
    generator = torch.Generator().manual_seed(0)
    states = []
    for part in (
        StreamDiT(config.transformer),
        Autoencoder(config.autoencoder),
        TextEncoder(config.text),
    ):
        state = part.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() > 1 else 4
                state[name] = torch.randn(tensor.shape, generator=generator) * fan**-0.5
        states.append(state)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(folder, config, *states, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Runs command lines with faults, see `launcher.py`."""
    with Launcher() as server:
        yield server
