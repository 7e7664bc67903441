"""The same seed gives the same noise, whatever else is drawn and wherever."""

import hashlib

import numpy as np
import pytest
import torch
from analytic import PLAIN, STREAMS, buffer_of, coupled, no_text, noise_of

from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import keyed_noise, sample_draws
from streamdit_model.partition import Partition
from streamdit_model.sampling import cycle, warm_up

GOLDEN_NOISE = "c4453c3c241135b100a13e1df8ae51c9964740f5c76ff077be14dba4b5029a7d"
GOLDEN_DRAWS = "2a185ed970583cb68413b76091d0c96130014d6b400e15d4669250c5248ee655"


def test_keyed_noise_is_what_it_always_was() -> None:
    noise = keyed_noise([0, 1, 2**64 - 1], 4, 8, 6)
    digest = hashlib.sha256()
    for frame in (-3, 0, 1, 12_345, 2**40):
        for level in (0, 3):
            digest.update(noise(frame, level).numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == GOLDEN_NOISE


def test_training_draws_are_what_they_always_were() -> None:
    draws = sample_draws(7, 1000, 31)
    uniform = draws.random(8).astype("<f8").tobytes()
    normal = draws.standard_normal(8, dtype=np.float32).astype("<f4").tobytes()
    assert hashlib.sha256(uniform + normal).hexdigest() == GOLDEN_DRAWS


def test_noise_is_a_float32_standard_normal() -> None:
    noise = torch.stack([keyed_noise([5], 8, 16, 16)(frame, 0) for frame in range(32)])
    assert noise.dtype == torch.float32
    count = noise.numel()
    # each within 5 standard errors of the standard normal's moments
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float((noise**4).mean()) - 3) < 5 * (96 / count) ** 0.5


def test_noise_does_not_depend_on_what_was_drawn_before() -> None:
    noise = keyed_noise([1], 2, 3, 4)
    first = noise(10, 0)
    for frame in range(20):
        noise(frame, frame % 3)
    assert torch.equal(noise(10, 0), first)
    assert torch.equal(keyed_noise([1], 2, 3, 4)(10, 0), first)


def test_noise_of_a_stream_does_not_depend_on_its_batch_or_order() -> None:
    together = keyed_noise([11, 22, 33], 2, 3, 4)(5, 2)
    backward = keyed_noise([33, 22, 11], 2, 3, 4)(5, 2)
    assert torch.equal(together, backward.flip(0))
    for place, seed in enumerate((11, 22, 33)):
        assert torch.equal(together[place], keyed_noise([seed], 2, 3, 4)(5, 2)[0])


def test_noise_differs_between_seeds_frames_and_levels() -> None:
    draws = [
        keyed_noise([seed], 2, 3, 4)(frame, level)
        for seed in (0, 1, 2**63)
        for frame in (-1, 0, 1, 2**32)
        for level in (0, 1, 7)
    ]
    assert len({draw.numpy().tobytes() for draw in draws}) == len(draws)


def test_noise_of_neighbouring_frames_is_uncorrelated() -> None:
    noise = keyed_noise([3], 1, 1, 4096)
    rows = torch.stack([noise(frame, level).flatten() for frame in range(4) for level in range(2)])
    correlation = torch.corrcoef(rows) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / 4096**0.5


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_does_not_fit_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"seed {seed} is not in 0 \.\. 18446744073709551615"):
        keyed_noise([0, seed], 1, 1, 1)
    with pytest.raises(ConfigError, match=f"seed {seed} is not in"):
        sample_draws(seed, 0, 0)


def test_training_draws_depend_on_seed_step_and_sample_only() -> None:
    def draw(seed: int, step: int, sample: int) -> bytes:
        return sample_draws(seed, step, sample).random(4).tobytes()

    names = [(s, t, i) for s in range(3) for t in range(4) for i in range(5)]
    forward = {name: draw(*name) for name in names}
    assert {name: draw(*name) for name in reversed(names)} == forward
    assert len(set(forward.values())) == len(names)


def test_training_draws_share_nothing_with_the_noise_of_streams() -> None:
    streams = keyed_noise([0], 1, 1, 64)
    for first in range(4):
        for second in range(4):
            training = sample_draws(0, first, second).standard_normal(64, dtype=np.float32)
            assert not np.array_equal(streams(first, second).numpy().ravel(), training)


@pytest.mark.parametrize("partition", STREAMS)
@pytest.mark.parametrize("stepper", ["euler", "renoise"])
def test_streams_side_by_side_equal_streams_alone(partition: Partition, stepper: str) -> None:
    def emitted(*seeds: int) -> torch.Tensor:
        noise, buffer = noise_of(*seeds), buffer_of(partition, batch=len(seeds))
        warm_up(buffer, coupled, noise, no_text, "ramp", stepper)
        return torch.cat([cycle(buffer, coupled, noise, no_text, stepper) for _ in range(3)], 2)

    together = emitted(4, 9)
    torch.testing.assert_close(together[:1], emitted(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1:], emitted(9), rtol=0, atol=1e-6)
    assert not torch.equal(together[:1], together[1:])


def test_chunks_do_not_depend_on_how_many_follow() -> None:
    def emitted(cycles: int) -> torch.Tensor:
        noise, buffer = noise_of(6), buffer_of(PLAIN)
        warm_up(buffer, coupled, noise, no_text)
        return torch.cat([cycle(buffer, coupled, noise, no_text) for _ in range(cycles)], dim=2)

    assert torch.equal(emitted(3), emitted(7)[:, :, :6])
