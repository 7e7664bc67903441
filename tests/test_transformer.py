"""The transformer: its block, time and position per latent frame, absent frames, sizes."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from tiny_transformer import (
    close,
    condition,
    inputs,
    moved_frames,
    one_prompt,
    tiny_config,
    tiny_transformer,
    without_self_attention,
)
from torch import Tensor

from streamdit_model.blocks import NORM_EPSILON, Block
from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText
from streamdit_model.transformer import StreamDiT, paper_4b
from streamdit_model.window_attention import full_plan

# Start of training


def test_first_velocity_is_zero_and_blocks_only_add_the_positions() -> None:
    model = StreamDiT(tiny_config()).double()
    latents, tau, slots = inputs(model)
    text = one_prompt(model)
    assert model(latents, tau, slots, text).abs().max() == 0
    x = torch.randn(2, 8, 16, 16, dtype=torch.float64)
    modulation = torch.zeros(2, 8, 6, 16, dtype=torch.float64)
    position = model._positions(slots)
    block_text = text.per_block()[0]
    out = model.blocks[0](
        x, modulation, position, block_text, *model._layers(slots, 16, x.device, None)[0]
    )
    assert torch.equal(out, x + position)


def test_gradients_reach_every_parameter_within_three_steps_from_the_start() -> None:
    model = StreamDiT(tiny_config(window=(4, 2, 2))).double()
    latents, tau, slots = inputs(model)
    first = torch.tensor([[0] * 4 + [1] * 4, [2] * 8])
    for _ in range(4):
        velocity = model(latents, tau, slots, FrameText(model.text_keys(condition()), first))
        loss = (velocity - latents).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name


def test_weights_drawn_after_the_meta_device_equal_those_drawn_at_once() -> None:
    with torch.device("meta"):
        late = StreamDiT(tiny_config())
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(5))
    early = StreamDiT(tiny_config())
    early.init_weights(torch.Generator().manual_seed(5))
    assert not list(late.buffers())
    for (name, one), (_, other) in zip(
        late.named_parameters(), early.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_linear_weights_give_unit_outputs_for_unit_inputs() -> None:
    model = StreamDiT(tiny_config(width=128, mlp_width=192, num_heads=4, text_width=96))
    for block in model.blocks:
        for linear in (block.attention.qkv, block.mlp.gate_up, block.mlp.down):  # type: ignore[union-attr]
            assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.03)
    assert model.text_embedding.weight.std().item() == pytest.approx(96**-0.5, rel=0.03)
    assert model.row_position.std().item() == pytest.approx(0.02, rel=0.1)


def test_block_is_the_one_of_figure_3() -> None:
    model = tiny_transformer()
    latents, _, slots = inputs(model)
    block = cast(Block, model.blocks[1])
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 8, 16, 16, generator=generator, dtype=torch.float64)
    modulation = torch.randn(2, 8, 6, 16, generator=generator, dtype=torch.float64)
    position = model._positions(slots)
    text = one_prompt(model).per_block()[1]
    plan, masks = model._layers(slots, 16, latents.device, None)[1]

    def norm(tokens: Tensor) -> Tensor:
        return tokens / (tokens.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt()

    parts = (modulation + block.table).split(1, dim=2)  # each (batch, frames, 1, width)
    expected = x + position
    given = norm(expected) * (1 + parts[1]) + parts[0]
    expected = expected + parts[2] * block.attention(given, plan, masks)
    expected = expected + block.cross_attention(norm(expected), text)
    expected = expected + parts[5] * block.mlp(norm(expected) * (1 + parts[4]) + parts[3])
    close(block(x, modulation, position, text, plan, masks), expected)


def test_queries_and_keys_are_normed_and_values_are_not() -> None:
    model = tiny_transformer()
    attention = cast(Block, model.blocks[0]).attention
    x = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    results = []
    for factors in ((1.0, 1.0, 1.0), (7.0, 0.2, 1.0), (1.0, 1.0, 3.0)):
        scaled = copy.deepcopy(attention)
        with torch.no_grad():
            scaled.qkv.weight *= torch.tensor(factors).repeat_interleave(16)[:, None]
        results.append(scaled(x, full_plan(128), None))
    close(results[1], results[0], 1e-4)  # the epsilon of the norm is all that differs
    close(results[2], 3.0 * results[0])


# Time and position per latent frame


def test_tau_of_one_frame_reaches_only_that_frame_without_self_attention() -> None:
    model = without_self_attention(tiny_transformer())
    latents, tau, slots = inputs(model)
    other = tau.clone()
    other[:, 3] = 1 - other[:, 3]
    with torch.no_grad():
        text = one_prompt(model)
        velocities = [model(latents, level, slots, text) for level in (tau, other)]
    assert moved_frames(*velocities) == [3]


def test_tau_of_one_frame_reaches_all_frames_through_self_attention() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    other = tau.clone()
    other[:, 3] = 1 - other[:, 3]
    with torch.no_grad():
        text = one_prompt(model)
        velocities = [model(latents, level, slots, text) for level in (tau, other)]
    assert moved_frames(*velocities) == list(range(8))


def test_a_frame_is_placed_by_its_slot_and_not_by_its_index() -> None:
    model = without_self_attention(tiny_transformer())
    latents, tau, slots = inputs(model)
    with torch.no_grad():
        text = one_prompt(model)
        whole = model(latents, tau, slots, text)
        tail = model(latents[:, :, 5:], tau[:, 5:], slots[5:], text)
        head = model(latents[:, :, 5:], tau[:, 5:], slots[:3], text)
    close(tail, whole[:, :, 5:])
    assert moved_frames(head, tail) == [0, 1, 2]


def test_positions_enter_every_block() -> None:
    model = tiny_transformer(depth=3)
    latents, tau, slots = inputs(model)
    text = one_prompt(model)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    with torch.no_grad():
        model(latents, tau, slots, text)
    table = (
        model.frame_position[:, None, None] + model.row_position[:, None] + model.column_position
    )
    assert len(seen) == 3
    for position in seen:
        close(position, table.flatten(1, 2))


def test_a_token_reads_the_patch_under_it() -> None:
    model = without_self_attention(tiny_transformer())
    latents, tau, slots = inputs(model)
    other = latents.clone()
    other[0, 1, 2, 5, 3] += 1.0  # frame 2, row 5, column 3: token (2, 2, 1)
    with torch.no_grad():
        text = one_prompt(model)
        change = model(other, tau, slots, text) - model(latents, tau, slots, text)
    places = (change.abs().amax(1) > 1e-9).nonzero().tolist()
    assert places == [[0, 2, row, column] for row in (4, 5) for column in (2, 3)]


def test_patches_are_put_back_where_they_were_cut() -> None:
    model = tiny_transformer(grid=(8, 6, 8), patch=(1, 3, 2))
    latents, _, _ = inputs(model)
    assert torch.equal(model._unpatch(model._patches(latents)), latents)


# Absent frames


@pytest.mark.parametrize("window", [None, (4, 2, 2), (3, 4, 3)])
def test_absent_frames_are_as_if_they_were_not_there(window: tuple[int, int, int] | None) -> None:
    model = tiny_transformer(window=window)
    latents, tau, slots = inputs(model, batch=8)
    lengths = range(1, 9)
    present = torch.arange(8) >= 8 - torch.tensor(lengths)[:, None]
    text = one_prompt(model)
    masked = model(latents, tau, slots, text, present)
    for sample, frames in enumerate(lengths):
        part = slice(8 - frames, 8)
        alone = model(latents[sample, None, :, part], tau[sample, None, part], slots[part], text)
        close(masked[sample, None, :, part], alone)


def test_absent_frames_take_and_give_no_gradient() -> None:
    model = tiny_transformer(window=(4, 2, 2))
    latents, tau, slots = inputs(model)
    latents.requires_grad_()
    present = torch.arange(8) >= torch.tensor([[6], [0]])
    velocity = model(latents, tau, slots, one_prompt(model), present)
    (velocity * present[:, None, :, None, None]).square().sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()
    given = latents.grad.abs().amax(dim=(1, 3, 4)) > 0
    assert torch.equal(given, present)


# Numbers


def test_bfloat16_is_close_to_float32() -> None:
    model = tiny_transformer().float()
    latents, tau, slots = inputs(model)
    with torch.no_grad():
        exact = model(latents.float(), tau, slots, one_prompt(model))
        model.bfloat16()
        rounded = model(latents.bfloat16(), tau, slots, one_prompt(model))
    assert rounded.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: one rounding is 0.2 to 0.4 %, and some tens of them add up
    assert (rounded.float() - exact).square().mean().sqrt() < 0.04 * exact.square().mean().sqrt()


def test_autocast_is_close_to_float32_and_returns_the_dtype_of_the_latents() -> None:
    model = tiny_transformer().float()
    latents, tau, slots = inputs(model)
    latents = latents.float()
    present = torch.arange(8) >= torch.tensor([[2], [0]])
    exact = model(latents, tau, slots, one_prompt(model), present)[:, :, 2:]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(latents, tau, slots, one_prompt(model), present)[:, :, 2:]
    assert rounded.dtype == torch.float32
    assert (rounded - exact).square().mean().sqrt() < 0.04 * exact.square().mean().sqrt()


@pytest.mark.parametrize(("depth", "billions"), [(27, 4.08), (26, 3.93)])
def test_4b_model_has_its_parameters_in_the_blocks(depth: int, billions: float) -> None:
    with torch.device("meta"):
        model = StreamDiT(paper_4b(depth=depth))
    in_blocks = sum(parameter.numel() for parameter in model.blocks.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert round(in_blocks / 1e9, 2) == billions
    # shared modulation 57 M, head modulation 19 M, text 13 M, time 10 M, the rest under 1 M
    assert round((total - in_blocks) / 1e6) == 99


def test_4b_model_has_the_tokens_of_the_paper() -> None:
    config = paper_4b()
    assert config.token_grid == (16, 32, 32)
    assert config.head_width == 128


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"width": 20, "num_heads": 3}, ["20", "3"]),
        ({"grid": (8, 9, 8)}, ["9", "2"]),
        ({"grid": (8, 8, 6), "patch": (1, 2, 4)}, ["6", "4"]),
        ({"patch": (2, 2, 2)}, ["2", "1"]),
        ({"depth": 0}, ["0", "1"]),
        ({"window": (4, 0, 2)}, ["0", "1"]),
        ({"window": (4, 4)}, ["4, 4", "three"]),
        ({"tau_width": 7}, ["7", "even"]),
        ({"shift": "space"}, ["space", "time"]),
        ({"mask_wrapped": "space"}, ["space", "time"]),
    ],
)
def test_config_errors_name_both_numbers(changes: dict[str, Any], numbers: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_config(**changes)
    for number in numbers:
        assert number in str(error.value)


def test_latents_of_another_size_are_refused() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    text = one_prompt(model)
    with pytest.raises(ConfigError, match=r"4, 8.* 8, 8"):
        model(latents[..., :4, :], tau, slots, text)
    with pytest.raises(ConfigError, match=r"8 latent frames in 7 slots"):
        model(latents, tau, slots[1:], text)


@pytest.mark.slow
def test_compiled_blocks_equal_eager_ones() -> None:
    model = tiny_transformer(window=(4, 2, 2))
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    texts = [FrameText(keys, torch.tensor([0, 1])), FrameText(keys, torch.tensor([[0, 1] * 4] * 2))]
    eager = [model(latents, tau, slots, text) for text in texts]
    for block in model.blocks:
        block.compile(fullgraph=True)
    for text, expected in zip(texts, eager, strict=True):
        close(model(latents, tau, slots, text), expected)
