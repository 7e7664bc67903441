"""One claim for each equation and stated number of the paper about levels, buffer and sampling."""

import itertools

import pytest
import torch
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.flow_matching import (
    SIGMA_MIN,
    euler_step,
    interpolate,
    keyed_noise,
    sample_draws,
    target_velocity,
)
from streamdit_model.gamma import apply_gamma
from streamdit_model.partition import ChunkMix, Partition, training_tau
from streamdit_model.sampling import Window, cycle, guided, warm_up

STUDENT = Partition(num_chunks=8, chunk_size=2, micro_steps=1)
TEACHER = Partition(num_chunks=8, chunk_size=2, micro_steps=16)


def _pair(frames: int = 4) -> tuple[Tensor, Tensor]:
    """Return clean latents and noise in float64, two samples."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, frames, 2, 2)
    clean = torch.randn(shape, generator=generator, dtype=torch.float64)
    return clean, torch.randn(shape, generator=generator, dtype=torch.float64)


def _no_text(first_frame: int, num_frames: int, micro_step: int) -> None:
    return None


class Recorder:
    """A velocity of zero that writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[float]]] = []

    def __call__(self, window: Window) -> Tensor:
        last = window.first_frame + window.latents.shape[2]
        self.calls.append((list(range(window.first_frame, last)), window.tau[0].tolist()))
        return torch.zeros_like(window.latents)


def _recorded(partition: Partition, start: str, cycles: int) -> tuple[Recorder, int]:
    """Run a stream; return the recorder and its number of calls before the first cycle."""
    recorder = Recorder()
    buffer = StreamBuffer(partition, 1, 1, 1, 1)
    noise = keyed_noise([0], 1, 1, 1)
    warm_up(buffer, recorder, noise, _no_text, start)
    before = len(recorder.calls)
    for _ in range(cycles):
        cycle(buffer, recorder, noise, _no_text)
    return recorder, before


# Equations 1 to 4: flow matching


def test_eq1_tau_zero_is_noise_and_tau_one_is_data_but_for_sigma_min() -> None:
    clean, noise = _pair()
    assert SIGMA_MIN == 1e-5
    assert torch.equal(interpolate(clean, noise, torch.zeros(4)), noise)
    at_one = interpolate(clean, noise, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(at_one - clean, SIGMA_MIN * noise, rtol=0, atol=1e-15)


def test_eq1_interpolates_as_written() -> None:
    clean, noise = _pair()
    expected = 0.3 * clean + (1 - (1 - 1e-5) * 0.3) * noise
    found = interpolate(clean, noise, torch.full((4,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_eq2_target_velocity_is_the_slope_of_eq1_at_every_tau() -> None:
    clean, noise = _pair()
    expected = target_velocity(clean, noise)
    assert torch.equal(expected, clean - (1 - 1e-5) * noise)
    for low, high in ((0.0, 0.1), (0.25, 0.75), (0.9, 1.0)):
        borders = [torch.full((4,), tau, dtype=torch.float64) for tau in (low, high)]
        before, after = (interpolate(clean, noise, tau) for tau in borders)
        torch.testing.assert_close((after - before) / (high - low), expected, rtol=0, atol=1e-13)


def test_eq4_euler_step_moves_along_the_line_of_eq1() -> None:
    clean, noise = _pair()
    tau, delta = torch.full((4,), 0.25).double(), torch.full((4,), 0.5).double()
    moved = euler_step(interpolate(clean, noise, tau), target_velocity(clean, noise), delta)
    torch.testing.assert_close(moved, interpolate(clean, noise, tau + delta), rtol=0, atol=1e-14)


# Equations 5 and 6: one tau per frame


def test_eq5_each_frame_is_mixed_at_its_own_tau() -> None:
    clean, noise = _pair()
    tau = torch.tensor([1.0, 0.6, 0.25, 0.0], dtype=torch.float64)
    mixed = interpolate(clean, noise, tau)
    for frame in range(4):
        alone = interpolate(
            clean[:, :, frame : frame + 1], noise[:, :, frame : frame + 1], tau[frame : frame + 1]
        )
        assert torch.equal(mixed[:, :, frame : frame + 1], alone)


def test_eq5_each_sample_may_have_its_own_tau() -> None:
    clean, noise = _pair()
    tau = torch.tensor([[1.0, 0.6, 0.25, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    mixed = interpolate(clean, noise, tau)
    for sample in range(2):
        alone = interpolate(clean[sample : sample + 1], noise[sample : sample + 1], tau[sample])
        assert torch.equal(mixed[sample : sample + 1], alone)


def test_eq6_each_frame_takes_its_own_step_and_zero_leaves_it_untouched() -> None:
    clean, noise = _pair()
    tau = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    delta = torch.tensor([0.0, 0.5, 0.25, 0.125], dtype=torch.float64)
    noisy = interpolate(clean, noise, tau)
    moved = euler_step(noisy, target_velocity(clean, noise), delta)
    assert torch.equal(moved[:, :, 0], noisy[:, :, 0])
    torch.testing.assert_close(moved, interpolate(clean, noise, tau + delta), rtol=0, atol=1e-14)


# Equation 7 and Table 1: the partition

FIG13 = [
    ((0, 4, 1, 2), [0.75, 0.5, 0.25, 0.0], 0.125),
    ((0, 2, 2, 4), [0.5, 0.5, 0.0, 0.0], 0.125),
    ((1, 1, 3, 8), [1.0, 0.0, 0.0, 0.0], 0.125),
]


@pytest.mark.parametrize(("numbers", "first_tau", "step"), FIG13)
def test_fig13_examples_have_four_frames_and_eight_steps(
    numbers: tuple[int, int, int, int], first_tau: list[float], step: float
) -> None:
    reference, chunks, size, steps = numbers
    partition = Partition(
        num_reference=reference, num_chunks=chunks, chunk_size=size, micro_steps=steps
    )
    assert (partition.buffer_length, partition.total_steps) == (4, 8)
    assert partition.tau(0).tolist() == first_tau
    expected = [0.0] * reference + [step] * (4 - reference)
    assert partition.delta_tau(0).tolist() == expected


@pytest.mark.parametrize(("size", "chunks", "steps"), [(1, 16, 8), (2, 8, 16), (4, 4, 32),
                                                       (8, 2, 64), (16, 1, 128)])  # fmt: skip
def test_eq7_sixteen_frames_and_128_steps_give_the_table(
    size: int, chunks: int, steps: int
) -> None:
    partition = Partition.from_buffer(buffer_length=16, chunk_size=size, total_steps=128)
    assert (partition.num_chunks, partition.micro_steps) == (chunks, steps)
    assert partition.buffer_length == partition.num_reference + chunks * size == 16
    assert partition.total_steps == steps * chunks == 128


def test_table1_uniform_has_one_chunk_and_one_tau() -> None:
    partition = Partition.uniform(buffer_length=16, total_steps=128)
    assert (partition.num_reference, partition.num_chunks, partition.chunk_size) == (0, 1, 16)
    assert partition.micro_steps == partition.total_steps == 128
    for step in (0, 17, 127):
        assert partition.tau(step).tolist() == [step / 128] * 16


def test_table1_diagonal_has_one_frame_a_chunk_and_one_step() -> None:
    partition = Partition.diagonal(buffer_length=16)
    assert (partition.num_chunks, partition.chunk_size, partition.micro_steps) == (16, 1, 1)
    assert partition.tau(0).tolist() == [(15 - frame) / 16 for frame in range(16)]


def test_table1_chunkwise_extension_denoises_one_chunk_behind_references() -> None:
    partition = Partition(num_reference=2, num_chunks=1, chunk_size=6, micro_steps=4)
    assert partition.tau(0).tolist() == [1.0] * 2 + [0.0] * 6
    assert partition.tau(3).tolist() == [1.0] * 2 + [0.75] * 6


def test_sec32_schedule_of_every_chunk_and_micro_step_is_the_written_formula() -> None:
    partition = Partition(num_reference=1, num_chunks=5, chunk_size=3, micro_steps=7)
    for step in range(7):
        tau, delta = partition.tau(step).tolist(), partition.delta_tau(step).tolist()
        assert (tau[0], delta[0]) == (1.0, 0.0)
        for chunk, place in itertools.product(range(5), range(3)):
            assert partition.level(chunk, step) == 7 * (4 - chunk) + step
            expected = (4 - chunk) / 5 + step / (7 * 5)
            assert tau[1 + 3 * chunk + place] == pytest.approx(expected, abs=6e-8)
            assert delta[1 + 3 * chunk + place] == pytest.approx(1 / 35, abs=3e-9)


def test_sec32_tau_never_increases_along_the_buffer() -> None:
    for partition in (STUDENT, TEACHER, Partition.diagonal(buffer_length=16, micro_steps=8)):
        for step in range(partition.micro_steps + 1):
            assert bool((partition.tau(step).diff() <= 0).all())


def test_sec32_tau_continues_across_a_pop_and_the_emitted_chunk_is_at_one() -> None:
    for partition in (STUDENT, TEACHER, Partition.diagonal(buffer_length=16, micro_steps=8)):
        size = partition.chunk_size
        end, begin = partition.tau(partition.micro_steps), partition.tau(0)
        assert end[:size].tolist() == [1.0] * size
        assert torch.equal(end[size:], begin[:-size])
        assert begin[-size:].tolist() == [0.0] * size


@pytest.mark.parametrize(("gamma", "parameter"), [("linear", 1.0), ("power", 2.0), ("power", 0.7),
                                                  ("shift", 3.0), ("shift", 8.0)])  # fmt: skip
def test_eq9_gamma_table_is_exactly_zero_and_one_at_its_ends(gamma: str, parameter: float) -> None:
    partition = Partition(
        num_chunks=7, chunk_size=1, micro_steps=3, gamma=gamma, gamma_parameter=parameter
    )
    table = partition.gamma_table()
    assert table.dtype == torch.float64
    assert table.shape == (22,)
    assert (table[0].item(), table[-1].item()) == (0.0, 1.0)
    assert bool((table.diff() > 0).all())
    borders = partition.segment_levels()
    assert borders.tolist() == [table[3 * border].item() for border in range(8)]


def test_eq9_delta_tau_is_the_difference_of_the_tables_entries() -> None:
    partition = Partition(
        num_reference=1,
        num_chunks=4,
        chunk_size=2,
        micro_steps=3,
        gamma="shift",
        gamma_parameter=5.0,
    )
    for step in range(3):
        for chunk in range(4):
            times = [(3 * (3 - chunk) + step + more) / 12 for more in (0, 1)]
            before, after = (time / (time + 5 * (1 - time)) for time in times)
            delta = partition.delta_tau(step)[1 + 2 * chunk].item()
            assert delta == pytest.approx(after - before, rel=1e-6)


def test_eq9_power_gamma_keeps_frames_noisier_than_linear() -> None:
    time = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert apply_gamma(time, "power", 2.0).tolist() == [0.0625, 0.25, 0.5625]
    assert apply_gamma(time, "linear", 1.0).tolist() == [0.25, 0.5, 0.75]


def test_shifted_gamma_gives_the_levels_of_the_open_rolling_models() -> None:
    four = Partition(num_chunks=4, chunk_size=3, micro_steps=1, gamma="shift", gamma_parameter=5.0)
    expected = [0.375, 1 / 6, 0.0625, 0.0]
    assert four.tau(0)[::3].tolist() == pytest.approx(expected, abs=1e-7)
    five = Partition(num_chunks=5, chunk_size=3, micro_steps=1, gamma="shift", gamma_parameter=5.0)
    published = [0.444444, 0.230769, 0.117647, 0.047619, 0.0]
    assert five.tau(0)[::3].tolist() == pytest.approx(published, abs=1e-6)


# Equations 8 and 9: training levels


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_eq8_each_chunk_is_drawn_in_its_own_segment_and_shared_by_its_frames(size: int) -> None:
    chunks = 16 // size
    for sample in range(50):
        uniforms = sample_draws(0, 0, sample).random(chunks)
        tau = training_tau(torch.from_numpy(uniforms), buffer_length=16, chunk_size=size)
        assert (tau.shape, tau.dtype) == ((16,), torch.float32)
        by_chunk = tau.reshape(chunks, size)
        assert torch.equal(by_chunk, by_chunk[:, :1].expand(chunks, size))
        for chunk in range(chunks):
            low = (chunks - 1 - chunk) / chunks
            assert low <= by_chunk[chunk, 0].item() <= low + 1 / chunks
            expected = low + uniforms[chunk] / chunks
            assert by_chunk[chunk, 0].item() == pytest.approx(expected, abs=6e-8)


def test_eq8_chunks_are_drawn_independently_and_uniformly() -> None:
    draws = torch.stack(
        [
            training_tau(
                torch.from_numpy(sample_draws(3, 0, sample).random(4)),
                buffer_length=4,
                chunk_size=1,
            )
            for sample in range(4000)
        ]
    )
    inside = draws * 4 - torch.tensor([3.0, 2.0, 1.0, 0.0])
    # mean and variance of U(0, 1) and zero correlation, each within 5 standard errors
    assert bool(((inside.mean(0) - 0.5).abs() < 5 * 0.289 / 4000**0.5).all())
    assert bool(((inside.var(0) - 1 / 12).abs() < 5 * 0.075 / 4000**0.5).all())
    correlation = torch.corrcoef(inside.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / 4000**0.5


def test_eq8_uniform_scheme_is_one_tau_over_all_of_time() -> None:
    for uniform in (0.0, 0.125, 0.5, 0.875):
        tau = training_tau([uniform], buffer_length=16, chunk_size=16)
        assert tau.tolist() == [uniform] * 16


def test_eq8_references_are_at_one() -> None:
    tau = training_tau([0.5, 0.5], buffer_length=7, chunk_size=2, num_reference=3)
    assert tau.tolist() == [1.0] * 3 + [0.75] * 2 + [0.25] * 2


def test_eq8_inference_levels_lie_in_the_segments_of_training() -> None:
    for step in range(16):
        offset = [step / 16] * 8
        assert torch.equal(TEACHER.tau(step), training_tau(offset, buffer_length=16, chunk_size=2))


@pytest.mark.parametrize(("gamma", "parameter"), [("power", 2.0), ("shift", 5.0)])
def test_eq9_training_levels_are_gamma_of_the_drawn_time(gamma: str, parameter: float) -> None:
    uniforms = torch.from_numpy(sample_draws(0, 0, 0).random(8))
    time = torch.cat([(7 - chunk + uniforms[chunk : chunk + 1]) / 8 for chunk in range(8)])
    tau = training_tau(
        uniforms, buffer_length=8, chunk_size=1, gamma=gamma, gamma_parameter=parameter
    )
    assert torch.equal(tau, apply_gamma(time, gamma, parameter).float())
    assert not torch.equal(tau, time.float())


def test_table3_mix_has_five_sizes_and_draws_them_by_probability() -> None:
    mix = ChunkMix()
    assert mix.sizes == (1, 2, 4, 8, 16)
    assert mix.probabilities == (0.175, 0.175, 0.175, 0.175, 0.3)
    count = 20_000
    draws = [mix.draw(uniform) for uniform in sample_draws(0, 0, 0).random(count)]
    for size, share in zip(mix.sizes, mix.probabilities, strict=True):
        margin = 5 * (share * (1 - share) / count) ** 0.5
        assert draws.count(size) / count == pytest.approx(share, abs=margin)


def test_table4_uniform_scheme_takes_the_best_share_of_the_ablation() -> None:
    mix = ChunkMix()
    assert mix.probabilities[mix.sizes.index(16)] == 0.3
    assert mix.draw(0.699) == 8
    assert mix.draw(0.701) == 16
    assert mix.draw(1 - 2**-53) == 16


# Section 4.2 and section 5: network calls


def test_sec42_teacher_has_128_steps_and_eight_segments() -> None:
    assert TEACHER.total_steps == 128
    assert TEACHER.buffer_length == 16
    assert TEACHER.segment_levels().tolist() == [border / 8 for border in range(9)]


@pytest.mark.parametrize(("partition", "evaluations"), [(STUDENT, 8), (TEACHER, 128)])
@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_sec42_every_frame_sees_exactly_t_evaluations_one_at_each_level(
    partition: Partition, evaluations: int, start: str
) -> None:
    recorder, _ = _recorded(partition, start, cycles=10)
    seen: dict[int, list[float]] = {}
    for frames, tau in recorder.calls:
        for frame, value in zip(frames, tau, strict=True):
            seen.setdefault(frame, []).append(value)
    levels = [level / evaluations for level in range(evaluations)]
    if start == "clip":  # the clip calls the network on frames whose later levels are thrown away
        clip_calls = evaluations - partition.micro_steps
        for frame in range(2, 16):
            chunk = frame // 2
            kept = partition.micro_steps * (7 - chunk)
            seen[frame] = seen[frame][:kept] + seen[frame][clip_calls:]
    for frame in range(20):
        assert seen[frame] == levels


def test_sec42_student_needs_one_call_for_eight_video_frames() -> None:
    recorder, before = _recorded(STUDENT, "ramp", cycles=5)
    assert len(recorder.calls) - before == 5
    for number, (frames, tau) in enumerate(recorder.calls[before:]):
        assert frames == list(range(2 * number, 2 * number + 16))
        assert tau == [(7 - chunk) / 8 for chunk in range(8) for _ in range(2)]


def test_sec42_guided_teacher_needs_32_calls_for_one_emission() -> None:
    recorder = Recorder()
    teacher = guided(recorder, 7.5, null_text="")
    buffer = StreamBuffer(TEACHER, 1, 1, 1, 1)
    noise = keyed_noise([0], 1, 1, 1)
    buffer.fill(torch.zeros(1, 1, 16, 1, 1), 0)
    cycle(buffer, teacher, noise, _no_text)
    assert len(recorder.calls) == 16 * 2


@pytest.mark.parametrize(("reference", "start", "calls"), [(0, "clip", 8), (2, "clip", 9),
                                                           (0, "ramp", 8)])  # fmt: skip
def test_sec5_first_emission_of_the_student_needs_n_calls_and_one_more_with_references(
    reference: int, start: str, calls: int
) -> None:
    partition = Partition(num_reference=reference, num_chunks=8, chunk_size=2, micro_steps=1)
    recorder, _ = _recorded(partition, start, cycles=1)
    assert len(recorder.calls) == calls
