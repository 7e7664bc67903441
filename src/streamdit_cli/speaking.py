"""Where the prompts of a video come from, before it and while it is made, and for whom it is paced.

The words of the options are checked here against each other; what they ask for is opened when the
model is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import UsageError
from streamdit_cli.line_source import STANDARD_INPUT, check_line_source
from streamdit_cli.live import LiveStream
from streamdit_cli.pacing import DEFAULT_LEAD
from streamdit_cli.prompts import read_prompts
from streamdit_cli.script import Script, parse_inline, read_script

if TYPE_CHECKING:
    from streamdit_cli.plan import Plan
    from streamdit_cli.signals import Signals
    from streamdit_model.stream import Stream
    from streamdit_model.wan.model import WanModel
    from streamdit_model.weights import Model

__all__ = ["Speaking", "check_video_source", "read_words"]


def read_words(
    words: Sequence[str] | None, script: str | None, *, no_prompt: bool, is_needed: bool
) -> tuple[list[str] | None, Script | None]:
    """Read the prompts that are known before the video is made.

    Args:
        words: of `-p`; one of them may be a script in its inline form.
        script: of `--script`.
        no_prompt: no words are wanted.
        is_needed: whether prompts can come from nowhere else.

    Returns:
        The prompts, None where none were given and none is needed, and their times if they have.

    Raises:
        UsageError: forms that exclude each other, or what `read_prompts` refuses.
        InputError: a file that cannot be read.
    """
    if script is not None:
        if words or no_prompt:
            raise UsageError(f"--script and {'-p' if words else '--no-prompt'} exclude each other")
        timed = read_script(script)
        return timed.prompts, timed
    if not words and not no_prompt and not is_needed:
        return None, None
    scripts = [found for found in map(parse_inline, words or ()) if found is not None]
    if scripts and len(words or ()) > 1:
        raise UsageError("a prompt with times in brackets stands alone", "write them all in one -p")
    if scripts and not no_prompt:
        return scripts[0].prompts, scripts[0]
    return read_prompts(words, no_prompt=no_prompt), None


def check_video_source(path: str | None, words: Sequence[str | None]) -> None:
    """Refuse standard input for a video and for words.

    Args:
        path: of the video that comes in; None without one.
        words: where prompts come from.

    Raises:
        UsageError: it is wanted for both.
    """
    if path == STANDARD_INPUT and STANDARD_INPUT in words:
        hint = "prompts from a file or a FIFO: -p @FILE or --prompts-from FIFO"
        raise UsageError("standard input is the video and cannot hold prompts too", hint)


@dataclass(frozen=True, kw_only=True)
class Speaking:
    """The options of prompts that come meanwhile, and of pacing."""

    interactive: bool = False
    prompts_from: str | None = None
    realtime: bool | None = None
    lead: float | None = None
    transition: str | None = None
    transition_seconds: float | None = None

    @property
    def sources(self) -> list[str]:
        """Where lines come from."""
        typed = [STANDARD_INPUT] if self.interactive else []
        return typed if self.prompts_from is None else [*typed, self.prompts_from]

    @property
    def is_live(self) -> bool:
        """Whether prompts come while the video is made."""
        return bool(self.sources)

    @property
    def is_typed(self) -> bool:
        """Whether somebody types in the terminal in which words for people appear."""
        streams = (sys.stdin, sys.stderr)
        is_shared = all(stream is not None and stream.isatty() for stream in streams)
        return STANDARD_INPUT in self.sources and is_shared

    def check(self, output: str | None, *, preview: bool, words: Sequence[str | None]) -> None:
        """Refuse options that contradict each other.

        Args:
            output: of `-o`.
            preview: of `--preview`.
            words: of `-p` and `--script`.

        Raises:
            UsageError: standard input for two things, a lead or a preview that cannot be.
            InputError: a place that lines cannot come from.
        """
        if self.sources.count(STANDARD_INPUT) > 1:
            raise UsageError(
                "--interactive already reads standard input; leave out --prompts-from -"
            )
        if STANDARD_INPUT in self.sources and STANDARD_INPUT in words:
            raise UsageError("standard input can be read once: for prompts before, or meanwhile")
        for source in self.sources:
            check_line_source(source)
        if self.is_typed and preview:
            raise UsageError("--preview would be drawn over the line typed", "leave out --preview")
        if self.lead is not None and self.lead_of(output) is None:
            raise UsageError("--lead has no effect without --realtime", "--realtime")

    def lead_of(self, output: str | None) -> float | None:
        """Return the seconds that frames may leave before their time; None for at once."""
        is_wanted = self.realtime
        if is_wanted is None:
            is_wanted = self.interactive and output == "-"
        return (DEFAULT_LEAD if self.lead is None else self.lead) if is_wanted else None

    def begin(
        self,
        lead: float | None,
        signals: Signals,
        said: Mapping[str, str],
        open_stream: Callable[[Plan, Model | WanModel], Stream] | None = None,
    ) -> Callable[[Plan, Model | WanModel], Stream | LiveStream]:
        """Return what opens the stream of a plan, and begins to listen.

        Args:
            lead: None where frames leave at once.
            signals: that end the video.
            said: what a video that is repeated says about itself; empty without one.
            open_stream: opens it in another way than from the prompts.
        """

        def begin(plan: Plan, model: Model | WanModel) -> Stream | LiveStream:
            from streamdit_cli import producing

            # Choice: one chunk ahead of a viewer, so that a prompt is seen as soon as can be.
            ahead = 1 if self.is_live or lead is not None else 2
            if open_stream is None:
                stream = producing.open_stream(plan, model, chunks_ahead=ahead)
            else:
                stream = open_stream(plan, model)
            if said:
                from streamdit_cli.repeat import warn_of_changes

                warn_of_changes(said, stream.plan)
            return self._listen(stream, plan, model, signals) if self.is_live else stream

        return begin

    def _listen(
        self, stream: Stream, plan: Plan, model: Model | WanModel, signals: Signals
    ) -> LiveStream:
        """Begin to take lines for a stream."""
        live = LiveStream(
            stream,
            fps=plan.config.fps,
            is_endless=plan.is_endless,
            transition=self.transition,
            transition_seconds=self.transition_seconds,
            is_truncated=model.text_encoder.truncated,
            is_stopping=lambda: signals.received is not None,
        )
        if STANDARD_INPUT in self.sources:
            console.status("every line is the new prompt; :help shows the commands")
        if self.prompts_from is not None:
            console.status(f"prompts come from {self.prompts_from}")
        live.listen(self.sources)
        return live
