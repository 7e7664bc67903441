"""Claim: the memory of open weights is known before they are loaded.

Measured is what `live_memory.LiveMemory` sees: live tensors after each operator. At full size the
same passes run on tensors without memory (`FakeTensorMode`), which a test holds to real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_memory import LiveMemory
from safetensors.torch import save_file
from tiny_open import tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode

from streamdit_cli import presets
from streamdit_cli.open_config import open_config
from streamdit_model.frame_text import FrameText
from streamdit_model.text import TextCondition
from streamdit_model.wan import loading, text
from streamdit_model.wan.config import WAN_CONFIGS, WanConfig
from streamdit_model.wan.context import ContextRing, ContextSizes
from streamdit_model.wan.files import fill_module
from streamdit_model.wan.memory import (
    context_bytes,
    decoder_state_bytes,
    decoder_work_bytes,
    estimate_memory,
    network_work_bytes,
    text_key_bytes,
    text_work_bytes,
)
from streamdit_model.wan.text_weights import UMT5_XXL, num_parameters
from streamdit_model.wan.tiny import TAEW_2_1, TAEW_2_2
from streamdit_model.wan.transformer import WanTransformer
from streamdit_model.wan.vae_config import WAN_2_1, WAN_2_2
from streamdit_model.weights import WithoutDraws

STREAMING = ("rolling-1.3b", "rolling-forcing-1.3b", "skyreels-df-1.3b", "skyreels-df-14b")
DTYPES = [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)]
MARGIN = 1.12
MEDIUM = WanConfig(width=192, depth=2, num_heads=3, mlp_width=768, text_width=64, text_length=32)


@contextmanager
def building(dtype: torch.dtype) -> Iterator[None]:
    """Build networks in a dtype and without draws."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with WithoutDraws():
            yield
    finally:
        torch.set_default_dtype(before)


def pass_peak(
    config: WanConfig, frames: int, rows: int, columns: int, past: int, dtype: torch.dtype
) -> int:
    """Return the most that one pass makes beside weights, ring and prompt."""
    with building(dtype):
        network = WanTransformer(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    shape = (1, config.text_length)
    mask = torch.ones(shape, dtype=torch.bool)
    condition = TextCondition(torch.zeros(*shape, config.text_width, dtype=dtype), mask)
    seen = FrameText(network.text_keys(condition), torch.zeros(1, dtype=torch.long))
    view = None
    if past:
        ring = ContextRing(
            config, ContextSizes(span=past + frames), 1, rows * columns, "cpu", dtype
        )
        for _ in range(past // 3):
            ring.admit()
        view = ring.for_window(frames)
        assert view is not None and view.num_frames == past
    latents = torch.zeros(1, config.latent_channels, frames, 2 * rows, 2 * columns, dtype=dtype)
    places = torch.arange(past, past + frames)
    with torch.inference_mode(), LiveMemory() as live:
        network(latents, torch.zeros(1, frames), places, seen, context=view)
    return live.peak


def expected_peak(
    config: WanConfig, frames: int, rows: int, columns: int, past: int, dtype: torch.dtype
) -> int:
    tokens = rows * columns
    work = network_work_bytes(config, dtype, frames=frames, context_frames=past, tokens=tokens)
    return work + text_key_bytes(config, dtype)


# Weights.


@pytest.mark.parametrize(
    "name",
    [
        "rolling-1.3b",
        "skyreels-df-14b",
        *(pytest.param(name, marks=pytest.mark.slow) for name in STREAMING[1:3]),
    ],
)
@pytest.mark.parametrize("decoder", ["small", "full"])
def test_weight_bytes_are_those_of_the_real_networks(name: str, decoder: str) -> None:
    config = open_config(presets.find_preset(name), decoder=decoder)
    with torch.device("meta"), WithoutDraws():
        network = WanTransformer(config.transformer)
    autoencoder = loading.on_meta(lambda: loading.build_autoencoder(config.autoencoder))
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        found = estimate_memory(config, dtype=dtype)
        assert found.transformer == size * sum(p.numel() for p in network.parameters())
        assert found.decoder == size * sum(p.numel() for p in autoencoder.parameters())
        assert found.text_encoder == 2 * 5_680_910_336 == 2 * num_parameters(UMT5_XXL)
    away = estimate_memory(config, dtype=torch.bfloat16, offload="cpu")
    block = 2 * sum(p.numel() for p in network.blocks[0].parameters())
    resting = (config.transformer.depth - 2) * block
    assert found.transformer // 2 - resting == away.transformer


@pytest.mark.parametrize("held", [12, 21, None])
def test_context_and_text_keys_are_counted_exactly(held: int | None) -> None:
    preset = presets.find_preset("rolling-1.3b")
    config = open_config(preset, size=(64, 32), context_frames=held)
    assert config.context is not None
    with torch.device("meta"):
        ring = ContextRing(config.transformer, config.context, 1, 8, "meta", torch.bfloat16)
    assert context_bytes(config, torch.bfloat16) == ring.num_bytes
    with FakeTensorMode(), building(torch.bfloat16):
        network = WanTransformer(MEDIUM)
        tokens = torch.zeros(1, MEDIUM.text_length, MEDIUM.text_width)
        keys = network.text_keys(TextCondition(tokens, torch.ones(tokens.shape[:2]).bool()))
        held_bytes = sum(x.nbytes for x in (*keys.keys, *keys.values))
    assert held_bytes == text_key_bytes(MEDIUM, torch.bfloat16)


# What is made and forgotten.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 9])
def test_a_real_pass_takes_what_the_formula_says(past: int, dtype: torch.dtype) -> None:
    sizes = (MEDIUM, 6, 8, 8, past, dtype)
    measured = pass_peak(*sizes)
    with FakeTensorMode():
        assert pass_peak(*sizes) == measured  # so full size can be measured without memory
    assert measured <= expected_peak(*sizes) <= MARGIN * measured


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "frames", "rows", "columns", "past"),
    [
        ("wan-1.3b", 12, 30, 52, 9),
        pytest.param("wan-1.3b", 12, 30, 52, 0, marks=pytest.mark.slow),
        pytest.param("wan-1.3b", 3, 30, 52, 18, marks=pytest.mark.slow),
        ("skyreels-df-14b", 25, 34, 60, 0),
    ],
)
def test_a_pass_at_full_size_takes_what_the_formula_says(
    name: str, frames: int, rows: int, columns: int, past: int, dtype: torch.dtype
) -> None:
    sizes = (replace(WAN_CONFIGS[name], depth=2), frames, rows, columns, past, dtype)
    with FakeTensorMode():
        measured = pass_peak(*sizes)
    assert measured <= expected_peak(*sizes) <= MARGIN * measured


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (WAN_2_1, 480, 832),
        (TAEW_2_1, 544, 960),
        (WAN_2_2, 704, 1280),
        (TAEW_2_2, 704, 1280),
    ],
)
def test_decoding_at_full_size_takes_what_the_formula_says(
    config: Any, height: int, width: int, dtype: torch.dtype
) -> None:
    with FakeTensorMode():
        with building(dtype):
            decoder = loading.build_autoencoder(config).eval().requires_grad_(False)
        factor = config.space_factor
        shape = (1, config.latent_channels, 3, height // factor, width // factor)
        latents = torch.zeros(shape, dtype=dtype)
        with torch.inference_mode():
            _, state = decoder.decode_step(latents, None)
            with LiveMemory() as live:
                decoder.decode_step(latents, state)
    kept = decoder_state_bytes(config, height, width, dtype)
    assert kept == sum(tensor.nbytes for tensor in state.values())
    work = decoder_work_bytes(config, height, width, dtype, latent_frames=3)
    assert live.peak <= kept + work <= MARGIN * live.peak


def test_encoding_a_prompt_takes_what_the_formula_says() -> None:
    pytest.importorskip("transformers")
    sizes = {"vocabulary": 32, "width": 128, "head_width": 32, "num_heads": 8, "mlp_width": 320}
    config = replace(UMT5_XXL, **sizes, depth=2)
    module = text.build_encoder(config).to(torch.bfloat16).to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    ids = torch.zeros(1, config.max_tokens, dtype=torch.long)
    with torch.no_grad(), LiveMemory() as live:
        module(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert live.peak <= text_work_bytes(config) <= 1.3 * live.peak


def test_phases_count_what_is_there_together(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    stays, leaves = (
        estimate_memory(config, dtype=torch.float32, offload=offload)
        for offload in ("none", "text")
    )
    assert stays.video_phase - leaves.video_phase == stays.text_encoder > 0
    assert stays.text_phase == leaves.text_phase
    alone = estimate_memory(config, dtype=torch.float32, has_text_encoder=False)
    assert alone.text_phase == 0 and alone.video_phase == leaves.video_phase == alone.peak


# Presets.


@pytest.mark.parametrize("name", STREAMING)
def test_every_profile_fits_its_card_and_states_its_estimate(name: str) -> None:
    preset = presets.find_preset(name)
    for profile in preset["profiles"]:
        config = open_config(
            preset,
            size=(profile["width"], profile["height"]),
            decoder=profile["decoder"],
            context_frames=profile["context_frames"] or None,
        )
        found = estimate_memory(
            config,
            dtype=torch.bfloat16,
            offload=profile["offload"],
            num_prompts=1 if config.distilled else 2,
        )
        gigabytes = found.video_phase / 1e9
        assert 0 <= profile["estimate"] - gigabytes < 0.1 + 1e-6
        assert gigabytes <= 0.92 * profile["vram"]


def test_a_shorter_context_leaves_the_noisy_passes_as_they_are() -> None:
    config = WanConfig(width=12, depth=1, num_heads=1, mlp_width=8, text_width=4, text_length=2)
    for frames in (12, 15):
        whole, short = (ContextRing(config, ContextSizes(held=held), 1, 1) for held in (None, 12))
        assert short.num_bytes / whole.num_bytes == 12 / 21
        for number in range(12):
            for ring in (whole, short):
                for x in (*ring._keys, *ring._values):
                    first = ring._place(number)
                    x[:, :, first : first + 3] = number
                ring.admit()
            seen = [ring.for_window(frames) for ring in (whole, short)]
            assert seen[0] is not None and seen[1] is not None
            assert torch.equal(seen[0].read(0)[0], seen[1].read(0)[0])
        assert short.held() == [0, 9, 10, 11]


# Loading.


def is_mapped(storage: torch.UntypedStorage) -> bool:
    """Whether a storage is a mapped safetensors file, which is no memory of the process."""
    if storage.device.type != "cpu":
        return False
    address = storage.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            if first <= address < last:
                return True
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
def test_tensors_leave_the_file_one_by_one(tmp_path: Path) -> None:
    config = replace(MEDIUM, depth=6)
    network = WanTransformer(config)
    path = tmp_path / "n.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    largest = max(p.nbytes for p in network.parameters())
    total = sum(p.nbytes for p in network.parameters())
    assert largest * 8 < total

    def load(device: str) -> LiveMemory:
        built = loading.on_meta(lambda: WanTransformer(config))
        with LiveMemory(skips=is_mapped) as live:
            fill_module("network", built, [path], dict, torch.float32, torch.device(device))
        return live

    # On the meta device, as on a GPU, nothing of it stays in CPU memory.
    assert largest <= load("meta").peak <= 3 * largest
    assert total <= load("cpu").peak <= total + 3 * largest
