"""The three stages of a stream: prompts to keys, noise to clean latents, latents to video frames.

Each stage is called for one piece of work at a time and knows no threads: `stream.py` runs them one
after another, or each in its own thread. Every piece carries its cut: what is needed to go on from
just after it, so that the state of a stream is that of the chunk last delivered, however far ahead
the stages are.

Paper: section 8 and Fig. 11 (denoising, decoding and the prompt callback run side by side).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import NumericsError
from streamdit_model.flow_matching import keyed_noise
from streamdit_model.prompt_timeline import FramePrompts, PromptTimeline, Receipt
from streamdit_model.sampling import Velocity, Window, cycle, warm_up
from streamdit_model.text import PromptCache
from streamdit_model.transformer import FrameText, TextKeys

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = [
    "Cut",
    "Decoder",
    "Denoiser",
    "LatentChunk",
    "PromptKeys",
    "Submit",
    "TextWork",
    "VideoChunk",
    "chunks_of",
    "encode_now",
    "first_frame_of",
    "new_buffer",
]

TextWork = Callable[[], TextKeys]
Submit = Callable[[TextWork], "Future[TextKeys]"]
KEYS_KEPT = 8  # prompts whose keys stay beside those in use


@dataclass(frozen=True)
class Cut:
    """What is needed to go on after a chunk: tensors by name, and JSON-able numbers."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class LatentChunk:
    """One emission of the denoiser: latents (1, channels, c, height, width) and all about them."""

    number: int
    latents: Tensor
    prompt: str | None
    receipts: list[Receipt]
    denoise_ms: float
    cut: Cut


@dataclass(frozen=True)
class VideoChunk:
    """What a stream yields.

    Args:
        number: of the chunk, from 0.
        frames: uint8 (frames, height, width, 3) on the CPU; the last chunk may be shorter.
        first_frame: number of its first video frame, from 0.
        seconds: video time of that frame.
        prompt: the prompt that had the most weight when the chunk was finished; None for none.
        receipts: what became of prompt events with this chunk.
        statistics: `denoise_ms` and `decode_ms`, the wall time of the two stages.
    """

    number: int
    frames: Tensor
    first_frame: int
    seconds: float
    prompt: str | None
    receipts: list[Receipt]
    statistics: dict[str, float]

    def split(self, num_frames: int, *, fps: float) -> tuple[VideoChunk, VideoChunk | None]:
        """Return the first frames, and a chunk of those left over or None."""
        if num_frames >= len(self.frames):
            return self, None
        first_frame = self.first_frame + num_frames
        rest = replace(
            self,
            frames=self.frames[num_frames:],
            first_frame=first_frame,
            seconds=first_frame / fps,
            receipts=[],
        )
        return replace(self, frames=self.frames[:num_frames]), rest


class PromptKeys:
    """The cross-attention keys of prompts: each is encoded once, the ones used last are kept.

    Args:
        model: encodes the text.
        submit: runs the encoding, at once or in another thread, one at a time.
        size: number of prompts whose keys are kept.
    """

    def __init__(self, model: StreamModel, submit: Submit, size: int = KEYS_KEPT) -> None:
        self._model = model
        self._conditions = PromptCache(model.text_encoder)
        self._submit = submit
        self._size = size
        self._lock = threading.Lock()
        self._keys: OrderedDict[str | None, Future[TextKeys]] = OrderedDict()
        self._joined: tuple[tuple[str | None, ...], TextKeys] | None = None

    def request(self, prompt: str | None) -> Future[TextKeys]:
        """Return the keys of a prompt, which may still be in the making."""
        with self._lock:
            keys = self._keys.pop(prompt, None)
            if keys is None:
                keys = self._submit(lambda: self._encode(prompt))
            self._keys[prompt] = keys
            while len(self._keys) > self._size:
                self._keys.popitem(last=False)
            return keys

    def is_ready(self, prompt: str | None) -> bool:
        """Say whether the keys of a prompt are there, after asking for them if need be."""
        return self.request(prompt).done()

    def wait(self, prompt: str | None) -> TextKeys:
        """Return the keys of a prompt as soon as they are there."""
        return self.request(prompt).result()

    def join(self, prompts: tuple[str | None, ...]) -> TextKeys:
        """Return the keys of several prompts, in that order."""
        if self._joined is None or self._joined[0] != prompts:
            self._joined = prompts, TextKeys.stack([self.wait(prompt) for prompt in prompts])
        return self._joined[1]

    @torch.inference_mode()
    def _encode(self, prompt: str | None) -> TextKeys:
        return self._model.transformer.text_keys(self._conditions(prompt or ""))


@runtime_checkable
class Remembers(Protocol):
    """A velocity with a context, or a stepper with a history."""

    def state(self) -> Mapping[str, Any]:
        """Return what is needed to go on: tensors, and what JSON can hold."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class Denoiser:
    """Prompts and keyed noise in, clean latents out, one chunk a call.

    Args:
        model: gives velocity and configuration.
        timeline: says which prompt a frame sees.
        keys: of its prompts.
        velocity: of the model, with its guidance.
        seed: of the noise.
        start: "ramp" or "clip".
        prompts_ahead: scripted prompts asked for before their time.
        check: called before every micro step; what it raises ends the work.
    """

    def __init__(
        self,
        model: StreamModel,
        timeline: PromptTimeline,
        keys: PromptKeys,
        *,
        velocity: Velocity,
        seed: int,
        start: str,
        prompts_ahead: int,
        check: Callable[[], None],
    ) -> None:
        self._config = model.config
        self._timeline, self._keys, self._velocity = timeline, keys, velocity
        self._seed, self._start, self._check = seed, start, check
        self._prompts_ahead = prompts_ahead
        self._device = model.device
        self._stepper = model.new_stepper()
        self._buffer = new_buffer(model, batch=1)
        self._noise = keyed_noise([seed], *model.config.frame_shape, device=model.device)
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
        """Go on after the chunks before `chunk`, with the states at that place."""
        self._chunk = chunk
        self._buffer.load(buffer)
        for name, owner in self._remembering().items():
            owner.load(memories[name])

    def _remembering(self) -> dict[str, Remembers]:
        """Return what has to go into a state beside the buffer, by name."""
        owners = {"context": self._velocity, "history": self._stepper}
        return {name: owner for name, owner in owners.items() if isinstance(owner, Remembers)}

    def next(self) -> LatentChunk:
        """Return the next chunk.

        Raises:
            NumericsError: its latents are not finite.
        """
        began = time.perf_counter()
        steps = (self._noise, self._frame_text)
        how: dict[str, Any] = {"stepper": self._stepper, "on_step": self._on_step}
        if self._chunk < 0:
            warm_up(self._buffer, self._velocity, *steps, start=self._start, **how)
            self._chunk = 0
        number = self._chunk
        latents = cycle(self._buffer, self._velocity, *steps, **how)
        self._require_finite(latents)
        prompt, receipts = self._timeline.emit(number, number * latents.shape[2])
        self._chunk += 1
        return LatentChunk(
            number=number,
            latents=latents,
            prompt=prompt,
            receipts=receipts,
            denoise_ms=1000 * (time.perf_counter() - began),
            cut=self._cut(),
        )

    def _frame_text(self, first_frame: int, num_frames: int, micro_step: int) -> FrameText:
        """Apply the prompts that are due before a micro step, and return what its frames see."""
        step = self._warm_up_step if self._chunk < 0 else micro_step
        end, size = first_frame + num_frames, self._config.partition.chunk_size
        clip = self._chunk < 0 and self._start == "clip"
        num_chunks = self._config.partition.num_chunks
        present = num_chunks if clip else self._buffer.num_chunks_present
        chunks = [end - size * (present - chunk) for chunk in range(present)]
        # A chunk of a clip is taken at its own level: later steps of the clip do not make it.
        steps = self._config.partition.micro_steps
        made = [f for i, f in enumerate(chunks) if not clip or step < (num_chunks - 1 - i) * steps]
        self._timeline.advance(
            (self._chunk, step),
            chunks[-1] if clip or micro_step == 0 else end,
            is_ready=self._keys.is_ready,
            wait=self._keys.wait,
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
            memory = owner.state()
            memories[owner_name] = {k: v for k, v in memory.items() if not isinstance(v, Tensor)}
            for name, value in memory.items():
                if isinstance(value, Tensor):
                    tensors[f"{owner_name}.{name}"] = value
        record = {"buffer": state, "memories": memories, "timeline": self._timeline.cut()}
        return Cut(tensors, record)


class Decoder:
    """Clean latents in, uint8 frames out, one chunk a call.

    Args:
        model: gives the autoencoder.
        seed: named when the video is not finite.
        state: of the autoencoder, None at the start of a stream.
    """

    def __init__(
        self, model: StreamModel, *, seed: int, state: dict[str, Tensor] | None = None
    ) -> None:
        self._model = model
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
        frames = frames.permute(1, 2, 3, 0).contiguous().cpu()
        first_frame = first_frame_of(self._model, chunk.number)
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


def first_frame_of(model: StreamModel, chunk: int) -> int:
    """Return the number of the first video frame of a chunk, as the autoencoder counts them."""
    size = model.config.partition.chunk_size
    return model.autoencoder.video_shape(chunk * size, 1, 1)[0]


def chunks_of(model: StreamModel, num_frames: int) -> int:
    """Return how many chunks hold so many video frames; the inverse of `first_frame_of`."""
    first, second = first_frame_of(model, 1), first_frame_of(model, 2)
    later = second - first  # every chunk but the first, which may be shorter
    return -(-(num_frames + later - first) // later)


def encode_now(work: TextWork) -> Future[TextKeys]:
    """Encode a prompt in the caller's thread."""
    keys: Future[TextKeys] = Future()
    keys.set_result(work())
    return keys


def new_buffer(model: StreamModel, *, batch: int) -> StreamBuffer:
    """Return an empty buffer for a number of streams of a model."""
    channels, height, width = model.config.frame_shape
    return StreamBuffer(model.config.partition, batch, channels, height, width, model.device)
