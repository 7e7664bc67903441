"""What is to be made: the wishes of a command line, and a model's configuration joined to them.

What can be wrong with wishes alone is found before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from streamdit_cli.material import Material
    from streamdit_cli.script import Script
    from streamdit_cli.video_options import Size
    from streamdit_model.prompt_timeline import PromptEvent
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import ModelConfig

__all__ = ["Plan", "Wishes", "check_wishes", "make_plan", "timeline_words"]

DEFAULT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line asks for, checked as far as it can be without the model.

    `script` says when each of the prompts begins; without it they share the length equally.
    `transition` and `transition_seconds` are of prompts that say none of their own. `is_live`:
    prompts come while the video is made, so that it has no end where no length is given.
    """

    prompts: list[str]
    negative_prompt: str | None
    seconds: float | None
    num_frames: int | None
    size: Size | None
    seed: int
    start: Literal["ramp", "clip"] | None
    guidance_scale: float | None
    script: Script | None = None
    transition: str | None = None
    transition_seconds: float | None = None
    is_live: bool = False
    events: tuple[tuple[str, float], ...] | None = None  # prompts with their seconds, as they are
    first_frame: int = 0  # of the stream in this video; negative behind frames that are not its own
    full_states: bool = False  # states hold the whole context of a rolling model
    material: Material | None = None

    @property
    def default_seconds(self) -> float:
        """Length of the video where none was given."""
        if self.script is not None and self.script.seconds is not None:
            return self.script.seconds
        return float("inf") if self.is_live else DEFAULT_SECONDS

    def timeline(self, seconds: float) -> list[PromptEvent]:
        """Return the prompts of a video of this length, each with its time.

        Raises:
            UsageError: several prompts without times in a stream without end.
        """
        from streamdit_cli.script import Script, Stage

        if not self.prompts:
            return []
        script = self.script or Script(tuple(Stage(prompt=prompt) for prompt in self.prompts))
        return script.events(
            seconds, transition=self.transition, transition_seconds=self.transition_seconds
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made: wishes and the configuration of a model together.

    `num_frames` None is without end.
    """

    timeline: list[PromptEvent]
    num_frames: int | None
    wishes: Wishes
    config: ModelConfig | WanModelConfig

    @property
    def events(self) -> list[tuple[str, float]]:
        """The prompts, each with the second at which it begins."""
        return [(event.prompt or "", event.seconds) for event in self.timeline]

    @property
    def seconds(self) -> float | None:
        """Length of the video; None without end."""
        return None if self.num_frames is None else self.num_frames / self.config.fps

    @property
    def stream_frames(self) -> int | None:
        """Length of a stream that begins with this video or behind frames that it keeps."""
        return None if self.num_frames is None else self.num_frames + self.wishes.first_frame

    @property
    def is_endless(self) -> bool:
        """Whether nothing but its reader ends the stream."""
        material = self.wishes.material
        return self.num_frames is None and not (material is not None and material.ends_stream)

    @property
    def texts(self) -> list[str]:
        """Every text that the model will read, the null text of guidance included."""
        texts = [prompt for prompt, _ in self.events] or [""]
        scale = self.wishes.guidance_scale
        if (self.config.guidance_scale if scale is None else scale) != 1:
            texts.append(self.wishes.negative_prompt or "")
        return list(dict.fromkeys(texts))

    @property
    def line(self) -> str:
        """The plan in one line for people."""
        config = self.config
        is_open = "without end" if self.is_endless else "to the end of the input"
        length = is_open if self.seconds is None else f"{self.seconds:.1f} s"
        size = f"{config.width}x{config.height} at {config.fps:g} FPS"
        prompts = f", {len(self.events)} prompts" if len(self.events) > 1 else ""
        material = self.wishes.material
        source = "" if material is None else f", from {material.line}"
        return f"{config.name}, {size}, {length}{prompts}{source}, seed {self.wishes.seed}"

    @property
    def metadata(self) -> dict[str, str]:
        """What the video says about what was asked for."""
        from streamdit_model.autoencoder import TIME_FACTOR
        from streamdit_model.model_config import ModelConfig

        wishes = self.wishes
        words = {"prompt": " | ".join(prompt for prompt, _ in self.events)}
        if len(self.events) > 1:
            words["prompts"] = json.dumps(self.events)
        if len(self.events) > 1 or any(event.seconds or event.position for event in self.timeline):
            words["timeline"] = timeline_words(self.timeline)
        if wishes.negative_prompt is not None:
            words["negative_prompt"] = wishes.negative_prompt
        if wishes.guidance_scale is not None:
            words["guidance_scale"] = f"{wishes.guidance_scale:g}"
        if isinstance(self.config, ModelConfig):  # the first chunk of the others is shorter
            frames = self.config.partition.chunk_size * TIME_FACTOR
            words["chunk_frames"] = str(frames)
        if wishes.material is not None:
            words |= wishes.material.metadata
        if wishes.first_frame:
            words["first_frame"] = str(wishes.first_frame)
        return {**words, "seed": str(wishes.seed), "model": self.config.name}


def timeline_words(events: Sequence[PromptEvent]) -> str:
    """Return what a video says about its prompts over time: a list of the stages of a script."""
    from streamdit_cli.script import event_record

    return json.dumps([event_record(event) for event in events])


def check_wishes(wishes: Wishes) -> None:
    """Refuse wishes that no model can fulfil.

    Raises:
        UsageError: two lengths, several prompts without end, or an empty negative prompt.
    """
    from streamdit_cli.errors import UsageError
    from streamdit_cli.prompts import check_prompt

    if wishes.seconds is not None and wishes.num_frames is not None:
        raise UsageError("--seconds and --num-frames exclude each other")
    is_known_later = wishes.material is not None and wishes.material.ends_stream
    length = wishes.seconds or wishes.default_seconds
    timeline = wishes.timeline(1.0 if is_known_later or wishes.num_frames is not None else length)
    if wishes.transition is not None and len(timeline) < 2 and not wishes.is_live:
        raise UsageError("--transition has no effect on one prompt", "give several -p, or a script")
    blends = wishes.transition == "blend" or any(e.transition == "blend" for e in timeline)
    if wishes.transition_seconds is not None and not blends:
        raise UsageError("--transition-seconds has no effect without a blend", "--transition blend")
    if wishes.negative_prompt is not None:
        check_prompt(wishes.negative_prompt, UsageError, "the negative prompt")


def make_plan(wishes: Wishes, config: ModelConfig | WanModelConfig) -> Plan:
    """Join wishes and the configuration of a model.

    Raises:
        UsageError: a size the model has not, or guidance that it cannot have.
    """
    from streamdit_cli.errors import UsageError

    if wishes.size not in (None, (config.width, config.height)):
        asked = "x".join(map(str, wishes.size))
        has = f"{config.width}x{config.height}"
        raise UsageError(f"{config.name} has not the size {asked}; allowed: {has}")
    scale = config.guidance_scale if wishes.guidance_scale is None else wishes.guidance_scale
    asks = "--negative-prompt" if wishes.negative_prompt is not None else "--guidance-scale"
    if config.distilled and (scale != 1 or wishes.negative_prompt is not None):
        message = f"{asks} has no effect on {config.name}: guidance is baked in to it"
        raise UsageError(message, f"leave out {asks}")
    if wishes.negative_prompt is not None and scale == 1:
        raise UsageError("--negative-prompt has no effect at guidance scale 1")
    if wishes.full_states and getattr(config, "context", None) is None:
        message = f"--full-state has no effect on {config.name}: every state of it is exact"
        raise UsageError(message, "leave out --full-state")
    num_frames = _num_frames(wishes, config)
    length = float("inf") if num_frames is None else num_frames / config.fps
    if wishes.events is None:
        timeline = wishes.timeline(length)
    else:
        from streamdit_model.prompt_timeline import PromptEvent

        timeline = [PromptEvent(prompt, seconds) for prompt, seconds in wishes.events]
    if wishes.material is not None and (kept := wishes.material.kept_frames):
        wishes = replace(wishes, first_frame=-kept)
        num_frames = None if num_frames is None else num_frames + kept
    return Plan(timeline=timeline, num_frames=num_frames, wishes=wishes, config=config)


def _num_frames(wishes: Wishes, config: ModelConfig | WanModelConfig) -> int | None:
    """Return the frames to be made; None without end, or to that of an input of unknown length."""
    if wishes.material is not None and wishes.material.ends_stream:
        return wishes.material.num_frames
    if wishes.num_frames is not None:
        return wishes.num_frames
    seconds = wishes.default_seconds if wishes.seconds is None else wishes.seconds
    return None if seconds == float("inf") else max(1, round(seconds * config.fps))
