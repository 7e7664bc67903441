"""Other ways to make long video with the same network: a diagonal queue, and clip after clip.

Both hand out clean latents as `latent_streams.stream_latents` does, so that one evaluation judges
all three. They are what the moving buffer is compared with; no video is made with them.

Paper: section 6 compares with FIFO-Diffusion and with clips that continue each other.
Reference: paper.md 8 (FIFO-Diffusion). Choice: a clip continues the one before it from that one's
last frames, kept clean, which a network with one tau per frame can do without more training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import Noise, euler_step, interpolate
from streamdit_model.sampling import Velocity, Window

__all__ = ["extend_clips", "run_queue"]


@torch.no_grad()
def run_queue(
    velocity: Velocity,
    noise: Noise,
    text: object,
    *,
    tau: Tensor,
    window: int,
    look_ahead: bool = False,
) -> Iterator[Tensor]:
    """Move a queue of frames, each one level behind the one before it, and yield its head.

    The queue begins as a clip made by the uniform scheme: each place holds the clip's frame at the
    place's noise, and those before the clip's own frames hold its first one and are thrown away.

    Args:
        velocity, noise: as in `sampling`.
        text: handed to the velocity with every window.
        tau: float64 (T+1,) from 0 to 1; the queue has T frames.
        window: frames of one network call; T is a multiple of it.
        look_ahead: windows overlap by half and only the later half of each is moved: twice the
            calls, and every frame sees cleaner ones before it.

    Yields:
        float32 (batch, channels, 1, height, width), without end.

    Raises:
        ConfigError: a queue that is not cut into whole windows, or halves of an odd one.
    """
    total = len(tau) - 1
    if total < 1 or window < 1 or total % window or (look_ahead and window % 2):
        raise ConfigError(f"a queue of {total} frames is not cut into windows of {window}")
    head = window - total  # number of the frame at the head
    queue, past = _first_queue(velocity, noise, text, tau, window)
    levels = torch.arange(total - 1, -1, -1)
    at, delta = tau[levels].float(), (tau[levels + 1] - tau[levels]).float()
    half = window // 2 if look_ahead else window
    while True:
        seen, seen_at = queue, at
        if look_ahead:
            seen = torch.cat([past[:, :, -half:], queue], dim=2)
            seen_at = torch.cat([torch.ones(half), at])
        moved = []
        for first in range(0, total, half):
            part, number = slice(first, first + window), head + first + half - window
            predicted = velocity(_window(seen[:, :, part], seen_at[part], number, text))
            place = slice(first, first + half)
            step = delta[place].to(queue.device)
            moved.append(euler_step(queue[:, :, place], predicted[:, :, -half:], step))
        queue = torch.cat(moved, dim=2)
        past = torch.cat([past[:, :, 1:], queue[:, :, :1]], dim=2)
        if head >= 0:
            yield queue[:, :, :1].clone()
        fresh = noise(head + total, 0).to(queue.device)
        queue = torch.cat([queue[:, :, 1:], fresh.unsqueeze(2)], dim=2)
        head += 1


@torch.no_grad()
def extend_clips(
    velocity: Velocity,
    noise: Noise,
    text: object,
    *,
    tau: Tensor,
    window: int,
    overlap: int,
) -> Iterator[Tensor]:
    """Make clip after clip by the uniform scheme; the last frames of each begin the next, clean.

    Args:
        velocity, noise, text: as in `run_queue`.
        tau: float64 (T+1,) from 0 to 1; T steps for each clip.
        window: frames of a clip.
        overlap: frames handed on, 0 to window - 1; 0 makes clips that know nothing of each other.

    Yields:
        float32 (batch, channels, frames, height, width), without end: a whole clip, then what each
        next one adds.

    Raises:
        ConfigError: an overlap out of range.
    """
    if not 0 <= overlap < window:
        raise ConfigError(f"overlap {overlap} is not in 0 .. {window - 1}")
    clip = _clip(velocity, noise, text, tau, window, 0, None)
    yield clip
    first = window - overlap
    while True:
        known = clip[:, :, window - overlap :] if overlap else None
        clip = _clip(velocity, noise, text, tau, window, first, known)
        yield clip[:, :, overlap:]
        first += window - overlap


def _first_queue(
    velocity: Velocity, noise: Noise, text: object, tau: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Return the queue at the start, and as many clean frames before it as a window has."""
    total = len(tau) - 1
    clip = _clip(velocity, noise, text, tau, window, 0, None)
    lead = total - window
    clean = clip[:, :, [max(0, place - lead) for place in range(total)]]
    birth = torch.stack([noise(place - lead, 0) for place in range(total)], dim=2)
    at = tau[torch.arange(total - 1, -1, -1)].float().to(clip.device)
    queue = interpolate(clean, birth.to(clip.device), at)
    return queue, clip[:, :, :1].repeat(1, 1, window, 1, 1)


def _clip(
    velocity: Velocity,
    noise: Noise,
    text: object,
    tau: Tensor,
    window: int,
    first: int,
    known: Tensor | None,
) -> Tensor:
    """Denoise a clip from absolute frame `first` on; its known frames stay at tau 1."""
    clip = torch.stack([noise(first + frame, 0) for frame in range(window)], dim=2)
    kept = 0 if known is None else known.shape[2]
    if known is not None:
        clip[:, :, :kept] = known
    is_free = torch.arange(window) >= kept
    for level in range(len(tau) - 1):
        at = torch.where(is_free, tau[level], 1.0).float()
        delta = torch.where(is_free, tau[level + 1] - tau[level], 0.0).float()
        predicted = velocity(_window(clip, at, first, text))
        clip = euler_step(clip, predicted, delta.to(clip.device))
    return clip


def _window(latents: Tensor, at: Tensor, first_frame: int, text: object) -> Window:
    batch, frames = latents.shape[0], latents.shape[2]
    return Window(
        latents=latents,
        tau=at.to(latents.device).expand(batch, frames),
        slots=torch.arange(frames, device=latents.device),
        first_frame=first_frame,
        text=text,
    )
