"""What makes a video, as far as it was given, and the way from there to the video.

The commands that make one video read their options into `Settings`, who speaks meanwhile and where
the video goes; everything after that is the same for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from streamdit_cli.errors import UsageError

if TYPE_CHECKING:
    from streamdit_cli.material import Material
    from streamdit_cli.plan import Plan, Wishes
    from streamdit_cli.producing import Target
    from streamdit_cli.script import Script
    from streamdit_cli.speaking import Speaking
    from streamdit_cli.video_options import Size
    from streamdit_model.stream import Stream
    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.offload import Offload
    from streamdit_model.weights import Model

    Open = Callable[[Plan, Model | WanModel], Stream]

__all__ = ["Settings", "make_video"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What makes a video, as far as it was given; names as those of the options."""

    prompts: list[str] | None = None  # None where none were given; empty is no prompt
    script: Script | None = None
    negative_prompt: str | None = None
    seconds: float | None = None
    num_frames: int | None = None
    size: Size | None = None
    seed: int | None = None
    start: Literal["ramp", "clip"] | None = None
    material: Material | None = None
    guidance_scale: float | None = None
    model: str | None = None
    decoder: str | None = None
    loras: tuple[str, ...] = ()
    random_weights: bool = False
    vram: float | None = None
    offload: Offload | None = None
    offline: bool = False
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None

    @property
    def model_words(self) -> dict[str, Any]:
        """How the model is named, for whoever goes on with the video."""
        return {
            "name": self.model,
            "decoder": self.decoder,
            "random_weights": self.random_weights,
            "loras": list(self.loras),
        }


def make_video(
    settings: Settings,
    speaking: Speaking,
    target: Target,
    *,
    said: Mapping[str, str] | None = None,
    is_dry: bool = False,
    open_stream: Open | None = None,
) -> None:
    """Make the video of settings, or say what it would be.

    Args:
        settings: with what comes from a video that is repeated.
        speaking: who speaks meanwhile.
        target: where it goes; an empty name is made from the prompt.
        said: what the repeated video says about itself.
        is_dry: only say it.
        open_stream: opens the stream of a plan; None is as in `generate`.

    Raises:
        TerminalError, StreamDiTError: see `producing.produce`.
    """
    from streamdit_cli.model_source import find_source
    from streamdit_cli.output import free_name
    from streamdit_cli.plan import check_wishes
    from streamdit_cli.producing import plan_only, produce
    from streamdit_cli.signals import Signals

    _check_target(target)
    wishes, words = _wishes(settings, speaking), settings.model_words
    loading = {name: getattr(settings, name) for name in ("device", "dtype", "threads")}
    if (resumption := target.resumption) is not None:
        wishes, words = _resumed(settings, speaking, target), resumption.model_words(words)
        loading = resumption.loading(loading)
        keeping, codec = resumption.keeping(target.keeping, target.codec)
        target = replace(target, keeping=keeping, codec=codec)
        open_stream = resumption.open_stream
    wishes = replace(wishes, full_states=target.keeping.full_state)
    check_wishes(wishes)
    if not target.name:
        target = replace(target, name=free_name(wishes.prompts[0] if wishes.prompts else ""))
    keeping = replace(target.keeping, words={**words, "size": wishes.size})
    target = replace(target, keeping=keeping)
    source = find_source(
        **words,
        vram=settings.vram,
        offload=settings.offload,
        device=loading["device"],
        dtype=loading["dtype"],
        download=not (is_dry or settings.offline),
        before_download=target.check,
    )
    if is_dry:
        plan_only(wishes, source, target)
        return
    with Signals() as signals:
        begin = speaking.begin(target.lead, signals, said or {}, open_stream)
        produce(wishes, source, target, loading, signals, begin=begin)


def _check_target(target: Target) -> None:
    """Refuse segments that are paced for a viewer, and states that nobody keeps.

    Raises:
        UsageError: such a wish.
    """
    keeping = target.keeping
    if keeping.full_state and keeping.save_state is None and keeping.save_every is None:
        raise UsageError("--full-state has no effect without a state", "--save-state FILE")
    if keeping.segment is not None and target.lead is not None:
        raise UsageError("--segment does not go with --realtime", "leave out one of them")


def _wishes(settings: Settings, speaking: Speaking) -> Wishes:
    """Return the part of the settings that a plan is made of; a seed is chosen where none is."""
    from streamdit_cli.plan import Wishes

    return Wishes(
        prompts=settings.prompts or [],
        script=settings.script,
        transition=speaking.transition,
        transition_seconds=speaking.transition_seconds,
        is_live=speaking.is_live,
        negative_prompt=settings.negative_prompt,
        seconds=settings.seconds,
        num_frames=settings.num_frames,
        size=settings.size,
        seed=secrets.randbelow(2**32) if settings.seed is None else settings.seed,
        start=settings.start,
        guidance_scale=settings.guidance_scale,
        material=settings.material,
    )


def _resumed(settings: Settings, speaking: Speaking, target: Target) -> Wishes:
    """Return the wishes of a stream that goes on: those of its state, and what may be new."""
    assert target.resumption is not None
    names = ("negative_prompt", "size", "seed", "start", "guidance_scale")
    wishes = target.resumption.wishes(
        settings.prompts or [],
        seconds=settings.seconds,
        num_frames=settings.num_frames,
        decided={name: getattr(settings, name) for name in names},
    )
    return replace(
        wishes,
        script=settings.script,
        transition=speaking.transition,
        transition_seconds=speaking.transition_seconds,
        is_live=speaking.is_live,
    )
