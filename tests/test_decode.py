"""Claim: the autoencoder streams. Fed piece by piece it is the same function as on a whole clip."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from streamdit_model.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Convolution,
    Downsample,
    MemoryBlock,
    State,
    Upsample,
)
from streamdit_model.errors import ConfigError

# Reach back in video frames: 4 for a block at the latent, 2 for one in the middle, 1 for the rest.
CONFIGS = {
    "small": AutoencoderConfig(
        latent_channels=4, widths=(8, 8, 4), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)
    ),
    "deep": AutoencoderConfig(
        latent_channels=2, widths=(8, 8, 4), encoder_blocks=(2, 1, 1), decoder_blocks=(1, 2, 2)
    ),
    "fine": AutoencoderConfig(
        latent_channels=4,
        widths=(8, 4, 4, 4),
        encoder_blocks=(1, 1, 1, 1),
        decoder_blocks=(1, 1, 2, 1),
        pixel_patch=1,
    ),
}
LEAD_IN = {"small": (2, 2), "deep": (3, 3), "fine": (2, 3)}  # encoder, decoder: 7, 11, 8; 7, 10, 9

both_ways = pytest.mark.parametrize("direction", ["encode", "decode"])
every_config = pytest.mark.parametrize("name", CONFIGS)


def autoencoder(name: str, dtype: torch.dtype = torch.float64) -> Autoencoder:
    """An autoencoder whose every weight counts, in evaluation mode."""
    model = Autoencoder(CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            fan = tensor[0].numel() if tensor.dim() > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan**-0.5)
        model.latent_norm.deviation.abs_().add_(0.5)
    return model.to(dtype).eval().requires_grad_(False)


def video_of(frames: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, 3, frames, 16, 24, generator=generator, dtype=torch.float64).to(dtype)


def latents_of(
    model: Autoencoder, frames: int, dtype: torch.dtype = torch.float64, batch: int = 2
) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (batch, model.config.latent_channels, frames, 2, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def input_of(model: Autoencoder, direction: str, latent_frames: int, **settings: object) -> Tensor:
    if direction == "encode":
        return video_of(4 * latent_frames, **settings)  # type: ignore[arg-type]
    return latents_of(model, latent_frames, **settings)  # type: ignore[arg-type]


def streamed(model: Autoencoder, direction: str, x: Tensor, pieces: list[int]) -> Tensor:
    """Run a stream in pieces of so many latent frames."""
    step = model.encode_step if direction == "encode" else model.decode_step
    unit = 4 if direction == "encode" else 1
    state: State | None = None
    parts = []
    for piece in x.split([unit * piece for piece in pieces], dim=2):
        part, state = step(piece, state)
        parts.append(part)
    return torch.cat(parts, dim=2)


# The independent route: time is an axis of 3-D convolutions, and nothing is remembered.


def _convolved(x: Tensor, convolution: Convolution, taps: int = 1, stride: int = 1) -> Tensor:
    """Convolve over `taps` neighbouring frames, whose channels the kernel holds in order."""
    outputs, inputs, size, _ = convolution.kernel_shape
    kernel = convolution.weight.view(outputs, taps, inputs // taps, size, size).transpose(1, 2)
    edge = size // 2
    x = F.pad(x, (edge, edge, edge, edge))
    return F.conv3d(x, kernel, convolution.bias, stride=(taps if stride > 1 else 1, stride, stride))


def _block(x: Tensor, block: MemoryBlock) -> Tensor:
    outputs, inputs, size, _ = block.mix.kernel_shape
    present_and_past = block.mix.weight.view(outputs, 2, inputs // 2, size, size)
    kernel = present_and_past.flip(1).transpose(1, 2)
    before = F.pad(F.silu(x), (1, 1, 1, 1, 1, 0))
    return x + _convolved(F.silu(F.conv3d(before, kernel, block.mix.bias)), block.out)


def _down(x: Tensor, layer: Downsample) -> Tensor:
    batch, channels, frames, height, width = x.shape
    taps = layer.frames
    cells = x.view(batch, channels, frames // taps, taps, height // 2, 2, width // 2, 2)
    cells = cells.permute(0, 3, 1, 5, 7, 2, 4, 6).flatten(1, 4)
    straight = cells.unflatten(1, (layer.width_out, -1)).mean(2)
    return straight + _convolved(x, layer.conv, taps, stride=2)


def _up(x: Tensor, layer: Upsample) -> Tensor:
    batch, channels, frames, height, width = x.shape
    total = layer.width_out
    cells = (
        x.repeat_interleave(4 * total // channels, 1)
        if 4 * total >= channels
        else x.unflatten(1, (4 * total, -1)).mean(2)
    )
    cells = cells.view(batch, total, 2, 2, frames, height, width).permute(0, 1, 4, 5, 2, 6, 3)
    wide = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    y = cells.reshape(batch, total, frames, 2 * height, 2 * width) + _convolved(wide, layer.conv)
    y = y.unflatten(1, (layer.frames, -1)).permute(0, 2, 3, 1, 4, 5)
    return y.flatten(2, 3)


def _layers(x: Tensor, layers: nn.ModuleList) -> Tensor:
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            x = _block(x, layer)
        elif isinstance(layer, Downsample):
            x = _down(x, layer)
        else:
            assert isinstance(layer, Upsample)
            x = _up(x, layer)
    return x


def _encoded(model: Autoencoder, video: Tensor) -> Tensor:
    batch, _, frames, height, width = video.shape
    patch = model.config.pixel_patch
    x = (2 * video - 1).view(batch, 3, frames, height // patch, patch, width // patch, patch)
    x = x.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)
    x = _layers(_convolved(x, model.encoder_in), model.encoder)
    straight = x.unflatten(1, (model.config.latent_channels, -1)).mean(2)
    z = straight + _convolved(F.silu(x), model.encoder_out)
    shape = (1, -1, 1, 1, 1)
    return (z - model.latent_norm.mean.view(shape)) / model.latent_norm.deviation.view(shape)


def _decoded(model: Autoencoder, latents: Tensor) -> Tensor:
    repeats = model.config.widths[0] // model.config.latent_channels
    x = latents.repeat_interleave(repeats, 1) + _convolved(latents, model.decoder_in)
    x = _convolved(F.silu(_layers(x, model.decoder)), model.decoder_out)
    patch = model.config.pixel_patch
    batch, _, frames, height, width = x.shape
    x = x.view(batch, 3, patch, patch, frames, height, width).permute(0, 1, 4, 5, 2, 6, 3)
    return (x.reshape(batch, 3, frames, height * patch, width * patch) + 1) / 2


ROUTES: dict[str, Callable[[Autoencoder, Tensor], Tensor]] = {
    "encode": _encoded,
    "decode": _decoded,
}


# One function, whole or in pieces


@every_config
@both_ways
def test_whole_clip_and_stream_equal_convolutions_over_time(direction: str, name: str) -> None:
    model = autoencoder(name)
    x = input_of(model, direction, 7)
    expected = ROUTES[direction](model, x)
    whole = model.encode(x) if direction == "encode" else model.decode(x)
    assert expected.std() > 0.1  # neither silent nor drowned by a bias
    assert (whole - expected).abs().max() < 1e-12
    assert (streamed(model, direction, x, [1] * 7) - expected).abs().max() < 1e-12
    assert (streamed(model, direction, x, [3, 4]) - expected).abs().max() < 1e-12


@both_ways
def test_stream_in_float32_is_the_whole_clip_within_1e_5(direction: str) -> None:
    model = autoencoder("deep", torch.float32)
    x = input_of(model, direction, 24, dtype=torch.float32)
    expected = ROUTES[direction](model, x)
    assert (streamed(model, direction, x, [1] * 24) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_ways
def test_1_2_4_or_8_latents_a_call_give_equal_bits(direction: str, dtype: torch.dtype) -> None:
    model = autoencoder("deep", dtype)
    x = input_of(model, direction, 8, dtype=dtype)
    one_by_one = streamed(model, direction, x, [1] * 8)
    for pieces in ([2] * 4, [4, 4], [8], [1, 4, 2, 1]):
        assert torch.equal(streamed(model, direction, x, pieces), one_by_one)


@both_ways
def test_streams_of_a_batch_do_not_touch(direction: str) -> None:
    model = autoencoder("small")
    x = input_of(model, direction, 4, batch=3)
    together = streamed(model, direction, x, [2, 2])
    alone = streamed(model, direction, x[1:2], [2, 2])
    assert (together[1:2] - alone).abs().max() < 1e-12


# What depends on what


@every_config
@both_ways
def test_output_forgets_the_start_after_the_lead_in_and_not_sooner(
    direction: str, name: str
) -> None:
    model = autoencoder(name)
    lead_in = model.encoder_lead_in if direction == "encode" else model.decoder_lead_in
    assert lead_in == LEAD_IN[name][direction == "decode"]
    skipped, units = 2, (4, 1) if direction == "encode" else (1, 4)
    x = input_of(model, direction, skipped + lead_in + 3)
    whole = streamed(model, direction, x, [1] * (skipped + lead_in + 3))
    later = streamed(model, direction, x[:, :, units[0] * skipped :], [1] * (lead_in + 3))
    change = (whole[:, :, units[1] * skipped :] - later).abs().amax((0, 1, 3, 4))
    change = change.unflatten(0, (-1, units[1])).amax(1)  # of each latent frame
    assert change[lead_in:].max() < 1e-12
    assert change[:lead_in].min() > 1e-9


def test_latent_frame_is_made_of_its_four_video_frames_and_earlier_ones() -> None:
    model = autoencoder("small")
    video = video_of(24)
    latents = model.encode(video)
    for frame in (8, 11):
        changed = video.clone()
        changed[:, :, frame] += 0.1
        moved = (model.encode(changed) - latents).abs().amax((0, 1, 3, 4))
        assert (moved[:2] == 0).all(), frame
        assert moved[2] > 1e-6, frame


def test_four_video_frames_are_made_of_their_latent_frame_and_earlier_ones() -> None:
    model = autoencoder("small")
    latents = latents_of(model, 6)
    video = model.decode(latents)
    changed = latents.clone()
    changed[:, :, 2] += 0.1
    moved = (model.decode(changed) - video).abs().amax((0, 1, 3, 4))
    assert (moved[:8] == 0).all()
    assert (moved[8:12] > 1e-6).all()


# The state of a stream


@both_ways
def test_state_goes_through_a_file_of_tensors_and_gives_equal_bits(direction: str) -> None:
    model = autoencoder("deep", torch.float32)
    step = model.encode_step if direction == "encode" else model.decode_step
    x = input_of(model, direction, 6, dtype=torch.float32)
    half = x.shape[2] // 2
    _, state = step(x[:, :, :half], None)
    expected, _ = step(x[:, :, half:], state)
    assert all(type(name) is str and type(value) is Tensor for name, value in state.items())
    read = load(save({name: value.contiguous() for name, value in state.items()}))
    assert torch.equal(step(x[:, :, half:], read)[0], expected)


@both_ways
def test_state_is_one_frame_of_every_memory_block_however_long_the_stream(direction: str) -> None:
    model = autoencoder("deep")
    layers = model.encoder if direction == "encode" else model.decoder
    step = model.encode_step if direction == "encode" else model.decode_step
    short, long = (step(input_of(model, direction, frames), None)[1] for frames in (1, 9))
    assert len(short) == sum(isinstance(layer, MemoryBlock) for layer in layers)
    assert {name: value.shape for name, value in short.items()} == {
        name: value.shape for name, value in long.items()
    }
    assert all(value.shape[0] == 2 and value.dim() == 4 for value in short.values())


@both_ways
def test_step_leaves_its_input_and_the_state_it_was_given_alone(direction: str) -> None:
    model = autoencoder("small")
    step = model.encode_step if direction == "encode" else model.decode_step
    x = input_of(model, direction, 2)
    _, state = step(x, None)
    before = {name: value.clone() for name, value in state.items()}
    again = x.clone()
    first, _ = step(x, state)
    second, _ = step(x, state)
    assert torch.equal(x, again)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert torch.equal(first, second)


# Sizes


def test_sizes_convert_there_and_back() -> None:
    for frames, height, width in ((4, 8, 8), (64, 128, 64), (400, 512, 832)):
        sizes = Autoencoder.latent_shape(frames, height, width)
        assert sizes == (frames // 4, height // 8, width // 8)
        assert Autoencoder.video_shape(*sizes) == (frames, height, width)
    model = autoencoder("small")
    latents = model.encode(video_of(12))
    assert latents.shape == (2, 4, *Autoencoder.latent_shape(12, 16, 24))
    assert model.decode(latents).shape == (2, 3, *Autoencoder.video_shape(3, 2, 3))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((6, 16, 16), "frames 6 is not a multiple of 4"),
        ((0, 16, 16), "frames 0 is not a multiple of 4"),
        ((8, 12, 16), "height 12 is not a multiple of 8"),
        ((8, 16, 500), "width 500 is not a multiple of 8"),
    ],
)
def test_sizes_that_are_no_multiples_are_refused(sizes: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Autoencoder.latent_shape(*sizes)


def test_encoder_refuses_a_piece_of_five_frames() -> None:
    model = autoencoder("small")
    with pytest.raises(ConfigError, match="multiple of 4"):
        model.encode(video_of(5))
    with pytest.raises(ConfigError, match="multiple of 4"):
        model.encode_step(video_of(5), None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (8, 8), "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}, "4x in space"),
        ({"pixel_patch": 4}, "16x in space"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks has 2 entries for 3 widths"),
        ({"decoder_blocks": (1, 0, 1)}, "at least 1"),
        ({"latent_channels": 0}, "at least 1"),
    ],
)
def test_config_that_cannot_be_built_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AutoencoderConfig(**changes)  # type: ignore[arg-type]


# Training


def test_new_autoencoder_decodes_to_gray() -> None:
    model = Autoencoder(CONFIGS["small"]).eval()
    latents = latents_of(model, 2, torch.float32)
    assert torch.equal(model.decode(latents), torch.full((2, 3, 8, 16, 24), 0.5))


def test_latents_get_mean_0_and_deviation_1_from_what_is_seen_in_training() -> None:
    model = autoencoder("small", torch.float32).train()
    video = video_of(8, torch.float32, batch=1)
    for _ in range(300):
        model.encode(video)
    model.eval()
    latents = model.encode(video)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.02
    assert (latents.std((0, 2, 3, 4), correction=0) - 1).abs().max() < 0.02
    assert torch.equal(model.encode(video), latents)  # nothing moves outside training
