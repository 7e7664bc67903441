"""Claim: our Wan autoencoder is the published one, 2.1 and 2.2, whole or streamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamdit_model.autoencoder import State
from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.wan.vae import WanAutoencoder
from streamdit_model.wan.vae_config import WAN_2_1, WAN_2_2, WanAutoencoderConfig
from streamdit_model.wan.vae_keys import LAYOUTS, exported, key_map, translated

TINY_2_1 = WanAutoencoderConfig(
    mean=(-0.5, 0.3, 1.1, 0.0),
    deviation=(2.0, 0.7, 1.3, 0.4),
    encoder_width=4,
    decoder_width=6,
    multipliers=(1, 2, 3, 4),
    blocks=1,
)
TINY_2_2 = replace(TINY_2_1, multipliers=(1, 2, 4, 4), blocks=2, straight_ways=True, pixel_patch=2)
CONFIGS = {"2.1": TINY_2_1, "2.2": TINY_2_2}
every_variant = pytest.mark.parametrize("variant", CONFIGS)
both_ways = pytest.mark.parametrize("direction", ["encode", "decode"])


@torch.no_grad()
def redrawn(model: torch.nn.Module) -> None:
    """Draw every parameter away from its default; the signal keeps its size, pixels stay small."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("gamma"):
            parameter.copy_(1 + 0.3 * noise)
        else:
            fan = parameter[0].numel() if parameter.dim() > 1 else 9
            pixels = 0.05 if name.startswith("decoder.conv_out") else 1.0
            parameter.copy_(noise * pixels * fan**-0.5)


def autoencoder(variant: str, dtype: torch.dtype = torch.float64) -> WanAutoencoder:
    model = WanAutoencoder(CONFIGS[variant]).to(dtype)
    redrawn(model)
    return model.eval().requires_grad_(False)


def oracle(config: WanAutoencoderConfig) -> Any:
    diffusers = pytest.importorskip("diffusers")
    folded = config.pixel_channels
    model = diffusers.AutoencoderKLWan(
        base_dim=config.encoder_width,
        decoder_base_dim=config.decoder_width,
        z_dim=config.latent_channels,
        dim_mult=list(config.multipliers),
        num_res_blocks=config.blocks,
        temperal_downsample=list(config.halves_time),
        latents_mean=list(config.mean),
        latents_std=list(config.deviation),
        is_residual=config.straight_ways,
        in_channels=folded,
        out_channels=folded,
        patch_size=config.pixel_patch if config.pixel_patch > 1 else None,
        scale_factor_spatial=config.space_factor,
    )
    redrawn(model)
    return model.eval().requires_grad_(False)


def ours_of(theirs: Any, config: WanAutoencoderConfig) -> WanAutoencoder:
    model = WanAutoencoder(config)
    model.load_state_dict(translated(theirs.state_dict(), config), strict=True)
    return model.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def latents_of(config: WanAutoencoderConfig, frames: int, batch: int = 2) -> Tensor:
    return drawn(batch, config.latent_channels, frames, 2, 3)


def video_of(config: WanAutoencoderConfig, frames: int, batch: int = 2) -> Tensor:
    factor = config.space_factor
    return torch.sigmoid(drawn(batch, 3, frames, 2 * factor, 3 * factor))


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@every_variant
def test_decode_equals_the_published_network(variant: str) -> None:
    config = CONFIGS[variant]
    theirs = oracle(config)
    latents = latents_of(config, 3).float()
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.deviation)
    )
    expected = theirs.decode(latents * deviation + mean).sample
    assert expected.abs().max() < 1  # so that nothing was clamped
    found = ours_of(theirs, config).decode(latents)
    assert found.shape == (2, 3, 9, 2 * config.space_factor, 3 * config.space_factor)
    assert relative_error(found * 2 - 1, expected) < 1e-5


@every_variant
def test_encode_equals_the_mean_of_the_published_network(variant: str) -> None:
    config = CONFIGS[variant]
    theirs = oracle(config).double()
    video = video_of(config, 9)
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.deviation)
    )
    expected = (theirs.encode(video * 2 - 1).latent_dist.mean - mean) / deviation
    found = ours_of(theirs, config).double().encode(video)
    assert found.shape == (2, config.latent_channels, 3, 2, 3)
    assert relative_error(found, expected) < 1e-6  # mean and deviation are float32 there


# How many latent frames each call gets.
PIECES = {"ones": (1, 1, 1, 1, 1), "mixed": (1, 2, 2), "twos": (2, 2, 1), "four": (4, 1)}


def streamed(
    model: WanAutoencoder, direction: str, x: Tensor, pieces: tuple[int, ...]
) -> tuple[Tensor, State]:
    """Run a stream in pieces of so many latent frames."""
    state, parts, start = None, [], 0
    for piece in pieces:
        if direction == "encode":
            frames = model.frames_to_encode(piece, state)
            part, state = model.encode_step(x[:, :, start : start + frames], state)
        else:
            frames = piece
            part, state = model.decode_step(x[:, :, start : start + frames], state)
        parts.append(part)
        start += frames
    assert state is not None and start == x.shape[2]
    return torch.cat(parts, dim=2), state


def input_of(config: WanAutoencoderConfig, direction: str, latent_frames: int) -> Tensor:
    if direction == "encode":
        return video_of(config, 1 + 4 * (latent_frames - 1), batch=1)
    return latents_of(config, latent_frames, batch=1)


@every_variant
@both_ways
def test_stream_equals_whole_clip(variant: str, direction: str) -> None:
    model = autoencoder(variant)
    x = input_of(model.config, direction, 5)
    whole = model.encode(x) if direction == "encode" else model.decode(x)
    found, _ = streamed(model, direction, x, PIECES["ones"])
    assert relative_error(found, whole) < 1e-12  # float64; other sums inside convolutions


@every_variant
@both_ways
def test_pieces_of_1_2_and_4_latents_give_equal_bits(variant: str, direction: str) -> None:
    model = autoencoder(variant, torch.float32)
    x = input_of(model.config, direction, 5).float()
    expected, last = streamed(model, direction, x, PIECES["ones"])
    for pieces in PIECES.values():
        found, state = streamed(model, direction, x, pieces)
        assert torch.equal(found, expected)
        assert state.keys() == last.keys()
        assert all(torch.equal(state[name], last[name]) for name in last)


@every_variant
@both_ways
def test_state_neither_grows_nor_holds_more_than_it_shows(variant: str, direction: str) -> None:
    model = autoencoder(variant, torch.float32)
    sizes = []
    for latent_frames in (1, 2, 4):
        x = input_of(model.config, direction, latent_frames).float()
        _, state = streamed(model, direction, x, (latent_frames,))
        stored = {name: tensor.untyped_storage().nbytes() for name, tensor in state.items()}
        assert stored == {name: tensor.nbytes for name, tensor in state.items()}
        assert all(tensor.shape[2] <= 2 for tensor in state.values())
        sizes.append(stored)
    assert sizes[0] == sizes[1] == sizes[2]


@every_variant
def test_latents_see_no_later_frames(variant: str) -> None:
    model = autoencoder(variant)
    video = input_of(model.config, "encode", 3)
    changed = video.clone()
    changed[:, :, 5:] = 0.5
    first, second = model.encode(video), model.encode(changed)
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert not torch.equal(first[:, :, 2:], second[:, :, 2:])


def test_bfloat16_gives_nearly_the_same_video() -> None:
    model = autoencoder("2.1", torch.float32)
    latents = latents_of(model.config, 2).float()
    expected = model.decode(latents)
    found = model.bfloat16().decode(latents.bfloat16())
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), expected) < 0.05  # 8 bits through 20 layers


@pytest.mark.parametrize(
    "config, video, latents",
    [(WAN_2_1, (81, 480, 832), (21, 60, 104)), (WAN_2_2, (121, 704, 1280), (31, 44, 80))],
    ids=["2.1", "2.2"],
)
def test_sizes_convert_both_ways(
    config: WanAutoencoderConfig, video: tuple[int, int, int], latents: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        model = WanAutoencoder(replace(config, encoder_width=2, decoder_width=2))
    assert model.latent_shape(*video) == latents
    assert model.video_shape(*latents) == video
    assert model.video_shape(0, 1, 1)[0] == 0
    frames = model.frames_to_encode(2, None) + model.frames_to_encode(3, {})
    assert frames == model.video_shape(5, 1, 1)[0]


@pytest.mark.parametrize(
    "shape, named",
    [((8, 16, 16), "frames 8"), ((5, 20, 16), "height 20"), ((5, 16, 4), "width 4")],
)
def test_clip_of_another_size_is_refused(shape: tuple[int, int, int], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} is not") as caught:
        autoencoder("2.1").encode(torch.zeros(1, 3, *shape, dtype=torch.float64))
    assert caught.value.hint


def test_step_of_a_wrong_number_of_frames_is_refused() -> None:
    model = autoencoder("2.1")
    video = input_of(model.config, "encode", 2)
    with pytest.raises(ConfigError, match=r"^frames 4 make .*; 1 or a multiple of 4 more"):
        model.encode_step(video[:, :, :4], None)
    _, state = model.encode_step(video, None)
    with pytest.raises(ConfigError, match=r"^frames 5 make .*; 4 or a multiple of 4 more"):
        model.encode_step(video, state)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"deviation": (1.0, 1.0)}, "2 deviations for 4 latent channels"),
        ({"deviation": (1.0, 1.0, 0.0, 1.0)}, "all above 0"),
        ({"halves_time": (True, True)}, "2 halvings for 4 multipliers"),
        ({"halves_time": (False, False, True)}, "2x in time; 4x is needed"),
        ({"blocks": 0}, "at least 1"),
        ({"decoder_width": 1}, "decoder_width 1"),
        ({"straight_ways": True, "multipliers": (1, 2, 3, 4)}, "no straight way"),
    ],
)
def test_configuration_that_cannot_work_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(TINY_2_1, **changes)


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_go_out_and_back(variant: str, layout: Any) -> None:
    config = CONFIGS[variant]
    state = autoencoder(variant).state_dict()
    file = exported(state, config, layout)
    assert sorted(file) == sorted(key_map(config, layout))
    back = translated(file, config)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_original_keys_of_2_1_are_those_that_diffusers_converts() -> None:
    loaders = pytest.importorskip("diffusers.loaders.single_file_utils")
    original, diffusers = (key_map(WAN_2_1, layout) for layout in LAYOUTS)
    converted = loaders.convert_wan_vae_to_diffusers(dict(original))
    assert converted == diffusers  # name of theirs -> name of ours, by two ways


# A name of each kind, read off Wan-Video/Wan2.2 wan/modules/vae2_2.py by hand.
ORIGINAL_2_2 = {
    "conv1.weight": "to_moments.weight",
    "conv2.bias": "from_latents.bias",
    "encoder.conv1.weight": "encoder.conv_in.weight",
    "encoder.downsamples.0.downsamples.1.residual.3.gamma": (
        "encoder.stages.0.blocks.1.norm_2.gamma"
    ),
    "encoder.downsamples.0.downsamples.2.resample.1.weight": "encoder.stages.0.space.weight",
    "encoder.downsamples.1.downsamples.0.shortcut.bias": "encoder.stages.1.blocks.0.shortcut.bias",
    "encoder.downsamples.1.downsamples.2.time_conv.weight": "encoder.stages.1.time.weight",
    "encoder.middle.1.to_qkv.bias": "encoder.middle.attention.qkv.bias",
    "encoder.head.0.gamma": "encoder.norm_out.gamma",
    "decoder.middle.2.residual.6.weight": "decoder.middle.last.conv_2.weight",
    "decoder.upsamples.0.upsamples.3.time_conv.bias": "decoder.stages.0.time.bias",
    "decoder.upsamples.2.upsamples.0.shortcut.weight": "decoder.stages.2.blocks.0.shortcut.weight",
    "decoder.upsamples.3.upsamples.2.residual.2.weight": "decoder.stages.3.blocks.2.conv_1.weight",
    "decoder.head.2.bias": "decoder.conv_out.bias",
}


def test_original_keys_of_2_2_are_the_published_ones() -> None:
    names = key_map(WAN_2_2, "original")
    assert len(names) == 196
    assert {name: names.get(name) for name in ORIGINAL_2_2} == ORIGINAL_2_2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_layout_is_refused_with_the_first_keys(layout: Any) -> None:
    names = dict.fromkeys(key_map(WAN_2_1, layout), 0)
    first = next(iter(names))
    names["zeta.weight"] = names["decoder.alpha.weight"] = 0
    del names[first], names[list(names)[40]]
    with pytest.raises(WeightsError) as caught:
        translated(names, WAN_2_1)
    assert str(caught.value) == (
        f"not the weights of a Wan autoencoder in the {layout} layout: '{first}' is missing, "
        "'decoder.alpha.weight' is unexpected, and 2 more"
    )
    assert caught.value.hint


def test_weights_of_2_2_are_not_taken_for_2_1() -> None:
    for layout in LAYOUTS:
        with pytest.raises(WeightsError, match=r"is missing, .* is unexpected"):
            translated(key_map(WAN_2_2, layout), WAN_2_1)


# Parameters, bytes of the fp32 safetensors file (hub-pins.md row 3.12) or of the pickle (row 7.4).
PUBLISHED = {
    "2.1": (WAN_2_1, 126_892_531, 507_591_892),
    "2.2": (WAN_2_2, 704_688_668, 2_818_839_170),
}


@every_variant
def test_full_size_fits_the_published_file(variant: str) -> None:
    config, parameters, file_bytes = PUBLISHED[variant]
    with torch.device("meta"):
        model = WanAutoencoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert not list(model.buffers())
    per_tensor = (file_bytes - 4 * parameters) / len(model.state_dict())
    assert 0 < per_tensor < 500  # names and shapes in the file
