"""The stages of a stream that make latents and video: noise to clean latents, latents to frames.

The third one, prompts to keys, is in `prompt_keys`. Each stage is called for one piece of work at a
time and knows no threads: `stream.py` runs them one after another, or each in its own thread. Every
piece carries its cut: what is needed to go on from just after it, so that the state of a stream is
that of the chunk last delivered, however far ahead the stages are.

Paper: section 8 and Fig. 11 (denoising, decoding and the prompt callback run side by side).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import NumericsError
from streamdit_model.flow_matching import Noise
from streamdit_model.known_frames import StartVideo, VideoEntry
from streamdit_model.partition import Partition
from streamdit_model.prompt_keys import PromptKeys
from streamdit_model.prompt_timeline import FramePrompts, PromptTimeline, Receipt
from streamdit_model.remembering import Forgets, KeepsContext, Remembers
from streamdit_model.sampling import Velocity, Window, cycle, warm_up
from streamdit_model.transformer import FrameText
from streamdit_model.video_chunk import VideoChunk, chunks_of, first_frame_of

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = [
    "Cut",
    "Decoder",
    "Denoiser",
    "LatentChunk",
    "VideoChunk",
    "chunks_of",
    "first_frame_of",
    "new_buffer",
]


@dataclass(frozen=True)
class Cut:
    """What is needed to go on after a chunk: tensors by name, and JSON-able numbers."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class LatentChunk:
    """One emission of the denoiser: latents (1, channels, c, height, width) and all about them.

    Of its video frames the first `num_frames` are kept: behind the end of an input there are none.
    """

    number: int
    latents: Tensor
    num_frames: int | None
    prompt: str | None
    receipts: list[Receipt]
    denoise_ms: float
    cut: Cut


class Denoiser:
    """Prompts and keyed noise in, clean latents out, one chunk a call.

    Args:
        model: gives velocity and configuration.
        timeline: says which prompt a frame sees.
        keys: of its prompts.
        velocity: of the model, with its guidance.
        noise: keyed by the seed.
        seed: named when latents are not finite.
        start: "ramp" or "clip", or a video that the stream follows.
        entry: a video to be edited, which ends the stream.
        prompts_ahead: scripted prompts asked for before their time.
        check: called before every micro step; what it raises ends the work.
        full_states: cuts hold the keys and values of a context too.
    """

    def __init__(
        self,
        model: StreamModel,
        timeline: PromptTimeline,
        keys: PromptKeys,
        *,
        velocity: Velocity,
        noise: Noise,
        seed: int,
        start: str | StartVideo,
        entry: VideoEntry | None = None,
        prompts_ahead: int,
        check: Callable[[], None],
        full_states: bool = False,
    ) -> None:
        self._model, self._config = model, model.config
        self._full_states = full_states
        self._timeline, self._keys, self._velocity = timeline, keys, velocity
        self._seed, self._start, self._check = seed, start, check
        self._entry = entry
        self._prompts_ahead = prompts_ahead
        self._device = model.device
        self._stepper = model.new_stepper()
        self._buffer = new_buffer(model, batch=1)
        self._noise = noise
        self._chunk = -1
        self._warm_up_step = 0
        self._finite: list[tuple[int, Tensor]] = []
        self._seen: tuple[FramePrompts, FrameText] | None = None

    def resume(
        self,
        chunk: int,
        buffer: Mapping[str, Tensor | int],
        memories: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Go on after the chunks before `chunk`, with the states at that place.

        The entry, if any, has its state already.
        """
        self._chunk = chunk
        self._buffer.load(buffer)
        for name, owner in self._remembering().items():
            owner.load(memories[name])

    def _remembering(self) -> dict[str, Remembers]:
        """Return what has to go into a state beside the buffer, by name."""
        owners = {"context": self._velocity, "history": self._stepper}
        return {name: owner for name, owner in owners.items() if isinstance(owner, Remembers)}

    def next(self) -> LatentChunk | None:
        """Return the next chunk; None when the video to be edited has ended before it.

        Raises:
            NumericsError: its latents are not finite.
            ConfigError: the video to be edited has no frames, or frames of another kind.
            Exception: whatever ended the video to be edited.
        """
        began = time.perf_counter()
        number = max(self._chunk, 0)
        num_frames = self._frames_of_entry(number)
        if num_frames == 0:
            return None
        if self._chunk < 0:
            self._begin()
            self._chunk = 0
        latents = self._cycle()
        self._require_finite(latents)
        prompt, receipts = self._timeline.emit(number, number * latents.shape[2])
        self._chunk += 1
        if self._entry is not None:
            self._entry.forget_passed(self._buffer)
        return LatentChunk(
            number=number,
            latents=latents,
            num_frames=num_frames,
            prompt=prompt,
            receipts=receipts,
            denoise_ms=1000 * (time.perf_counter() - began),
            cut=self._cut(),
        )

    def _frames_of_entry(self, chunk: int) -> int | None:
        """Return how many video frames of a chunk the input has; None without an input."""
        if self._entry is None:
            return None
        first, end = (first_frame_of(self._model, n) for n in (chunk, chunk + 1))
        count = max(0, self._entry.video.frames_until(end) - first)
        if count == 0:
            self._entry.video.require_sound_end()
        return count

    def _begin(self) -> None:
        """Bring the buffer to where a cycle emits chunk 0."""
        if isinstance(self._start, str):
            steps = (self._buffer, self._velocity, self._noise, self._frame_text)
            warm_up(*steps, start=self._start, **self._how())
            return
        self._start.fill(self._buffer)
        for _ in range(self._config.partition.num_chunks):
            self._cycle()

    def _cycle(self) -> Tensor:
        return cycle(self._buffer, self._velocity, self._noise, self._frame_text, **self._how())

    def _how(self) -> dict[str, Any]:
        how = {"stepper": self._stepper, "on_step": self._on_step}
        is_led = self._chunk < 0 and isinstance(self._start, StartVideo)
        return how | {"rebuild": self._rebuild} if is_led or self._entry is not None else how

    def _rebuild(self, latents: Tensor, levels: tuple[int, ...], first_frame: int) -> None:
        """Put back the frames that are known; a stepper's history of them holds no longer."""
        known = self._entry if isinstance(self._start, str) else self._start
        assert known is not None
        frames = known.rebuild(latents, levels, first_frame)
        if isinstance(self._stepper, Forgets):
            self._stepper.forget(frames)

    def _frame_text(self, first_frame: int, num_frames: int, micro_step: int) -> FrameText:
        """Apply the prompts that are due before a micro step, and return what its frames see."""
        step = self._warm_up_step if self._chunk < 0 else micro_step
        partition = self._config.partition
        clip = self._chunk < 0 and self._start == "clip"
        present = partition.num_chunks if clip else self._buffer.num_chunks_present
        fresh, made = _chunks_touched(
            first_frame + num_frames,
            partition,
            present,
            step if clip else micro_step,
            clip=clip,
            entry=0 if self._entry is None else self._entry.level,
        )
        self._timeline.advance(
            (self._chunk, step), fresh, is_ready=self._keys.is_ready, wait=self._keys.wait
        )
        for prompt in self._timeline.upcoming(self._prompts_ahead):
            self._keys.request(prompt)
        self._timeline.observe(made)
        self._warm_up_step += 1
        seen = self._timeline.view(first_frame, num_frames)
        if self._seen is None or self._seen[0] != seen:
            self._seen = seen, self._text_of(seen)
        return self._seen[1]

    def _text_of(self, seen: FramePrompts) -> FrameText:
        keys = self._keys.join(seen.prompts)
        shared = len(set(seen.first)) == 1
        first = torch.tensor(seen.first[:1] if shared else [seen.first], device=self._device)
        if seen.second is None:
            return FrameText(keys, first)
        weight = torch.full((1, len(seen.first)), seen.weight, device=self._device)
        return FrameText(keys, first, torch.full_like(first, seen.second), weight)

    def _on_step(self, window: Window, micro_step: int) -> None:
        self._check()
        self._finite.append((micro_step, torch.isfinite(window.latents).all()))

    def _require_finite(self, latents: Tensor) -> None:
        """Refuse a chunk that is not finite, with the first micro step that was not."""
        flags, self._finite = self._finite, []
        if bool(torch.isfinite(latents).all()):
            return
        steps = self._config.partition.micro_steps
        before = [place for place, (_, finite) in enumerate(flags) if not bool(finite)]
        # A flag is taken before its step, so the step that went wrong is the one before it.
        place = max(before[0] - 1, 0) if before else len(flags) - 1
        growing = "" if place >= len(flags) - steps else " of the start"
        raise NumericsError(
            f"latents of chunk {self._chunk} are not finite from micro step "
            f"{flags[place][0]}{growing} on, seed {self._seed}"
        )

    def _cut(self) -> Cut:
        state = self._buffer.state()
        latents = state.pop("latents")
        assert isinstance(latents, Tensor)
        tensors = {"buffer.latents": latents}
        memories: dict[str, dict[str, Any]] = {}
        for owner_name, owner in self._remembering().items():
            if self._full_states and isinstance(owner, KeepsContext):
                memory = owner.state(full=True)
            else:
                memory = owner.state()
            memories[owner_name] = {k: v for k, v in memory.items() if not isinstance(v, Tensor)}
            for name, value in memory.items():
                if isinstance(value, Tensor):
                    tensors[f"{owner_name}.{name}"] = value
        record = {"buffer": state, "memories": memories, "timeline": self._timeline.cut()}
        numbers = None
        if self._entry is not None:
            waiting, numbers = self._entry.video.state()
            tensors |= {f"input.{name}": tensor for name, tensor in waiting.items()}
        return Cut(tensors, {**record, "input": numbers})


class Decoder:
    """Clean latents in, uint8 frames out, one chunk a call.

    Args:
        model: gives the autoencoder.
        seed: named when the video is not finite.
        state: of the autoencoder, None at the start of a stream.
        follows_video: the stream does not begin with a first frame of its own.
    """

    def __init__(
        self,
        model: StreamModel,
        *,
        seed: int,
        state: dict[str, Tensor] | None = None,
        follows_video: bool = False,
    ) -> None:
        self._model, self._follows_video = model, follows_video
        self._autoencoder = model.autoencoder
        self._fps = model.config.fps
        self._dtype = next(model.autoencoder.parameters()).dtype
        self._seed = seed
        self._state = state

    def next(self, chunk: LatentChunk) -> tuple[VideoChunk, Cut]:
        """Return the video of a chunk, and the cut after it.

        Raises:
            NumericsError: the video is not finite.
        """
        began = time.perf_counter()
        latents = chunk.latents.to(self._dtype)
        video, self._state = self._autoencoder.decode_step(latents, self._state)
        if not bool(torch.isfinite(video).all()):
            last = "its latents are finite up to the last micro step"
            raise NumericsError(
                f"decoded video of chunk {chunk.number} is not finite, {last}, seed {self._seed}"
            )
        frames = (video[0].float().clamp(0, 1) * 255).round().to(torch.uint8)
        frames = frames.permute(1, 2, 3, 0)[: chunk.num_frames].contiguous().cpu()
        first_frame = first_frame_of(self._model, chunk.number, self._follows_video)
        decode_ms = 1000 * (time.perf_counter() - began)
        state = {f"autoencoder.{name}": tensor for name, tensor in self._state.items()}
        video_chunk = VideoChunk(
            number=chunk.number,
            frames=frames,
            first_frame=first_frame,
            seconds=first_frame / self._fps,
            prompt=chunk.prompt,
            receipts=chunk.receipts,
            statistics={"denoise_ms": chunk.denoise_ms, "decode_ms": decode_ms},
        )
        return video_chunk, Cut({**chunk.cut.tensors, **state}, chunk.cut.record)


def new_buffer(model: StreamModel, *, batch: int) -> StreamBuffer:
    """Return an empty buffer for a number of streams of a model."""
    channels, height, width = model.config.frame_shape
    return StreamBuffer(model.config.partition, batch, channels, height, width, model.device)


def _chunks_touched(
    end: int, partition: Partition, present: int, micro_step: int, *, clip: bool, entry: int
) -> tuple[int, list[int]]:
    """Return what a micro step makes, by the first latent frames of the chunks present.

    Args:
        end: latent frame behind the window.
        partition: of the buffer.
        present: number of chunks.
        micro_step: within the cycle, or within the clip.
        clip: all chunks are at one level, and each is taken at its own level: later steps of the
            clip do not make it.
        entry: level from which on the steps make a chunk; 0 without a video to be edited.

    Returns:
        The first frame that no step has touched, and the chunks that this step makes.
    """
    steps, size = partition.micro_steps, partition.chunk_size
    chunks = [end - size * (present - chunk) for chunk in range(present)]
    own = [steps * (present - 1 - chunk) for chunk in range(present)]
    levels = [micro_step] * present if clip else [level + micro_step for level in own]
    made = [
        frame
        for frame, level, last in zip(chunks, levels, own, strict=True)
        if frame >= 0 and level >= entry and (not clip or level < last)
    ]
    fresh = (frame for frame, level in zip(chunks, levels, strict=True) if level <= entry)
    return chunks[-1] if clip else next(fresh, end), made
