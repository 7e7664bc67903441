"""`generate`: prompts and a length in, a video file or a pipe of frames out.

What can be wrong with the words of the command line is found first, then the output is taken, then
torch and the model are loaded. Every way out that is not a kill ends the video properly.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from streamdit_cli.options import (
    ContactSheetOption,
    DecoderOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    HealthOption,
    JsonOption,
    LoraOption,
    ModelOption,
    NumFramesOption,
    OutputOption,
    OverwriteOption,
    PreviewOption,
    PromptOption,
    QuietOption,
    RandomWeightsOption,
    SecondsOption,
    SeedOption,
    ThreadsOption,
    VerboseOption,
)

if TYPE_CHECKING:
    from streamdit_cli.model_source import FolderModel
    from streamdit_cli.open_weights import OpenModel
    from streamdit_cli.output import Output
    from streamdit_cli.records import Records
    from streamdit_cli.signals import Signals
    from streamdit_cli.watching import Watchers
    from streamdit_model.stream import Stream
    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import Model, ModelConfig

__all__ = ["EXAMPLES", "Size", "Wishes", "check_wishes", "generate", "make_plan", "parse_size"]

EXAMPLES = (
    'streamdit generate -p "a red star bouncing" -o star.mp4 --contact-sheet star.png --preview',
    'streamdit generate -p "a blue circle" -p "a green square" --seconds 1:00 --health two.jsonl',
    'streamdit generate -p "a yellow triangle" --seconds inf -o - | mpv -',
)

DEFAULT_SECONDS = 10.0
_LARGEST_SIDE = 16384


class Size(NamedTuple):
    """Of a video, in pixels. Not a plain tuple, which Typer reads as two words."""

    width: int
    height: int


def parse_size(text: str) -> Size:
    """Read a size in pixels, `640x480`.

    Raises:
        typer.BadParameter: anything else.
    """
    found = re.fullmatch(r"([0-9]{1,5})[x*]([0-9]{1,5})", str(text).strip().lower(), re.ASCII)
    width, height = (int(number) for number in found.groups()) if found else (0, 0)
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise typer.BadParameter(f"{text!r} is not a size; write WIDTHxHEIGHT, as in 640x480")
    return Size(width, height)


NoPromptOption = Annotated[bool, typer.Option("--no-prompt", help="Make video without words.")]

NegativePromptOption = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        "-n",
        metavar="TEXT",
        show_default=False,
        help="What not to see. Refused by a distilled model, which has guidance baked in.",
        rich_help_panel="Sampling",
    ),
]

SizeOption = Annotated[
    Size | None,
    typer.Option(
        "--size",
        metavar="WxH",
        parser=parse_size,
        show_default=False,
        help="Pixels; only a size the model has, and of open weights multiples of 16 or 32.",
    ),
]

StartOption = Annotated[
    Literal["ramp", "clip"] | None,
    typer.Option(
        "--start",
        show_default=False,
        help="How the stream begins. Without it: as the model was trained.",
        rich_help_panel="Sampling",
    ),
]

PipeFormatOption = Annotated[
    Literal["y4m", "nut", "rgb24"],
    typer.Option(
        "--pipe-format",
        help="For -o - and FIFOs: y4m plays everywhere, nut is exact, rgb24 is raw.",
        rich_help_panel="Output",
    ),
]

CodecOption = Annotated[
    Literal["libx264", "ffv1"] | None,
    typer.Option(
        "--codec",
        show_default=False,
        help="For files: libx264, or ffv1, lossless, in .mkv.",
        rich_help_panel="Output",
    ),
]

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, say what would be made, and stop.",
        rich_help_panel="Output",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line asks for, checked as far as it can be without the model."""

    prompts: list[str]
    negative_prompt: str | None
    seconds: float | None
    num_frames: int | None
    size: Size | None
    seed: int
    start: Literal["ramp", "clip"] | None
    guidance_scale: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made: wishes and the configuration of a model together.

    `events` are prompts, each with the second at which it begins; `num_frames` None is without end.
    """

    events: list[tuple[str, float]]
    num_frames: int | None
    wishes: Wishes
    config: ModelConfig | WanModelConfig

    @property
    def seconds(self) -> float | None:
        """Length of the video; None without end."""
        return None if self.num_frames is None else self.num_frames / self.config.fps

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
        length = "without end" if self.seconds is None else f"{self.seconds:.1f} s"
        size = f"{config.width}x{config.height} at {config.fps:g} FPS"
        prompts = f", {len(self.events)} prompts" if len(self.events) > 1 else ""
        return f"{config.name}, {size}, {length}{prompts}, seed {self.wishes.seed}"

    @property
    def metadata(self) -> dict[str, str]:
        """What the video says about what was asked for."""
        from streamdit_model.autoencoder import TIME_FACTOR
        from streamdit_model.model_config import ModelConfig

        wishes = self.wishes
        words = {"prompt": " | ".join(prompt for prompt, _ in self.events)}
        if len(self.events) > 1:
            words["prompts"] = json.dumps(self.events)
        if wishes.negative_prompt is not None:
            words["negative_prompt"] = wishes.negative_prompt
        if wishes.guidance_scale is not None:
            words["guidance_scale"] = f"{wishes.guidance_scale:g}"
        if isinstance(self.config, ModelConfig):  # the first chunk of the others is shorter
            frames = self.config.partition.chunk_size * TIME_FACTOR
            words["chunk_frames"] = str(frames)
        return {**words, "seed": str(wishes.seed), "model": self.config.name}


def generate(
    prompt: PromptOption = None,
    no_prompt: NoPromptOption = False,
    negative_prompt: NegativePromptOption = None,
    seconds: SecondsOption = None,
    num_frames: NumFramesOption = None,
    size: SizeOption = None,
    output: OutputOption = None,
    pipe_format: PipeFormatOption = "y4m",
    codec: CodecOption = None,
    overwrite: OverwriteOption = False,
    json_path: JsonOption = None,
    health: HealthOption = None,
    contact_sheet: ContactSheetOption = None,
    preview: PreviewOption = False,
    model: ModelOption = None,
    decoder: DecoderOption = None,
    lora: LoraOption = None,
    random_weights: RandomWeightsOption = False,
    seed: SeedOption = None,
    start: StartOption = None,
    guidance_scale: GuidanceOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a video, or an endless stream, from words.

    Frames are written while the next ones are still noise; Ctrl-C ends the video properly at any
    time. Without --seconds or --num-frames it is 10 seconds long, and without -o it is named after
    the prompt.
    """
    from streamdit_cli import console
    from streamdit_cli.model_source import find_source
    from streamdit_cli.output import check_output, free_name, reserve
    from streamdit_cli.prompts import read_prompts
    from streamdit_cli.signals import Signals

    console.configure(quiet=quiet, verbose=verbose)
    wishes = Wishes(
        prompts=read_prompts(prompt, no_prompt=no_prompt),
        negative_prompt=negative_prompt,
        seconds=seconds,
        num_frames=num_frames,
        size=size,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        start=start,
        guidance_scale=guidance_scale,
    )
    check_wishes(wishes)
    source = find_source(model, decoder=decoder, loras=lora or (), random_weights=random_weights)
    name = output or free_name(wishes.prompts[0] if wishes.prompts else "")
    if dry_run:
        check_output(name, codec=codec, pipe_format=pipe_format, overwrite=overwrite)
        console.plain(f"{_read_plan(wishes, source).line} -> {name}; nothing was made (--dry-run)")
        return
    loading = {"device": device, "dtype": dtype, "threads": threads}
    asked = {"health": health, "contact_sheet": contact_sheet, "preview": preview, "quiet": quiet}
    with Signals() as signals:
        place = reserve(name, codec=codec, pipe_format=pipe_format, overwrite=overwrite)
        records, watchers = _open_beside(place, json_path, asked, overwrite=overwrite)
        if pipe_format not in ("y4m", place.kind):
            console.warn(f"--pipe-format {pipe_format} has no effect on the file {place.name}")
        with records, watchers:
            _run(wishes, source, loading, place, signals, records, watchers)


def _open_beside(
    place: Output, json_path: str | None, asked: dict[str, Any], *, overwrite: bool
) -> tuple[Records, Watchers]:
    """Open what is written beside the video; the place of the video is given back if that fails."""
    from streamdit_cli.records import Records
    from streamdit_cli.watching import open_watchers

    try:
        return Records(json_path, overwrite=overwrite), open_watchers(**asked, overwrite=overwrite)
    except BaseException:
        place.release()
        raise


def check_wishes(wishes: Wishes) -> None:
    """Refuse wishes that no model can fulfil.

    Raises:
        UsageError: two lengths, several prompts without end, or an empty negative prompt.
    """
    from streamdit_cli.errors import UsageError
    from streamdit_cli.prompts import check_prompt, equal_parts

    if wishes.seconds is not None and wishes.num_frames is not None:
        raise UsageError("--seconds and --num-frames exclude each other")
    if wishes.prompts:
        equal_parts(wishes.prompts, wishes.seconds or DEFAULT_SECONDS)
    if wishes.negative_prompt is not None:
        check_prompt(wishes.negative_prompt, UsageError, "the negative prompt")


def make_plan(wishes: Wishes, config: ModelConfig | WanModelConfig) -> Plan:
    """Join wishes and the configuration of a model.

    Raises:
        UsageError: a size the model has not, or guidance that it cannot have.
    """
    from streamdit_cli.errors import UsageError
    from streamdit_cli.prompts import equal_parts

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
    num_frames = wishes.num_frames
    if num_frames is None:
        seconds = DEFAULT_SECONDS if wishes.seconds is None else wishes.seconds
        num_frames = None if seconds == float("inf") else max(1, round(seconds * config.fps))
    length = float("inf") if num_frames is None else num_frames / config.fps
    events = equal_parts(wishes.prompts, length) if wishes.prompts else []
    return Plan(events=events, num_frames=num_frames, wishes=wishes, config=config)


def _read_plan(wishes: Wishes, source: FolderModel | OpenModel) -> Plan:
    """Read the configuration of a model, which takes torch but no weights, and plan with it."""
    from streamdit_cli import console

    console.status("loading ...")
    return make_plan(wishes, source.read_config(size=wishes.size, start=wishes.start))


def _run(
    wishes: Wishes,
    source: FolderModel | OpenModel,
    loading: dict[str, Any],
    place: Output,
    signals: Signals,
    records: Records,
    watchers: Watchers,
) -> None:
    """Load the model and make the video."""
    from streamdit_cli import console
    from streamdit_cli.making import explained, make, stream_threads, video_metadata

    try:
        if place.replaced:
            console.warn(f"replacing {place.replaced}")
        plan = _read_plan(wishes, source)
        loading["threads"] = loading["threads"] or stream_threads()
        model = source.load(prompts=plan.texts, size=wishes.size, **loading)
        stream = _open_stream(plan, model)
        fps, size = plan.config.fps, {"width": plan.config.width, "height": plan.config.height}
        record = video_metadata({**plan.metadata, **source.metadata}, stream)
        records.header(
            {"output": place.name, **size, "fps": fps, "seconds": plan.seconds, **record}
        )
        console.status(f"{plan.line} -> {place.name}")
        if place.kind == "rgb24":
            console.status(f"to read it: {_ffmpeg_line(plan.config)}")
        writer = place.start(**size, fps=fps, metadata=record)
    except BaseException as error:
        place.release()
        told = explained(error, "")
        if told is error:
            raise
        raise told from error
    make(
        stream,
        writer,
        fps=fps,
        seconds=plan.seconds,
        micro_steps=plan.config.partition.micro_steps,
        signals=signals,
        records=records,
        watchers=watchers,
    )


def _open_stream(plan: Plan, model: Model | WanModel) -> Stream:
    """Begin the stream of a plan; says which prompts the model reads only in part."""
    from streamdit_cli import console
    from streamdit_model.stream import PromptEvent, Stream

    for prompt, _ in plan.events:
        if model.text_encoder.truncated(prompt):
            limit = model.text_limit
            console.warn(f"{plan.config.name} reads only {limit} of the prompt {prompt!r}")
    return Stream(
        model,
        [PromptEvent(prompt, seconds) for prompt, seconds in plan.events],
        seed=plan.wishes.seed,
        num_frames=plan.num_frames,
        start=plan.wishes.start,
        guidance_scale=plan.wishes.guidance_scale,
        negative_prompt=plan.wishes.negative_prompt,
    )


def _ffmpeg_line(config: ModelConfig | WanModelConfig) -> str:
    """Return the command that reads raw rgb24 of a model's size from a pipe."""
    size = f"-video_size {config.width}x{config.height} -framerate {config.fps:g}"
    return f"ffmpeg -f rawvideo -pix_fmt rgb24 {size} -i - -pix_fmt yuv420p out.mp4"
