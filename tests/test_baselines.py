"""The baselines that the moving buffer is compared with, on velocities whose answer is known."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from streamdit_model.baselines import extend_clips, run_queue
from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import interpolate, keyed_noise
from streamdit_model.partition import Partition
from streamdit_model.sampling import Window, cycle

NOISE = keyed_noise([3, 4], 2, 2, 2)
WINDOW = 4


def levels(steps: int) -> Tensor:
    return torch.arange(steps + 1, dtype=torch.float64) / steps


class Target:
    """The exact velocity of a straight flow to known frames, and what it was asked."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, tuple[float, ...]]] = []

    def frames(self, first: int, count: int) -> Tensor:
        """Clean frames: frame f of stream b is f + b / 8 everywhere."""
        values = torch.arange(first, first + count).float().clamp(min=0)
        streams = torch.arange(2).float() / 8
        return (streams[:, None] + values)[:, None, :, None, None].expand(2, 2, count, 2, 2)

    def __call__(self, window: Window) -> Tensor:
        tau = window.tau[:, None, :, None, None]
        self.windows.append((window.first_frame, tuple(window.tau[0].tolist())))
        clean = self.frames(window.first_frame, window.latents.shape[2])
        return (clean - window.latents) / (1 - tau).clamp(min=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("look_ahead", [False, True])
def test_queue_integrates_an_exact_velocity_to_its_frames(parts: int, look_ahead: bool) -> None:
    target = Target()
    queue = run_queue(
        target, NOISE, None, tau=levels(parts * WINDOW), window=WINDOW, look_ahead=look_ahead
    )
    made = torch.cat(list(islice(queue, 9)), dim=2)
    torch.testing.assert_close(made, target.frames(0, 9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_clips_integrate_an_exact_velocity_to_their_frames(overlap: int, steps: int) -> None:
    target = Target()
    parts = list(
        islice(
            extend_clips(target, NOISE, None, tau=levels(steps), window=WINDOW, overlap=overlap),
            4,
        )
    )
    assert [part.shape[2] for part in parts] == [WINDOW, *[WINDOW - overlap] * 3]
    made = torch.cat(parts, dim=2)
    torch.testing.assert_close(made, target.frames(0, made.shape[2]), atol=1e-4, rtol=0)


def test_queue_calls_the_network_once_a_part_and_twice_with_look_ahead() -> None:
    for look_ahead, calls in ((False, 2), (True, 4)):
        target = Target()
        queue = run_queue(
            target, NOISE, None, tau=levels(2 * WINDOW), window=WINDOW, look_ahead=look_ahead
        )
        next(queue)
        before = len(target.windows)
        next(queue)
        assert len(target.windows) - before == calls


def test_queue_gives_each_place_its_own_level_oldest_cleanest() -> None:
    target = Target()
    queue = run_queue(target, NOISE, None, tau=levels(2 * WINDOW), window=WINDOW)
    list(islice(queue, 2))
    older, newer = target.windows[-2:]
    assert older == (1, (0.875, 0.75, 0.625, 0.5))
    assert newer == (5, (0.375, 0.25, 0.125, 0.0))


def test_look_ahead_windows_see_finished_frames_and_move_the_later_half() -> None:
    target = Target()
    queue = run_queue(target, NOISE, None, tau=levels(WINDOW), window=WINDOW, look_ahead=True)
    list(islice(queue, 3))
    first, second = target.windows[-2:]
    assert first == (0, (1.0, 1.0, 0.75, 0.5))
    assert second == (2, (0.75, 0.5, 0.25, 0.0))


def test_one_part_is_the_diagonal_of_the_moving_buffer() -> None:
    def velocity(window: Window) -> Tensor:  # a pull whose size depends on tau and on the mean
        pull = window.latents.mean(2, keepdim=True) - window.latents
        return pull * (1 + window.tau[:, None, :, None, None])

    queue = run_queue(velocity, NOISE, None, tau=levels(WINDOW), window=WINDOW)
    made = torch.cat(list(islice(queue, 7)), dim=2)
    # A buffer that begins with what the queue begins with: a finished clip, noised again.
    clip = next(extend_clips(velocity, NOISE, None, tau=levels(WINDOW), window=WINDOW, overlap=0))
    birth = torch.stack([NOISE(frame, 0) for frame in range(WINDOW)], dim=2)
    buffer = StreamBuffer(Partition.diagonal(buffer_length=WINDOW), 2, 2, 2, 2)
    buffer.fill(interpolate(clip, birth, levels(WINDOW)[:-1].flip(0).float()), 0)
    chunks = [cycle(buffer, velocity, NOISE, lambda *_: None) for _ in range(7)]
    assert torch.equal(torch.cat(chunks, dim=2), made)


def test_clips_keep_what_they_were_handed() -> None:
    def velocity(window: Window) -> Tensor:
        return torch.ones_like(window.latents)

    seen: list[Tensor] = []

    def watched(window: Window) -> Tensor:
        seen.append(window.latents[:, :, :2].clone())
        return velocity(window)

    clips = extend_clips(watched, NOISE, None, tau=levels(2), window=WINDOW, overlap=2)
    first = next(clips)
    next(clips)
    assert torch.equal(seen[2], first[:, :, 2:])
    assert torch.equal(seen[3], first[:, :, 2:])


@pytest.mark.parametrize(("steps", "window", "look_ahead"), [(6, 4, False), (3, 3, True)])
def test_queue_refuses_what_windows_do_not_cut(steps: int, window: int, look_ahead: bool) -> None:
    with pytest.raises(ConfigError, match="is not cut into windows"):
        next(
            run_queue(
                Target(), NOISE, None, tau=levels(steps), window=window, look_ahead=look_ahead
            )
        )


@pytest.mark.parametrize("overlap", [-1, WINDOW])
def test_clips_refuse_an_overlap_out_of_range(overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"not in 0 \.\. 3"):
        next(extend_clips(Target(), NOISE, None, tau=levels(2), window=WINDOW, overlap=overlap))
