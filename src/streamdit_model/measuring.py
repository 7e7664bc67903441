"""Measuring a model stage by stage: text, network, decoder, encoder, and the machine's best.

Stages are timed one after another in one thread, with a GPU's own clock where there is one. What is
returned are samples; `timings.py` turns them into numbers. Whole streams, with all their threads,
are measured in `whole_streams.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from streamdit_model import timings
from streamdit_model.flops import Cost, count_flops
from streamdit_model.flow_matching import keyed_noise
from streamdit_model.guidance import guided_velocity
from streamdit_model.prompt_keys import PromptKeys, encode_now
from streamdit_model.prompt_timeline import PromptEvent, PromptTimeline
from streamdit_model.sampling import Velocity, Window
from streamdit_model.stream import Stream
from streamdit_model.stream_stages import Decoder, Denoiser, LatentChunk, first_frame_of

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = [
    "FEWEST_CHUNKS",
    "PROMPTS",
    "SKIPPED_CHUNKS",
    "STAGES",
    "Sink",
    "StageClock",
    "Subject",
    "chunk_frames",
    "count_chunk",
    "matmul_flops_per_second",
    "network_fps",
    "new_denoiser",
    "run_stages",
    "synchronize",
    "warm_up",
]

Result = TypeVar("Result")

Sink = Callable[[Tensor], None]
"""sink(frames), uint8 (frames, height, width, 3)."""

PROMPTS = ("a red star bouncing on a black background", "a blue circle moving left")
STAGES = ("text encoding", "network step", "decode", "encode")
SKIPPED_CHUNKS = 2  # of every stream: made while its threads and kernels were still starting
FEWEST_CHUNKS = 3
WARM_UP_STEPS = 10
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
MATMUL_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a model, and how it is asked for video.

    Args:
        model: loaded.
        guidance_scale: None is the model's own.
        seed: of all noise.
    """

    model: StreamModel
    guidance_scale: float | None = None
    seed: int = 0

    def stream(self) -> Stream:
        """Begin an endless stream of the first prompt."""
        return Stream(self.model, PROMPTS[0], seed=self.seed, guidance_scale=self.guidance_scale)


class StageClock:
    """Times of named pieces of work; on a CUDA GPU by its own clock, without waiting for it.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: dict[str, list[float]] = {}
        self._pending: list[tuple[str, Any, Any]] = []

    def time(self, name: str, call: Callable[[], Result], *, on_device: bool = True) -> Result:
        """Do a piece of work, note how long it took, and return its result.

        Args:
            name: of the stage.
            call: the work.
            on_device: False for work of the CPU alone.
        """
        if on_device and self._device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            result = call()
            ended.record()
            self._pending.append((name, began, ended))
            return result
        start = time.perf_counter()
        result = call()
        if on_device:
            synchronize(self._device)
        self._samples.setdefault(name, []).append(1000 * (time.perf_counter() - start))
        return result

    def milliseconds(self, name: str) -> list[float]:
        """Return all times of a stage so far, in the order they were taken."""
        synchronize(self._device)
        for stage, began, ended in self._pending:
            self._samples.setdefault(stage, []).append(began.elapsed_time(ended))
        self._pending.clear()
        return self._samples.get(name, [])

    def add(self, name: str, milliseconds: Sequence[float]) -> None:
        """Note times of a stage that were taken elsewhere."""
        self._samples.setdefault(name, []).extend(milliseconds)

    def reset(self) -> None:
        """Forget all times."""
        self._samples.clear()
        self._pending.clear()


class _TimedVelocity:
    """A velocity whose calls a clock times."""

    def __init__(self, velocity: Velocity, clock: StageClock) -> None:
        self._velocity, self._clock = velocity, clock

    def __call__(self, window: Window) -> Tensor:
        return self._clock.time(STAGES[1], lambda: self._velocity(window))

    def commit(self, chunk: Tensor, first_frame: int) -> None:
        """Pass an emitted chunk on, if the velocity keeps a context."""
        commit = getattr(self._velocity, "commit", None)
        if commit is not None:
            commit(chunk, first_frame)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def chunk_frames(model: StreamModel) -> int:
    """Return the video frames of every chunk but the first, which may be shorter."""
    return first_frame_of(model, 2) - first_frame_of(model, 1)


def new_denoiser(subject: Subject, clock: StageClock | None = None) -> Denoiser:
    """Return the denoiser of a new stream of the first prompt, all in the caller's thread.

    Args:
        subject: what is measured.
        clock: times every call of the network; None times nothing.
    """
    model = subject.model
    first, frames, fps = first_frame_of(model, 1), chunk_frames(model), model.config.fps
    timeline = PromptTimeline(
        [PromptEvent(PROMPTS[0])],
        chunk_seconds=frames / fps,
        missing_seconds=(frames - first) / fps,
    )
    velocity = guided_velocity(model, guidance_scale=subject.guidance_scale, negative_prompt=None)
    return Denoiser(
        model,
        timeline,
        PromptKeys(model, encode_now),
        velocity=velocity if clock is None else _TimedVelocity(velocity, clock),
        noise=keyed_noise([subject.seed], *model.config.frame_shape, device=model.device),
        seed=subject.seed,
        start=model.config.start,
        prompts_ahead=0,
        check=lambda: None,
    )


@torch.inference_mode()
def warm_up(subject: Subject, seconds: float) -> dict[str, Any]:
    """Run the network until its times are steady, but not longer than allowed.

    Args:
        subject: what will be measured.
        seconds: after which it goes on though the times still vary.

    Returns:
        `steps` that were taken, and whether they were `steady` in the end.
    """
    clock = StageClock(subject.model.device)
    denoiser, deadline = new_denoiser(subject, clock), time.perf_counter() + seconds
    while True:
        denoiser.next()
        steps = clock.milliseconds(STAGES[1])
        steady = timings.is_steady(steps, WARM_UP_STEPS)
        late = time.perf_counter() > deadline
        if steady or (late and len(steps) >= WARM_UP_STEPS):
            return {"steps": len(steps), "steady": steady}


@torch.inference_mode()
def run_stages(subject: Subject, clock: StageClock, seconds: float, encode: Sink) -> int:
    """Time every stage by itself, chunk after chunk, in one thread.

    Args:
        subject: what is measured.
        clock: takes the times, under the names of `STAGES`; the growing start is not among them.
        seconds: how long to go on; at least `FEWEST_CHUNKS` chunks are made.
        encode: takes the frames of a chunk; is timed as the last stage.

    Returns:
        How many chunks were made.
    """
    model, own = subject.model, StageClock(subject.model.device)
    denoiser, decoder = new_denoiser(subject, own), Decoder(model, seed=subject.seed)
    chunks, deadline = 0, None
    while deadline is None or time.perf_counter() < deadline or chunks < FEWEST_CHUNKS:
        chunk = _next(denoiser)
        if deadline is None:  # the start, and all that is done once
            deadline = time.perf_counter() + seconds
            decoder.next(chunk)
            own.milliseconds(STAGES[1])
            own.reset()
            continue
        video, _ = clock.time(STAGES[2], lambda: decoder.next(chunk))  # noqa: B023
        clock.time(STAGES[3], lambda: encode(video.frames), on_device=False)  # noqa: B023
        clock.time(STAGES[0], lambda: _text_keys(model, PROMPTS[chunks % 2]))  # noqa: B023
        chunks += 1
    clock.add(STAGES[1], own.milliseconds(STAGES[1]))
    return chunks


def _next(denoiser: Denoiser) -> LatentChunk:
    """Return the next chunk of a stream without an input, which has no end."""
    chunk = denoiser.next()
    assert chunk is not None
    return chunk


def _text_keys(model: StreamModel, prompt: str) -> object:
    """Do what a new prompt takes."""
    return model.transformer.text_keys(model.text_encoder.encode([prompt]))


@torch.inference_mode()
def network_fps(subject: Subject, seconds: float) -> float:
    """Return the video frames a second of the network alone: latents that nobody decodes."""
    denoiser, device = new_denoiser(subject), subject.model.device
    denoiser.next()
    synchronize(device)
    began, chunks = time.perf_counter(), 0
    while chunks < FEWEST_CHUNKS or time.perf_counter() - began < seconds:
        denoiser.next()
        chunks += 1
    synchronize(device)
    return chunks * chunk_frames(subject.model) / (time.perf_counter() - began)


@torch.inference_mode()
def count_chunk(subject: Subject) -> tuple[Cost, Cost]:
    """Return what the network and the decoder compute for one chunk of a stream that runs."""
    denoiser, decoder = new_denoiser(subject), Decoder(subject.model, seed=subject.seed)
    made = []
    for _ in range(SKIPPED_CHUNKS):  # a context of past chunks begins with the second
        decoder.next(_next(denoiser))
    network = count_flops(lambda: made.append(_next(denoiser)))
    return network, count_flops(lambda: decoder.next(made[0]))


@torch.inference_mode()
def matmul_flops_per_second(
    device: torch.device, dtype: torch.dtype, size: int | None = None
) -> list[float]:
    """Measure what the machine reaches at its best: one large product of random square matrices.

    Args:
        device, dtype: of the network.
        size: of the matrices; None is large enough for the device.

    Returns:
        Operations a second of each of several runs, after one that is left out.
    """
    size = size or MATMUL_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out, clock = torch.empty_like(one), StageClock(device)
    for _ in range(MATMUL_RUNS + 1):
        clock.time("matmul", lambda: torch.mm(one, other, out=out))
    return [2 * size**3 / (1e-3 * ms) for ms in clock.milliseconds("matmul")[1:]]
