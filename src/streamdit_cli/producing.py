"""From a plan to a video: the model is loaded, the stream and the writer opened, the loop run.

Shared by every command that makes video. The output is taken before; whatever goes wrong before
its first frame gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.keeping import Keeping, StateKeeper
from streamdit_cli.loaded_model import LoadedModel
from streamdit_cli.making import explained, make, stream_threads, video_metadata
from streamdit_cli.model_source import real_video_advice
from streamdit_cli.output import Output, check_output, reserve
from streamdit_cli.pacing import Pace
from streamdit_cli.part import PartFile
from streamdit_cli.pipe import is_direct
from streamdit_cli.plan import Plan, Wishes, make_plan
from streamdit_cli.receipts import PromptLog
from streamdit_cli.records import Records
from streamdit_cli.resuming import Resumption, clear
from streamdit_cli.segments import Segments, SegmentWriter, check_segments, unnumbered
from streamdit_cli.watching import Watchers, open_watchers
from streamdit_cli.writer import Writer

if TYPE_CHECKING:
    from streamdit_cli.live import LiveStream
    from streamdit_cli.model_source import FolderModel
    from streamdit_cli.open_weights import OpenModel
    from streamdit_cli.signals import Signals
    from streamdit_model.stream import Stream
    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import Model, ModelConfig

    Source = FolderModel | OpenModel | LoadedModel

__all__ = ["Target", "open_stream", "plan_only", "produce", "read_plan"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a video goes, and what is written and shown beside it; as the options say."""

    name: str
    codec: str | None = None
    pipe_format: str = "y4m"
    overwrite: bool = False
    json_path: str | None = None
    health: str | None = None
    contact_sheet: str | None = None
    preview: bool = False
    quiet: bool = False
    lead: float | None = None  # seconds; frames leave no earlier before their time, None at once
    is_live: bool = False  # prompts come meanwhile, and a file keeps them beside it
    keeping: Keeping = field(default_factory=Keeping)
    resumption: Resumption | None = None

    def check(self) -> None:
        """Refuse what `reserve` would refuse; takes nothing.

        Raises:
            UsageError, OutputError: see `output.check_output`.
        """
        name = self.name
        if self.resumption is not None and self.resumption.part is not None:
            return  # its name is taken, by the unfinished video
        if self.keeping.segment is not None:
            name = str(check_segments(name, overwrite=self.overwrite))
        check_output(name, codec=self.codec, pipe_format=self.pipe_format, overwrite=self.overwrite)

    def reserve(self) -> Output | Segments:
        """Take the place of the video.

        Raises:
            UsageError, OutputError: see `output.reserve`.
        """
        if self.keeping.segment is None:
            place = self._reserve(self.name)
        else:
            seconds = self.keeping.segment
            place = Segments(self.name, seconds, self._reserve, overwrite=self.overwrite)
        if self.pipe_format not in ("y4m", place.kind):
            console.warn(f"--pipe-format {self.pipe_format} has no effect on the file {place.name}")
        return place

    def _reserve(self, name: str) -> Output:
        """Take the place of one file or pipe."""
        part = None if self.resumption is None else self.resumption.fresh_part
        if part is not None and part.exists():
            clear(part)
        settings = {"codec": self.codec, "pipe_format": self.pipe_format}
        return reserve(name, overwrite=self.overwrite, part=part, **settings)

    def open_keeper(self, place: Output | Segments) -> StateKeeper | None:
        """Open what writes the state of the stream; None where it is not kept.

        Raises:
            UsageError: there is no place for the state.
            OutputError: a file exists.
        """
        keeping, resumption = self.keeping, self.resumption
        keeps_part = keeping.keeps_part(place.kind)
        if keeping.save_state is None and not keeps_part:
            return None
        file = place.target if keeps_part and isinstance(place, Output) else None
        part = file.path if isinstance(file, PartFile) else None
        is_own = resumption is not None and resumption.kept.path == keeping.save_state
        return StateKeeper(
            keeping.save_state,
            part,
            keeping.save_every,
            older=resumption and resumption.part,
            overwrite=self.overwrite or is_own,
        )

    def open_records(self) -> Records:
        """Open the records for programs."""
        return Records(self.json_path, overwrite=self.overwrite)

    def open_prompt_log(self) -> PromptLog | None:
        """Open what keeps the prompts of a live video; None without a file to lie beside."""
        if not self.is_live or self.name == "-" or is_direct(Path(self.name)):
            return None
        name = self.name if self.keeping.segment is None else unnumbered(self.name)
        return PromptLog(name, overwrite=self.overwrite)

    def open_watchers(
        self, records: Records | None = None, prompt_log: PromptLog | None = None
    ) -> Watchers:
        """Open what looks at the frames."""
        return open_watchers(
            health=self.health,
            contact_sheet=self.contact_sheet,
            preview=self.preview,
            quiet=self.quiet,
            overwrite=self.overwrite,
            records=records,
            prompt_log=prompt_log,
            is_live=self.is_live,
        )


def read_plan(wishes: Wishes, source: Source, *, takes_audio: bool = False) -> Plan:
    """Read the configuration of a model, which takes torch but no weights, and plan with it.

    What the video is made from is opened, and left open.
    """
    if not isinstance(source, LoadedModel):
        console.status("loading ...")
    config = source.read_config(size=wishes.size, start=wishes.start)
    if wishes.material is not None:
        config = wishes.material.open(config, takes_audio=takes_audio)
    return make_plan(wishes, config)


def plan_only(wishes: Wishes, source: Source, target: Target) -> None:
    """Check everything that needs no weights, and say what would be made."""
    target.check()
    try:
        line = f"{read_plan(wishes, source).line} -> {target.name}"
    finally:
        if wishes.material is not None:
            wishes.material.close()
    console.plain(f"{line}; nothing was made (--dry-run)")


def open_stream(plan: Plan, model: Model | WanModel, *, chunks_ahead: int = 2) -> Stream:
    """Begin the stream of a plan; says which prompts the model reads only in part."""
    from streamdit_model.stream import Stream

    for prompt, _ in plan.events:
        if model.text_encoder.truncated(prompt):
            limit = model.text_limit
            console.warn(f"{plan.config.name} reads only {limit} of the prompt {prompt!r}")
    words = {"num_frames": plan.stream_frames, "start": plan.wishes.start}
    if plan.wishes.material is not None:
        words |= plan.wishes.material.stream_words()
    return Stream(
        model,
        plan.timeline,
        seed=plan.wishes.seed,
        guidance_scale=plan.wishes.guidance_scale,
        negative_prompt=plan.wishes.negative_prompt,
        chunks_ahead=chunks_ahead,
        full_states=plan.wishes.full_states,
        **words,
    )


def produce(
    wishes: Wishes,
    source: Source,
    target: Target,
    loading: Mapping[str, Any],
    signals: Signals,
    *,
    begin: Callable[[Plan, Model | WanModel], Stream | LiveStream] = open_stream,
) -> None:
    """Take the place of the video, load the model, and make it.

    Args:
        wishes: checked.
        source: of the model.
        target: where the video goes.
        loading: device, dtype and threads, as in `making.load_model`.
        signals: that end the video.
        begin: opens the stream of a plan.

    Raises:
        TerminalError, StreamDiTError: with what was kept, see `making.make`.
    """
    place = target.reserve()
    material = wishes.material
    with ExitStack() as stack:
        if material is not None:
            stack.callback(material.close)
        try:
            records = stack.enter_context(target.open_records())
            prompt_log = target.open_prompt_log()
            watchers = stack.enter_context(target.open_watchers(records, prompt_log))
            keeper = target.open_keeper(place)
            if place.replaced:
                console.warn(f"replacing {place.replaced}")
            takes_audio = isinstance(place, Output) and place.takes_audio
            plan = read_plan(wishes, source, takes_audio=takes_audio)
            if advice := real_video_advice(source, [prompt for prompt, _ in plan.events]):
                console.warn(advice)
            stream = begin(plan, _load(plan, source, loading))
            writer = _open_writer(plan, source, stream, place, records, target, keeper)
            if keeper is not None:
                watchers.add(keeper)
        except BaseException as error:
            place.release()
            told = explained(error, "", source.memory_hint)
            if told is error:
                raise
            raise told from error
        try:
            make(
                stream,
                writer,
                fps=plan.config.fps,
                seconds=plan.seconds,
                micro_steps=plan.config.partition.micro_steps,
                signals=signals,
                records=records,
                watchers=watchers,
                memory_hint=source.memory_hint,
                first_frame=plan.wishes.first_frame,
                material=material,
            )
        finally:
            if prompt_log is not None and isinstance(writer, Writer) and writer.is_named:
                prompt_log.embed(Path(writer.place))


def _load(plan: Plan, source: Source, loading: Mapping[str, Any]) -> Model | WanModel:
    """Load the model of a plan; its video may have another rate than that of the model."""
    threads = loading["threads"] or stream_threads()
    loading = {**loading, "threads": threads}
    model = source.load(prompts=plan.texts, size=plan.wishes.size, **loading)
    if model.config.fps == plan.config.fps:
        return model
    return replace(model, config=replace(model.config, fps=plan.config.fps))  # type: ignore[arg-type]


def _open_writer(
    plan: Plan,
    source: Source,
    stream: Stream | LiveStream,
    place: Output | Segments,
    records: Records,
    target: Target,
    keeper: StateKeeper | None,
) -> Writer | SegmentWriter:
    """Write the headers of the records and of the video, and show both to what keeps the state."""
    config = plan.config
    size = {"width": config.width, "height": config.height}
    record = video_metadata({**plan.metadata, **source.metadata}, stream)
    about = {"output": place.name, **size, "fps": config.fps, "seconds": plan.seconds}
    records.header({**about, **record})
    console.status(f"{plan.line} -> {place.name}")
    if place.kind == "rgb24":
        console.status(f"to read it: {_ffmpeg_line(config)}")
    keeping = target.keeping
    metadata = record if keeping.metadata else {}
    if isinstance(place, Segments):
        writer = place.start(**size, fps=config.fps, metadata=metadata)
    else:
        every = keeping.save_every if keeping.keeps_part(place.kind) else None
        writer = place.start(
            width=config.width,
            height=config.height,
            fps=config.fps,
            metadata=metadata,
            fresh_every=None if every is None else max(1, round(every * config.fps)),
            taken=target.resumption and target.resumption.taken,
            audio=plan.wishes.material and plan.wishes.material.audio,
        )
        if target.lead is not None:
            writer.pace = Pace(config.fps, target.lead)
    if keeper is not None:
        here = plan.wishes.first_frame
        words = {**keeping.words, "codec": place.codec, "metadata": keeping.metadata}
        words["save_every"] = keeping.save_every
        state_about = {**about, **record, "first_frame": here, "words": words}
        keeper.watch(stream, writer, state_about, here)
    return writer


def _ffmpeg_line(config: ModelConfig | WanModelConfig) -> str:
    """Return the command that reads raw rgb24 of a model's size from a pipe."""
    size = f"-video_size {config.width}x{config.height} -framerate {config.fps:g}"
    return f"ffmpeg -f rawvideo -pix_fmt rgb24 {size} -i - -pix_fmt yuv420p out.mp4"
