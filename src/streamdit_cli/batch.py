"""`batch`: a file of prompts in, a folder of videos out, made once and gone on with after any end.

Every line is checked before the model is loaded. What became of each video stands in
`batch.jsonl` beside them, so that the same command again makes only what is not there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from streamdit_cli.open_options import OffloadOption, VramOption
from streamdit_cli.options import (
    DecoderOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    JsonOption,
    LoraOption,
    ModelOption,
    NumFramesOption,
    OfflineOption,
    OverwriteOption,
    QuietOption,
    RandomWeightsOption,
    SecondsOption,
    ThreadsOption,
    VerboseOption,
    parse_seed,
)
from streamdit_cli.video_options import (
    CodecOption,
    DryRunOption,
    NegativePromptOption,
    SizeOption,
    StartOption,
)

__all__ = ["EXAMPLES", "Seeds", "batch", "parse_seeds"]

EXAMPLES = (
    "streamdit batch prompts.txt -o videos",
    "streamdit batch prompts.csv -o videos --seeds 1-4 --name '{slug}-{seed}.mp4' --dry-run",
    "streamdit batch prompts.jsonl -o videos --seconds 5 --shard 1/2",
)

MOST_SEEDS = 10_000
PARTIAL = 3  # exit code


class Seeds(tuple[int, ...]):
    """Seeds in order; not a plain tuple, which Typer reads as several words."""


def parse_seeds(text: str) -> Seeds:
    """Read seeds: `5`, `1-8` or `1,5,10-12`, each once.

    Raises:
        typer.BadParameter: anything else, or more than 10,000.
    """
    seeds: dict[int, None] = {}
    for part in str(text).split(","):
        first, dash, last = part.partition("-")
        low = parse_seed(first)
        high = parse_seed(last) if dash else low
        if high < low:
            raise typer.BadParameter(f"{part.strip()!r} goes backwards; write the smaller first")
        if high - low >= MOST_SEEDS or len(seeds) + high - low >= MOST_SEEDS:
            raise typer.BadParameter(f"{text[:60]!r} are more than {MOST_SEEDS} seeds")
        seeds |= dict.fromkeys(range(low, high + 1))
    return Seeds(seeds)


PromptsArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        show_default=False,
        help="A .txt file with one prompt a line, .jsonl, .csv, or - for standard input.",
    ),
]

FolderOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        show_default=False,
        help="The folder for the videos and the ledger; made if it is not there.",
        rich_help_panel="Output",
    ),
]

NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="TEMPLATE",
        show_default=False,
        help="Names with {index}, {line}, {seed}, {slug}, {stem}, {model}. "
        "Without it: {index:04d}-{slug}.mp4.",
        rich_help_panel="Output",
    ),
]

SeedsOption = Annotated[
    Seeds | None,
    typer.Option(
        "--seeds",
        metavar="SEEDS",
        parser=parse_seeds,
        show_default=False,
        help="Each prompt with each of these: 1-8 or 1,5,9. Without it: 0, or what a line says.",
        rich_help_panel="Sampling",
    ),
]

NoSkipOption = Annotated[
    bool, typer.Option("--no-skip", help="Make everything again, also what is there.")
]

RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Also try again what failed before.")
]

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        show_default=False,
        help="Make only a share, 1/4 to 4/4. Without it: as torchrun or a SLURM array says.",
        rich_help_panel="Performance",
    ),
]


def batch(
    prompts: PromptsArgument,
    output: FolderOption,
    seconds: SecondsOption = None,
    num_frames: NumFramesOption = None,
    size: SizeOption = None,
    no_skip: NoSkipOption = False,
    retry_failed: RetryOption = False,
    name: NameOption = None,
    codec: CodecOption = None,
    overwrite: OverwriteOption = False,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
    model: ModelOption = None,
    decoder: DecoderOption = None,
    lora: LoraOption = None,
    random_weights: RandomWeightsOption = False,
    vram: VramOption = None,
    offload: OffloadOption = None,
    offline: OfflineOption = False,
    seeds: SeedsOption = None,
    negative_prompt: NegativePromptOption = None,
    start: StartOption = None,
    guidance_scale: GuidanceOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    shard: ShardOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a video of every line of a prompt file, in one folder.

    The same command again goes on where it was ended, and makes what changed. Options may stand in
    a line, and go before those here: a red star --d 5 --f 48 (seed and frames; also --w --h --g
    --n), or as keys of JSONL and columns of CSV. The exit code is 3 when some failed.
    """
    from streamdit_cli import console
    from streamdit_cli.batch_file import read_batch_file
    from streamdit_cli.batch_items import assign_names, origin_of, plan_items
    from streamdit_cli.batch_run import BatchRun, make_batch
    from streamdit_cli.file_names import DEFAULT_TEMPLATE, NameTemplate
    from streamdit_cli.ledger import read_ledgers
    from streamdit_cli.model_source import find_source
    from streamdit_cli.plan import Wishes, check_wishes
    from streamdit_cli.shards import find_shard

    console.configure(quiet=quiet, verbose=verbose)
    share = find_shard(shard, os.environ)
    template = NameTemplate(name or DEFAULT_TEMPLATE)
    common = Wishes(
        prompts=[],
        negative_prompt=negative_prompt,
        seconds=seconds,
        num_frames=num_frames,
        size=size,
        seed=0,
        start=start,
        guidance_scale=guidance_scale,
    )
    check_wishes(common)
    lines = read_batch_file(prompts)
    if seeds is not None and all("seed" in line.settings for line in lines):
        console.warn("--seeds has no effect: every line says its own seed")
    source = find_source(
        model,
        decoder=decoder,
        loras=lora or (),
        random_weights=random_weights,
        vram=vram,
        offload=offload,
        device=device,
        dtype=dtype,
        download=not (dry_run or offline),
    )
    loading = _loading(device, dtype, threads)
    origin = origin_of(source, loading, codec=codec or "")
    title = "standard input" if prompts == "-" else prompts
    items = plan_items(lines, seeds or (0,), common, source, origin, template, title)
    entries = read_ledgers(output)
    items = assign_names(items, entries, output, overwrite=overwrite, codec=codec)
    ours = [item for item in items if share.has(item.index)]
    run = BatchRun(
        folder=output,
        ours=ours,
        entries=entries,
        source=source,
        loading=loading,
        codec=codec,
        overwrite=overwrite,
        quiet=quiet,
        no_skip=no_skip,
        retry_failed=retry_failed,
    )
    if dry_run:
        run.show()
    elif not make_batch(run, share, json_path):
        raise typer.Exit(PARTIAL)


def _loading(device: str | None, dtype: str | None, threads: int | None) -> dict[str, Any]:
    """Decide once how the networks of all items run; torchrun says which GPU is whose.

    Raises:
        DeviceError: there is no such device.
    """
    import torch

    from streamdit_cli.making import stream_threads, where_and_how
    from streamdit_cli.shards import local_device

    rank = local_device(os.environ)
    if device is None and rank is not None and torch.cuda.is_available():
        device = f"cuda:{rank}"
    threads = threads or stream_threads()
    place, number_type = where_and_how(device=device, dtype=dtype, threads=threads)
    name = str(number_type).removeprefix("torch.")
    return {"device": str(place), "dtype": name, "threads": threads}
