"""Training the network: buffered flow matching over a mix of partitions and growing buffers.

One task serves the paper's stages `base`, `task`, `generalize` and `quality`; they differ by their
mix. Every sample draws its own chunk size, tau per chunk, window, captions and noise from
(seed, step, sample). The loss of a sample is the mean over its latent frames that are present.

Paper: eq. 1 to 9, section 5.1.
Choice: growing buffers are trained too, so that a stream may start by growing (paper.md 1.6), and
windows with a prompt switch, so that a prompt may change (paper.md 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.data import ClipText, LatentCache
from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import SIGMA_MIN, interpolate, sample_draws, target_velocity
from streamdit_model.partition import ChunkMix, training_tau
from streamdit_model.text import TextCondition, TextEncoder
from streamdit_model.transformer import FrameText, StreamDiT

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FlowMix",
    "FlowTask",
    "Window",
    "check_clip_length",
    "cut_window",
    "draw_window",
    "frame_text",
]

TEXT_TOKENS_STEP = 8  # text lengths are padded to multiples, so that compiled blocks are reused


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMix:
    """What a stage draws.

    Args:
        chunk_sizes: c of the partitions; the buffer length alone is the uniform scheme.
        probabilities: of the chunk sizes, summing to 1.
        growth_share: share of the streaming samples that are a stream's first buffers.
        start_share: share of the uniform scheme's windows that start a stream.
        text_dropout: share of samples with the empty prompt.
        paraphrase_share: share of samples with other words than the canonical ones.
        clips: how many clips of the cache are used, from the first; 0 is all.

    Raises:
        ConfigError: shares outside [0, 1], or probabilities that do not fit the sizes.
    """

    chunk_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    probabilities: tuple[float, ...] = (0.175, 0.175, 0.175, 0.175, 0.3)
    growth_share: float = 0.2
    start_share: float = 0.5
    text_dropout: float = 0.1
    paraphrase_share: float = 0.5
    clips: int = 0

    def __post_init__(self) -> None:
        ChunkMix(sizes=self.chunk_sizes, probabilities=self.probabilities)
        for name in ("growth_share", "start_share", "text_dropout", "paraphrase_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Window:
    """One drawn training window.

    Args:
        clip: number in the cache.
        first: first latent frame of the clip; the frames present are consecutive from here.
        chunk_size: c.
        num_present: latent frames present, at the tail of the buffer.
        prompts: prompt of each slot of the buffer.
    """

    clip: int
    first: int
    chunk_size: int
    num_present: int
    prompts: tuple[str, ...]


def check_clip_length(latent_frames: int, buffer_length: int, lead_in: int) -> None:
    """Refuse clips from whose middle no window can be cut.

    Raises:
        ConfigError: fewer latent frames than the lead-in and the buffer together.
    """
    if latent_frames < buffer_length + lead_in:
        raise ConfigError(
            f"clips of {latent_frames} latent frames are too short for a buffer of "
            f"{buffer_length} after a lead-in of {lead_in}"
        )


def draw_window(
    draw: np.random.Generator, mix: FlowMix, cache: LatentCache, buffer_length: int, lead_in: int
) -> Window:
    """Draw clip, chunk size, place and prompts of a training window.

    Windows of full buffers lie at least `lead_in` latent frames after the start of their stream.
    Growing samples take n = 1 .. N chunks of a stream's first frames, or the first full buffers
    after them.
    """
    uniform = draw.random(8)
    count = min(mix.clips or len(cache), len(cache))
    clip = int(uniform[0] * count)
    chunk = ChunkMix(sizes=mix.chunk_sizes, probabilities=mix.probabilities).draw(uniform[1])
    latest = cache.num_frames - buffer_length
    present, first = buffer_length, lead_in + int(uniform[2] * (latest - lead_in + 1))
    if chunk == buffer_length:
        if uniform[3] < mix.start_share:
            first = 0
    elif uniform[3] < mix.growth_share:
        chunks = 1 + int(uniform[4] * (buffer_length // chunk + lead_in))
        present = min(chunks * chunk, buffer_length)
        first = max(0, chunks - buffer_length // chunk)
    prompts = _prompts(cache.texts[clip], first, present, buffer_length, uniform[5:], mix)
    return Window(clip, first, chunk, present, prompts)


def cut_window(cache: LatentCache, window: Window, buffer_length: int) -> Tensor:
    """Return clean latents (channels, buffer_length, h, w); absent frames, at the head, are 0."""
    latents = cache.window(window.clip, window.first, window.num_present)
    return F.pad(latents, (0, 0, 0, 0, buffer_length - window.num_present, 0))


def frame_text(
    transformer: StreamDiT, text_encoder: TextEncoder, prompts: list[tuple[str, ...]]
) -> FrameText:
    """Encode each different prompt once and say which one every frame of every sample reads.

    Args:
        transformer: gives the keys and values.
        text_encoder: gives the tokens.
        prompts: for each sample the prompt of each slot.
    """
    numbers: dict[str, int] = {}
    index = [[numbers.setdefault(prompt, len(numbers)) for prompt in row] for row in prompts]
    condition = text_encoder.encode(list(numbers))
    missing = -condition.mask.shape[1] % TEXT_TOKENS_STEP
    padded = TextCondition(
        F.pad(condition.tokens, (0, 0, 0, missing)), F.pad(condition.mask, (0, missing))
    )
    keys = transformer.text_keys(padded)
    return FrameText(keys=keys, first=torch.tensor(index, device=keys.keys[0].device))


class FlowTask:
    """The task of the stages base, task, generalize and quality; see `trainer.Task`.

    Args:
        transformer: trained.
        text_encoder: trained together with it.
        cache: clean latents and captions.
        mixes: by stage name.
        lead_in: latent frames before a window from the middle of a stream.
        seed: of every draw.
        gamma: of the levels, as in `Partition`.
        gamma_parameter: as in `Partition`.
        compile_blocks: compile the transformer's blocks first.
    """

    def __init__(
        self,
        transformer: StreamDiT,
        text_encoder: TextEncoder,
        cache: LatentCache,
        mixes: dict[str, FlowMix],
        *,
        lead_in: int,
        seed: int,
        gamma: str = "linear",
        gamma_parameter: float = 1.0,
        compile_blocks: bool = False,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"transformer": transformer, "text": text_encoder}
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.cache = cache
        self.mixes = mixes
        self.lead_in = lead_in
        self.seed = seed
        self.gamma = gamma
        self.gamma_parameter = gamma_parameter
        self.buffer_length = transformer.config.grid[0]
        check_clip_length(cache.num_frames, self.buffer_length, lead_in)
        if compile_blocks:
            for block in transformer.blocks:
                block.compile(dynamic=False)
        self.mix = FlowMix()

    def begin(self, stage: str) -> None:
        """Take up the stage's mix."""
        self.mix = self.mixes[stage]
        for module in self.modules.values():
            module.train()

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over samples of their mean loss, by chunk size and tau segment too."""
        draws = [sample_draws(self.seed, step, sample) for sample in samples]
        windows = [
            draw_window(draw, self.mix, self.cache, self.buffer_length, self.lead_in)
            for draw in draws
        ]
        device = self.transformer.frame_position.device
        clean = torch.stack([cut_window(self.cache, w, self.buffer_length) for w in windows])
        clean = clean.to(device)
        tau = torch.stack(
            [self._tau(draw, window) for draw, window in zip(draws, windows, strict=True)]
        ).to(device)
        noise = torch.stack(
            [
                torch.from_numpy(draw.standard_normal(clean.shape[1:], dtype="float32"))
                for draw in draws
            ]
        ).to(device)
        absent = torch.tensor([self.buffer_length - w.num_present for w in windows], device=device)
        slots = torch.arange(self.buffer_length)
        present = slots.to(device) >= absent[:, None]
        text = frame_text(self.transformer, self.text_encoder, [w.prompts for w in windows])
        predicted = self.transformer(
            interpolate(clean, noise, tau, SIGMA_MIN),
            tau,
            slots,
            text,
            None if bool(present.all()) else present,
        )
        error = (predicted.float() - target_velocity(clean, noise, SIGMA_MIN)).square()
        error = error.mean((1, 3, 4)) * present
        per_sample = error.sum(1) / present.sum(1)
        return per_sample.sum(), _loss_logs(error.detach(), tau, present, windows)

    def after_step(self, step: int) -> None:
        """Do nothing: these stages keep nothing outside the weights."""

    def state(self) -> dict[str, Tensor]:
        """Return nothing: these stages keep nothing outside the weights."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take nothing back."""

    def _tau(self, draw: np.random.Generator, window: Window) -> Tensor:
        uniforms = torch.from_numpy(draw.random(self.buffer_length // window.chunk_size))
        return training_tau(
            uniforms,
            buffer_length=self.buffer_length,
            chunk_size=window.chunk_size,
            gamma=self.gamma,
            gamma_parameter=self.gamma_parameter,
        )


def _prompts(
    text: ClipText,
    first: int,
    present: int,
    buffer_length: int,
    uniform: np.ndarray,
    mix: FlowMix,
) -> tuple[str, ...]:
    """Choose the prompt of each slot from three uniform draws.

    In a window with a switch, half of the samples read the new prompt in all frames, and half read
    each frame's own.
    """
    if uniform[0] < mix.text_dropout:
        return ("",) * buffer_length
    way = 0
    if uniform[1] < mix.paraphrase_share:
        way = 1 + int(uniform[1] / mix.paraphrase_share * (len(text.before) - 1))
    before = text.before[way]
    if text.switch < 0 or text.switch >= first + present:
        return (before,) * buffer_length
    after = text.after[way]
    if uniform[2] < 0.5 or text.switch <= first:
        return (after,) * buffer_length
    frames = range(first + present - buffer_length, first + present)
    return tuple(before if frame < text.switch else after for frame in frames)


def _loss_logs(
    error: Tensor, tau: Tensor, present: Tensor, windows: list[Window]
) -> dict[str, float]:
    """Mean loss by chunk size and by quarter of tau."""
    logs = {}
    per_sample = error.sum(1) / present.sum(1)
    sizes = torch.tensor([window.chunk_size for window in windows], device=error.device)
    for size in sorted({window.chunk_size for window in windows}):
        logs[f"loss_chunk_{size}"] = float(per_sample[sizes == size].mean())
    for quarter in range(4):
        inside = present & (tau >= quarter / 4) & (tau < (quarter + 1) / 4)
        if bool(inside.any()):
            logs[f"loss_tau_{quarter}"] = float(error[inside].mean())
    return logs
