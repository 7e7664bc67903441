"""The denoising loop in latent space: the start of a stream, then cycle after cycle.

A cycle is s micro steps of the whole buffer, one pop and one push. The loop knows no network: the
velocity is any callable from a `Window`, so that an analytic one can be integrated exactly. A
stream never drains: noise is pushed to the last cycle.

Emission n begins at latent frame n*c, whatever the start. The noise of a pushed frame is that of
(seed, frame, level 0); the renoise stepper draws (seed, frame, level k) at each level k it goes to.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import Noise, clean_estimate, euler_step, renoise
from streamdit_model.partition import Partition

__all__ = [
    "OnStep",
    "Rebuild",
    "Stepper",
    "Text",
    "Velocity",
    "Window",
    "cycle",
    "grow",
    "guided",
    "warm_up",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What a velocity receives: the frames present and all that is known of them.

    Args:
        latents: float32 (batch, channels, frames, height, width), oldest first; it may be a view of
            the buffer, so it is read, not kept.
        tau: float32 (batch, frames).
        slots: long (frames,), slot of each frame on the full grid of B.
        first_frame: absolute number of the first frame; negative for references of a clip start.
        text: what `Text` returned for this window.
    """

    latents: Tensor
    tau: Tensor
    slots: Tensor
    first_frame: int
    text: object


Velocity = Callable[[Window], Tensor]
"""velocity(window) -> like window.latents, pointing to data.

If it has a method `commit(chunk, first_frame)`, that is called once for each emitted chunk.
"""

Text = Callable[[int, int, int], object]
"""text(first_frame, num_frames, micro_step) -> the text of a window, asked at every micro step."""

Stepper = Callable[[Tensor, Tensor, tuple[int, ...], tuple[int, ...], int], Tensor]
"""stepper(noisy, predicted_velocity, levels, levels_after, first_frame) -> noisy at levels_after

For steppers that remember earlier steps; levels count up to T, first_frame is absolute. Reference
frames are not handed in.
"""

OnStep = Callable[[Window, int], None]
"""on_step(window, micro_step), called before each network call.

What it raises ends the loop; the buffer then stands inside a cycle and cannot go on from there.
"""

Rebuild = Callable[[Tensor, tuple[int, ...], int], None]
"""rebuild(latents, levels, first_frame), for frames that are known: replaces latents in place.

Called with all frames present before each network call, and with those that leave before they are
emitted; levels count up to T, first_frame is absolute.
"""


def warm_up(
    buffer: StreamBuffer,
    velocity: Velocity,
    noise: Noise,
    text: Text,
    start: str = "ramp",
    stepper: str | Stepper = "euler",
    on_step: OnStep | None = None,
    rebuild: Rebuild | None = None,
) -> None:
    """Bring an empty buffer to where every `cycle` emits a chunk.

    `ramp` grows it from the tail: one chunk of noise, then N-1 growing cycles. `clip` denoises a
    whole clip by the uniform scheme, all frames at one tau, and takes for every chunk the frames of
    the clip at the chunk's level; the references are the finished first K frames. Micro steps of a
    clip count through it, as in the uniform scheme.

    Args:
        buffer: empty.
        velocity: called (N-1)*s times; N*s times by a `clip` with references.
        noise: as in `keyed_noise`.
        text: asked at every micro step.
        start: "ramp" or "clip".
        stepper: as in `cycle`.
        on_step: called before each network call.
        rebuild: called before that.

    Raises:
        ConfigError: a buffer that is not empty, or an unknown start or stepper.

    Paper: Fig. 13 (`clip`).
    Choice: `ramp` halves the work before the first frame (paper.md 1.6 c).
    Choice: the references of a clip lie before frame 0 and are not emitted, so that emission n
    begins at frame n*c with every start.
    """
    if buffer.num_frames:
        raise ConfigError(f"warm-up of a buffer that holds {buffer.num_frames} frames, not 0")
    loop = _Loop(velocity, noise, text, stepper, on_step, rebuild)
    match start:
        case "ramp":
            buffer.push(_noise_of(noise, buffer.next_frame, buffer.partition.chunk_size))
            while buffer.num_chunks_present < buffer.partition.num_chunks:
                grow(buffer, velocity, noise, text, stepper, on_step, rebuild)
        case "clip":
            _fill_from_clip(buffer, loop)
        case _:
            raise ConfigError(f"start {start!r} is unknown; ramp and clip are known")


def cycle(
    buffer: StreamBuffer,
    velocity: Velocity,
    noise: Noise,
    text: Text,
    stepper: str | Stepper = "euler",
    on_step: OnStep | None = None,
    rebuild: Rebuild | None = None,
) -> Tensor:
    """Advance a full buffer by s micro steps, emit its oldest chunk and push a chunk of noise.

    Args:
        buffer: full, at the start of a cycle.
        velocity: called s times, on all frames present.
        noise: as in `keyed_noise`.
        text: asked at every micro step.
        stepper: "euler", or "renoise": predict clean latents, then renoise them to the next level;
            or one of one's own.
        on_step: called before each network call.
        rebuild: called before that.

    Returns:
        The emitted chunk at tau = 1, float32 (batch, channels, c, height, width), a copy.

    Raises:
        ConfigError: a buffer that is not full, or an unknown stepper.

    Paper: eq. 6 and section 3.2.
    Choice: `renoise` mixes with sigma_min = 0, as the open rolling models it serves were trained.
    """
    if buffer.num_chunks_present != buffer.partition.num_chunks:
        raise ConfigError(
            f"cycle of a buffer with {buffer.num_chunks_present} of "
            f"{buffer.partition.num_chunks} chunks; a full one is needed",
            hint="call warm_up first",
        )
    _advance_buffer(buffer, _Loop(velocity, noise, text, stepper, on_step, rebuild))
    if rebuild is not None:
        _rebuild_leaving(buffer, rebuild)
    first_frame = buffer.first_frame + buffer.num_reference_present
    chunk = buffer.pop()
    _commit(velocity, chunk, first_frame)
    buffer.push(_noise_of(noise, buffer.next_frame, buffer.partition.chunk_size))
    return chunk


def grow(
    buffer: StreamBuffer,
    velocity: Velocity,
    noise: Noise,
    text: Text,
    stepper: str | Stepper = "euler",
    on_step: OnStep | None = None,
    rebuild: Rebuild | None = None,
) -> None:
    """Advance a growing buffer by s micro steps and push a chunk of noise; nothing is emitted.

    Args:
        buffer: 1 .. N-1 chunks, at the start of a cycle.
        velocity: called s times, on the frames present only.
        noise: as in `keyed_noise`.
        text: asked at every micro step.
        stepper: as in `cycle`.
        on_step: called before each network call.
        rebuild: called before that.

    Raises:
        ConfigError: a buffer that is empty or full, or an unknown stepper.
    """
    if not 0 < buffer.num_chunks_present < buffer.partition.num_chunks:
        raise ConfigError(
            f"a buffer with {buffer.num_chunks_present} of {buffer.partition.num_chunks} chunks "
            "does not grow"
        )
    _advance_buffer(buffer, _Loop(velocity, noise, text, stepper, on_step, rebuild))
    buffer.push(_noise_of(noise, buffer.next_frame, buffer.partition.chunk_size))


def guided(velocity: Velocity, guidance_scale: float, null_text: object) -> Velocity:
    """Wrap a velocity in classifier-free guidance: v_null + w * (v - v_null).

    Args:
        velocity: called twice for each call of the result; its `commit`, if any, is kept.
        guidance_scale: w; 1.0 is off and returns `velocity` itself.
        null_text: put into the window in place of its text for v_null.

    Raises:
        ConfigError: a scale that is not finite.

    Paper: section 4.2 (the teacher samples with guidance, the distilled model without).
    """
    if not math.isfinite(guidance_scale):
        raise ConfigError(f"guidance scale {guidance_scale} is not a finite number")
    if guidance_scale == 1.0:
        return velocity
    return _Guided(velocity, guidance_scale, null_text)


class _Guided:
    """The callable that `guided` returns."""

    def __init__(self, velocity: Velocity, guidance_scale: float, null_text: object) -> None:
        self._velocity = velocity
        self._guidance_scale = guidance_scale
        self._null_text = null_text

    def __call__(self, window: Window) -> Tensor:
        """Return the guided velocity of a window."""
        null = self._velocity(replace(window, text=self._null_text))
        return null + self._guidance_scale * (self._velocity(window) - null)

    def commit(self, chunk: Tensor, first_frame: int) -> None:
        """Pass an emitted chunk on to the velocity, if it keeps a context."""
        _commit(self._velocity, chunk, first_frame)


@dataclass(frozen=True, slots=True)
class _Loop:
    """What stays the same from one micro step to the next."""

    velocity: Velocity
    noise: Noise
    text: Text
    stepper: str | Stepper
    on_step: OnStep | None
    rebuild: Rebuild | None

    def __post_init__(self) -> None:
        if isinstance(self.stepper, str) and self.stepper not in ("euler", "renoise"):
            raise ConfigError(f"stepper {self.stepper!r} is unknown; euler and renoise are known")


def _advance_buffer(buffer: StreamBuffer, loop: _Loop) -> None:
    """Take s micro steps on the frames present."""
    partition = buffer.partition
    present = buffer.num_chunks_present, buffer.num_reference_present
    for micro_step in range(partition.micro_steps):
        before = partition.levels(micro_step, *present)
        after = partition.levels(micro_step + 1, *present)
        move = _move(partition, before, after, buffer.device)
        _take_step(loop, move, buffer.latents, buffer.slots, buffer.first_frame, micro_step)


@torch.no_grad()
def _rebuild_leaving(buffer: StreamBuffer, rebuild: Rebuild) -> None:
    """Let the references and the oldest chunk be replaced at the end of a cycle."""
    present = buffer.num_chunks_present, buffer.num_reference_present
    levels = buffer.partition.levels(buffer.partition.micro_steps, *present)
    leaving = buffer.num_reference_present + buffer.partition.chunk_size
    rebuild(buffer.latents[:, :, :leaving], levels[:leaving], buffer.first_frame)


def _fill_from_clip(buffer: StreamBuffer, loop: _Loop) -> None:
    """Denoise one whole clip and fill the buffer from its levels.

    Chunk j is Z_{N-1-j}[frames K + j*c ..], where Z_k is the clip at the k-th segment border; only
    those frames of it are kept. Without references the clip need not go beyond Z_{N-1}.
    """
    partition = buffer.partition
    length, size, reference = partition.buffer_length, partition.chunk_size, partition.num_reference
    clip = _noise_of(loop.noise, -reference, length).to(buffer.device)
    slots = torch.arange(length, device=buffer.device)
    chunks: list[Tensor] = []
    num_steps = (
        partition.total_steps if reference else partition.total_steps - partition.micro_steps
    )
    for level in range(num_steps + 1):
        border, inside = divmod(level, partition.micro_steps)
        if inside == 0 and border < partition.num_chunks:
            first = reference + (partition.num_chunks - 1 - border) * size
            chunks.insert(0, clip[:, :, first : first + size].clone())
        if level < num_steps:
            move = _move(partition, (level,) * length, (level + 1,) * length, buffer.device)
            _take_step(loop, move, clip, slots, -reference, level)
    buffer.fill(torch.cat([clip[:, :, :reference], *chunks], dim=2), -reference)


@dataclass(frozen=True, slots=True)
class _Move:
    """One micro step in numbers: where every frame stands and where it goes.

    tau, delta_tau and tau_after are float32 (frames,) on the device; levels count up to T.
    """

    tau: Tensor
    delta_tau: Tensor
    tau_after: Tensor
    levels: tuple[int, ...]
    levels_after: tuple[int, ...]
    num_fixed: int
    total_steps: int


@lru_cache(maxsize=1024)  # a stream repeats its few moves for ever
def _move(
    partition: Partition, before: tuple[int, ...], after: tuple[int, ...], device: torch.device
) -> _Move:
    """Look levels up in the table of gamma and put them on the device once."""
    table = partition.gamma_table()
    with torch.inference_mode(False):  # cached, so usable in every mode
        tau, tau_after = table[list(before)], table[list(after)]
        return _Move(
            tau=tau.float().to(device),
            delta_tau=(tau_after - tau).float().to(device),
            tau_after=tau_after.float().to(device),
            levels=before,
            levels_after=after,
            num_fixed=sum(level == partition.total_steps for level in before),
            total_steps=partition.total_steps,
        )


@torch.no_grad()
def _take_step(
    loop: _Loop, move: _Move, latents: Tensor, slots: Tensor, first_frame: int, micro_step: int
) -> None:
    """Call the velocity once and move the latents in place; references stay as they are."""
    if loop.rebuild is not None:
        loop.rebuild(latents, move.levels, first_frame)
    batch, frames = latents.shape[0], latents.shape[2]
    window = Window(
        latents=latents,
        tau=move.tau.expand(batch, frames),
        slots=slots,
        first_frame=first_frame,
        text=loop.text(first_frame, frames, micro_step),
    )
    if loop.on_step is not None:
        loop.on_step(window, micro_step)
    predicted = loop.velocity(window)
    assert predicted.shape == latents.shape, (predicted.shape, latents.shape)
    free = slice(move.num_fixed, None)
    noisy, predicted = latents[:, :, free], predicted[:, :, free]
    if loop.stepper == "euler":
        moved = euler_step(noisy, predicted, move.delta_tau[free])
    elif not isinstance(loop.stepper, str):
        levels = move.levels[free], move.levels_after[free]
        moved = loop.stepper(noisy, predicted, *levels, first_frame + move.num_fixed)
    else:
        clean = clean_estimate(noisy, predicted, move.tau[free], sigma_min=0.0)
        redraw = torch.zeros_like(clean)
        for place, level in enumerate(move.levels_after[free]):
            if level < move.total_steps:
                redraw[:, :, place] = loop.noise(first_frame + move.num_fixed + place, level)
        moved = renoise(clean, redraw, move.tau_after[free], sigma_min=0.0)
    noisy.copy_(moved)


def _noise_of(noise: Noise, first_frame: int, frames: int) -> Tensor:
    """Return the birth noise of consecutive frames, (batch, channels, frames, height, width)."""
    return torch.stack([noise(first_frame + frame, 0) for frame in range(frames)], dim=2)


@torch.no_grad()
def _commit(velocity: Velocity, chunk: Tensor, first_frame: int) -> None:
    """Tell a velocity that keeps a context what was emitted."""
    commit = getattr(velocity, "commit", None)
    if commit is not None:
        commit(chunk, first_frame)
