"""Claim: the student learns the mean velocity of the guided teacher, also on its own streams."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import BUFFER, CHANNELS, HEIGHT, WIDTH, cache_of, networks, transformer_config
from torch import Tensor, nn

from streamdit_model.buffer import StreamBuffer
from streamdit_model.data import LatentCache
from streamdit_model.distillation import DistillationConfig, DistillationTask, Start, teacher_end
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import euler_step, keyed_noise, sample_draws
from streamdit_model.partition import Partition
from streamdit_model.sampling import Window, cycle, guided
from streamdit_model.trainer import LoopConfig, Stage, Trainer
from streamdit_model.training import frame_text
from streamdit_model.transformer import FrameText, StreamDiT

BATCH = 4
STUDENT = Partition(num_chunks=4, chunk_size=2, micro_steps=1, gamma="shift", gamma_parameter=3.0)
TEACHER = Partition(num_chunks=4, chunk_size=2, micro_steps=3, gamma="shift", gamma_parameter=3.0)
SCALE = 2.5


class Counted(StreamDiT):
    """A transformer that counts its calls."""

    calls = 0

    def forward(self, *inputs: Any, **more: Any) -> Tensor:
        self.calls += 1
        return super().forward(*inputs, **more)


def task_of(
    cache: LatentCache | None = None,
    student: StreamDiT | None = None,
    teacher: StreamDiT | None = None,
    batch_size: int = BATCH,
    seed: int = 4,
    **changes: Any,
) -> DistillationTask:
    config = DistillationConfig(
        **({"teacher_steps": TEACHER.micro_steps, "guidance_scale": SCALE} | changes)
    )
    network, text = networks(kind=Counted)
    return DistillationTask(
        student or copy.deepcopy(network),
        teacher or network,
        text,
        cache or cache_of(),
        STUDENT,
        config,
        batch_size=batch_size,
        lead_in=2,
        seed=seed,
    )


def start_of(task: DistillationTask, step: int, sample: int) -> Start:
    """Return a start state of its own: those of the pool are views of it."""
    start = task._start(step, sample)
    return Start(
        start.latents.clone(), start.segment, start.num_present, start.prompts, start.from_pool
    )


def mean_velocity(task: DistillationTask, start: Start) -> Tensor:
    """Walk one state to the end of its segments by the tables of the partition, frame by frame.

    Returns the mean velocity of the frames present, (1, channels, frames present, h, w).
    """
    first = BUFFER - start.num_present
    state = start.latents[None, :, first:]
    slots, segment = torch.arange(first, BUFFER), start.segment[first:]
    chosen = [start.prompts[first:]], [("",) * start.num_present]
    words, empty = (frame_text(task.teacher, task.text_encoder, prompts) for prompts in chosen)
    velocity = guided(
        lambda w: task.teacher(w.latents, w.tau, w.slots, w.text), SCALE, null_text=empty
    )
    total = torch.zeros(start.num_present)
    moved = state
    for micro_step in range(TEACHER.micro_steps):
        levels = segment * TEACHER.micro_steps + micro_step
        table = TEACHER.gamma_table()
        tau, delta = table[levels].float(), (table[levels + 1] - table[levels]).float()
        window = Window(latents=moved, tau=tau[None], slots=slots, first_frame=0, text=words)
        moved = euler_step(moved, velocity(window), delta)
        total += delta
    return (moved - state) / total[:, None, None]


# The target


def test_loss_is_the_distance_to_the_mean_velocity_of_guided_teacher_steps() -> None:
    changes = {"uniform_share": 0.4, "growth_share": 0.7, "text_dropout": 0.3, "pool_lifetime": 4}
    task = task_of(batch_size=12, **changes)
    for step in range(4):  # so that the pool has streams of several lengths
        task.loss(step, range(12))
        task.after_step(step)
    starts = [start_of(task, 4, sample) for sample in range(12)]
    assert {start.num_present for start in starts} == {2, 4, 6, 8}
    assert any(len(set(start.segment.tolist())) == 1 for start in starts)  # the uniform scheme
    assert {"" in start.prompts for start in starts} == {True, False}
    expected = 0.0
    for start in starts:
        first = BUFFER - start.num_present
        slots = torch.arange(first, BUFFER)
        tau = STUDENT.segment_levels()[start.segment[first:]].float()
        words = frame_text(task.student, task.text_encoder, [start.prompts[first:]])
        with torch.no_grad():
            predicted = task.student(start.latents[None, :, first:], tau[None], slots, words)
            expected += float((predicted - mean_velocity(task, start)).square().mean())
    loss, _ = task.loss(4, range(12))
    assert expected > 0.1
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_teacher_walks_the_way_of_a_stream() -> None:
    teacher, text = networks()
    words = frame_text(teacher, text, [("a clip",), ("another clip",)])
    empty = frame_text(teacher, text, [("",), ("",)])
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, CHANNELS, BUFFER, HEIGHT, WIDTH, generator=generator)
    buffer = StreamBuffer(TEACHER, 2, CHANNELS, HEIGHT, WIDTH)
    buffer.fill(start, 0)
    velocity = guided(lambda w: teacher(w.latents, w.tau, w.slots, w.text), SCALE, null_text=empty)
    noise = keyed_noise([0, 1], CHANNELS, HEIGHT, WIDTH)
    with torch.no_grad():
        emitted = cycle(buffer, velocity, noise, lambda *_: words)
    expected = torch.cat([emitted, buffer.latents[:, :, :-2]], dim=2)
    segment = torch.tensor([3, 3, 2, 2, 1, 1, 0, 0]).expand(2, -1)
    found = teacher_end(
        teacher, start, segment, TEACHER.gamma_table(), 4, (words, empty), None, SCALE
    )
    assert (found - expected).abs().max() < 1e-5
    assert (found - start).abs().max() > 0.1


def test_guidance_costs_the_teacher_a_second_call_and_the_student_none() -> None:
    for scale, calls in ((SCALE, 2 * TEACHER.micro_steps), (1.0, TEACHER.micro_steps)):
        task = task_of(guidance_scale=scale)
        task.loss(0, range(BATCH))
        assert isinstance(task.teacher, Counted) and isinstance(task.student, Counted)
        assert (task.teacher.calls, task.student.calls) == (calls, 1)


def test_distillation_moves_the_student_and_nothing_else() -> None:
    task = task_of()
    loss, _ = task.loss(0, range(BATCH))
    loss.backward()
    assert set(task.modules) == {"transformer"}
    assert all(p.grad is not None for p in task.student.parameters())
    for module in (task.teacher, task.text_encoder):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


# Analytic networks: dx/dtau = rate * x, of which Euler steps are a power


class Growth(StreamDiT):
    """A velocity proportional to the latents: one rate with words, another one without."""

    WITH_WORDS, WITHOUT = 0.4, -0.2

    def forward(
        self,
        latents: Tensor,
        tau: Tensor,
        slots: Tensor,
        text: FrameText,
        present: Tensor | None = None,
    ) -> Tensor:
        assert text.keys.mask is not None
        words = text.keys.mask.sum(1)[text.first] > 1  # the empty prompt is one token
        rate = torch.where(words, self.WITH_WORDS, self.WITHOUT)
        return rate[:, None, :, None, None] * latents


class Rates(StreamDiT):
    """A student with one number for each segment."""

    def __init__(self) -> None:
        super().__init__(transformer_config())
        self.requires_grad_(False)
        self.rates = nn.Parameter(torch.zeros(STUDENT.num_chunks))

    def forward(
        self,
        latents: Tensor,
        tau: Tensor,
        slots: Tensor,
        text: FrameText,
        present: Tensor | None = None,
    ) -> Tensor:
        segment = torch.bucketize(tau, STUDENT.segment_levels().float(), right=True) - 1
        return self.rates[segment][:, None, :, None, None] * latents


def test_student_of_a_linear_teacher_learns_its_power_in_every_segment(tmp_path: Path) -> None:
    student = Rates()
    task = task_of(student=student, teacher=Growth(transformer_config()), text_dropout=0.0)
    stage = Stage(name="distill", steps=90, learning_rate=0.06, decay_share=0.7)
    config = LoopConfig(
        batch_size=BATCH, precision="float32", weight_decay=0.0, checkpoint_every=1000
    )
    assert Trainer(task, (stage,), config, tmp_path).run()
    rate = Growth.WITHOUT + SCALE * (Growth.WITH_WORDS - Growth.WITHOUT)
    table = TEACHER.gamma_table()
    for segment in range(STUDENT.num_chunks):
        levels = table[segment * TEACHER.micro_steps : (segment + 1) * TEACHER.micro_steps + 1]
        growth = float((1 + rate * levels.diff()).prod())
        expected = (growth - 1) / float(levels[-1] - levels[0])
        assert student.rates[segment].item() == pytest.approx(expected, abs=0.01)


def test_student_without_words_learns_the_teacher_without_words(tmp_path: Path) -> None:
    student = Rates()
    task = task_of(student=student, teacher=Growth(transformer_config()), text_dropout=1.0)
    stage = Stage(name="distill", steps=60, learning_rate=0.02, decay_share=0.7)
    config = LoopConfig(
        batch_size=BATCH, precision="float32", weight_decay=0.0, checkpoint_every=1000
    )
    assert Trainer(task, (stage,), config, tmp_path).run()
    assert student.rates.max() < -0.1
    assert student.rates.min() > Growth.WITHOUT - 0.01


# The pool


def pool_tensors(task: DistillationTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state().items()}


def unmoving() -> StreamDiT:
    """A new transformer, whose velocity is 0."""
    return StreamDiT(transformer_config())


def test_pool_advances_one_cycle_for_each_step_that_is_committed() -> None:
    task = task_of(student=unmoving(), switch_share=0.0, pool_lifetime=1000)
    task.loss(0, range(BATCH))
    begun = pool_tensors(task)
    assert begun["pool-num_present"].tolist() == [2, 2]
    task.loss(0, range(BATCH))
    assert all(torch.equal(value, begun[name]) for name, value in pool_tensors(task).items())
    for step in range(6):
        before = pool_tensors(task)
        task.loss(step, range(BATCH))
        task.after_step(step)
        after = pool_tensors(task)
        present = min(2 * (step + 2), BUFFER)
        assert after["pool-num_present"].tolist() == [present, present]
        assert torch.equal(after["pool-cycles_left"], before["pool-cycles_left"] - 1)
        assert torch.equal(after["pool-latents"][:, :, :-2], before["pool-latents"][:, :, 2:])
        assert torch.equal(after["pool-prompt"], before["pool-prompt"])
        for slot in range(2):
            draw = sample_draws(4, step, BATCH + slot)  # which no sample of the step has
            noise = draw.standard_normal((CHANNELS, 2, HEIGHT, WIDTH), dtype="float32")
            assert torch.equal(after["pool-latents"][slot, :, -2:], torch.from_numpy(noise))


def test_pool_moves_by_the_students_own_step() -> None:
    task = task_of(switch_share=0.0, pool_lifetime=1000)
    for step in range(5):
        task.loss(step, range(BATCH))
        task.after_step(step)
    before = pool_tensors(task)["pool-latents"]
    prompts = [task.pool.prompts(slot) for slot in range(2)]
    segment = torch.tensor([3, 3, 2, 2, 1, 1, 0, 0]).expand(2, -1)
    borders = STUDENT.segment_levels()
    with torch.no_grad():
        words = frame_text(task.student, task.text_encoder, prompts)
        velocity = task.student(before, borders[segment].float(), torch.arange(BUFFER), words)
    delta = (borders[segment + 1] - borders[segment]).float()
    expected = euler_step(before, velocity, delta)[:, :, 2:]
    task.loss(5, range(BATCH))
    task.after_step(5)
    assert (pool_tensors(task)["pool-latents"][:, :, :-2] - expected).abs().max() < 1e-5
    assert (expected - before[:, :, 2:]).abs().max() > 1e-2


def test_pool_rests_in_a_step_that_is_skipped(tmp_path: Path) -> None:
    task = task_of(pool_lifetime=1000)
    config = LoopConfig(batch_size=BATCH, precision="float32")
    trainer = Trainer(task, (Stage(name="d", steps=4, learning_rate=1e-3),), config, tmp_path)
    good = task.loss
    pools = []

    def sometimes(step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        pools.append(pool_tensors(task))
        loss, logs = good(step, samples)
        return (loss * float("nan") if step == 1 else loss), logs

    task.loss = sometimes  # type: ignore[method-assign]
    trainer.run()
    assert trainer.skipped == 1
    for step, has_moved in enumerate((True, False, True)):
        before, after = pools[step], pools[step + 1]
        assert torch.equal(before["pool-latents"], after["pool-latents"]) != has_moved


def test_slots_of_the_pool_belong_to_global_sample_indices() -> None:
    whole, parts = (task_of(batch_size=8, pool_lifetime=3, switch_share=0.5) for _ in range(2))
    for step in range(6):
        whole.loss(step, range(8))
        for part in (range(6, 8), range(2, 4), range(0, 2), range(4, 6)):
            parts.loss(step, part)
        for task in (whole, parts):
            task.after_step(step)
    for name, value in whole.state().items():
        assert (value - parts.state()[name]).abs().max() < 1e-5, name
    assert whole.pool_size == 4


def test_streams_of_the_pool_end_and_begin_anew() -> None:
    task = task_of(pool_lifetime=2, switch_share=0.0)
    lengths = []
    for step in range(12):
        task.loss(step, range(BATCH))
        lengths += task.pool.num_present.tolist()
        task.after_step(step)
    assert set(lengths) == {2, 4}  # a stream lives one cycle or two
    assert bool((task.pool.cycles_left >= 0).all())


def test_prompt_of_a_pooled_stream_changes_everywhere_or_in_its_newest_chunk() -> None:
    task = task_of(student=unmoving(), switch_share=1.0, pool_lifetime=1000, text_dropout=0.0)
    whole = newest = 0
    for step in range(60):
        task.loss(step, range(BATCH))
        before = task.pool.prompt.clone()
        task.after_step(step)
        for slot in range(2):
            shifted = torch.cat([before[slot, 2:], before[slot, -2:]])
            now = task.pool.prompt[slot]
            changed = (now != shifted).any(1)
            whole += bool(changed[:-2].any())
            newest += bool(changed.any()) and not bool(changed[:-2].any())
            if changed[:-2].any():
                assert len(set(map(tuple, now.tolist()))) == 1
    assert whole > 30 and newest > 30


def test_pool_goes_through_its_tensors() -> None:
    one, other = (task_of(pool_lifetime=3, switch_share=0.5) for _ in range(2))
    for step in range(4):
        one.loss(step, range(BATCH))
        one.after_step(step)
    other.load_state(pool_tensors(one))
    for step in range(4, 7):
        losses = []
        for task in (one, other):
            loss, _ = task.loss(step, range(BATCH))
            losses.append(loss.detach())
            task.after_step(step)
        assert torch.equal(*losses)
    assert all(torch.equal(value, other.state()[name]) for name, value in one.state().items())


# Shares


def test_shares_of_start_states_are_those_of_the_config() -> None:
    task = task_of(
        batch_size=1000, pool_share=0.0, uniform_share=0.25, growth_share=0.4, text_dropout=0.1
    )
    starts = [task._start(0, sample) for sample in range(1000)]
    uniform = [s for s in starts if len(set(s.segment.tolist())) == 1]
    growing = [s for s in starts if s.num_present < BUFFER]
    assert 200 < len(uniform) < 300
    assert {s.segment[0].item() for s in uniform} == {0, 1, 2, 3}
    assert 110 < len(growing) < 190  # half of the growing draws of the others are full
    assert 65 < sum(s.prompts == ("",) * BUFFER for s in starts) < 135
    assert not any(s.from_pool for s in starts)


@pytest.mark.parametrize(("share", "uniform"), [(0.0, 0), (1.0, 64)])
def test_uniform_share_may_be_none_or_all(share: float, uniform: int) -> None:
    task = task_of(batch_size=64, pool_share=0.0, uniform_share=share)
    starts = [task._start(0, sample) for sample in range(64)]
    assert sum(len(set(s.segment.tolist())) == 1 for s in starts) == uniform


@pytest.mark.parametrize(("share", "size"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_pool_holds_its_share_of_the_batch(share: float, size: int, tmp_path: Path) -> None:
    task = task_of(pool_share=share)
    config = LoopConfig(batch_size=BATCH, precision="float32", log_every=1)
    stage = Stage(name="distill", steps=2, learning_rate=1e-3)
    trainer = Trainer(task, (stage,), config, tmp_path)
    assert trainer.run()
    assert int((task.pool.num_present > 0).sum()) == size
    again = Trainer(task_of(pool_share=share), (stage,), config, tmp_path)
    assert again.resume() and again.step == 2


def test_partition_with_references_is_refused() -> None:
    network, text = networks()
    with pytest.raises(ConfigError, match="1 reference frames"):
        DistillationTask(
            network,
            network,
            text,
            cache_of(),
            Partition(num_reference=1, num_chunks=7, chunk_size=1, micro_steps=1),
            DistillationConfig(),
            batch_size=2,
            lead_in=0,
            seed=0,
        )


def test_clips_shorter_than_lead_in_and_buffer_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 latent frames are too short"):
        task_of(cache_of(frames=9))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool_share": 1.1}, "pool_share 1.1 is not between 0 and 1"),
        ({"switch_share": -0.1}, "switch_share -0.1"),
        ({"teacher_steps": 0}, "at least 1"),
        ({"pool_lifetime": 0}, "at least 1"),
    ],
)
def test_config_out_of_range_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DistillationConfig(**changes)
