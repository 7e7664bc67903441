"""Claim: training does what the paper says: what is drawn, what is lost, what is learned."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_training import (
    BUFFER,
    CHANNELS,
    HEIGHT,
    WIDTH,
    LineTask,
    cache_of,
    networks,
    relative_error,
    text_config,
    transformer_config,
)
from torch import Tensor, nn

from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.buffer import StreamBuffer
from streamdit_model.data import ClipText, LatentCache
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import interpolate, keyed_noise, sample_draws, target_velocity
from streamdit_model.optimizers import Averages, make_optimizers
from streamdit_model.partition import Partition, training_tau
from streamdit_model.reconstruction import (
    ReconstructionConfig,
    ReconstructionTask,
    peak_signal_to_noise,
)
from streamdit_model.sampling import Window, cycle, warm_up
from streamdit_model.text import TextEncoder
from streamdit_model.trainer import LoopConfig, Stage, Trainer, learning_rate_share
from streamdit_model.training import FlowMix, FlowTask, cut_window, draw_window, frame_text
from streamdit_model.training import Window as TrainingWindow
from streamdit_model.transformer import StreamDiT

LEAD_IN = 2
EVERY_SIZE = FlowMix(chunk_sizes=(1, 2, 4, 8), probabilities=(0.2, 0.2, 0.2, 0.4))
PLAIN = {"growth_share": 0.0, "start_share": 0.0, "text_dropout": 0.0, "paraphrase_share": 0.0}


def drawn(mix: FlowMix, cache: LatentCache, number: int = 1500) -> list[TrainingWindow]:
    """Draw windows as a task does."""
    return [
        draw_window(sample_draws(7, step, sample), mix, cache, BUFFER, LEAD_IN)
        for step in range(number // 10)
        for sample in range(10)
    ]


def assert_share(found: int, total: int, expected: float) -> None:
    """A count lies within four deviations of its expectation."""
    deviation = math.sqrt(total * expected * (1 - expected))
    assert abs(found - total * expected) <= 4 * deviation, (found, total, expected)


def flow_task(cache: LatentCache, mix: FlowMix, dtype: torch.dtype, seed: int = 0) -> FlowTask:
    task = FlowTask(*networks(dtype, seed), cache, {"only": mix}, lead_in=LEAD_IN, seed=11)
    task.begin("only")
    return task


# Windows


def test_windows_of_full_buffers_lie_after_the_lead_in() -> None:
    mix = FlowMix(chunk_sizes=(1, 2, 4), probabilities=(0.4, 0.3, 0.3), growth_share=0.0)
    windows = drawn(mix, cache_of(frames=14))
    assert {window.first for window in windows} == set(range(LEAD_IN, 14 - BUFFER + 1))
    assert {window.num_present for window in windows} == {BUFFER}


def test_growing_windows_are_the_first_frames_of_a_stream_in_whole_chunks() -> None:
    mix = FlowMix(chunk_sizes=(1, 2, 4), probabilities=(0.4, 0.3, 0.3), growth_share=1.0)
    windows = drawn(mix, cache_of())
    growing = [window for window in windows if window.num_present < BUFFER]
    assert {window.first for window in growing} == {0}
    for size in (1, 2, 4):
        lengths = {window.num_present for window in growing if window.chunk_size == size}
        assert lengths == set(range(size, BUFFER, size))
    full = {window.first for window in windows if window.num_present == BUFFER}
    assert full == set(range(LEAD_IN + 1))  # until a window from the middle takes over


def test_share_of_growing_windows_is_that_of_the_mix() -> None:
    mix = FlowMix(chunk_sizes=(1,), probabilities=(1.0,), growth_share=0.25)
    windows = drawn(mix, cache_of(frames=40))
    # Of BUFFER + LEAD_IN equally likely lengths all but LEAD_IN + 1 are shorter than the buffer.
    expected = 0.25 * (BUFFER - 1) / (BUFFER + LEAD_IN)
    assert_share(sum(w.num_present < BUFFER for w in windows), len(windows), expected)


def test_share_of_uniform_windows_that_start_a_stream_is_that_of_the_mix() -> None:
    mix = FlowMix(chunk_sizes=(BUFFER,), probabilities=(1.0,), start_share=0.3)
    windows = drawn(mix, cache_of(frames=14))
    assert {window.num_present for window in windows} == {BUFFER}
    assert min(window.first for window in windows if window.first) == LEAD_IN
    assert_share(sum(window.first == 0 for window in windows), len(windows), 0.3)


def test_chunk_sizes_come_with_their_probabilities() -> None:
    windows = drawn(EVERY_SIZE, cache_of(), 3000)
    counts = Counter(window.chunk_size for window in windows)
    for size, share in zip(EVERY_SIZE.chunk_sizes, EVERY_SIZE.probabilities, strict=True):
        assert_share(counts[size], len(windows), share)


def test_every_clip_is_drawn_or_the_first_ones_only() -> None:
    for clips, expected in ((0, 6), (2, 2), (60, 6)):
        mix = FlowMix(chunk_sizes=(2,), probabilities=(1.0,), clips=clips)
        windows = drawn(mix, cache_of(), 300)
        assert {window.clip for window in windows} == set(range(expected))


def test_frames_present_sit_at_the_tail_of_the_buffer() -> None:
    cache = cache_of()
    for present in (2, 6, BUFFER):
        latents = cut_window(cache, TrainingWindow(3, 1, 2, present, ("",) * BUFFER), BUFFER)
        assert latents.shape == (CHANNELS, BUFFER, HEIGHT, WIDTH)
        assert torch.equal(latents[:, BUFFER - present :], cache.window(3, 1, present))
        assert (latents[:, : BUFFER - present] == 0).all()


# Words


def test_a_tenth_of_the_windows_has_the_empty_prompt_and_half_a_paraphrase() -> None:
    windows = drawn(FlowMix(chunk_sizes=(2,), probabilities=(1.0,)), cache_of(), 3000)
    assert all(len(set(window.prompts)) == 1 for window in windows)
    words = [window.prompts[0] for window in windows]
    assert_share(words.count(""), len(words), 0.1)
    said = [word for word in words if word]
    canonical = sum(word.endswith("way 0") for word in said)
    assert_share(canonical, len(said), 0.5)
    for way in (1, 2):
        assert_share(sum(word.endswith(f"way {way}") for word in said), len(said), 0.25)
    assert all(
        f"clip {window.clip} " in window.prompts[0] for window in windows if window.prompts[0]
    )


def test_half_of_the_switch_windows_reads_the_new_words_everywhere_and_half_frame_by_frame() -> (
    None
):
    switch = 9
    mix = FlowMix(chunk_sizes=(2,), probabilities=(1.0,), **PLAIN)
    windows = drawn(mix, cache_of(frames=24, switch=switch), 3000)
    inside = [w for w in windows if w.first < switch < w.first + BUFFER]
    whole = 0
    for window in windows:
        before, after = (f"clip {window.clip} {word}, way 0" for word in ("before", "after"))
        own = tuple(before if f < switch else after for f in range(window.first, window.first + 8))
        if window in inside and window.prompts == (after,) * BUFFER:
            whole += 1
        else:
            assert window.prompts == own
    assert_share(whole, len(inside), 0.5)
    assert {window.first for window in windows} - {window.first for window in inside}


def test_switch_inside_a_growing_window_changes_the_words_at_its_frame() -> None:
    mix = FlowMix(chunk_sizes=(2,), probabilities=(1.0,), **(PLAIN | {"growth_share": 1.0}))
    windows = drawn(mix, cache_of(switch=3), 600)
    growing = [w for w in windows if w.num_present == 6 and len(set(w.prompts)) > 1]
    assert growing
    for window in growing:
        changes = [slot for slot in range(BUFFER) if "after" in window.prompts[slot]]
        assert changes == list(range(BUFFER - 6 + 3, BUFFER))


# The loss


def test_loss_is_the_mean_over_the_frames_present_as_if_the_others_were_not_there() -> None:
    cache = cache_of(exact=True)
    mix = FlowMix(chunk_sizes=(2, 8), probabilities=(0.7, 0.3), growth_share=0.8)
    task = flow_task(cache, mix, torch.float64)
    expected, lengths = 0.0, set()
    for sample in range(12):
        draw = sample_draws(11, 5, sample)
        window = draw_window(draw, mix, cache, BUFFER, LEAD_IN)
        chunks = BUFFER // window.chunk_size
        uniforms = torch.from_numpy(draw.random(chunks))
        tau = training_tau(uniforms, buffer_length=BUFFER, chunk_size=window.chunk_size)
        noise = torch.from_numpy(
            draw.standard_normal((CHANNELS, BUFFER, HEIGHT, WIDTH), dtype="float32")
        )
        slots = torch.arange(BUFFER - window.num_present, BUFFER)
        clean = cache.window(window.clip, window.first, window.num_present)[None]
        noise = noise[None, :, slots].double()
        text = frame_text(
            task.transformer, task.text_encoder, [tuple(window.prompts[slot] for slot in slots)]
        )
        noisy = interpolate(clean, noise, tau[slots])
        with torch.no_grad():
            velocity = task.transformer(noisy, tau[None, slots], slots, text)
        expected += float((velocity - target_velocity(clean, noise)).square().mean())
        lengths.add(window.num_present)
    assert len(lengths) > 2
    loss, _ = task.loss(5, range(12))
    assert float(loss.detach()) == pytest.approx(
        expected, rel=1e-6
    )  # predictions are rounded to float32


def test_losses_are_logged_by_chunk_size_and_by_quarter_of_tau() -> None:
    task = flow_task(cache_of(), EVERY_SIZE, torch.float32)
    loss, logs = task.loss(0, range(32))
    sizes = Counter(
        draw_window(sample_draws(11, 0, s), EVERY_SIZE, task.cache, BUFFER, LEAD_IN).chunk_size
        for s in range(32)
    )
    assert {name for name in logs if "chunk" in name} == {f"loss_chunk_{size}" for size in sizes}
    total = sum(logs[f"loss_chunk_{size}"] * count for size, count in sizes.items())
    assert total == pytest.approx(float(loss.detach()), rel=1e-5)
    assert {name for name in logs if "tau" in name} == {f"loss_tau_{n}" for n in range(4)}


def _gradients(accumulation: int, tmp_path: Path, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the last step, before clipping mattered, and the weights after it."""
    mix = FlowMix(chunk_sizes=(1, 2, 8), probabilities=(0.3, 0.4, 0.3), growth_share=0.5)
    task = flow_task(cache_of(switch=5, exact=True), mix, torch.float64)
    config = LoopConfig(
        batch_size=8, accumulation=accumulation, precision="float32", gradient_clip=1e9
    )
    stage = Stage(name="only", steps=steps, learning_rate=1e-3)
    trainer = Trainer(task, (stage,), config, tmp_path / str(accumulation))
    assert trainer.run()
    parameters = [p for module in task.modules.values() for p in module.parameters()]
    gradients = [p.grad.clone() for p in parameters if p.grad is not None]
    assert len(gradients) == len(parameters)
    return gradients, [p.detach().clone() for p in parameters]


def test_accumulation_changes_no_gradient(tmp_path: Path) -> None:
    whole = _gradients(1, tmp_path, 2)
    for accumulation in (2, 4):
        parts = _gradients(accumulation, tmp_path, 2)
        for found, expected in zip(parts, whole, strict=True):
            worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
            assert worst < 1e-10
    assert max(float(gradient.abs().max()) for gradient in whole[0]) > 1e-3


def test_clips_shorter_than_lead_in_and_buffer_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 latent frames are too short for a buffer of 8"):
        flow_task(cache_of(frames=9), EVERY_SIZE, torch.float32)


# What is learned


def _one_clip() -> LatentCache:
    """One smooth clip, as long as the buffer."""
    frame, row, column = torch.meshgrid(
        torch.arange(BUFFER), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"
    )
    waves = [torch.sin(0.7 * frame + (1 + c) * row / 2 - c * column / 2) for c in range(CHANNELS)]
    latents = 1.4 * torch.stack(waves)[None].bfloat16()
    return LatentCache(latents, [ClipText(("a wave", "one wave"))])


def test_tiny_model_overfits_one_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cache = _one_clip()
    config = transformer_config(width=64, mlp_width=128)
    transformer, text_encoder = StreamDiT(config), TextEncoder(text_config())
    mix = FlowMix(chunk_sizes=(2, 8), probabilities=(0.5, 0.5), growth_share=0.5)
    task = FlowTask(transformer, text_encoder, cache, {"fit": mix}, lead_in=0, seed=0)
    stage = Stage(
        name="fit", steps=200, learning_rate=1e-2, muon_learning_rate=5e-2, decay_share=0.6
    )
    loop = LoopConfig(batch_size=4, precision="float32", checkpoint_every=1000)
    task.begin("fit")
    first = task.loss(10_000, range(16))[0].detach()
    Trainer(task, (stage,), loop, tmp_path).run()
    last = task.loss(10_000, range(16))[0].detach()
    assert last < first / 6
    expected = cache.window(0, 0, BUFFER)[None]

    def velocity(window: Window) -> Tensor:
        return transformer(window.latents, window.tau, window.slots, window.text)

    words = frame_text(transformer, text_encoder, [("a wave",)])
    noise = keyed_noise([5], CHANNELS, HEIGHT, WIDTH)
    clip = Partition.uniform(buffer_length=BUFFER, total_steps=16)
    stream = Partition(num_chunks=4, chunk_size=2, micro_steps=4)
    for partition, shown, error in ((clip, BUFFER, 0.4), (stream, 2, 0.6)):
        buffer = StreamBuffer(partition, 1, CHANNELS, HEIGHT, WIDTH)
        warm_up(buffer, velocity, noise, lambda *_: words)
        chunk = cycle(buffer, velocity, noise, lambda *_: words)
        assert relative_error(chunk, expected[:, :, :shown]) < error


def test_tiny_autoencoder_learns_to_give_back_video(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        latent_channels=8, widths=(16, 16, 16), encoder_blocks=(1,) * 3, decoder_blocks=(1,) * 3
    )
    task = ReconstructionTask(
        Autoencoder(config), ReconstructionConfig(resolution=32, latent_frames=2), seed=0
    )
    stage = Stage(name="fit", steps=60, learning_rate=4e-3, muon_learning_rate=4e-3)
    loop = LoopConfig(batch_size=4, precision="float32", checkpoint_every=1000)
    task.begin("fit")
    _, before = task.loss(10_000, range(8))
    Trainer(task, (stage,), loop, tmp_path).run()
    _, after = task.loss(10_000, range(8))
    assert after["psnr"] > before["psnr"] + 6


def test_peak_signal_to_noise_is_that_of_the_clamped_video() -> None:
    video = torch.full((1, 3, 4, 8, 8), 1.0)
    assert peak_signal_to_noise(video - 0.1, video) == pytest.approx(20.0, abs=1e-4)
    assert peak_signal_to_noise(video + 0.5, video) == pytest.approx(120.0)


# Rates, averages and who trains what


def test_learning_rate_rises_holds_and_falls() -> None:
    stage = Stage(steps=100, learning_rate=1.0, warmup_steps=4, decay_share=0.2, final_share=0.1)
    shares = [learning_rate_share(stage, step) for step in range(100)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(shares[4:81]) == {1.0}
    assert shares[81:] == pytest.approx([0.1 + 0.9 * left / 20 for left in range(19, 0, -1)])


def test_learning_rate_of_a_plain_stage_is_constant() -> None:
    stage = Stage(steps=7, learning_rate=1.0)
    assert [learning_rate_share(stage, step) for step in range(7)] == [1.0] * 7


def test_trainer_sets_the_rate_of_its_stage_in_both_optimizers(tmp_path: Path) -> None:
    stages = (
        Stage(name="a", steps=2, learning_rate=0.5, muon_learning_rate=0.25, warmup_steps=2),
        Stage(name="b", steps=2, learning_rate=0.125, muon_learning_rate=0.0625),
    )
    rates = []

    class Watch(FlowTask):
        def after_step(self, step: int) -> None:
            groups = {name: o.param_groups[0]["lr"] for name, o in trainer.optimizers.items()}
            rates.append((groups["adamw"], groups["muon"]))

    mixes = dict.fromkeys("ab", FlowMix(chunk_sizes=(2,), probabilities=(1.0,)))
    task = Watch(*networks(), cache_of(), mixes, lead_in=LEAD_IN, seed=0)
    trainer = Trainer(task, stages, LoopConfig(batch_size=1), tmp_path)
    trainer.run()
    assert rates == [(0.25, 0.125), (0.5, 0.25), (0.125, 0.0625), (0.125, 0.0625)]


def test_averages_follow_with_their_decay() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 3.0]]))
    averages = Averages({"line": module})
    values = torch.tensor([1.0, 3.0])
    for step, decay in enumerate((0.5, 0.9, 0.0)):
        present = torch.tensor([10.0 * step, -1.0])
        module.weight.data.copy_(present[None])
        averages.update({"line": module}, decay)
        values = decay * values + (1 - decay) * present
    assert torch.allclose(averages.values["line"]["weight"][0], values)
    assert averages.values["line"]["weight"].data_ptr() != module.weight.data_ptr()


def test_early_averages_forget_faster(tmp_path: Path) -> None:
    weights, averages = [], []

    class Watch(LineTask):
        def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
            weights.append(self.line.linear.weight.detach().clone())
            averages.append(trainer.averages.values["line"]["linear.weight"].clone())
            return super().loss(step, samples)

    stage = Stage(name="only", steps=12, learning_rate=0.1)
    config = LoopConfig(batch_size=4, ema_decay=0.3, precision="float32")
    trainer = Trainer(Watch(), (stage,), config, tmp_path)
    trainer.run()
    for step in range(11):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * averages[step] + (1 - decay) * weights[step + 1]
        assert torch.allclose(averages[step + 1], expected, atol=1e-6)


def test_muon_trains_the_matrices_of_repeated_blocks_and_adamw_all_else() -> None:
    transformer, text = networks()
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 8, 4)))
    modules = {"transformer": transformer, "text": text, "autoencoder": autoencoder}
    optimizers = make_optimizers(modules, uses_muon=True, betas=(0.9, 0.95), weight_decay=0.0)
    owner = {
        id(parameter): name
        for name, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    names = {
        f"{part}.{name}": owner[id(parameter)]
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    assert len(owner) == len(names) == sum(len(list(m.parameters())) for m in modules.values())
    muon = {name for name, optimizer in names.items() if optimizer == "muon"}
    assert muon == {
        name
        for name in names
        if name.endswith(".weight")
        and "norm" not in name
        and any(stack in name for stack in (".blocks.", ".layers.", ".encoder.", ".decoder."))
    }
    assert {"transformer.blocks.1.mlp.down.weight", "text.layers.0.mlp_in.weight"} <= muon
    assert {"autoencoder.encoder.0.mix.weight", "autoencoder.decoder.3.conv.weight"} <= muon
    for name in ("transformer.head.weight", "text.byte_embedding.weight", "text.merge.weight"):
        assert names[name] == "adamw"
    for name in ("transformer.blocks.0.table", "transformer.frame_position"):
        assert names[name] == "adamw"
    for name in ("autoencoder.encoder_in.weight", "autoencoder.decoder_out.weight"):
        assert names[name] == "adamw"


def test_without_a_rate_of_its_own_muon_is_not_used(tmp_path: Path) -> None:
    mixes = {"only": EVERY_SIZE}
    task = FlowTask(*networks(), cache_of(), mixes, lead_in=LEAD_IN, seed=0)
    stage = Stage(name="only", steps=1, learning_rate=1e-3)
    trainer = Trainer(task, (stage,), LoopConfig(batch_size=1), tmp_path)
    assert list(trainer.optimizers) == ["adamw"]
    count = sum(len(group["params"]) for group in trainer.optimizers["adamw"].param_groups)
    assert count == sum(len(list(module.parameters())) for module in task.modules.values())


def test_muon_in_some_stages_only_is_refused(tmp_path: Path) -> None:
    stages = (
        Stage(name="a", steps=1, learning_rate=1e-3, muon_learning_rate=1e-3),
        Stage(name="b", steps=1, learning_rate=1e-3),
    )
    with pytest.raises(ConfigError, match="muon_learning_rate is 0 in b"):
        Trainer(LineTask(), stages, LoopConfig(batch_size=1), tmp_path)


def test_parts_of_a_batch_hold_every_sample_once_and_their_numbers_are_averaged(
    tmp_path: Path,
) -> None:
    task = LineTask()
    config = LoopConfig(batch_size=6, accumulation=3, precision="float32", log_every=1)
    trainer = Trainer(task, (Stage(name="s", steps=2, learning_rate=0.1),), config, tmp_path)
    assert trainer.run()
    assert task.seen == [(s, [2 * part, 2 * part + 1]) for s in range(2) for part in range(3)]
    assert task.begun == ["s"] and task.committed == [0, 1]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all('"first_sample": 2.0' in line for line in lines)


def test_batch_with_a_huge_loss_moves_the_weights_no_further_than_another(tmp_path: Path) -> None:
    class Huge(LineTask):
        def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
            loss, logs = super().loss(step, samples)
            return 1e6 * loss, logs

    for task in (LineTask(), Huge()):
        config = LoopConfig(batch_size=4, precision="float32", gradient_clip=0.01)
        stages = (Stage(name="s", steps=1, learning_rate=0.1),)
        Trainer(task, stages, config, tmp_path / type(task).__name__).run()
        gradients = [p.grad for p in task.line.parameters() if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 6, "accumulation": 4}, "batch_size 6 is not a multiple of accumulation 4"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"precision": "float16"}, "precision 'float16'"),
        ({"checkpoint_every": 0}, "checkpoint_every 0 is not at least 1"),
        ({"log_every": 0}, "log_every 0 is not at least 1"),
        ({"max_skipped": -1}, "max_skipped -1 is below 0"),
        ({"gradient_clip": 0.0}, "gradient_clip 0.0 is not above 0"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"betas": (0.9, 1.5)}, "betas"),
    ],
)
def test_loop_that_cannot_run_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoopConfig(**({"batch_size": 4} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": -1}, "steps -1 is below 0"),
        ({"learning_rate": -1e-3}, "learning_rate -0.001 is below 0"),
        ({"decay_share": 1.5}, "decay_share 1.5 is not between 0 and 1"),
        ({"final_share": -0.1}, "final_share -0.1 is not between 0 and 1"),
    ],
)
def test_stage_that_cannot_run_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Stage(**({"steps": 4, "learning_rate": 1e-3} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"growth_share": 1.5}, "growth_share 1.5"),
        ({"text_dropout": -0.1}, "text_dropout -0.1"),
        ({"chunk_sizes": (1, 2)}, "2 chunk sizes with 5 probabilities"),
        ({"chunk_sizes": (2,), "probabilities": (0.5,)}, "sum 1"),
    ],
)
def test_mix_that_cannot_be_drawn_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FlowMix(**changes)  # type: ignore[arg-type]
