"""Text per latent frame: every frame reads its own prompt, computed once, blended by weight."""

from __future__ import annotations

import pytest
import torch
from tiny_transformer import (
    close,
    condition,
    inputs,
    moved_frames,
    randomize,
    tiny_transformer,
    without_self_attention,
)

from streamdit_model.blocks import CrossAttention
from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import BlockText, FrameText, PromptRows, TextKeys
from streamdit_model.text import TextCondition


def test_text_keys_computed_once_equal_those_computed_for_every_call() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    first = torch.tensor([2, 1])
    with torch.no_grad():
        keys = model.text_keys(condition())
        kept = [model(latents, level, slots, FrameText(keys, first)) for level in (tau, 1 - tau)]
        for level, velocity in zip((tau, 1 - tau), kept, strict=True):
            text = FrameText(model.text_keys(condition()), first)
            assert torch.equal(model(latents, level, slots, text), velocity)


def test_text_per_frame_equals_text_per_sample_when_equal() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    first = torch.tensor([2, 1])
    per_sample = model(latents, tau, slots, FrameText(keys, first))
    per_frame = model(latents, tau, slots, FrameText(keys, first[:, None].expand(2, 8)))
    close(per_frame, per_sample)


def test_one_prompt_serves_all_samples() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    for_all = model(latents, tau, slots, FrameText(keys, torch.tensor([1])))
    close(for_all, model(latents, tau, slots, FrameText(keys, torch.tensor([1, 1]))))


def test_a_frame_reads_its_own_prompt_and_no_other() -> None:
    model = without_self_attention(tiny_transformer())
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    first = torch.zeros(2, 8, dtype=torch.long)
    switched = first.clone()
    switched[:, 5:] = 2
    with torch.no_grad():
        old = model(latents, tau, slots, FrameText(keys, first))
        new = model(latents, tau, slots, FrameText(keys, switched))
        other = model(latents, tau, slots, FrameText(keys, torch.full((2,), 2)))
    assert moved_frames(old, new) == [5, 6, 7]
    close(new[:, :, 5:], other[:, :, 5:])


def test_padding_of_a_prompt_is_never_read() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    text = condition()
    noisy = TextCondition(torch.where(text.mask[..., None], text.tokens, 1e3), text.mask)
    for first in (torch.tensor([1, 2]), torch.tensor([[1, 2] * 4] * 2)):
        velocities = [
            model(latents, tau, slots, FrameText(model.text_keys(tokens), first))
            for tokens in (text, noisy)
        ]
        close(*velocities)


def test_stacked_text_keys_equal_prompts_encoded_together() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    text = condition(prompts=3)
    lengths = text.mask.sum(1).tolist()
    alone = [
        model.text_keys(TextCondition(text.tokens[p, None, :n], text.mask[p, None, :n]))
        for p, n in enumerate(lengths)
    ]
    assert [keys.mask for keys in alone] == [None] * 3
    stacked = TextKeys.stack(alone)
    assert (stacked.num_prompts, stacked.length) == (3, max(lengths))
    for first in ([0, 1], [1, 2]):
        velocities = [
            model(latents, tau, slots, FrameText(keys, torch.tensor(first)))
            for keys in (stacked, model.text_keys(text))
        ]
        close(*velocities)
    assert TextKeys.stack(alone[:1]) is alone[0]


def test_blend_with_weight_zero_or_one_equals_the_ends() -> None:
    model = tiny_transformer()
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    one, two = torch.tensor([0, 1]), torch.tensor([[2] * 8, [0] * 8])
    with torch.no_grad():
        ends = [model(latents, tau, slots, FrameText(keys, first)) for first in (one, two)]
        for share, end in enumerate(ends):
            weight = torch.full((2, 8), float(share))
            close(model(latents, tau, slots, FrameText(keys, one, two, weight)), end)


def test_blend_is_linear_in_its_weight_in_every_cross_attention() -> None:
    attention = CrossAttention(16, 2).double()
    randomize(attention)
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(2, 4, 5, 16, generator=generator, dtype=torch.float64)
    one, two = (
        PromptRows(*torch.randn(2, 2, 2, 3, 8, generator=generator, dtype=torch.float64), None)
        for _ in range(2)
    )
    weight = torch.rand(2, 4, 1, 1, generator=generator, dtype=torch.float64)
    ends = [attention(x, BlockText(rows, None)) for rows in (one, two)]
    blended = attention(x, BlockText(one, (two, weight)))
    close(blended, (1 - weight) * ends[0] + weight * ends[1])


def test_blend_weight_belongs_to_its_frame() -> None:
    model = without_self_attention(tiny_transformer())
    latents, tau, slots = inputs(model)
    keys = model.text_keys(condition())
    weight = torch.zeros(2, 8)
    weight[:, 6] = 0.5
    one, two = torch.tensor([0]), torch.tensor([1])
    with torch.no_grad():
        plain = model(latents, tau, slots, FrameText(keys, one))
        blended = model(latents, tau, slots, FrameText(keys, one, two, weight))
    assert moved_frames(plain, blended) == [6]


def test_second_prompt_without_weight_is_refused() -> None:
    keys = tiny_transformer().text_keys(condition())
    with pytest.raises(ConfigError, match="weight"):
        FrameText(keys, torch.tensor([0]), torch.tensor([1]))
