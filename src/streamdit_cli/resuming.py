"""Going on: with a stream from its state in a new video, or with a video after a crash.

What a state says need not be said again, and what contradicts it is refused. After a crash the
frames up to the state are taken over as they are and those behind it made again, with equal bits;
the old file stays until the new one holds as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.errors import InputError, UsageError
from streamdit_cli.keeping import Keeping, Kept, read_kept
from streamdit_cli.output import CODECS
from streamdit_cli.part import PartFile, part_path, require_unused, state_path
from streamdit_cli.plan import Plan, Wishes

if TYPE_CHECKING:
    from streamdit_model.stream import Stream
    from streamdit_model.wan.model import WanModel
    from streamdit_model.weights import Model

__all__ = ["Resumption", "clear", "find_continued", "find_resumption"]


@dataclass(frozen=True)
class Resumption:
    """What is gone on with.

    Args:
        kept: the state.
        part: the unfinished video to go on with; None for a new video.
        fresh_part: the name of the new one while it grows, of that of two in which there is less.
    """

    kept: Kept
    part: Path | None = None
    fresh_part: Path | None = None

    @property
    def first_frame(self) -> int:
        """The frame of the stream with which the video begins."""
        if self.part is None:
            return self.kept.num_frames
        return int(self.kept.about.get("first_frame", 0))

    @property
    def words(self) -> Mapping[str, Any]:
        """How the command line named the model, and how the video was to be."""
        return self.kept.about.get("words", {})

    @property
    def taken(self) -> tuple[Path, int] | None:
        """The unfinished video, and how many of its frames are taken over."""
        if self.part is None:
            return None
        return self.part, self.kept.num_frames - self.first_frame

    def model_words(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the model is named: as now, else as it was when the stream was begun."""
        if asked["name"] is not None:
            return dict(asked)
        return {name: self.words.get(name, value) for name, value in asked.items()}

    def keeping(self, asked: Keeping, codec: str | None) -> tuple[Keeping, str | None]:
        """Return how the stream is kept and its codec: as asked, and after a crash as before it.

        Raises:
            UsageError: an unfinished video cannot be gone on with in another way.
        """
        if self.part is None:
            return asked, codec
        words = self.words
        if asked.segment is not None or codec not in (None, words["codec"]):
            message = "--continue goes on with one file as it was begun"
            raise UsageError(message, "leave out --segment and --codec")
        every = words["save_every"]
        if asked.save_every not in (None, every):
            message = f"--save-every {asked.save_every:g} is not that of the video, {every:g}"
            raise UsageError(message, "leave out --save-every")
        keeping = replace(asked, save_every=every, metadata=words["metadata"] and asked.metadata)
        return keeping, words["codec"] if words["codec"] in CODECS else None

    def loading(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in device, dtype and threads from the plan of the state where nothing is asked."""
        plan = self.kept.plan
        known = {
            "device": plan["device"],
            "dtype": plan["dtype"],
            "threads": int(plan["threads"]),
        }
        return {name: known[name] if value is None else value for name, value in asked.items()}

    def wishes(
        self,
        prompts: Sequence[str],
        *,
        seconds: float | None,
        num_frames: int | None,
        decided: Mapping[str, Any],
    ) -> Wishes:
        """Return the wishes for the video.

        Args:
            prompts: new ones from here on; empty goes on with those of the state.
            seconds, num_frames: length of the new video.
            decided: what the state decides, by its name in `Wishes`; None where nothing is asked.

        Raises:
            UsageError: a wish that the state contradicts, or nothing is left of the stream.
        """
        settings = self.kept.settings
        size = self.words.get("size")
        known = {**settings, "size": None if size is None else _size(size)}
        for name, asked in decided.items():
            if asked not in (None, known[name]):
                option = f"--{name.replace('_', '-')}"
                message = f"{option} {asked} contradicts the state, which has {known[name]}"
                raise UsageError(message, f"leave out {option}")
        if self.part is not None and (prompts or seconds or num_frames):
            message = "--continue takes prompts and length from the state"
            raise UsageError(message, "leave them out; or --resume-state for another video")
        if seconds is None and num_frames is None:
            seconds, num_frames = self._rest()
        return Wishes(
            prompts=list(prompts),
            seconds=seconds,
            num_frames=num_frames,
            **{name: known[name] for name in decided},
            events=None if prompts else tuple(self._events()),
            first_frame=self.first_frame,
        )

    def open_stream(self, plan: Plan, model: Model | WanModel) -> Stream:
        """Open the stream of the state; see `Stream.resume` for what is refused.

        Choice: a state whose context has to be rebuilt is gone on with, and said to be so.
        """
        from streamdit_model.errors import ConfigError
        from streamdit_model.stream import Stream
        from streamdit_model.stream_state import is_light

        state = self.kept.state
        if plan.wishes.events is None:
            state = self.kept.with_prompts(plan.timeline, fps=plan.config.fps)
            for prompt, _ in plan.events:
                if model.text_encoder.truncated(prompt):
                    limit = model.text_limit
                    console.warn(f"{plan.config.name} reads only {limit} of the prompt {prompt!r}")
        length = None if plan.num_frames is None else self.first_frame + plan.num_frames
        light = is_light(state[1])
        if light:
            console.warn(
                f"the context of {plan.config.name} is rebuilt from its clean frames: the video "
                "goes on, with other bits than without the pause (--full-state keeps them)"
            )
        try:
            return Stream.resume(
                model,
                state,
                num_frames=length,
                exact=not light,
                full_states=plan.wishes.full_states,
            )
        except ConfigError as error:
            hint = "go on on the same kind of machine, with the same torch, without other options"
            raise ConfigError(str(error), hint) from error

    def _rest(self) -> tuple[float | None, int | None]:
        """Return what is left of the stream as seconds (without end) or frames."""
        total = self.kept.settings["num_frames"]
        if total is None:
            return float("inf"), None
        if total <= self.kept.num_frames and self.part is None:
            message = f"the stream of {self.kept.path} was made to its end, {total} frames"
            raise UsageError(message, "say how much more: --seconds 10")
        return None, total - self.first_frame

    def _events(self) -> list[tuple[str, float]]:
        """Return the prompts of the video with their seconds in it."""
        fps = self.kept.about.get("fps")
        if self.part is not None:
            return self.kept.history
        here = 0.0 if fps is None else self.kept.num_frames / fps
        return [(prompt, max(0.0, seconds - here)) for prompt, seconds in self.kept.prompts]


def find_resumption(
    state: Path | None, output: str | None, *, go_on: bool, no_prompt: bool
) -> Resumption | None:
    """Find what `--resume-state` or `--continue` names; None without them.

    Raises:
        UsageError: both, or one of them with `--no-prompt`.
        InputError, WeightsError, OutputError: see `read_kept` and `find_continued`.
    """
    if state is None and not go_on:
        return None
    if state is not None and go_on:
        raise UsageError("--resume-state and --continue exclude each other")
    if no_prompt:
        raise UsageError("--no-prompt begins a stream of its own", "leave out --no-prompt")
    return find_continued(output) if state is None else Resumption(read_kept(state))


def find_continued(output: str | None) -> Resumption:
    """Find the unfinished video of `--continue` and its state; the one that holds more of two.

    Raises:
        UsageError: no video is named.
        InputError: there is no unfinished video, or no state beside it.
        WeightsError: the state is damaged.
        OutputError: another process writes the video.
    """
    if output is None:
        raise UsageError("--continue needs the name of the video", "-o out.mp4 --continue")
    final = Path(output)
    names = (part_path(final), part_path(final.with_name(f"{final.stem}.more{final.suffix}")))
    parts = [part for part in names if part.is_file()]
    if not parts:
        raise InputError(f"there is no {names[0]} to go on with", "leave out --continue")
    for part in parts:
        require_unused(part)
    states = {part: read_kept(state_path(part)) for part in parts if state_path(part).is_file()}
    if not states:
        hint = "it can be only after --save-every TIME; replace it with -y, without --continue"
        raise InputError(f"{parts[0]} has no state {state_path(parts[0])} to go on from", hint)
    best = max(states, key=lambda part: states[part].num_frames)
    other = names[1] if best == names[0] else names[0]
    return Resumption(states[best], part=best, fresh_part=other)


def clear(part: Path) -> None:
    """Remove an unfinished video that holds less than the one gone on with, and its state."""
    PartFile(part, overwrite=True, describe=str, path=part).discard()


def _size(pair: Sequence[int]) -> Any:
    from streamdit_cli.video_options import Size

    return Size(*pair)
