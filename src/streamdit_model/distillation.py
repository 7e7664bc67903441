"""Step and guidance distillation: several guided teacher steps become one student step.

The clean-noise line is cut into N segments; a buffer holds one chunk in each, so one forward of
the student learns all segments at once. From a start state the teacher makes s guided micro steps
to the end of every segment; the student learns the mean velocity of that way.

Half of the start states is noised data, half are states of streams that the student itself is
running (a replay pool), so that it also meets its own drift and learns to go on from it. Streams
of the pool grow from one chunk, as streams do.

Paper: section 4.2. Choice: loss, start states and shares, which the paper does not give
(paper.md section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamdit_model.data import LatentCache
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import SIGMA_MIN, euler_step, interpolate, sample_draws
from streamdit_model.partition import Partition
from streamdit_model.replay import ReplayPool
from streamdit_model.text import TextEncoder
from streamdit_model.training import (
    FlowMix,
    check_clip_length,
    cut_window,
    draw_window,
    frame_text,
)
from streamdit_model.transformer import FrameText, StreamDiT

__all__ = ["DistillationConfig", "DistillationTask", "teacher_end"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """How the student learns.

    Args:
        teacher_steps: s, guided micro steps of the teacher in a segment.
        guidance_scale: of the teacher; 1 is off.
        pool_share: share of start states from the student's own streams.
        pool_lifetime: most cycles a stream of the pool lives.
        uniform_share: share of data states in the uniform scheme, for the start `clip`.
        growth_share: share of the other data states that are growing buffers.
        text_dropout: share of samples with the empty prompt.
        paraphrase_share: share of samples with other words than the canonical ones.
        switch_share: share of the pool's cycles in which a prompt changes.

    Raises:
        ConfigError: a share outside [0, 1], or too few steps.
    """

    teacher_steps: int = 4
    guidance_scale: float = 3.0
    pool_share: float = 0.5
    pool_lifetime: int = 48
    uniform_share: float = 0.15
    growth_share: float = 0.3
    text_dropout: float = 0.1
    paraphrase_share: float = 0.5
    switch_share: float = 0.01

    def __post_init__(self) -> None:
        names = ("pool_share", "uniform_share", "growth_share", "text_dropout", "switch_share")
        for name in (*names, "paraphrase_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if self.teacher_steps < 1 or self.pool_lifetime < 1:
            raise ConfigError("teacher_steps and pool_lifetime must be at least 1")


@torch.no_grad()
def teacher_end(
    teacher: StreamDiT,
    start: Tensor,
    segment: Tensor,
    table: Tensor,
    num_segments: int,
    texts: tuple[FrameText, FrameText],
    present: Tensor | None,
    guidance_scale: float,
) -> Tensor:
    """Run the guided teacher from the start to the end of every frame's segment.

    Args:
        teacher: the undistilled network.
        start: latents, (batch, channels, frames, height, width).
        segment: of each frame, 0 (noise) to N - 1, (batch, frames) long.
        table: gamma at the T + 1 levels, (s * N + 1,) float64.
        num_segments: N.
        texts: the prompts, and the empty prompts of guidance.
        present: (batch, frames) bool or None.
        guidance_scale: 1 skips the second call.

    Returns:
        Latents at the end of the segments, float32.

    Paper: section 4.2; u_null + w (u_prompt - u_null).
    """
    micro_steps = (len(table) - 1) // num_segments
    table = table.to(start.device)
    state = start.float()
    slots = torch.arange(start.shape[2])
    for micro_step in range(micro_steps):
        level = segment * micro_steps + micro_step
        tau = table[level].float()
        velocity = teacher(state, tau, slots, texts[0], present).float()
        if guidance_scale != 1:
            free = teacher(state, tau, slots, texts[1], present).float()
            velocity = free + guidance_scale * (velocity - free)
        state = euler_step(state, velocity, (table[level + 1] - table[level]).float())
    return state


class DistillationTask:
    """The task of the distillation stage; see `trainer.Task`.

    Args:
        student: trained; begins with the teacher's weights.
        teacher: unchanged, without gradient.
        text_encoder: of both, unchanged.
        cache: clean latents and captions.
        partition: of the student, one micro step; N segments.
        config: how the student learns.
        batch_size: samples of a step; the first share of them belongs to the pool.
        lead_in: latent frames before a window from the middle of a stream.
        seed: of every draw.
        compile_blocks: compile the blocks of both networks first.
    """

    def __init__(
        self,
        student: StreamDiT,
        teacher: StreamDiT,
        text_encoder: TextEncoder,
        cache: LatentCache,
        partition: Partition,
        config: DistillationConfig,
        *,
        batch_size: int,
        lead_in: int,
        seed: int,
        compile_blocks: bool = False,
    ) -> None:
        if partition.num_reference:
            raise ConfigError(f"distillation with {partition.num_reference} reference frames; 0")
        self.modules: dict[str, nn.Module] = {"transformer": student}
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.cache = cache
        self.config = config
        self.lead_in = lead_in
        self.seed = seed
        self.num_segments = partition.num_chunks
        self.chunk_size = partition.chunk_size
        self.buffer_length = partition.buffer_length
        check_clip_length(cache.num_frames, self.buffer_length, lead_in)
        levels = Partition(
            num_chunks=partition.num_chunks,
            chunk_size=partition.chunk_size,
            micro_steps=config.teacher_steps,
            gamma=partition.gamma,
            gamma_parameter=partition.gamma_parameter,
        )
        self.table = levels.gamma_table()
        self.batch_size = batch_size
        self.pool_size = round(config.pool_share * batch_size)
        self.mix = _mix(config, self.chunk_size, self.buffer_length)
        channels, (_, height, width) = student.config.latent_channels, student.config.grid
        self.pool = ReplayPool(
            self.pool_size,
            (channels, self.buffer_length, height, width),
            self.chunk_size,
            cache,
            lifetime=config.pool_lifetime,
            text_dropout=config.text_dropout,
            paraphrase_share=config.paraphrase_share,
            switch_share=config.switch_share,
        )
        self._advanced: dict[int, Tensor] = {}
        if compile_blocks:
            for block in (*student.blocks, *teacher.blocks):
                block.compile(dynamic=False)

    def begin(self, stage: str) -> None:
        """Put the student into training mode."""
        self.student.train()

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over samples of their mean loss, and the share each source has of it."""
        starts = [self._start(step, sample) for sample in samples]
        device = self.student.frame_position.device
        start = torch.stack([item.latents for item in starts]).to(device)
        segment = torch.stack([item.segment for item in starts]).to(device)
        absent = torch.tensor([self.buffer_length - s.num_present for s in starts], device=device)
        slots = torch.arange(self.buffer_length)
        present = slots.to(device) >= absent[:, None]
        hidden = None if bool(present.all()) else present
        prompts = [item.prompts for item in starts]
        with torch.no_grad():
            texts = self._texts(self.teacher, prompts)
            end = teacher_end(
                self.teacher,
                start,
                segment,
                self.table,
                self.num_segments,
                texts,
                hidden,
                self.config.guidance_scale,
            )
        borders = self.table[:: self.config.teacher_steps].to(device)
        delta = (borders[segment + 1] - borders[segment]).float()
        target = (end - start) / delta[:, None, :, None, None]
        text = frame_text(self.student, self.text_encoder, prompts)
        predicted = self.student(start, borders[segment].float(), slots, text, hidden).float()
        moved = euler_step(start, predicted.detach(), delta).cpu()
        for item, latents, sample in zip(starts, moved, samples, strict=True):
            if item.from_pool:
                self._advanced[sample] = latents
        error = (predicted - target).square().mean((1, 3, 4)) * present
        per_sample = error.sum(1) / present.sum(1)
        return per_sample.sum(), _logs(per_sample.detach(), starts)

    def after_step(self, step: int) -> None:
        """Advance the streams of the pool by the cycle that the step has computed."""
        for sample, latents in self._advanced.items():
            draw = sample_draws(self.seed, step, self.batch_size + sample)  # of no sample
            self.pool.advance(sample, latents, draw)
        self._advanced.clear()

    def state(self) -> dict[str, Tensor]:
        """Return the pool."""
        return self.pool.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back the pool."""
        self.pool.load_state(state)

    def _texts(
        self, network: StreamDiT, prompts: list[tuple[str, ...]]
    ) -> tuple[FrameText, FrameText]:
        empty = [("",) * self.buffer_length] * len(prompts)
        return (
            frame_text(network, self.text_encoder, prompts),
            frame_text(network, self.text_encoder, empty),
        )

    def _start(self, step: int, sample: int) -> Start:
        draw = sample_draws(self.seed, step, sample)
        if sample < self.pool_size:
            self.pool.begin(sample, draw)
            return Start(
                latents=self.pool.latents[sample],
                segment=self._stream_segments(),
                num_present=int(self.pool.num_present[sample]),
                prompts=self.pool.prompts(sample),
                from_pool=True,
            )
        window = draw_window(draw, self.mix, self.cache, self.buffer_length, self.lead_in)
        segment = self._stream_segments()
        if window.chunk_size == self.buffer_length:
            segment = torch.full_like(segment, int(draw.integers(self.num_segments)))
        clean = cut_window(self.cache, window, self.buffer_length)
        noise = torch.from_numpy(draw.standard_normal(clean.shape, dtype="float32"))
        tau = self.table[segment * self.config.teacher_steps].float()
        latents = interpolate(clean[None], noise[None], tau[None], SIGMA_MIN)[0]
        return Start(latents, segment, window.num_present, window.prompts, from_pool=False)

    def _stream_segments(self) -> Tensor:
        """Segment of each slot in a stream: chunk 0 is in the last one."""
        chunks = torch.arange(self.num_segments - 1, -1, -1)
        return chunks.repeat_interleave(self.chunk_size)


@dataclass(frozen=True, slots=True)
class Start:
    """A state to start from: latents, segment of each frame, frames present, prompts."""

    latents: Tensor
    segment: Tensor
    num_present: int
    prompts: tuple[str, ...]
    from_pool: bool


def _mix(config: DistillationConfig, chunk_size: int, buffer_length: int) -> FlowMix:
    """The student's own scheme and the uniform one, without a scheme that has no share."""
    shares = {chunk_size: 1 - config.uniform_share, buffer_length: config.uniform_share}
    if chunk_size == buffer_length:
        shares = {chunk_size: 1.0}
    return FlowMix(
        chunk_sizes=tuple(size for size, share in shares.items() if share > 0),
        probabilities=tuple(share for share in shares.values() if share > 0),
        growth_share=config.growth_share,
        text_dropout=config.text_dropout,
        paraphrase_share=config.paraphrase_share,
    )


def _logs(per_sample: Tensor, starts: list[Start]) -> dict[str, float]:
    """Mean loss on states of the pool and on noised data."""
    pool = torch.tensor([item.from_pool for item in starts], device=per_sample.device)
    logs = {}
    if bool(pool.any()):
        logs["loss_pool"] = float(per_sample[pool].mean())
    if not bool(pool.all()):
        logs["loss_data"] = float(per_sample[~pool].mean())
    return logs
