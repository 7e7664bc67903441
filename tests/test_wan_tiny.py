"""Claim: the tiny Wan autoencoder is the published network, whole or streamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.wan.tiny import (
    TAEW_2_1,
    TAEW_2_2,
    TinyAutoencoder,
    TinyAutoencoderConfig,
)

CONFIGS = {
    "2.1": TinyAutoencoderConfig(latent_channels=4, encoder_width=6, decoder_widths=(8, 6, 5, 4)),
    "2.2": TinyAutoencoderConfig(
        latent_channels=5, encoder_width=4, decoder_widths=(6, 5, 4, 4), pixel_patch=2
    ),
}
every_variant = pytest.mark.parametrize("variant", CONFIGS)
both_ways = pytest.mark.parametrize("direction", ["encode", "decode"])


def autoencoder(variant: str, dtype: torch.dtype = torch.float64) -> TinyAutoencoder:
    """A tiny autoencoder whose every weight counts and whose signal keeps its size."""
    model = TinyAutoencoder(CONFIGS[variant]).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = parameter[0].numel() if parameter.dim() > 1 else 9
            parameter.copy_(noise * fan**-0.5)
    return model.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def input_of(config: TinyAutoencoderConfig, direction: str, frames: int) -> Tensor:
    """Latents, or as many video frames as `encode_step` takes for so many latents."""
    if direction == "encode":
        factor = config.space_factor
        return torch.sigmoid(drawn(2, 3, 4 * frames, 2 * factor, 3 * factor))
    return 3 * drawn(2, config.latent_channels, frames, 2, 3)


class FrameByFrame:
    """The published network again, from the names in its file: one frame after the other.

    A layer hands each frame on as soon as it has it, as the streaming reference does.
    """

    # What stands at each place of the file; `memory` sees the frame before, `two` joins or makes 2.
    ENCODER = "conv relu two half memory memory memory two half memory memory memory "
    ENCODER += "one half memory memory memory conv"
    DECODER = "bound conv relu memory memory memory up one conv memory memory memory up two conv "
    DECODER += "memory memory memory up two conv relu conv"

    def __init__(self, part: str, weights: dict[str, Tensor]) -> None:
        self.part, self.weights = part, weights
        self.kinds = (self.ENCODER if part == "encoder" else self.DECODER).split()
        self.seen: dict[int, Tensor] = {}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = self.weights[f"{self.part}.{name}.weight"]
        bias = self.weights.get(f"{self.part}.{name}.bias")
        return F.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2)

    def feed(self, x: Tensor, place: int = 0) -> list[Tensor]:
        """Return the frames that come out because of one more frame, (batch, c, h, w)."""
        if place == len(self.kinds):
            return [x]
        kind = self.kinds[place]
        if kind == "memory":
            past = self.seen.get(place, torch.zeros_like(x))
            self.seen[place] = x
            y = torch.cat([x, past], 1)
            y = self.conv(f"{place}.conv.0", y).relu()
            y = self.conv(f"{place}.conv.4", self.conv(f"{place}.conv.2", y).relu())
            return self.feed((x + y).relu(), place + 1)
        if kind == "two" and self.part == "encoder":
            if place not in self.seen:
                self.seen[place] = x
                return []
            x = torch.cat([self.seen.pop(place), x], 1)
        if kind in ("one", "two"):
            y = self.conv(f"{place}.conv", x)
            parts = y.chunk(2, 1) if kind == "two" and self.part == "decoder" else (y,)
            return [out for part in parts for out in self.feed(part, place + 1)]
        if kind in ("conv", "half"):
            return self.feed(self.conv(str(place), x, 2 if kind == "half" else 1), place + 1)
        if kind == "up":
            return self.feed(x.repeat_interleave(2, 2).repeat_interleave(2, 3), place + 1)
        return self.feed(x.relu() if kind == "relu" else 3 * torch.tanh(x / 3), place + 1)


def frame_by_frame(model: TinyAutoencoder, direction: str, x: Tensor) -> Tensor:
    patch, weights = model.config.pixel_patch, model.state_dict()
    network = FrameByFrame(f"{direction}r", weights)
    frames = x.unbind(2)
    if direction == "encode":
        frames = tuple(F.pixel_unshuffle(frame, patch) for frame in frames)
    found = [out for frame in frames for out in network.feed(frame)]
    if direction == "decode":
        found = [F.pixel_shuffle(frame, patch) for frame in found[3:]]
    return torch.stack(found, 2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@every_variant
def test_decode_equals_the_network_taken_frame_by_frame(variant: str) -> None:
    model = autoencoder(variant)
    latents = input_of(model.config, "decode", 3)
    found = model.decode(latents)
    factor = model.config.space_factor
    assert found.shape == (2, 3, 9, 2 * factor, 3 * factor)
    assert relative_error(found, frame_by_frame(model, "decode", latents)) < 1e-12
    assert found.min() < 0 or found.max() > 1  # clamped nowhere


@every_variant
def test_encode_repeats_the_last_frame_of_a_clip_three_times(variant: str) -> None:
    model = autoencoder(variant)
    video = input_of(model.config, "encode", 3)[:, :, :9]
    found = model.encode(video)
    assert found.shape == (2, model.config.latent_channels, 3, 2, 3)
    padded = torch.cat([video, video[:, :, 8:], video[:, :, 8:], video[:, :, 8:]], 2)
    assert relative_error(found, frame_by_frame(model, "encode", padded)) < 1e-12


def streamed(model: TinyAutoencoder, direction: str, x: Tensor, pieces: tuple[int, ...]) -> Any:
    """Run a stream in pieces of so many latent frames; return the result and the last state."""
    step = model.encode_step if direction == "encode" else model.decode_step
    state, parts, start = None, [], 0
    for piece in pieces:
        frames = model.frames_to_encode(piece, state) if direction == "encode" else piece
        part, state = step(x[:, :, start : start + frames], state)
        parts.append(part)
        start += frames
    assert start == x.shape[2]
    return torch.cat(parts, dim=2), state


@every_variant
@both_ways
def test_stream_equals_the_network_taken_frame_by_frame(variant: str, direction: str) -> None:
    model = autoencoder(variant)
    x = input_of(model.config, direction, 5)
    found, _ = streamed(model, direction, x, (1, 1, 1, 1, 1))
    assert relative_error(found, frame_by_frame(model, direction, x)) < 1e-12


@every_variant
@both_ways
def test_pieces_of_1_2_and_4_latents_give_equal_bits(variant: str, direction: str) -> None:
    model = autoencoder(variant, torch.float32)
    x = input_of(model.config, direction, 5).float()
    expected, last = streamed(model, direction, x, (1, 1, 1, 1, 1))
    for pieces in ((1, 2, 2), (2, 2, 1), (4, 1)):
        found, state = streamed(model, direction, x, pieces)
        assert torch.equal(found, expected)
        assert state.keys() == last.keys()
        assert all(torch.equal(state[name], last[name]) for name in last)
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.values())


def test_sizes_convert_both_ways() -> None:
    model = autoencoder("2.2")
    assert model.latent_shape(81, 704, 1280) == (21, 44, 80)
    assert model.video_shape(21, 44, 80) == (81, 704, 1280)
    assert model.frames_to_encode(3, None) == model.frames_to_encode(3, {}) == 12


@pytest.mark.parametrize(
    "shape, named", [((5, 8, 8), "frames 5"), ((0, 8, 8), "frames 0"), ((4, 8, 12), "width 12")]
)
def test_step_of_another_size_is_refused(shape: tuple[int, int, int], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} "):
        autoencoder("2.1").encode_step(torch.zeros(1, 3, *shape, dtype=torch.float64), None)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"decoder_widths": (8, 8)}, "2 decoder widths; 4"),
        ({"decoder_widths": (8, 8, 0, 8)}, "at least 1"),
        ({"latent_channels": 0}, "at least 1"),
    ],
)
def test_configuration_that_cannot_work_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TinyAutoencoderConfig(**changes)


def test_other_keys_are_refused_with_the_first_of_them() -> None:
    model = autoencoder("2.1")
    state = model.state_dict()
    taken = model.check_keys(state)
    assert taken.keys() == state.keys()
    state["decoder.22.scale"] = state.pop("encoder.0.weight")
    with pytest.raises(WeightsError) as caught:
        model.check_keys(state)
    assert str(caught.value) == (
        "not the weights of a tiny Wan autoencoder: 'encoder.0.weight' is missing, "
        "'decoder.22.scale' is unexpected"
    )


# Bytes of the float16 safetensors files, hub-pins.md rows 4.2 and 4.5.
@pytest.mark.parametrize(
    "config, file_bytes", [(TAEW_2_1, 22_642_902), (TAEW_2_2, 22_848_048)], ids=["2.1", "2.2"]
)
def test_full_size_fits_the_published_file(config: TinyAutoencoderConfig, file_bytes: int) -> None:
    with torch.device("meta"):
        model = TinyAutoencoder(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    per_tensor = (file_bytes - 2 * parameters) / len(model.state_dict())
    assert 80 < per_tensor < 120  # a name, a dtype, a shape and two offsets in the header
    if config is TAEW_2_1:
        decoder = sum(parameter.numel() for parameter in model.decoder.parameters())
        assert round(decoder / 1e6, 1) == 9.8  # performance.md 1.5
