"""Claim: a stream edits a video as it arrives, frame for frame, at the strength asked for.

What is in the input and how it comes in pieces is all that decides; strength 1 is a stream without
input, and a frame below the level of entry is exactly on the way from its noise to the input.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from analytic import STREAMS, StraightLine, buffer_of, clean_frames, no_text, noise_of, stacked
from tiny_open import tiny_open
from tiny_streams import CHUNK_FRAMES, frames_of, md5s, tiny_model
from torch import Tensor

from streamdit_model import ConfigError, Partition, PromptEvent, Stream, load
from streamdit_model.flow_matching import interpolate, keyed_noise
from streamdit_model.sampling import Window, cycle, warm_up
from streamdit_model.shapes import Clip, render
from streamdit_model.stream_state import StreamState, frames_read, load_state
from streamdit_model.strength import entry_level, strength_levels, strength_of
from streamdit_model.video_input import VideoInput
from streamdit_model.wan.rolling import rolling_partition
from streamdit_model.wan.unipc import UniPCStepper
from streamdit_model.weights import Model

SHAPES = Path(__file__).parents[1] / "presets" / "shapes"
FRAMES = 37  # of the input; not a whole number of chunks, nor of latent frames


def video(frames: int = FRAMES, side: int = 16, first: int = 0) -> Tensor:
    """A gray that moves through the picture, and noise: every frame is another one."""
    generator = torch.Generator().manual_seed(3)
    texture = torch.randint(0, 80, (200, side, side, 3), generator=generator)
    ramp = torch.arange(200)[:, None, None, None] * 3 % 170
    return (texture + ramp).to(torch.uint8)[first : first + frames]


def pieces(whole: Tensor, *sizes: int) -> Iterator[Tensor]:
    """The video in pieces of these sizes, over and over."""
    start = 0
    for number in count():
        if start >= len(whole):
            return
        size = sizes[number % len(sizes)]
        yield whole[start : start + size]
        start += size


def edit(model: Any, source: Any = None, **options: Any) -> Stream:
    options = {"seed": 5, "synchronous": True, "prompts": "a cat", **options}
    source = pieces(video(), 8) if source is None else source
    return Stream(model, options.pop("prompts"), source=source, **options)


# The sampler.


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_edit_keeps_the_share_of_the_input_that_entry_left(
    partition: Partition, start: str
) -> None:
    """A straight velocity moves what entered at tau by 1 - tau of the way: tau of it stays."""
    noise, table = noise_of(0), partition.gamma_table().float()
    plain = run(partition, start, noise, None)
    for entry in range(partition.total_steps):

        def rebuild(latents: Tensor, levels: tuple[int, ...], first: int, e: int = entry) -> None:
            for place, level in enumerate(levels):
                if level <= e:
                    given = clean_frames(first + place, 1) + 1
                    born = stacked(noise, first + place, [0])
                    known = interpolate(given, born, table[[level]], sigma_min=0.0)
                    latents[:, :, place : place + 1] = known

        edited = run(partition, start, noise, rebuild)
        # float32 sums of T steps of numbers up to 10
        torch.testing.assert_close(edited[0], plain[0] + table[entry], rtol=1e-5, atol=2e-5)
        assert edited[1] == plain[1]  # the same calls at the same tau


def run(partition: Partition, start: str, noise: Any, rebuild: Any) -> tuple[Tensor, list[Any]]:
    buffer, velocity = buffer_of(partition), StraightLine(noise)
    warm_up(buffer, velocity, noise, no_text, start, rebuild=rebuild)
    chunks = [cycle(buffer, velocity, noise, no_text, rebuild=rebuild) for _ in range(4)]
    return torch.cat(chunks, dim=2), velocity.windows


def test_rebuild_sees_each_micro_step_and_then_what_leaves() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    buffer = buffer_of(Partition(num_reference=1, num_chunks=2, chunk_size=2, micro_steps=2))

    def rebuild(latents: Tensor, levels: tuple[int, ...], first_frame: int) -> None:
        assert latents.shape[2] == len(levels)
        seen.append((first_frame, levels))

    velocity = StraightLine(noise_of(0))
    warm_up(buffer, velocity, noise_of(0), no_text, rebuild=rebuild)
    for _ in range(2):
        cycle(buffer, velocity, noise_of(0), no_text, rebuild=rebuild)
    grown = [(0, (0, 0)), (0, (1, 1))]
    first = [(0, (2, 2, 0, 0)), (0, (3, 3, 1, 1)), (0, (4, 4))]
    second = [(1, (4, 2, 2, 0, 0)), (1, (4, 3, 3, 1, 1)), (1, (4, 4, 4))]
    assert seen == grown + first + second


def test_frames_put_elsewhere_have_no_history() -> None:
    partition = Partition(num_chunks=2, chunk_size=2, micro_steps=2)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(6, 1, 2, 4, 1, 1, generator=generator)

    def moved(forget: range, fresh: bool = False) -> Tensor:
        stepper = UniPCStepper(partition)
        if not fresh:
            stepper(draws[0], draws[1], (0,) * 4, (1,) * 4, 10)
            stepper(draws[2], draws[3], (1,) * 4, (2,) * 4, 10)
        stepper.forget(forget)
        return stepper(draws[4], draws[5], (2,) * 4, (3,) * 4, 10)

    kept, new, mixed = moved(range(0)), moved(range(0), fresh=True), moved(range(12, 20))
    assert torch.equal(mixed[:, :, :2], kept[:, :, :2])
    assert torch.equal(mixed[:, :, 2:], new[:, :, 2:])
    assert not torch.equal(mixed, kept)


# Strength.


@pytest.mark.parametrize("partition", [*STREAMS, rolling_partition(4), rolling_partition(5)])
def test_every_strength_of_a_model_enters_at_its_own_level(partition: Partition) -> None:
    levels = strength_levels(partition)
    assert levels == tuple(sorted(levels)) and levels[-1] == 1.0
    assert len(levels) == partition.total_steps
    for strength in levels:
        assert strength_of(partition, entry_level(partition, strength)) == strength
        shown = float(f"{strength:.3g}")
        assert abs(strength_of(partition, entry_level(partition, shown)) - strength) < 1e-3


def test_strength_takes_the_nearest_level_and_refuses_what_is_below_all() -> None:
    partition = Partition(num_chunks=4, chunk_size=2, micro_steps=1)
    assert strength_levels(partition) == (0.25, 0.5, 0.75, 1.0)
    assert [entry_level(partition, s) for s in (0.25, 0.3, 0.375, 0.6, 0.9)] == [3, 3, 2, 2, 0]
    for strength in (0.2, 0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ConfigError) as caught:
            entry_level(partition, strength)
        assert "0.25, 0.5, 0.75, 1" in f"{caught.value} {caught.value.hint}"
    assert edit(tiny_model(), strength=0.3).strength_used == 0.25
    assert edit(tiny_model()).strength_used == 0.5  # the model's own
    assert Stream(tiny_model(), seed=5).strength_used is None
    with pytest.raises(ConfigError, match="has no effect without a source"):
        Stream(tiny_model(), seed=5, strength=0.5)


@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_strength_one_is_the_stream_without_input(start: str) -> None:
    model = tiny_model()
    plain = Stream(model, "a cat", seed=5, num_frames=FRAMES, start=start, synchronous=True)
    assert torch.equal(frames_of(edit(model, strength=1.0, start=start)), frames_of(plain))


# The same frames.


def test_frames_depend_on_the_video_alone_and_not_on_its_pieces_nor_on_threads() -> None:
    model = tiny_model()
    expected = list(edit(model))
    assert sum(len(chunk.frames) for chunk in expected) == FRAMES
    assert [len(chunk.frames) for chunk in expected] == [8, 8, 8, 8, 5]
    for sizes in ((1,), (3,), (13,), (0, 200)):
        assert md5s(edit(model, pieces(video(), *sizes))) == md5s(expected)
    assert md5s(edit(model, synchronous=False)) == md5s(expected)
    others = [{"strength": 0.25}, {"prompts": "a dog"}, {"seed": 6}, {"start": "clip"}]
    found = {md5s(edit(model, **other))[0] for other in others}
    found.add(md5s(edit(model, [video(first=1)]))[0])
    assert len(found | {md5s(expected)[0]}) == 6


@pytest.mark.parametrize("num_frames", [1, 8, 12, 36, 37, 60])
def test_video_has_as_many_frames_as_the_shorter_of_source_and_request(num_frames: int) -> None:
    whole = frames_of(edit(tiny_model(), [video(24)]))
    frames = frames_of(edit(tiny_model(), [video(24)], num_frames=num_frames))
    assert torch.equal(frames, whole[:num_frames]) and len(frames) == min(24, num_frames)


@pytest.mark.parametrize("frames", [1, 2, 4, 8, 9])
def test_end_is_padded_inside_by_the_last_frame(frames: int) -> None:
    model, short = tiny_model(), video(frames)
    longer = torch.cat([short, short[-1:].expand(40, -1, -1, -1)])
    made = frames_of(edit(model, [short]))
    assert len(made) == frames
    assert torch.equal(made, frames_of(edit(model, [longer], num_frames=frames)))


def test_frames_below_entry_are_on_the_way_from_their_noise_to_the_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    partition, noise = model.config.partition, keyed_noise([5], *model.config.frame_shape)
    padded = torch.cat([video(), video()[-1:].expand(40, -1, -1, -1)])[:72]
    clean = VideoInput(model, iter([padded])).latents(0, 18)
    velocity, checked = Model.velocity, []

    def watched(self: Model, window: Window) -> Tensor:
        tau = window.tau[0]
        low = int((tau > 0.5).sum())  # strength 0.5 enters at tau 0.5
        first, end = window.first_frame + low, window.first_frame + len(tau)
        born = torch.stack([noise(frame, 0) for frame in range(first, end)], dim=2)
        known = interpolate(clean[:, :, first:end], born, tau[low:])
        assert torch.equal(window.latents[:, :, low:], known)
        checked.append((low, len(tau)))
        return velocity(self, window)

    monkeypatch.setattr(Model, "velocity", watched)
    list(edit(model, strength=0.5))
    steps = partition.micro_steps
    assert len(checked) == (partition.num_chunks - 1) * steps + 5 * steps  # 5 chunks, no call more
    assert checked[-2:] == [(2, 8), (4, 8)]


def test_edited_motion_has_the_phase_of_the_input() -> None:
    model = load(SHAPES)
    clip = Clip(color="red", background="navy", shape="square", size="large", motion="circling")
    shown = render(clip, 96, 64)
    lowest = strength_levels(model.config.partition)[0]
    prompt = "a large red square circling on a navy background"
    how = {"prompts": prompt, "strength": lowest, "num_frames": 48}
    made = frames_of(edit(model, pieces(shown, 16), **how)).float()
    inside = range(8, 40)
    errors = {
        shift: float(sum((made[k] - shown[k + shift].float()).abs().mean() for k in inside))
        for shift in range(-4, 5)
    }
    assert min(errors, key=errors.__getitem__) == 0, errors
    assert errors[0] < 0.7 * min(errors[-1], errors[1]), errors


# Prompts.


def test_prompt_reaches_what_has_not_entered_yet() -> None:
    """At strength 0.5 a chunk is made by its last 4 of 8 steps only: 2 of its 4 cycles."""
    model = tiny_model()
    for transition, whole, complete in (("replace", 0.5, 3), ("chunks", 0.5, 3), ("chunks", 1, 5)):
        events = [PromptEvent("a cat"), PromptEvent("a dog", 1.0, transition=transition)]
        chunks = list(edit(model, [video(64)], prompts=events, strength=whole))
        receipts = [r for chunk in chunks for r in chunk.receipts if r.event.prompt == "a dog"]
        assert [(r.kind, r.chunk) for r in receipts] == [("applied", 2), ("complete", complete)]


# Lazy, bounded, and orderly at its end.


class Endless:
    """An input that never ends and counts its frames."""

    def __init__(self, size: int) -> None:
        self.size, self.given = size, 0

    def __iter__(self) -> Iterator[Tensor]:
        shown = video(200)
        while True:
            self.given += self.size
            yield shown[torch.arange(self.given - self.size, self.given) % 200]


@pytest.mark.parametrize("synchronous", [True, False])
def test_endless_input_is_read_no_further_than_needed_and_kept_no_longer(synchronous: bool) -> None:
    model, source = tiny_model(), Endless(5)
    ahead = model.config.partition.num_chunks + (0 if synchronous else 1)
    sizes = set()
    with edit(model, source, synchronous=synchronous, chunks_ahead=1) as stream:
        for number in range(16):
            next(stream)
            pieces_ahead = 5 if synchronous else 5 + 2 * 5
            assert source.given <= (number + ahead) * CHUNK_FRAMES + pieces_ahead
            tensors, _ = stream.state()
            sizes.add(sum(tensor.numel() for tensor in tensors.values()))
    assert len(sizes) == 1


class BrokenError(Exception):
    """What a broken input raises."""


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("good", [0, 3, 32, 37])
def test_broken_input_is_made_to_its_end_before_the_error(good: int, synchronous: bool) -> None:
    def broken() -> Iterator[Tensor]:
        yield from pieces(video(good), 5)
        raise BrokenError

    model, found = tiny_model(), []
    expected = frames_of(edit(model, [video(good)])) if good else torch.zeros(0, 16, 16, 3)
    stream = edit(model, broken(), synchronous=synchronous)
    with pytest.raises(BrokenError):
        found.extend(stream)
    made = frames_of(found) if found else torch.zeros(0, 16, 16, 3)
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no frames"),
        ([video(0), video(0)], "no frames"),
        ([video(8, side=8)], "shape .8, 8, 8, 3."),
        ([video(8).float()], "float32"),
        ([video(8)[0]], "shape .16, 16, 3."),
    ],
)
def test_input_that_is_no_video_is_refused(source: list[Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next(edit(tiny_model(), source))


def test_stream_closes_while_its_input_gives_nothing() -> None:
    asked, release = threading.Event(), threading.Event()

    def stuck() -> Iterator[Tensor]:
        yield video(8)
        asked.set()
        release.wait(60)

    stream = edit(tiny_model(), stuck(), synchronous=False)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert asked.wait(60)
    began = time.monotonic()
    stream.close()
    reader.join(60)
    assert not reader.is_alive() and time.monotonic() - began < 30
    release.set()


# Stopping and going on.


def through_json(state: StreamState) -> StreamState:
    return state[0], json.loads(json.dumps(state[1]))


@pytest.mark.parametrize("variant", ["ramp", "clip"])
def test_state_after_every_chunk_resumes_with_the_input_from_its_frame(variant: str) -> None:
    model = tiny_model()
    running = edit(model, pieces(video(), 13), start=variant)
    states, expected = [through_json(running.state())], []
    for chunk in running:
        expected += md5s([chunk])
        states.append(through_json(running.state()))
    for done, state in enumerate(states):
        at = frames_read(state)
        assert at is not None and at >= min(FRAMES, done * CHUNK_FRAMES)
        rest = pieces(video()[at:], 3, 7)
        resumed = Stream.resume(model, state, source=rest, synchronous=done % 2 == 0)
        assert md5s(resumed) == expected[done:]
    assert frames_read(states[0]) == 0 and frames_read(states[-1]) == FRAMES


def test_state_file_of_an_edit_holds_its_input(tmp_path: Path) -> None:
    model = tiny_model()
    running = edit(model, pieces(video(), 1))
    next(running)
    running.save_state(tmp_path / "state")
    state = load_state(tmp_path / "state")
    rest = [video()[frames_read(state) :]]
    assert md5s(Stream.resume(model, state, source=rest)) == md5s(running)


def test_source_that_does_not_fit_the_state_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match="was made from one"):
        Stream.resume(model, edit(model).state())
    with pytest.raises(ConfigError, match="had none"):
        Stream.resume(model, Stream(model, seed=1).state(), source=[video()])
    assert frames_read(Stream(model, seed=1).state()) is None


# Open weights.


@pytest.mark.parametrize(("sampler", "decoder"), [("rolling", "full"), ("guided", "small")])
def test_open_weights_edit_frame_for_frame(tmp_path: Path, sampler: str, decoder: str) -> None:
    model = tiny_open(tmp_path, sampler, decoder=decoder)
    shown = video(22, side=32)
    how: dict[str, Any] = {"seed": 3, "synchronous": True}
    made = frames_of(Stream(model, "a cat", source=pieces(shown, 5), **how))
    assert len(made) == 22
    assert torch.equal(made, frames_of(Stream(model, "a cat", source=[shown], **how)))
    plain = frames_of(Stream(model, "a cat", num_frames=22, **how))
    assert torch.equal(
        frames_of(Stream(model, "a cat", source=[shown], strength=1.0, **how)), plain
    )
    assert not torch.equal(made, plain)


@pytest.mark.parametrize("decoder", ["full", "small"])
def test_input_is_encoded_as_the_whole_clip_is(tmp_path: Path, decoder: str) -> None:
    model = tiny_open(tmp_path, "rolling", decoder=decoder)
    shown = video(13, side=32)
    whole = model.autoencoder.encode(shown.permute(3, 0, 1, 2)[None].float() / 255)
    arriving = VideoInput(model, pieces(shown, 2)).latents(0, 4)
    # float32: a whole clip is convolved in another order
    torch.testing.assert_close(arriving, whole, rtol=1e-4, atol=1e-4)
