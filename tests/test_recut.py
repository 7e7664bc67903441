"""Claim: baselines are the same network in another order, and what a step computes is counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_open import tiny_open
from tiny_streams import tiny_model
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.flops import count_flops
from streamdit_model.flow_matching import keyed_noise
from streamdit_model.frame_text import FrameText
from streamdit_model.measuring import PROMPTS, Subject, new_denoiser
from streamdit_model.partition import Partition
from streamdit_model.recut import baseline, baseline_partition, without_context
from streamdit_model.sampling import Window
from streamdit_model.text import TextCondition
from streamdit_model.transformer import StreamDiT, TransformerConfig

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

PAPER = Partition(num_chunks=8, chunk_size=2, micro_steps=1)


@torch.inference_mode()
def latents_of(model: StreamModel, chunks: int) -> Tensor:
    """The first latent frames of a stream, (1, channels, frames, height, width)."""
    denoiser = new_denoiser(Subject(model=model, seed=5))
    return torch.cat([denoiser.next().latents for _ in range(chunks)], dim=2)


def test_baseline_keeps_buffer_gamma_and_references() -> None:
    partition = Partition(
        num_reference=2, num_chunks=3, chunk_size=4, micro_steps=2, gamma="shift", gamma_parameter=5
    )
    for kind in ("fifo", "clip"):
        found = baseline_partition(partition, kind)
        assert found.buffer_length == partition.buffer_length
        assert (found.gamma, found.gamma_parameter, found.num_reference) == ("shift", 5, 2)
    with pytest.raises(ConfigError, match="diagonal"):
        baseline_partition(partition, "diagonal")


def test_fifo_calls_as_often_for_one_frame_as_the_model_for_a_chunk() -> None:
    fifo, clip = (baseline_partition(PAPER, kind) for kind in ("fifo", "clip"))
    assert fifo == Partition.diagonal(buffer_length=16)
    assert clip == Partition.uniform(buffer_length=16, total_steps=8)
    assert fifo.micro_steps / fifo.chunk_size == 2 * PAPER.micro_steps / PAPER.chunk_size
    assert clip.micro_steps / clip.chunk_size == PAPER.micro_steps / PAPER.chunk_size


def test_model_that_is_diagonal_already_makes_the_same_latents_as_fifo() -> None:
    model = tiny_model(Partition(num_chunks=4, chunk_size=1, micro_steps=2))
    assert torch.equal(latents_of(model, 3), latents_of(baseline(model, "fifo"), 3))


@torch.inference_mode()
def test_clips_are_those_of_the_plain_flow_matching_sampler() -> None:
    model = tiny_model(Partition(num_chunks=2, chunk_size=2, micro_steps=3))
    made = latents_of(baseline(model, "clip"), 2)
    keys = model.transformer.text_keys(model.text_encoder.encode([PROMPTS[0]]))
    text = FrameText(keys, torch.zeros(1, dtype=torch.long))
    noise = keyed_noise([5], *model.config.frame_shape, device=model.device)
    for clip in range(2):
        x = torch.stack([noise(4 * clip + frame, 0) for frame in range(4)], dim=2)
        for step in range(6):
            tau = torch.full((1, 4), step / 6)
            window = Window(
                latents=x, tau=tau, slots=torch.arange(4), first_frame=4 * clip, text=text
            )
            x = x + model.velocity(window) / 6
        # Rounding of float32 in another order of operations.
        torch.testing.assert_close(made[:, :, 4 * clip : 4 * clip + 4], x, rtol=1e-5, atol=1e-5)


def test_baseline_leaves_the_model_as_it_is() -> None:
    model = tiny_model()
    before = latents_of(model, 2)
    fifo = baseline(model, "fifo")
    latents_of(fifo, 2)
    assert fifo.transformer is model.transformer
    assert torch.equal(latents_of(without_context(model), 2), before)


@pytest.mark.parametrize("sampler", ["rolling", "guided"])
def test_open_weights_run_on_every_way_without_their_context(sampler: str, tmp_path: Path) -> None:
    model = tiny_open(tmp_path, sampler)
    flops = {}
    for kind in ("fifo", "clip", "plain"):
        way = without_context(model) if kind == "plain" else baseline(model, kind)
        assert way.config.context is None  # type: ignore[union-attr]
        denoiser = new_denoiser(Subject(model=way))
        size = way.config.partition.chunk_size
        latents = denoiser.next().latents
        assert latents.shape[2] == size and bool(latents.isfinite().all())
        with torch.inference_mode():
            flops[kind] = count_flops(denoiser.next).flops / size
    assert flops["fifo"] == flops["plain"] * model.config.partition.chunk_size
    # A clip has one time for all its frames, and both count the time of every frame.
    assert flops["clip"] == flops["plain"]


def step_flops(config: TransformerConfig, windows: list[list[tuple[int, int]]], text: int) -> int:
    """The operations of one full step, from the sizes alone; windows of every block as groups."""
    frames, height, columns = config.token_grid
    tokens, width = frames * height * columns, config.width
    total = 2 * frames * width * (config.tau_width + width + 6 * width + 2 * width)
    total += 2 * 2 * tokens * config.patch_values * width
    for groups in windows:
        total += 2 * tokens * width * (3 * width + width + 2 * width + 3 * config.mlp_width)
        total += 4 * width * sum(count * size * size for count, size in groups)
        total += 4 * tokens * text * width
    return total


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, (2, 1, 2)])
def test_counted_operations_of_a_step_agree_with_the_formula(
    window: tuple[int, int, int] | None,
) -> None:
    config = TransformerConfig(
        latent_channels=3,
        grid=(4, 4, 8),
        width=24,
        depth=2,
        num_heads=2,
        mlp_width=20,
        text_width=10,
        tau_width=12,
        window=window,
    )
    network = StreamDiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(1, 7, 10, generator=generator)
    keys = network.text_keys(TextCondition(condition, torch.ones(1, 7, dtype=torch.bool)))
    latents = torch.randn(1, 3, 4, 4, 8, generator=generator)
    text = FrameText(keys, torch.zeros(1, dtype=torch.long))
    cost = count_flops(lambda: network(latents, torch.rand(1, 4), torch.arange(4), text))
    whole = [(1, 32)]
    even = [(8, 4)]
    # Borders moved by (1, 0, 1): along time 1, 2, 1 frames, along columns 1, 2, 1.
    odd = [(2 * 2 * 2, 1), (2 * 2 + 2 * 2, 2), (2, 4)]
    windows = [whole, whole] if window is None else [even, odd]
    assert cost.flops == step_flops(config, windows, text=7)
    assert cost.attention and all("attention" in name for name in cost.attention)


def test_attention_written_out_is_counted_as_products() -> None:
    query = torch.randn(1, 2, 8, 4)
    cost = count_flops(lambda: (query @ query.transpose(-1, -2)).softmax(-1) @ query)
    assert cost.flops == 4 * 2 * 8 * 8 * 4 and cost.attention == ()
