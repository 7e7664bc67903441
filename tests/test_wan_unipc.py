"""The stepper of many steps equals the published scheduler, for one frame and for many."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.wan.unipc import UniPCState, skyreels_taus, unipc_step

CLOSE = 1e-5  # the oracle's coefficients are float32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler(num_steps: int, shift: float = 8.0, sigmas: list[float] | None = None) -> Any:
    """diffusers' UniPC as the open models use it; for SkyReels from its own first sigma."""
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    if sigmas is None:
        made.set_timesteps(num_steps)
    else:
        made.set_timesteps(sigmas=torch.tensor(sigmas, dtype=torch.float64).numpy())
    return made


def skyreels_scheduler(num_steps: int) -> Any:
    return scheduler(
        num_steps, sigmas=[0.999 * (num_steps - k) / num_steps for k in range(num_steps)]
    )


def field(noisy: Tensor, tau: Tensor) -> Tensor:
    """A velocity far from a straight line; frames, tau and latents all take part."""
    time = tau[:, None, None]
    mixed = noisy + 0.3 * noisy.roll(1, dims=2) - 0.2 * noisy.mean(dim=2, keepdim=True)
    return torch.sin(2 * mixed + 3 * time) + 0.5 * time * noisy - 0.4 * mixed


def one_way(taus: list[float] | tuple[float, ...], noise: Tensor) -> list[Tensor]:
    """Latents of a single frame after every step."""
    latents, state, way = noise, None, []
    for now, after in pairwise(taus):
        velocity = field(latents, torch.tensor([now], dtype=torch.float64))
        latents, state = unipc_step(state, latents, velocity, [now], [after], 7)
        way.append(latents)
    return way


# Against the published scheduler.


@pytest.mark.parametrize(
    ("num_steps", "shift"), [(1, 8.0), (2, 8.0), (3, 1.0), (12, 3.0), (30, 8.0)]
)
def test_single_frame_equals_diffusers_at_every_step(num_steps: int, shift: float) -> None:
    oracle = scheduler(num_steps, shift)
    taus = (1 - oracle.sigmas).double().tolist()
    noise = draw(2, 3, 1, 4, 5)
    latents = noise
    for step, ours in enumerate(one_way(taus, noise)):
        velocity = field(latents, torch.tensor([taus[step]], dtype=torch.float64))
        # the oracle's velocity points to noise; it takes frames for channels of no meaning
        latents = oracle.step(-velocity, oracle.timesteps[step], latents).prev_sample
        torch.testing.assert_close(ours, latents, rtol=CLOSE, atol=CLOSE)


def test_staggered_frames_equal_one_scheduler_for_each(num_steps: int = 12) -> None:
    """A growing start, then a moving buffer of 4 chunks of 2 frames in 3 micro steps."""
    chunks, size, micro_steps = 4, 2, 3
    taus = skyreels_taus(num_steps)
    ours, theirs = draw(2, 3, 0, 4, 5), draw(2, 3, 0, 4, 5)
    oracles: dict[int, Any] = {}
    levels: list[int] = []
    state, first, emitted = None, 0, 0
    for cycle in range(2 * chunks + 1):
        new = draw(2, 3, size, 4, 5, seed=cycle + 1)
        ours, theirs = torch.cat([ours, new], dim=2), torch.cat([theirs, new], dim=2)
        levels += [0] * size
        for frame in range(first, first + len(levels)):
            oracles.setdefault(frame, skyreels_scheduler(num_steps))
        for _ in range(micro_steps):
            tau = [taus[level] for level in levels]
            after = [taus[level + 1] for level in levels]
            times = torch.tensor(tau, dtype=torch.float64)
            ours, state = unipc_step(state, ours, field(ours, times), tau, after, first)
            velocity, moved = field(theirs, times), []
            for place, level in enumerate(levels):
                oracle = oracles[first + place]
                moved.append(
                    oracle.step(
                        -velocity[:, :, place], oracle.timesteps[level], theirs[:, :, place]
                    ).prev_sample
                )
            theirs = torch.stack(moved, dim=2)
            levels = [level + 1 for level in levels]
            torch.testing.assert_close(ours, theirs, rtol=CLOSE, atol=CLOSE)
        if levels[0] == num_steps:
            emitted += 1
            first += size
            ours, theirs, levels = ours[:, :, size:], theirs[:, :, size:], levels[size:]
    assert emitted == 6 and first == 12


def test_skyreels_table_is_that_of_the_scheduler_and_of_the_reference() -> None:
    taus = skyreels_taus(30)
    times = [int(1000 * (1 - tau)) for tau in taus]
    assert len(taus) == 31 and taus[-1] == 1.0
    assert (times[:2], times[27:]) == ([999, 995], [470, 363, 216, 0])
    oracle = skyreels_scheduler(30)
    torch.testing.assert_close(
        torch.tensor(taus, dtype=torch.float64), 1 - oracle.sigmas.double(), rtol=0, atol=1e-6
    )
    assert times[:-1] == oracle.timesteps.tolist()


# What any solver must do.


def test_straight_line_is_followed_exactly_from_pure_noise() -> None:
    data, noise = draw(2, 3, 1, 4, 5, seed=1), draw(2, 3, 1, 4, 5, seed=2)
    taus = [0.0, 0.02, 0.3, 0.35, 0.9, 1.0]
    latents, state = noise, None
    for now, after in pairwise(taus):
        latents, state = unipc_step(state, latents, data - noise, [now], [after], 0)
        # pure noise is taken for tau = 1e-6
        torch.testing.assert_close(
            latents, after * data + (1 - after) * noise, rtol=1e-5, atol=1e-5
        )


def gaussian_error(num_steps: int, *, euler: bool) -> float:
    """Distance from the exact flow to data with mean 0.7 and deviation 0.4."""
    mean, deviation = 0.7, 0.4
    noise = draw(2, 3, 1, 4, 5)
    taus = [step / num_steps for step in range(num_steps + 1)]
    latents, state = noise, None
    for now, after in pairwise(taus):
        variance = (now * deviation) ** 2 + (1 - now) ** 2
        slope = (now * deviation**2 - (1 - now)) / variance
        velocity = mean + slope * (latents - now * mean)
        if euler:
            latents = latents + (after - now) * velocity
        else:
            latents, state = unipc_step(state, latents, velocity, [now], [after], 0)
    return float((latents - (mean + deviation * noise)).abs().max())


def test_curved_flow_is_followed_far_better_than_by_euler() -> None:
    assert gaussian_error(30, euler=False) < 0.2 * gaussian_error(30, euler=True)
    assert gaussian_error(60, euler=False) < 0.4 * gaussian_error(30, euler=False)


# The state.


def assert_same(one: UniPCState, other: UniPCState) -> None:
    for part in fields(UniPCState):
        first, second = getattr(one, part.name), getattr(other, part.name)
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


def test_step_is_a_pure_function_of_what_it_gets() -> None:
    noisy, velocity = draw(2, 3, 2, 4, 5, seed=1), draw(2, 3, 2, 4, 5, seed=2)
    copies = noisy.clone(), velocity.clone()
    moved, state = unipc_step(None, noisy, velocity, [0.1, 0.0], [0.2, 0.1], 0)
    held = [part.clone() for part in (moved, state.noisy, state.clean, state.clean_before)]
    results = [unipc_step(state, moved, velocity, [0.2, 0.1], [0.5, 0.2], 0) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
    assert torch.equal(noisy, copies[0]) and torch.equal(velocity, copies[1])
    now = (moved, state.noisy, state.clean, state.clean_before)
    assert all(torch.equal(one, other) for one, other in zip(held, now, strict=True))


def test_frame_does_not_depend_on_its_neighbours_and_their_histories() -> None:
    taus = ((0.2, 0.5), (0.5, 0.6), (0.6, 0.9))
    noisy = draw(1, 2, 1, 3, 3)
    alone, mixed = noisy, torch.cat([draw(1, 2, 1, 3, 3, seed=4), noisy], dim=2)
    alone_state, mixed_state = None, None
    for step, (now, after) in enumerate(taus):
        velocity, other = draw(1, 2, 1, 3, 3, seed=5 + step), draw(1, 2, 1, 3, 3, seed=9 + step)
        alone, alone_state = unipc_step(alone_state, alone, velocity, [now], [after], 6)
        both = torch.cat([other, velocity], dim=2)
        mixed, mixed_state = unipc_step(
            mixed_state, mixed, both, [now + 0.05, now], [after + 0.05, after], 5
        )
        assert torch.equal(mixed[:, :, 1:], alone)
        assert not torch.equal(mixed[:, :, :1], alone)


def test_resting_frames_stay_as_they_are_and_need_no_history() -> None:
    noisy = draw(1, 2, 2, 3, 3)
    state = None
    for now, after in ((0.1, 0.4), (0.4, 0.7), (0.7, 1.0), (1.0, 1.0), (1.0, 1.0)):
        before = noisy
        velocity = draw(1, 2, 2, 3, 3, seed=3)
        noisy, state = unipc_step(state, noisy, velocity, [1.0, now], [1.0, after], 0)
        assert torch.equal(noisy[:, :, 0], before[:, :, 0])
        assert state.steps[0] == 0
        assert torch.equal(noisy[:, :, 1], before[:, :, 1]) == (now == after)


def test_last_step_of_a_frame_returns_its_clean_estimate() -> None:
    noisy, velocity = draw(1, 2, 1, 3, 3, seed=1), draw(1, 2, 1, 3, 3, seed=2)
    moved, state = unipc_step(None, noisy, velocity, [0.3], [0.6], 0)
    last, _ = unipc_step(state, moved, velocity, [0.6], [1.0], 0)
    torch.testing.assert_close(last, moved + 0.4 * velocity, rtol=1e-12, atol=1e-12)


def test_latents_keep_their_dtype() -> None:
    noisy = draw(1, 2, 1, 3, 3).float()
    moved, state = unipc_step(None, noisy, noisy, [0.0], [0.5], 0)
    moved, state = unipc_step(state, moved, noisy, [0.5], [0.8], 0)
    assert moved.dtype == state.clean.dtype == torch.float32


@pytest.mark.parametrize(
    ("tau", "after", "message"),
    [
        ([0.5], [0.4], "from tau 0.5 to 0.4 does not rise"),
        ([0.5], [1.1], "from tau 0.5 to 1.1 does not rise"),
        ([-0.1], [0.1], "from tau -0.1 to 0.1 does not rise"),
        ([float("nan")], [0.1], "does not rise"),
        ([0.0], [1e-7], "ends at noise"),
        ([0.1, 0.2], [0.3, 0.4], "2 and 2 taus for 1 frames"),
    ],
)
def test_impossible_taus_are_refused(tau: list[float], after: list[float], message: str) -> None:
    noisy = draw(1, 2, 1, 3, 3)
    with pytest.raises(ConfigError, match=message):
        unipc_step(None, noisy, noisy, tau, after, 0)


def test_frame_that_is_not_where_its_last_step_went_is_refused() -> None:
    noisy = draw(1, 2, 1, 3, 3)
    moved, state = unipc_step(None, noisy, noisy, [0.1], [0.4], 3)
    with pytest.raises(ConfigError, match=r"latent frame 3 is at tau 0.5, .* went to 0.4"):
        unipc_step(state, moved, noisy, [0.5], [0.6], 3)


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 8.0), (30, 0.0), (30, float("inf"))])
def test_impossible_tables_are_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ConfigError):
        skyreels_taus(num_steps, shift)
