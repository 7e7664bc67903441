"""`bench`: how fast a model makes video here, stage by stage and end to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamdit_cli.open_options import OffloadOption, VramOption
from streamdit_cli.options import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    ThreadsOption,
    parse_seconds,
)
from streamdit_cli.video_options import Size, parse_size

if TYPE_CHECKING:
    from streamdit_cli.measured import Samples
    from streamdit_cli.model_source import FolderModel
    from streamdit_cli.open_weights import OpenModel
    from streamdit_cli.random_model import RandomModel
    from streamdit_model.measuring import Subject
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import ModelConfig

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = (
    "streamdit bench -m shapes --seconds 30",
    "streamdit bench -m shapes --compare fifo,clip --json speed.json",
    "streamdit bench -m paper-4b --random-weights --size 512x512 --device cuda",
)

REPEATS = 2
FIRST_FRAMES = 3
SWITCHES = 3
FEW_STEPS = 30
# Of --seconds; the rest of it goes to the warm-up, first frames and prompt switches.
SHARES = {"stages": 0.25, "network": 0.15, "decoded": 0.15, "encoded": 0.45}


def _parse_kinds(text: str) -> tuple[str, ...]:
    """Read a list of baselines, `fifo,clip`."""
    kinds = tuple(dict.fromkeys(word.strip() for word in str(text).lower().split(",")))
    if unknown := [kind for kind in kinds if kind not in ("fifo", "clip")]:
        raise typer.BadParameter(f"{unknown[0]!r} is not known; allowed: fifo, clip")
    return kinds


SecondsOption = Annotated[
    float,
    typer.Option(
        "--seconds",
        metavar="TIME",
        parser=parse_seconds,
        help="How long to measure, all repetitions together; --compare takes half as long again.",
    ),
]

SizeOption = Annotated[
    Size | None,
    typer.Option(
        "--size",
        metavar="WxH",
        parser=parse_size,
        show_default=False,
        help="Pixels; another size than the model's own needs open or random weights.",
    ),
]

RandomOption = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Take only the configuration of a preset or folder: nothing is downloaded.",
        rich_help_panel="Model",
    ),
]

CompareOption = Annotated[
    tuple | None,
    typer.Option(
        "--compare",
        metavar="LIST",
        parser=_parse_kinds,
        show_default=False,
        help="Also the same network on other ways: fifo (the diagonal loop), clip (clip by clip).",
    ),
]


def bench(
    model: ModelOption = None,
    seconds: SecondsOption = 60.0,
    random_weights: RandomOption = False,
    size: SizeOption = None,
    vram: VramOption = None,
    offload: OffloadOption = None,
    compare: CompareOption = None,
    json_path: JsonOption = None,
    overwrite: OverwriteOption = False,
    guidance_scale: GuidanceOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure how fast a model makes video here, stage by stage and end to end.

    Every figure says how often it was measured and how far the repetitions lie apart. Warm-up is
    left out; the first frame is also measured cold, from the start of this process.
    """
    from streamdit_cli import console
    from streamdit_cli.answers import answer, check_answer
    from streamdit_cli.errors import UsageError
    from streamdit_cli.signals import Signals

    console.configure(quiet=quiet)
    if seconds == float("inf"):
        raise UsageError("--seconds inf: a measurement has an end", "write --seconds 10m")
    check_answer(json_path, overwrite=overwrite)
    source = _find(
        model,
        random_weights=random_weights,
        vram=vram,
        offload=offload,
        device=device,
        dtype=dtype,
    )
    loading = {"device": device, "dtype": dtype, "threads": threads}
    with Signals():
        record = _measure(source, loading, size, seconds, guidance_scale, compare or ())
    if json_path != "-":
        _print_tables(record)
    if json_path is not None:
        answer("", record, [], [], json_path, overwrite=overwrite)


def _find(
    name: str | None, *, random_weights: bool, **memory: Any
) -> FolderModel | OpenModel | RandomModel:
    """Find the model; unlike elsewhere, every one may have random weights here."""
    from streamdit_cli.errors import UsageError
    from streamdit_cli.model_source import find_source
    from streamdit_cli.presets import open_preset
    from streamdit_cli.random_model import RandomModel

    if random_weights and open_preset(name) is None:
        for option in ("vram", "offload"):
            if memory[option] is not None:
                raise UsageError(f"--{option} is for open weights only", f"leave out --{option}")
        return RandomModel(name=name)
    return find_source(name, random_weights=random_weights, **memory)


def _check_config(
    config: ModelConfig | WanModelConfig, size: Size | None, guidance_scale: float | None
) -> None:
    """Refuse what the model has not.

    Raises:
        UsageError: another size, or guidance where it is baked in.
    """
    from streamdit_cli.errors import UsageError

    has = config.width, config.height
    if size not in (None, has):
        asked, allowed = ("x".join(map(str, one)) for one in (size, has))
        hint = "with --random-weights it may have any"
        raise UsageError(f"{config.name} has not the size {asked}; allowed: {allowed}", hint)
    if config.distilled and guidance_scale not in (None, 1.0):
        message = f"--guidance-scale has no effect on {config.name}: guidance is baked in to it"
        raise UsageError(message, "leave out --guidance-scale")


def _measure(
    source: FolderModel | OpenModel | RandomModel,
    loading: dict[str, Any],
    size: Size | None,
    seconds: float,
    guidance_scale: float | None,
    kinds: tuple[str, ...],
) -> dict[str, Any]:
    """Load the model, measure, and return the record."""
    from streamdit_cli import console, machine
    from streamdit_cli.making import stream_threads
    from streamdit_cli.measured import Samples, record_of, rounded
    from streamdit_model import measuring
    from streamdit_model.comparing import compare as compare_ways

    before, began = machine.seconds_since_start(), time.perf_counter()
    console.status("loading ...")
    config = source.read_config(size=size)
    _check_config(config, size, guidance_scale)
    loading["threads"] = loading["threads"] or stream_threads()
    model = source.load(prompts=[*measuring.PROMPTS, ""], size=size, **loading)
    loaded = time.perf_counter()
    subject = measuring.Subject(model=model, guidance_scale=guidance_scale)
    samples = Samples(
        video_fps=config.fps,
        chunk_frames=measuring.chunk_frames(model),
        micro_steps=config.partition.micro_steps,
    )
    first = _first_frame(subject)
    samples.cold = {"start": before, "load": loaded - began, "stream": first}
    console.status("warming up ...")
    warm = measuring.warm_up(subject, seconds / 8)
    network, decoding = measuring.count_chunk(subject)
    samples.network_flops, samples.decode_flops = network.flops, decoding.flops
    for number in range(REPEATS):
        console.status(f"measuring, {number + 1} of {REPEATS} ...")
        _repeat(subject, samples, seconds / REPEATS)
    _wait_for_people(subject, samples)
    compared = compare_ways(subject, kinds, seconds / 2, console.status) if kinds else None
    return rounded(
        {
            **_described(subject, source, network.attention),
            "settings": {"seconds": seconds, "repeats": REPEATS, "warm_up": warm},
            **record_of(samples),
            "compare": compared,
            "minutes": (time.perf_counter() - began) / 60,
        }
    )


def _repeat(subject: Subject, samples: Samples, seconds: float) -> None:
    """Take one repetition of everything that takes time; the ceiling comes last, for its memory."""
    from streamdit_cli import machine
    from streamdit_cli.sinks import open_encoder, open_writer, peak_memory
    from streamdit_model import measuring
    from streamdit_model.whole_streams import stream_fps

    config, device = subject.model.config, subject.model.device
    clock = measuring.StageClock(device)
    parts = {name: share * seconds for name, share in SHARES.items()}
    with open_encoder(config) as encode:
        measuring.run_stages(subject, clock, parts["stages"], encode)
    samples.stages.append({name: clock.milliseconds(name) for name in measuring.STAGES})
    samples.network_fps.append(measuring.network_fps(subject, parts["network"]))
    samples.decoded.append(stream_fps(subject, parts["decoded"]))
    with open_writer(config) as writer:
        how = {"write": writer.write, "end": writer.close, "memory": machine.resident_bytes}
        encoded = stream_fps(subject, parts["encoded"], **how)
    encoded.peak = peak_memory(device)
    samples.encoded.append(encoded)
    samples.ceiling += measuring.matmul_flops_per_second(device, subject.model.dtype)


def _first_frame(subject: Subject) -> float:
    """Return how long a new stream takes until its first frame is encoded."""
    from streamdit_cli.sinks import open_encoder
    from streamdit_model.whole_streams import first_frame_seconds

    with open_encoder(subject.model.config) as encode:
        return first_frame_seconds(subject, encode)


def _wait_for_people(subject: Subject, samples: Samples) -> None:
    """Measure what a person waits for: the first frame, and a change of the prompt."""
    from streamdit_cli import console
    from streamdit_model.whole_streams import switch_prompt

    console.status("first frames and prompt switches ...")
    samples.warm += [_first_frame(subject) for _ in range(FIRST_FRAMES)]
    samples.switches += [switch_prompt(subject) for _ in range(SWITCHES)]


def _described(
    subject: Subject,
    source: FolderModel | OpenModel | RandomModel,
    attention: tuple[str, ...],
) -> dict[str, Any]:
    """Return what was measured, and on what."""
    from streamdit_cli import machine
    from streamdit_cli.random_model import RandomModel
    from streamdit_model.stream_state import stream_plan

    model, config = subject.model, subject.model.config
    known = getattr(source, "files", ())
    is_random = isinstance(source, RandomModel) or source.metadata.get("weights") == "random"
    partition = config.partition
    letters = zip("KNcs", _letters(partition), strict=True)
    return {
        "model": config.name,
        "weights": "random" if is_random else "trained",
        "video": {"width": config.width, "height": config.height, "fps": config.fps},
        "partition": ",".join(f"{letter}={value}" for letter, value in letters),
        "guidance_scale": config.guidance_scale
        if subject.guidance_scale is None
        else subject.guidance_scale,
        "prompts_known_before": bool(known),
        "environment": {
            **stream_plan(model, start=config.start, stepper=config.stepper),
            "attention": list(attention) or ["written out"],
            "versions": machine.versions(),
            "cpu": machine.cpu(),
            "memory": machine.memory(),
            "devices": machine.devices(),
            "load_average": machine.load_average(),
        },
    }


def _letters(partition: Any) -> tuple[int, ...]:
    return tuple(
        getattr(partition, name)
        for name in ("num_reference", "num_chunks", "chunk_size", "micro_steps")
    )


def _print_tables(record: dict[str, Any]) -> None:
    """Print what was found, for people."""
    from streamdit_cli import console
    from streamdit_cli.measured import comparison_rows, measure_rows, stage_rows

    video, place = record["video"], record["environment"]
    size = f"{video['width']}x{video['height']} at {video['fps']:g} FPS"
    title = f"{record['model']} ({record['weights']} weights), {size}, {record['partition']}"
    columns = ["stage", "median", "p90", "p99", "share", "samples", "repeats differ by"]
    console.table(title, columns, stage_rows(record))
    console.table("end to end", ["measure", "value"], measure_rows(record))
    if record["compare"]:
        columns = ["way", "partition", "a frame", "time ratio", "FLOP ratio", "frames a chunk"]
        console.table("the same network", columns, comparison_rows(record["compare"]))
    console.table("environment", ["", ""], _environment_rows(record, place))
    steps = record["stages"]["network step"]["count"]
    if steps < FEW_STEPS:
        console.warn(f"only {steps} network steps were measured; p99 needs more: raise --seconds")
    if not record["settings"]["warm_up"]["steady"]:
        console.warn("times still varied by more than 2 % after the warm-up: the machine is busy")


def _environment_rows(record: dict[str, Any], place: dict[str, Any]) -> list[list[str]]:
    """Return the lines that a figure must not be quoted without."""
    versions, processor = place["versions"], place["cpu"]
    device = place["devices"].get(place["device"], place["devices"].get(f"{place['device']}:0", ""))
    warm = record["settings"]["warm_up"]
    return [
        ["versions", f"streamdit {versions['streamdit']}, torch {versions['torch']}"],
        [
            "processor",
            f"{processor['name']}, {processor['cores']} cores, {processor['torch uses']}",
        ],
        ["device", f"{place['device']}, {place['dtype']}, {place['threads']} threads; {device}"],
        ["attention", f"{', '.join(place['attention'])}; compile {place['compile']}"],
        ["load average", "unknown" if place["load_average"] is None else place["load_average"]],
        [
            "left out as warm-up",
            f"{warm['steps']} steps, steady: {'yes' if warm['steady'] else 'no'}",
        ],
        ["took", f"{record['minutes']:.1f} minutes, {record['settings']['repeats']} repetitions"],
    ]
