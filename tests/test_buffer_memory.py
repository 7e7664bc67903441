"""The buffer is static memory with a whole state, and what does not fit is refused."""

import pytest
import torch
from analytic import PLAIN, REFERENCES, STREAMS, buffer_of, coupled, no_text, noise_of
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import (
    SIGMA_MIN,
    clean_estimate,
    euler_step,
    interpolate,
    renoise,
    target_velocity,
)
from streamdit_model.partition import Partition
from streamdit_model.sampling import cycle, grow, warm_up


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("start", ["ramp", "clip"])
def test_memory_of_a_stream_is_allocated_once(partition: Partition, start: str) -> None:
    noise, buffer = noise_of(0), buffer_of(partition)
    home = buffer.latents.untyped_storage().data_ptr()
    warm_up(buffer, coupled, noise, no_text, start)
    for _ in range(5):
        cycle(buffer, coupled, noise, no_text)
    assert buffer.latents.untyped_storage().data_ptr() == home
    assert buffer.latents.shape[2] == partition.buffer_length
    assert buffer.latents.is_contiguous()


def test_emitted_chunk_is_a_copy() -> None:
    noise, buffer = noise_of(0), buffer_of(REFERENCES)
    warm_up(buffer, coupled, noise, no_text)
    chunk = cycle(buffer, coupled, noise, no_text)
    kept, held = chunk.clone(), buffer.latents.clone()
    cycle(buffer, coupled, noise, no_text)
    assert torch.equal(chunk, kept)
    again = buffer_of(REFERENCES)
    warm_up(again, coupled, noise, no_text)
    cycle(again, coupled, noise, no_text).zero_()
    assert torch.equal(again.latents, held)


def test_push_and_pop_move_chunks_toward_the_head() -> None:
    buffer = StreamBuffer(Partition(num_reference=3, num_chunks=2, chunk_size=2, micro_steps=1),
                          1, 1, 1, 1)  # fmt: skip
    numbers = iter(range(100))
    states = []
    for _ in range(5):
        if buffer.num_chunks_present == 2:
            buffer.pop()
        buffer.push(torch.tensor([float(next(numbers)) for _ in range(2)]).reshape(1, 1, 2, 1, 1))
        states.append((buffer.latents.flatten().tolist(), buffer.slots.tolist()))
        assert buffer.first_frame == states[-1][0][0]
        assert buffer.next_frame == states[-1][0][-1] + 1
    assert states == [
        ([0, 1], [5, 6]),
        ([0, 1, 2, 3], [3, 4, 5, 6]),
        ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
        ([1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]),
        ([3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6]),
    ]


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("grown", [0, 1, 2])
def test_stream_goes_on_bit_exactly_from_its_state_also_while_it_grows(
    partition: Partition, grown: int
) -> None:
    noise, buffer = noise_of(0), buffer_of(partition)
    buffer.push(torch.stack([noise(f, 0) for f in range(partition.chunk_size)], dim=2))
    for _ in range(grown):
        grow(buffer, coupled, noise, no_text)
    state = buffer.state()
    other = buffer_of(partition)
    other.load(state)

    def remaining(stream: StreamBuffer) -> Tensor:
        while stream.num_chunks_present < partition.num_chunks:
            grow(stream, coupled, noise, no_text)
        return torch.cat([cycle(stream, coupled, noise, no_text) for _ in range(4)], dim=2)

    straight = remaining(buffer)
    assert torch.equal(remaining(other), straight)
    assert other.first_frame == buffer.first_frame


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_stream_with_references_goes_on_bit_exactly_from_its_state(cycles: int) -> None:
    noise, buffer = noise_of(0), buffer_of(REFERENCES)
    warm_up(buffer, coupled, noise, no_text)
    for _ in range(cycles):
        cycle(buffer, coupled, noise, no_text)
    other = buffer_of(REFERENCES)
    other.load(buffer.state())
    for _ in range(3):
        expected = cycle(buffer, coupled, noise, no_text)
        assert torch.equal(cycle(other, coupled, noise, no_text), expected)


def test_state_shares_nothing_with_the_buffer() -> None:
    noise, buffer = noise_of(0), buffer_of(PLAIN)
    warm_up(buffer, coupled, noise, no_text)
    state = buffer.state()
    latents = state["latents"]
    assert isinstance(latents, Tensor)
    kept = latents.clone()
    cycle(buffer, coupled, noise, no_text)
    assert torch.equal(latents, kept)


def test_filled_buffer_counts_frames_from_where_it_is_told() -> None:
    buffer = buffer_of(REFERENCES)
    latents = torch.randn(1, 2, 10, 1, 2, generator=torch.Generator().manual_seed(0))
    buffer.fill(latents, 40)
    assert (buffer.num_chunks_present, buffer.num_reference_present) == (4, 2)
    assert (buffer.first_frame, buffer.next_frame) == (40, 50)
    assert buffer.slots.tolist() == list(range(1, 11))
    assert torch.equal(buffer.latents, latents)
    buffer.fill(latents[:, :, :4], 0)
    assert (buffer.num_chunks_present, buffer.num_reference_present) == (2, 0)


@pytest.mark.parametrize("frames", [1, 3, 7, 12])
def test_fill_with_a_number_of_frames_that_does_not_fit_is_refused(frames: int) -> None:
    buffer = buffer_of(REFERENCES)
    with pytest.raises(ConfigError, match=f"{frames} frames do not fill a buffer of 4 chunks of 2"):
        buffer.fill(torch.zeros(1, 2, frames, 1, 2), 0)


def test_buffer_refuses_what_is_out_of_turn_with_both_numbers() -> None:
    noise, buffer = noise_of(0), buffer_of(PLAIN)
    chunk = torch.zeros(1, 2, 2, 1, 2)
    with pytest.raises(ConfigError, match="pop from a buffer with 0 of 4 chunks"):
        buffer.pop()
    with pytest.raises(ConfigError, match="cycle of a buffer with 0 of 4 chunks"):
        cycle(buffer, coupled, noise, no_text)
    with pytest.raises(ConfigError, match="0 of 4 chunks does not grow"):
        grow(buffer, coupled, noise, no_text)
    warm_up(buffer, coupled, noise, no_text)
    with pytest.raises(ConfigError, match="4 of 4 chunks does not grow"):
        grow(buffer, coupled, noise, no_text)
    with pytest.raises(ConfigError, match="push to a full buffer: 4 of 4 chunks"):
        buffer.push(chunk)
    with pytest.raises(ConfigError, match="holds 8 frames, not 0"):
        warm_up(buffer, coupled, noise, no_text)
    buffer.pop()
    with pytest.raises(ConfigError, match=r"\(1, 2, 3, 1, 2\) are not \(1, 2, 2, 1, 2\)"):
        buffer.push(torch.zeros(1, 2, 3, 1, 2))


def test_unknown_start_and_stepper_are_refused_before_any_call() -> None:
    calls: list[int] = []
    noise = noise_of(0)
    with pytest.raises(ConfigError, match="start 'slow' is unknown"):
        warm_up(buffer_of(PLAIN), lambda window: calls.append(1), noise, no_text, "slow")  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="stepper 'heun' is unknown"):
        warm_up(buffer_of(PLAIN), coupled, noise, no_text, "ramp", "heun")
    assert calls == []


def test_state_of_another_buffer_is_refused() -> None:
    noise, buffer = noise_of(0), buffer_of(PLAIN)
    warm_up(buffer, coupled, noise, no_text)
    state = buffer.state()
    with pytest.raises(
        ConfigError, match=r"4 chunks and 0 reference frames is not of a .* 2 chunks"
    ):
        buffer_of(Partition(num_chunks=2, chunk_size=4, micro_steps=1)).load(state)
    with pytest.raises(ConfigError, match=r"\(1, 2, 8, 1, 2\) are not \(2, 2, 8, 1, 2\)"):
        buffer_of(PLAIN, batch=2).load(state)
    del state["next_frame"]
    with pytest.raises(ConfigError, match="next_frame"):
        buffer_of(PLAIN).load(state)


def test_buffer_of_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(0, 2, 8, 1, 2\) is empty"):
        buffer_of(PLAIN, batch=0)


def test_stream_begun_in_inference_mode_goes_on_outside_it() -> None:
    noise = noise_of(0)
    with torch.inference_mode():
        buffer = buffer_of(PLAIN)
        warm_up(buffer, coupled, noise, no_text)
    outside = cycle(buffer, coupled, noise, no_text)
    plain = buffer_of(PLAIN)
    warm_up(plain, coupled, noise, no_text)
    assert torch.equal(outside, cycle(plain, coupled, noise, no_text))
    assert not outside.requires_grad


# The equations the steppers are made of


def _pair(frames: int = 4) -> tuple[Tensor, Tensor]:
    """Return clean latents and noise in float64, two samples."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, frames, 2, 2)
    clean = torch.randn(shape, generator=generator, dtype=torch.float64)
    return clean, torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sigma_min", [0.0, SIGMA_MIN, 0.1])
def test_clean_estimate_solves_eq1_and_eq2_for_the_data(sigma_min: float) -> None:
    clean, noise = _pair()
    tau = torch.tensor([1.0, 0.6, 0.25, 0.0], dtype=torch.float64)
    noisy = interpolate(clean, noise, tau, sigma_min)
    found = clean_estimate(noisy, target_velocity(clean, noise, sigma_min), tau, sigma_min)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-14)


def test_renoise_puts_the_clean_estimate_at_the_next_level() -> None:
    clean, noise = _pair()
    tau = torch.tensor([1.0, 0.6, 0.25, 0.0], dtype=torch.float64)
    found = renoise(clean, noise, tau, sigma_min=0.0)
    expected = torch.stack([t * clean[:, :, f] + (1 - t) * noise[:, :, f] for f, t in
                            enumerate(tau)], dim=2)  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert torch.equal(found[:, :, 0], clean[:, :, 0])


def test_flow_matching_keeps_the_dtype_of_the_latents() -> None:
    clean, noise = (tensor.bfloat16() for tensor in _pair())
    tau = torch.full((4,), 0.5)
    assert interpolate(clean, noise, tau).dtype == torch.bfloat16
    assert euler_step(clean, noise, tau).dtype == torch.bfloat16
    assert clean_estimate(clean, noise, tau).dtype == torch.bfloat16


def test_tau_of_another_number_of_frames_is_refused_with_both_numbers() -> None:
    clean, noise = _pair()
    with pytest.raises(ConfigError, match=r"\(3,\).*4 frames"):
        interpolate(clean, noise, torch.zeros(3))
