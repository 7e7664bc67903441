"""A stream: prompts, sampler and decoder joined to an iterator of video chunks.

Denoising, decoding and prompt encoding run in threads of their own, or one after another in the
reader's (`synchronous`), with the same frames. Only so many chunks are made ahead of the reader: a
slow reader slows the model down, and memory does not grow. What was made before an error is
delivered before the error.

A video may be edited as it arrives (`source`), or be what the stream goes on from (`first_video`).

Paper: section 8 and Fig. 11. Choice: the end of a stream, where the paper is silent: the last
chunk is cut to the frame, so frames [0, t) never depend on the length asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.flow_matching import keyed_noise
from streamdit_model.guidance import guided_velocity
from streamdit_model.known_frames import NoisePath, StartVideo, VideoEntry, start_frames
from streamdit_model.prompt_keys import PromptKeys
from streamdit_model.prompt_timeline import PromptEvent, PromptTimeline
from streamdit_model.stream_stages import Cut, Decoder, Denoiser
from streamdit_model.stream_state import (
    StreamState,
    model_fingerprint,
    require_same_origin,
    save_state,
    stream_plan,
)
from streamdit_model.stream_threads import InlineRun, ThreadedRun
from streamdit_model.strength import entry_level, strength_of
from streamdit_model.video_chunk import VideoChunk, chunk_times, chunks_of
from streamdit_model.video_input import VideoInput

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["PromptEvent", "Stream", "VideoChunk"]

VIDEO_START = "video"  # beside ramp and clip: the start of a stream that follows a first video


class Stream:
    """An endless or finite video, made chunk by chunk while it is read.

    Iterate over it, in one thread. It is a context manager; `close` ends it early.

    Args:
        model: from `load`.
        prompts: the words, or events in time, or None for no prompt.
        seed: of all noise, 0 .. 2**64 - 1.
        num_frames: video frames to make, at least 1; None is endless, or until the source ends.
        source: a video to be edited: uint8 (frames, height, width, 3) tensors of any lengths, of
            the model's size and fps, possibly for ever. It is read in another thread and no further
            than the buffer needs; its frame k becomes frame k of the stream, which ends with it.
        strength: noise level in (0, 1] at which the source is left to the model; the nearest level
            of the model is taken. 1 is a stream without source, None is the model's own.
        first_video: an image or a video that the stream goes on from, uint8 (frames, height, width,
            3). The stream's frame 0 is the one after it; see `known_frames.StartVideo`.
        start: "ramp" or "clip"; None is the model's own. Not with a first video.
        guidance_scale: 1 is no guidance; None is the model's own.
        negative_prompt: the null text of guidance; None is the empty prompt.
        synchronous: do everything in the reader's thread.
        chunks_ahead: chunks made, or in the making, that the reader has not taken yet, at least 1.
        full_states: `state` holds the whole context of a rolling model, gigabytes at full size and
            copied for every chunk, so that `resume` is exact.

    Raises:
        ConfigError: a value out of range, guidance for a distilled model, a prompt that is not
            Unicode text, or a strength below the lowest level of the model.

    Attributes:
        plan: what decides about the bits beside seed, prompts and model; fixed for the stream.
    """

    def __init__(
        self,
        model: StreamModel,
        prompts: str | Sequence[PromptEvent] | None = None,
        *,
        seed: int,
        num_frames: int | None = None,
        source: Iterable[Tensor] | None = None,
        strength: float | None = None,
        first_video: Tensor | None = None,
        start: str | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        synchronous: bool = False,
        chunks_ahead: int = 2,
        full_states: bool = False,
    ) -> None:
        if prompts is None or isinstance(prompts, str):
            prompts = () if prompts is None else (PromptEvent(prompts),)
        for event in prompts:
            model.text_encoder.prompt_bytes(event.prompt or "")
        _refuse_videos_without_effect(source, strength, first_video, start)
        if start is None:
            start = model.config.start if first_video is None else VIDEO_START
        elif start not in ("ramp", "clip"):
            raise ConfigError(f"start {start!r} is unknown; ramp and clip are known")
        if source is not None and strength is None:
            strength = model.config.strength
        self._settings: dict[str, Any] = {
            "seed": seed,
            "num_frames": num_frames,
            "start": start,
            "strength": strength,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
        }
        self._full_states = full_states
        self._opening = None if first_video is None else start_frames(model, first_video)
        timeline = PromptTimeline(prompts, **chunk_times(model, self._follows_video))
        self._open(model, timeline, None, source, synchronous, chunks_ahead)

    @classmethod
    def resume(
        cls,
        model: StreamModel,
        state: StreamState,
        *,
        num_frames: int | Literal["same"] | None = "same",
        source: Iterable[Tensor] | None = None,
        synchronous: bool = False,
        chunks_ahead: int = 2,
        exact: bool = True,
        full_states: bool = False,
    ) -> Stream:
        """Return the stream that goes on from a state, with the same frames as if never stopped.

        Args:
            model: the same as before.
            state: of `state` or `load_state`.
            num_frames: length of the whole stream from its start; None is endless.
            source: the video that is edited, from its frame `stream_state.frames_read(state)` on.
            synchronous: as in the class.
            chunks_ahead, full_states: as in the class.
            exact: refuse another plan; False goes on with a logged warning.

        Raises:
            WeightsError: the state is of another model.
            ConfigError: the plan is another one, so that frames would not be the same; or there is
                a source where the stream had none, or none where it had one.
        """
        record = state[1]
        require_same_origin(model, record, exact=exact)
        settings = dict(record["settings"])
        if num_frames != "same":
            settings["num_frames"] = num_frames
        if (settings["strength"] is None) != (source is None):
            had = "had none" if source is not None else "was made from one"
            raise ConfigError(f"the source does not fit the state: its stream {had}")
        stream = cls.__new__(cls)
        stream._settings = settings
        stream._opening = state[0].get("opening")
        stream._full_states = full_states
        times = chunk_times(model, stream._follows_video)
        timeline = PromptTimeline.from_record(record["timeline"], **times)
        stream._open(model, timeline, state, source, synchronous, chunks_ahead)
        return stream

    def _open(
        self,
        model: StreamModel,
        timeline: PromptTimeline,
        state: StreamState | None,
        source: Iterable[Tensor] | None,
        synchronous: bool,
        chunks_ahead: int,
    ) -> None:
        """Join the stages, from the start or from the cut of a state."""
        seed, start = self._settings["seed"], self._settings["start"]
        num_frames = self._settings["num_frames"]
        if num_frames is not None and num_frames < 1:
            raise ConfigError(f"number of frames {num_frames} is not at least 1")
        if chunks_ahead < 1:
            raise ConfigError(f"chunks ahead {chunks_ahead} is not at least 1")
        self.plan = stream_plan(model, start=start, stepper=model.config.stepper)
        self._model, self._timeline = model, timeline
        self._cut: Cut | None = None
        self._chunks = self._frames = 0  # taken from the stages, delivered
        self._rest: VideoChunk | None = None  # frames of the last chunk beyond the end
        self._ended = False
        velocity = guided_velocity(
            model,
            guidance_scale=self._settings["guidance_scale"],
            negative_prompt=self._settings["negative_prompt"],
        )
        run = InlineRun() if synchronous else ThreadedRun(model.device, chunks_ahead)
        self._keys = PromptKeys(model, run.submit)
        noise = keyed_noise([seed], *model.config.frame_shape, device=model.device)
        path = NoisePath(model, noise)
        self._entry = None
        if source is not None:
            level = entry_level(model.config.partition, self._settings["strength"])
            self._entry = VideoEntry(VideoInput(model, run.feed(source)), path, level)
        opening = None if self._opening is None else StartVideo(model, self._opening, path)
        denoiser = Denoiser(
            model,
            timeline,
            self._keys,
            velocity=velocity,
            noise=noise,
            seed=seed,
            start=opening or start,
            entry=self._entry,
            prompts_ahead=run.prompts_ahead,
            check=run.check,
            full_states=self._full_states,
        )
        memory = None if opening is None else opening.decoder_state
        if state is not None and state[1]["chunks"]:
            memory = self._restore(denoiser, *state)
        decoder = Decoder(model, seed=seed, state=memory, follows_video=self._follows_video)
        run.begin(denoiser, decoder, self._chunks_left())
        self._run = run
        self._stop = weakref.finalize(self, run.stop)

    @property
    def strength_used(self) -> float | None:
        """Strength of the level of entry; None without a source."""
        if self._entry is None:
            return None
        return strength_of(self._model.config.partition, self._entry.level)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> VideoChunk:
        """Return the next chunk.

        Raises:
            NumericsError: latents or video are not finite; chunks before it were delivered.
        """
        limit = self._settings["num_frames"]
        if self._ended or (limit is not None and self._frames >= limit):
            self.close()
            raise StopIteration
        try:
            chunk = self._rest or self._take()
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        keep = len(chunk.frames) if limit is None else limit - self._frames
        chunk, self._rest = chunk.split(keep, fps=self._model.config.fps)
        self._frames += len(chunk.frames)
        return chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream and its threads; state and log stay available."""
        self._ended = True
        self._stop()

    def prompt(self, event: PromptEvent | str | None) -> None:
        """Change the prompt while the stream runs, as soon as the new one is encoded.

        May be called from any thread. What became of it stands in the receipts of a later chunk.

        Raises:
            ConfigError: the prompt is empty or not Unicode text.
        """
        if not isinstance(event, PromptEvent):
            event = PromptEvent(event)
        self._model.text_encoder.prompt_bytes(event.prompt or "")
        if not self._ended:
            self._keys.request(event.prompt)
        self._timeline.add(replace(event, position=None))

    def log(self) -> list[PromptEvent]:
        """Return the prompt events applied so far, with positions; as prompts they replay."""
        return self._timeline.log()

    def state(self) -> StreamState:
        """Return all that is needed to go on after the chunk delivered last.

        Returns:
            Tensors on the CPU by name, and a JSON-able record; see `resume` and `save_state`. Its
            `about` is free for whatever the caller wants to find there again.
        """
        cut = self._cut
        tensors = {} if cut is None else dict(cut.tensors)
        if cut is None and self._opening is not None:
            tensors["opening"] = self._opening
        video = None if self._entry is None else {"frames_read": 0}  # at the start
        record = {
            "settings": dict(self._settings),
            "plan": dict(self.plan),
            "model": self._fingerprint,
            "about": {},
            "chunks": self._chunks,
            "frames": self._frames,
            "buffer": None if cut is None else cut.record["buffer"],
            "memories": None if cut is None else cut.record["memories"],
            "input": video if cut is None else cut.record["input"],
            "timeline": self._timeline.record(None if cut is None else cut.record["timeline"]),
            "rest_prompt": None,
        }
        if self._rest is not None:
            tensors["rest"] = self._rest.frames
            record["rest_prompt"] = self._rest.prompt
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, record

    def save_state(self, path: Path | str) -> None:
        """Write `state` to one file, whole or not at all.

        Raises:
            OSError: the disk is full or refuses.
        """
        save_state(path, self.state())

    @cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self._model)

    def _take(self) -> VideoChunk | None:
        """Return the next whole chunk of the stages and keep its cut."""
        made = self._run.next()
        if made is None:
            return None
        chunk, self._cut = made
        self._chunks = chunk.number + 1
        return chunk

    def _chunks_left(self) -> int | None:
        limit = self._settings["num_frames"]
        if limit is None:
            return None
        return max(0, chunks_of(self._model, limit, self._follows_video) - self._chunks)

    @property
    def _follows_video(self) -> bool:
        return self._settings["start"] == VIDEO_START

    def _restore(
        self, denoiser: Denoiser, tensors: dict[str, Tensor], record: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Put a state into the denoiser; return the state of the autoencoder."""
        device = self._model.device
        parts: dict[str, dict[str, Tensor]] = {"buffer": {}, "autoencoder": {}, "input": {}}
        parts |= {name: {} for name in record["memories"]}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            if key:
                parts[part][key] = tensor.to(device)
        self._chunks, self._frames = record["chunks"], record["frames"]
        timeline = record["timeline"]["cut"]
        kept = {name: tensor for name, tensor in tensors.items() if name != "rest"}
        rest = {name: record[name] for name in ("buffer", "memories", "input")}
        self._cut = Cut(kept, {**rest, "timeline": timeline})
        memories = {name: {**parts[name], **memory} for name, memory in record["memories"].items()}
        if self._entry is not None:
            self._entry.video.load(parts["input"], record["input"])
        denoiser.resume(self._chunks, {**parts["buffer"], **record["buffer"]}, memories)
        if "rest" in tensors:
            self._rest = VideoChunk(
                number=self._chunks - 1,
                frames=tensors["rest"],
                first_frame=self._frames,
                seconds=self._frames / self._model.config.fps,
                prompt=record["rest_prompt"],
                receipts=[],
                statistics={"denoise_ms": 0.0, "decode_ms": 0.0},
            )
        return parts["autoencoder"]


def _refuse_videos_without_effect(
    source: object | None, strength: float | None, first_video: object | None, start: str | None
) -> None:
    """Refuse what would be ignored.

    Raises:
        ConfigError: a strength without a source, or two ways to begin.
    """
    if strength is not None and source is None:
        raise ConfigError(f"strength {strength:g} has no effect without a source video")
    if first_video is not None and source is not None:
        raise ConfigError("a source and a first video exclude each other: both fill the buffer")
    if first_video is not None and start is not None:
        raise ConfigError(f"start {start!r} has no effect with a first video, which is the start")
