"""The rolling sampler: every pass, level, cache write and emission, and the frames themselves."""

from __future__ import annotations

import pytest
import torch
from tiny_rolling import (
    CHANNELS,
    CHUNK,
    HEIGHT,
    TAU,
    WIDTH,
    RollingStream,
    noise_of,
    stream_of,
    window_of,
)
from tiny_transformer import close
from tiny_wan import text_of, tiny_wan
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText, TextKeys
from streamdit_model.wan.context import ContextSizes
from streamdit_model.wan.rolling import RollingVelocity, rolling_partition
from streamdit_model.wan.transformer import WanTransformer

TIMESTEPS = {
    4: (1000.0, 937.5, 833.333, 625.0),
    5: (1000.0, 952.381, 882.353, 769.231, 555.556),
}


@pytest.mark.parametrize("levels", [4, 5])
def test_partition_has_the_levels_the_weights_were_trained_on(levels: int) -> None:
    partition = rolling_partition(levels)
    table = partition.gamma_table()
    expected = torch.tensor([*TAU[levels], 1.0], dtype=torch.float64)
    torch.testing.assert_close(table, expected, rtol=0, atol=5e-7)  # six digits are given
    timesteps = torch.tensor(TIMESTEPS[levels], dtype=torch.float64)
    torch.testing.assert_close(1000 * (1 - table[:-1]), timesteps, rtol=0, atol=5e-4)
    window = [tau for tau in reversed(TAU[levels]) for _ in range(CHUNK)]
    torch.testing.assert_close(partition.tau(0), torch.tensor(window), rtol=0, atol=5e-7)


# The schedule, worked out by hand from open-weights.md 2.3. A line is one pass of the network:
# "pass 0@3 1@2" is a window of block 0 at level 3 and block 1 at level 2, "| emit 0" what left
# after it; "write 0" is a clean pass. Three things differ from the pseudo-steps, as 2.2 and the
# issue say: no drain (blocks pushed beyond the last one wanted are dropped), no write in growing
# windows, and none after the last emission, as no pass would read them.

SCHEDULES = {
    (4, 2): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0 | emit 0
        write 0
        pass 1@3 2@2 3@1 4@0 | emit 1
    """,
    (4, 4): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0 | emit 0
        write 0
        pass 1@3 2@2 3@1 4@0 | emit 1
        write 1
        pass 2@3 3@2 4@1 5@0 | emit 2
        write 2
        pass 3@3 4@2 5@1 6@0 | emit 3
    """,
    (4, 6): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0 | emit 0
        write 0
        pass 1@3 2@2 3@1 4@0 | emit 1
        write 1
        pass 2@3 3@2 4@1 5@0 | emit 2
        write 2
        pass 3@3 4@2 5@1 6@0 | emit 3
        write 3
        pass 4@3 5@2 6@1 7@0 | emit 4
        write 4
        pass 5@3 6@2 7@1 8@0 | emit 5
    """,
    (5, 2): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0
        pass 0@4 1@3 2@2 3@1 4@0 | emit 0
        write 0
        pass 1@4 2@3 3@2 4@1 5@0 | emit 1
    """,
    (5, 4): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0
        pass 0@4 1@3 2@2 3@1 4@0 | emit 0
        write 0
        pass 1@4 2@3 3@2 4@1 5@0 | emit 1
        write 1
        pass 2@4 3@3 4@2 5@1 6@0 | emit 2
        write 2
        pass 3@4 4@3 5@2 6@1 7@0 | emit 3
    """,
    (5, 6): """
        pass 0@0
        pass 0@1 1@0
        pass 0@2 1@1 2@0
        pass 0@3 1@2 2@1 3@0
        pass 0@4 1@3 2@2 3@1 4@0 | emit 0
        write 0
        pass 1@4 2@3 3@2 4@1 5@0 | emit 1
        write 1
        pass 2@4 3@3 4@2 5@1 6@0 | emit 2
        write 2
        pass 3@4 4@3 5@2 6@1 7@0 | emit 3
        write 3
        pass 4@4 5@3 6@2 7@1 8@0 | emit 4
        write 4
        pass 5@4 6@3 7@2 8@1 9@0 | emit 5
    """,
}


@pytest.mark.parametrize(("levels", "blocks"), SCHEDULES)
def test_stream_makes_exactly_the_passes_writes_and_emissions_of_the_table(
    levels: int, blocks: int
) -> None:
    stream = stream_of(levels)
    stream.run(blocks)
    expected = [line.strip() for line in SCHEDULES[levels, blocks].strip().splitlines()]
    assert stream.lines == expected


# The frames, against the pseudo-steps of open-weights.md 2.3 and 2.4 written down one by one in
# the conventions of the weights: sigma, absolute frame numbers, a cache of all blocks, and a clean
# pass after every window, growing ones included.


class Cached:
    """Keys and values of some blocks, each at a position of its own."""

    def __init__(
        self, cache: dict[int, dict[int, tuple[Tensor, Tensor]]], places: list[tuple[int, int]]
    ) -> None:
        self.cache, self.blocks = cache, [block for block, _ in places]
        self.positions = torch.tensor(
            [first + frame for _, first in places for frame in range(CHUNK)]
        )

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        pairs = [self.cache[block][layer] for block in self.blocks]
        return torch.cat([key for key, _ in pairs], 2), torch.cat([value for _, value in pairs], 2)


@torch.no_grad()
def pseudo_steps(
    network: WanTransformer, text: FrameText, levels: int, blocks: int
) -> list[Tensor]:
    """Return the first blocks of an endless stream, float64."""
    noise = noise_of()
    sigma = [5 * u / (1 + 4 * u) for u in ((levels - k) / levels for k in range(levels))]
    x: dict[int, Tensor] = {}
    cache: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    emitted = []

    def drawn(block: int, level: int) -> Tensor:
        frames = [noise(block * CHUNK + frame, level) for frame in range(CHUNK)]
        return torch.stack(frames, dim=2).double()

    for w in range(blocks + levels - 1):
        s, e = max(0, w - levels + 1), w
        x[e] = drawn(e, 0)
        window = range(s, e + 1)
        per_frame = torch.tensor([[sigma[e - block] for block in window for _ in range(CHUNK)]])
        context = None
        if s > 0:
            working = (21 - 3 * levels - 3) // 3
            seen = list(range(max(1, s - working), s))
            anchor = (seen[0] if seen else s) * CHUNK - CHUNK
            context = Cached(cache, [(0, anchor), *((block, block * CHUNK) for block in seen)])
        latents = torch.cat([x[block] for block in window], dim=2)
        v = network.noise_direction(
            latents,
            1000 * per_frame.double(),
            torch.arange(s * CHUNK, (e + 1) * CHUNK),
            text,
            context=context,
        )
        clean = latents - per_frame.double()[:, None, :, None, None] * v
        for place, block in enumerate(window):
            part = clean[:, :, place * CHUNK : (place + 1) * CHUNK]
            level = e - block
            if level == levels - 1:
                emitted.append(part)
            else:
                x[block] = (1 - sigma[level + 1]) * part + sigma[level + 1] * drawn(
                    block, level + 1
                )
        written: dict[int, tuple[Tensor, Tensor]] = {}
        before = [(block, block * CHUNK) for block in range(max(0, s - 6), s)]
        network.noise_direction(
            clean[:, :, :CHUNK],
            torch.zeros(1, 1),
            torch.arange(s * CHUNK, (s + 1) * CHUNK),
            text,
            context=Cached(cache, before) if before else None,
            keep=lambda layer, key, value, kept=written: kept.update({layer: (key, value)}),
        )
        cache[s] = written
    return emitted


@pytest.mark.parametrize("levels", [4, 5])
def test_stream_equals_the_pseudo_steps_beyond_the_reach_of_the_context(levels: int) -> None:
    stream = stream_of(levels)
    expected = pseudo_steps(stream.velocity.transformer, stream.text, levels, 11)
    for found, block in zip(stream.run(11), expected, strict=True):
        close(found.double(), block, 1e-5 * float(block.abs().max()))  # the buffer is float32


def test_positions_never_go_beyond_the_span() -> None:
    stream = stream_of()
    stream.run(12)
    assert max(stream.positions) == 20


def test_half_precision_stream_stays_near_and_runs_without_autograd() -> None:
    exact = stream_of()
    with torch.inference_mode():
        network = tiny_wan().bfloat16()
        stream = RollingStream(network, 4, text_of(network, 0), ContextSizes())
        found = stream.run(5)
    for chunk, expected in zip(found, exact.run(5), strict=True):
        assert chunk.dtype == torch.float32
        assert (chunk - expected).norm() < 0.1 * expected.norm()
    stream.run(1)


# Prompts


@torch.no_grad()
def test_new_prompt_rebuilds_the_context_from_the_frames_held() -> None:
    stream = stream_of()
    stream.run(10)
    network, new = stream.velocity.transformer, text_of(stream.velocity.transformer, 1)
    stream.lines.clear()
    found = stream.velocity(window_of(stream, new))
    held = [0, 4, 5, 6, 7, 8, 9]
    assert stream.lines[:-1] == [f"write {number}" for number in held]
    fresh = RollingVelocity(network)
    for number, chunk in enumerate(held):  # as if they were the whole video
        fresh.commit(stream.emitted[chunk], (number + 3) * CHUNK)
    close(found, fresh(window_of(stream, new)), 1e-6)
    old = stream.velocity(window_of(stream, stream.text))
    assert (found - old).abs().max() > 1e-3


@torch.no_grad()
def test_same_prompt_under_another_number_rebuilds_nothing() -> None:
    stream = stream_of()
    stream.run(3)
    expected = stream.velocity(window_of(stream, stream.text))
    stream.lines.clear()
    network = stream.velocity.transformer
    old, new = text_of(network, 0).keys, text_of(network, 0, seed=9).keys
    joined = TextKeys.stack([new, old])
    found = stream.velocity(window_of(stream, FrameText(joined, torch.tensor([4]))))
    assert torch.equal(found, expected) and len(stream.lines) == 1


@torch.no_grad()
def test_prompts_by_chunk_and_blends_rebuild_once_when_the_oldest_frame_has_changed() -> None:
    stream = stream_of()
    stream.run(3)
    stream.velocity(window_of(stream, stream.text))
    keys = stream.text.keys

    def writes(text: FrameText) -> int:
        stream.lines.clear()
        stream.velocity(window_of(stream, text))
        return sum(line.startswith("write") for line in stream.lines)

    zero, one = torch.tensor([0]), torch.tensor([1])
    shares = [torch.full((1, 12), share) for share in (0.25, 0.5, 0.75, 1.0)]
    assert [writes(FrameText(keys, zero, one, share)) for share in shares] == [0, 0, 3, 0]
    assert writes(FrameText(keys, one)) == 0
    by_chunk = [torch.tensor([[1] * (12 - new) + [2] * new]) for new in (3, 9, 12)]
    assert [writes(FrameText(keys, index)) for index in by_chunk] == [0, 0, 3]


# Resume, interruption, refusals


@pytest.mark.parametrize(("emitted", "full"), [(4, False), (4, True), (10, True)])
def test_stream_goes_on_exactly_from_its_state(emitted: int, full: bool) -> None:
    """Without keys and values only while nothing has left the context."""
    stream, other = stream_of(), stream_of()
    stream.run(emitted)
    saved = stream.velocity.state(full=full), stream.buffer.state()
    expected = stream.run(3)[-3:]
    other.velocity.load(saved[0])
    other.buffer.load(saved[1])
    other.emitted = stream.emitted[:emitted]
    assert all(torch.equal(*pair) for pair in zip(other.run(3)[-3:], expected, strict=True))


def test_context_rebuilt_from_clean_frames_alone_is_near_but_not_the_same() -> None:
    stream, other = stream_of(), stream_of()
    stream.run(12)
    other.velocity.load(stream.velocity.state())
    window = window_of(stream, stream.text)
    other.emitted = stream.emitted
    with torch.no_grad():
        found, expected = other.velocity(window), stream.velocity(window)
    assert 0 < (found - expected).abs().max() < expected.abs().max()


def test_interrupted_clean_pass_is_made_good() -> None:
    stream, other = stream_of(), stream_of()
    expected = other.run(4)
    stream.run(2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    block = stream.velocity.transformer.blocks[1]
    handle = block.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.velocity(window_of(stream, stream.text))
    handle.remove()
    stream.lines.clear()
    found = stream.run(4)[:4]
    assert stream.lines[:2] == ["write 0", "write 1"]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_growing_window_of_a_new_stream_needs_a_reset() -> None:
    stream = stream_of()
    stream.run(1)
    again = RollingStream(stream.velocity.transformer, 4, stream.text, ContextSizes())
    again.velocity = stream.velocity
    with pytest.raises(ConfigError, match="begins at latent frame 0, its context ends at 3"):
        again.run(1)
    stream.velocity.reset()
    fresh = RollingStream(stream.velocity.transformer, 4, stream.text, ContextSizes())
    fresh.velocity = stream.velocity
    assert torch.equal(fresh.run(1)[0], stream.emitted[0])


def test_what_is_no_chunk_of_this_context_is_refused() -> None:
    velocity = RollingVelocity(tiny_wan())
    with pytest.raises(ConfigError, match="2 latent frames"):
        velocity.commit(torch.zeros(1, CHANNELS, 2, HEIGHT, WIDTH), 0)
    velocity.commit(torch.zeros(1, CHANNELS, 3, HEIGHT, WIDTH), 0)
    with pytest.raises(ConfigError, match="frame 6 was emitted where 3 comes next"):
        velocity.commit(torch.zeros(1, CHANNELS, 3, HEIGHT, WIDTH), 6)
    with pytest.raises(ConfigError, match="lacks"):
        velocity.load({"next_frame": 3})
    with pytest.raises(ConfigError, match="not whole chunks"):
        velocity.load({"next_frame": 3, "context": torch.zeros(1, CHANNELS, 4, HEIGHT, WIDTH)})
    velocity.load({})
    assert velocity.state() == {}
