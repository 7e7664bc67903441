"""The moving buffer and its loop: every call, every tau and every frame is accounted for."""

import itertools

import pytest
import torch
from analytic import (
    PLAIN,
    REFERENCES,
    SHIFTED,
    SIZES,
    STREAMS,
    StraightLine,
    buffer_of,
    clean_frames,
    coupled,
    no_text,
    noise_of,
    partitions,
    stacked,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import interpolate
from streamdit_model.partition import Partition
from streamdit_model.sampling import Window, cycle, guided, warm_up

# Analytic velocities


@settings(max_examples=60, deadline=None)
@given(partition=partitions(), start=st.sampled_from(["ramp", "clip"]))
def test_straight_line_reaches_clean_for_every_partition_start_and_gamma(
    partition: Partition, start: str
) -> None:
    noise = noise_of(3)
    velocity, buffer = StraightLine(noise), buffer_of(partition)
    warm_up(buffer, velocity, noise, no_text, start)
    for number in range(5):
        chunk = cycle(buffer, velocity, noise, no_text)
        expected = clean_frames(number * partition.chunk_size, partition.chunk_size)
        torch.testing.assert_close(chunk, expected, rtol=0, atol=1e-5)  # float32, 20 steps
    # at every call every frame, references included, was on its own line at its own tau
    assert velocity.furthest < 1e-5


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_straight_line_is_integrated_without_any_rounding_where_steps_are_powers_of_two(
    size: int, start: str
) -> None:
    def whole_noise(frame: int, level: int) -> Tensor:
        return torch.full((1, *SIZES), float(frame * 5 % 7 - 3))

    partition = Partition.from_buffer(buffer_length=16, chunk_size=size, total_steps=128)
    buffer, velocity = buffer_of(partition), StraightLine(whole_noise)
    warm_up(buffer, velocity, whole_noise, no_text, start)
    for number in range(3):
        chunk = cycle(buffer, velocity, whole_noise, no_text)
        assert torch.equal(chunk, clean_frames(number * size, size))
    assert velocity.furthest == 0


@settings(max_examples=40, deadline=None)
@given(partition=partitions(), start=st.sampled_from(["ramp", "clip"]))
def test_renoise_stepper_meets_the_keyed_noise_of_every_frame_and_level(
    partition: Partition, start: str
) -> None:
    noise = noise_of(3)
    table = partition.gamma_table().float()
    furthest = []

    def velocity(window: Window) -> Tensor:
        frames = window.latents.shape[2]
        clean = clean_frames(window.first_frame, frames)
        levels = [int((table - tau).abs().argmin()) for tau in window.tau[0]]
        fresh = stacked(noise, window.first_frame, levels)
        expected = interpolate(clean, fresh, window.tau, sigma_min=0.0)
        furthest.append(float((window.latents - expected).abs().max()))
        left = (1 - window.tau)[:, None, :, None, None]
        return torch.where(left > 0, (clean - window.latents) / left, torch.inf)

    buffer = buffer_of(partition)
    warm_up(buffer, velocity, noise, no_text, start, stepper="renoise")
    for number in range(5):
        chunk = cycle(buffer, velocity, noise, no_text, stepper="renoise")
        expected = clean_frames(number * partition.chunk_size, partition.chunk_size)
        torch.testing.assert_close(chunk, expected, rtol=0, atol=1e-5)
    assert max(furthest) < 1e-5


def test_uniform_partition_equals_plain_flow_matching_bit_for_bit() -> None:
    steps, noise = 12, noise_of(7, 8)
    buffer = buffer_of(Partition.uniform(buffer_length=6, total_steps=steps), batch=2)
    warm_up(buffer, coupled, noise, no_text, "ramp")
    emitted = cycle(buffer, coupled, noise, no_text)

    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    latents = stacked(noise, 0, [0] * 6)
    for step in range(steps):
        window = Window(
            latents=latents,
            tau=torch.full((2, 6), times[step].item()),
            slots=torch.arange(6),
            first_frame=0,
            text=None,
        )
        latents = latents + coupled(window) * (times[step + 1] - times[step]).float()
    assert torch.equal(emitted, latents)


# Calls, levels and frames


@settings(max_examples=60, deadline=None)
@given(partition=partitions())
def test_each_frame_sees_each_level_once_in_order_and_sits_at_the_slot_of_its_level(
    partition: Partition,
) -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(partition)
    warm_up(buffer, velocity, noise, no_text, "ramp")
    chunks, steps, size = partition.num_chunks, partition.micro_steps, partition.chunk_size
    assert len(velocity.windows) == (chunks - 1) * steps
    for number in range(6):
        cycle(buffer, velocity, noise, no_text)
        assert len(velocity.windows) == (chunks + number) * steps

    seen: dict[int, list[float]] = {}
    for first_frame, tau, slots in velocity.windows:
        assert all(before >= after for before, after in itertools.pairwise(tau))
        assert slots == list(range(partition.buffer_length - len(tau), partition.buffer_length))
        for place, value in enumerate(tau):
            seen.setdefault(first_frame + place, []).append(value)
    table = partition.gamma_table().float().tolist()
    for frame in range(6 * size):
        assert seen[frame][: partition.total_steps] == table[:-1]
        assert set(seen[frame][partition.total_steps :]) <= {1.0}


def test_calls_of_a_stream_are_counted_and_each_tau_is_the_tables() -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(PLAIN)
    warm_up(buffer, velocity, noise, no_text, "ramp")
    for _ in range(3):
        cycle(buffer, velocity, noise, no_text)
    expected = [
        [(present - 1 - chunk) / 4 + step / 8 for chunk in range(present) for _ in range(2)]
        for present in (1, 2, 3, 4, 4, 4)
        for step in (0, 1)
    ]
    assert [tau for _, tau, _ in velocity.windows] == expected
    assert [first for first, _, _ in velocity.windows] == [0] * 8 + [2, 2, 4, 4]


def test_growing_start_of_the_student_does_the_work_of_four_and_a_half_full_calls() -> None:
    noise = noise_of(0)
    velocity = StraightLine(noise)
    buffer = buffer_of(Partition(num_chunks=8, chunk_size=2, micro_steps=1))
    warm_up(buffer, velocity, noise, no_text, "ramp")
    cycle(buffer, velocity, noise, no_text)
    sizes = [len(tau) for _, tau, _ in velocity.windows]
    assert sizes == [2, 4, 6, 8, 10, 12, 14, 16]
    assert sum(sizes) / 16 == 4.5


def test_references_appear_as_chunks_are_emitted_and_slide_with_the_buffer() -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(REFERENCES)
    warm_up(buffer, velocity, noise, no_text, "ramp")
    present = [(buffer.num_reference_present, buffer.first_frame)]
    emitted = []
    for _ in range(4):
        emitted.append(cycle(buffer, velocity, noise, no_text))
        present.append((buffer.num_reference_present, buffer.first_frame))
        held, shown = buffer.num_reference_present, torch.cat(emitted, dim=2)
        assert torch.equal(buffer.latents[:, :, :held], shown[:, :, -held:])
    assert present == [(0, 0), (2, 0), (3, 1), (3, 3), (3, 5)]
    _, tau, slots = velocity.windows[-1]
    assert tau[:3] == [1.0] * 3
    assert slots == list(range(11))


@pytest.mark.parametrize("stepper", ["euler", "renoise"])
def test_references_are_never_changed_whatever_the_velocity_says_of_them(stepper: str) -> None:
    def velocity(window: Window) -> Tensor:
        wild = torch.full_like(window.latents, torch.nan)
        return torch.where(window.tau[:, None, :, None, None] == 1, wild, coupled(window))

    noise = noise_of(0)
    buffer = buffer_of(REFERENCES)
    warm_up(buffer, velocity, noise, no_text, "ramp", stepper)
    chunks = [cycle(buffer, velocity, noise, no_text, stepper) for _ in range(4)]
    shown = torch.cat(chunks, dim=2)
    assert bool(shown.isfinite().all())
    assert torch.equal(buffer.latents[:, :, :3], shown[:, :, -3:])


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_emission_n_begins_at_frame_n_times_c_and_is_committed_once(
    partition: Partition, start: str
) -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(partition)
    warm_up(buffer, velocity, noise, no_text, start)
    assert velocity.committed == []
    chunks = [cycle(buffer, velocity, noise, no_text) for _ in range(4)]
    assert [frame for _, frame in velocity.committed] == [
        number * partition.chunk_size for number in range(4)
    ]
    for chunk, (committed, _) in zip(chunks, velocity.committed, strict=True):
        assert torch.equal(chunk, committed)


def test_pushed_chunk_is_the_birth_noise_of_its_frames() -> None:
    noise = noise_of(4)
    buffer = buffer_of(PLAIN)
    warm_up(buffer, coupled, noise, no_text, "ramp")
    for number in range(3):
        cycle(buffer, coupled, noise, no_text)
        first = 8 + 2 * number
        assert torch.equal(buffer.latents[:, :, -2:], stacked(noise, first, [0, 0]))


# The start `clip`


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("stepper", ["euler", "renoise"])
def test_clip_start_fills_each_chunk_from_the_clip_at_its_level(
    partition: Partition, stepper: str
) -> None:
    noise = noise_of(5)
    filled = buffer_of(partition)
    warm_up(filled, coupled, noise, no_text, "clip", stepper)

    reference, chunks, size = partition.num_reference, partition.num_chunks, partition.chunk_size
    length, table = partition.buffer_length, partition.gamma_table()
    clip = stacked(noise, -reference, [0] * length)
    cached = [clip]  # Z_0 .. Z_N, by a loop of its own
    for level in range(partition.total_steps):
        tau, after = table[level].float(), table[level + 1].float()
        window = Window(
            latents=clip,
            tau=tau.expand(1, length),
            slots=torch.arange(length),
            first_frame=-reference,
            text=None,
        )
        speed = coupled(window)
        if stepper == "euler":
            clip = clip + speed * (table[level + 1] - table[level]).float()
        else:
            fresh = stacked(noise, -reference, [level + 1] * length)
            clip = after * (clip + (1 - tau) * speed) + (1 - after) * fresh
        if (level + 1) % partition.micro_steps == 0:
            cached.append(clip)
    assert filled.num_frames == length
    torch.testing.assert_close(
        filled.latents[:, :, :reference], cached[chunks][:, :, :reference], rtol=0, atol=1e-6
    )
    for chunk in range(chunks):
        frames = slice(reference + chunk * size, reference + (chunk + 1) * size)
        found, expected = filled.latents[:, :, frames], cached[chunks - 1 - chunk][:, :, frames]
        if stepper == "euler":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("partition", "calls"), [(PLAIN, 6), (REFERENCES, 8), (SHIFTED, 9)])
def test_clip_start_runs_the_uniform_scheme_and_to_the_end_only_for_references(
    partition: Partition, calls: int
) -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(partition)
    warm_up(buffer, velocity, noise, no_text, "clip")
    table, length = partition.gamma_table().float().tolist(), partition.buffer_length
    assert [tau for _, tau, _ in velocity.windows] == [[table[k]] * length for k in range(calls)]
    assert {first for first, _, _ in velocity.windows} == {-partition.num_reference}


# Text, hooks and guidance


def test_text_is_asked_at_every_micro_step_and_reaches_the_velocity() -> None:
    seen: list[object] = []

    def velocity(window: Window) -> Tensor:
        seen.append(window.text)
        return torch.zeros_like(window.latents)

    def text(first_frame: int, num_frames: int, micro_step: int) -> object:
        return (first_frame, num_frames, micro_step)

    noise, buffer = noise_of(0), buffer_of(PLAIN)
    warm_up(buffer, velocity, noise, text, "ramp")
    cycle(buffer, velocity, noise, text)
    cycle(buffer, velocity, noise, text)
    growing = [(0, frames, step) for frames in (2, 4, 6, 8) for step in (0, 1)]
    assert seen == [*growing, (2, 8, 0), (2, 8, 1)]


def test_hook_sees_each_window_before_the_call_and_can_stop_the_loop() -> None:
    noise = noise_of(0)
    velocity, buffer = StraightLine(noise), buffer_of(PLAIN)
    steps: list[tuple[int, int]] = []

    def on_step(window: Window, micro_step: int) -> None:
        steps.append((window.latents.shape[2], micro_step))
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_up(buffer, velocity, noise, no_text, "ramp", on_step=on_step)
    assert steps == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert len(velocity.windows) == 3


def test_guidance_is_null_plus_scaled_difference_and_keeps_commit() -> None:
    committed: list[int] = []

    class Texted:
        def __call__(self, window: Window) -> Tensor:
            assert isinstance(window.text, float)
            return torch.full_like(window.latents, window.text)

        def commit(self, chunk: Tensor, first_frame: int) -> None:
            committed.append(first_frame)

    window = Window(
        latents=torch.zeros(1, 2, 3, 1, 2),
        tau=torch.zeros(1, 3),
        slots=torch.arange(3),
        first_frame=0,
        text=3.0,
    )
    velocity = guided(Texted(), 7.5, null_text=1.0)
    assert torch.equal(velocity(window), torch.full((1, 2, 3, 1, 2), 1 + 7.5 * (3 - 1)))
    buffer, noise = buffer_of(PLAIN), noise_of(0)
    warm_up(buffer, velocity, noise, lambda first, frames, step: 3.0)
    cycle(buffer, velocity, noise, lambda first, frames, step: 3.0)
    assert committed == [0]


def test_guidance_of_one_is_the_velocity_itself_and_nan_is_refused() -> None:
    assert guided(coupled, 1.0, null_text=None) is coupled
    with pytest.raises(ConfigError, match="guidance scale nan"):
        guided(coupled, float("nan"), null_text=None)


def test_guidance_works_for_a_velocity_without_commit() -> None:
    buffer, noise = buffer_of(PLAIN), noise_of(0)
    velocity = guided(coupled, 2.0, null_text=None)
    warm_up(buffer, velocity, noise, no_text)
    plain = buffer_of(PLAIN)
    warm_up(plain, coupled, noise, no_text)
    # coupled ignores its text, so both velocities are equal up to one rounding
    torch.testing.assert_close(
        cycle(buffer, velocity, noise, no_text), cycle(plain, coupled, noise, no_text)
    )
