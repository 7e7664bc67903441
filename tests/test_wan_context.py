"""The context: frames seen before, kept without positions, are as good as frames in the window."""

from __future__ import annotations

import pytest
import torch
from tiny_transformer import close
from tiny_wan import TINY, masked_forward, noise, text_of, tiny_wan

from streamdit_model.errors import ConfigError
from streamdit_model.wan.config import WAN_CONFIGS
from streamdit_model.wan.context import ContextRing, ContextSizes, ContextView

HEIGHT, WIDTH, TOKENS = 4, 6, 6
BATCH = 2


@torch.no_grad()
@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_passes_with_a_context_equal_one_masked_pass_over_everything(num_chunks: int) -> None:
    network, sizes = tiny_wan(), ContextSizes(chunk=2, sink=2, span=10)
    text, past, frames = text_of(network, 0, 2), 2 * num_chunks, 2 * num_chunks + 4
    latents = noise(BATCH, TINY["latent_channels"], frames, HEIGHT, WIDTH)
    tau = torch.rand(BATCH, frames, generator=torch.Generator().manual_seed(4)).double()
    tau[:, :past] = 1.0
    group = torch.arange(frames).div(2, rounding_mode="floor").clamp(max=num_chunks)
    sees = group[:, None] >= group[None, :]  # a clean chunk sees what was before it, and itself
    sees = sees.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    masks = [sees] * network.config.depth
    expected = masked_forward(network, latents, tau, torch.arange(frames), text, masks)

    ring = ContextRing(network.config, sizes, BATCH, TOKENS, dtype=torch.float64)
    for chunk in range(num_chunks):
        part = slice(2 * chunk, 2 * chunk + 2)
        context, positions = ring.for_clean_pass(), torch.arange(2 * chunk, 2 * chunk + 2)
        one = torch.ones(BATCH, 1)
        passed = network(
            latents[:, :, part], one, positions, text, context=context, keep=ring.writer()
        )
        ring.admit()
        close(passed, expected[:, :, part], 1e-11)
    context, positions = ring.for_window(4), torch.arange(past, frames)
    found = network(latents[:, :, past:], tau[:, past:], positions, text, context=context)
    close(found, expected[:, :, past:], 1e-11)


@torch.no_grad()
def test_absent_frames_stay_hidden_where_there_is_a_context() -> None:
    network, text = tiny_wan(), text_of(tiny_wan(), 0)
    ring = ContextRing(
        network.config, ContextSizes(chunk=2, sink=2, span=8), 1, TOKENS, "cpu", torch.double
    )
    x = noise(1, TINY["latent_channels"], 6, HEIGHT, WIDTH)
    tau = torch.full((1, 1), 0.4)
    network(x[:, :, :2], tau, torch.arange(2), text, keep=ring.writer())
    ring.admit()
    context, present = ring.for_window(4), torch.tensor([[False, True, True, True]])
    found = network(x[:, :, 2:], tau, torch.arange(2, 6), text, present, context=context)
    alone = network(x[:, :, 3:], tau, torch.arange(3, 6), text, context=context)
    close(found[:, :, 1:], alone)


# What is seen, by number of chunks emitted: worked out from open-weights.md 2.4

WINDOW_OF_12 = {
    0: [],
    1: [0],
    2: [0, 1],
    3: [0, 1, 2],
    4: [0, 2, 3],
    5: [0, 3, 4],
    7: [0, 5, 6],
    8: [0, 6, 7],
    15: [0, 13, 14],
}
WINDOW_OF_15 = {0: [], 1: [0], 2: [0, 1], 3: [0, 2], 4: [0, 3], 8: [0, 7], 15: [0, 14]}
CLEAN_PASS = {
    0: [],
    1: [0],
    2: [0, 1],
    5: [0, 1, 2, 3, 4],
    6: [0, 1, 2, 3, 4, 5],
    7: [1, 2, 3, 4, 5, 6],
    8: [2, 3, 4, 5, 6, 7],
    15: [9, 10, 11, 12, 13, 14],
}


def chunks_seen(view: ContextView | None, layer: int) -> list[int]:
    """Read a ring whose keys are the chunk's number and whose values are its negative."""
    if view is None:
        return []
    key, value = view.read(layer)
    assert torch.equal(key, -value)
    assert view.positions.tolist() == list(range(key.shape[2]))
    frames = key[0, 0, :, 0, 0].tolist()
    assert frames == sorted(frames)
    return [int(number) for number in frames[::3]]


def test_ring_shows_sink_working_and_last_frames_by_the_tables() -> None:
    config = tiny_wan().config
    ring = ContextRing(config, ContextSizes(), 1, TOKENS)
    for emitted in range(16):
        for table, view in (
            (WINDOW_OF_12, ring.for_window(12)),
            (WINDOW_OF_15, ring.for_window(15)),
            (CLEAN_PASS, ring.for_clean_pass()),
        ):
            if emitted in table:
                for layer in range(config.depth):
                    assert chunks_seen(view, layer) == table[emitted]
        keep = ring.writer()
        number = torch.full((1, config.num_heads, 3, TOKENS, config.head_width), float(emitted))
        for layer in range(config.depth):
            keep(layer, number, -number)
        ring.admit()


def test_saved_ring_shows_the_same_and_goes_on_the_same() -> None:
    config, sizes = tiny_wan().config, ContextSizes(chunk=3, sink=3, span=12)
    shape = (1, config.num_heads, 3, TOKENS, config.head_width)
    ring = ContextRing(config, sizes, 1, TOKENS)

    def write(target: ContextRing, number: int) -> None:
        keep = target.writer()
        for layer in range(config.depth):
            keep(layer, torch.full(shape, float(number)), -torch.full(shape, float(number)))
        target.admit()

    for number in range(6):
        write(ring, number)
    other = ContextRing(config, sizes, 1, TOKENS)
    other.restore(ring.dump())
    for number in range(6, 11):
        assert chunks_seen(other.for_window(6), 1) == chunks_seen(ring.for_window(6), 1)
        assert chunks_seen(other.for_clean_pass(), 0) == chunks_seen(ring.for_clean_pass(), 0)
        write(ring, number)
        write(other, number)
    with pytest.raises(ConfigError, match="does not fit"):
        ContextRing(config, ContextSizes(span=9), 1, TOKENS).restore(ring.dump())
    with pytest.raises(ConfigError, match="empty"):
        ContextRing(config, sizes, 1, TOKENS).dump()


def test_ring_of_the_small_model_takes_six_gigabytes() -> None:
    ring = ContextRing(WAN_CONFIGS["wan-1.3b"], ContextSizes(), 1, 1560, "meta", torch.bfloat16)
    assert ring.num_bytes == 2 * 30 * 21 * 1560 * 1536 * 2 == 6_038_323_200


@pytest.mark.parametrize(
    "sizes", [{"chunk": 0}, {"sink": 0}, {"sink": 4}, {"span": 20}, {"span": 6}, {"sink": 18}]
)
def test_context_sizes_that_cannot_work_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="context s"):
        ContextSizes(**sizes)
