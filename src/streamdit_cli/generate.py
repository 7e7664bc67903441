"""`generate`: prompts and a length in, a video file or a pipe of frames out.

What can be wrong with the words of the command line is found first, then the output is taken, then
torch and the model are loaded. Every way out that is not a kill ends the video properly.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from streamdit_cli.live_options import (
    FromOption,
    InteractiveOption,
    LeadOption,
    PromptsFromOption,
    RealtimeOption,
    ScriptOption,
    TransitionOption,
    TransitionSecondsOption,
)
from streamdit_cli.open_options import (
    DecoderOption,
    LoraOption,
    OffloadOption,
    RandomWeightsOption,
    VramOption,
)
from streamdit_cli.options import (
    ContactSheetOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    HealthOption,
    JsonOption,
    ModelOption,
    NumFramesOption,
    OfflineOption,
    OutputOption,
    OverwriteOption,
    PreviewOption,
    PromptOption,
    QuietOption,
    SecondsOption,
    SeedOption,
    ThreadsOption,
    VerboseOption,
)
from streamdit_cli.video_options import (
    CodecOption,
    DryRunOption,
    NegativePromptOption,
    NoPromptOption,
    PipeFormatOption,
    SizeOption,
    StartOption,
)

if TYPE_CHECKING:
    from streamdit_cli.plan import Wishes
    from streamdit_cli.producing import Target
    from streamdit_cli.repeat import Settings
    from streamdit_cli.speaking import Speaking

__all__ = ["EXAMPLES", "generate"]

EXAMPLES = (
    'streamdit generate -p "a red star bouncing" -o star.mp4 --contact-sheet star.png --preview',
    'streamdit generate -p "[0s: a red star] [4s: a blue ring]" --transition blend -o show.mp4',
    'streamdit generate -p "a yellow triangle" --interactive -o - | mpv --profile=low-latency -',
)


def generate(
    ctx: typer.Context,
    prompt: PromptOption = None,
    no_prompt: NoPromptOption = False,
    negative_prompt: NegativePromptOption = None,
    seconds: SecondsOption = None,
    num_frames: NumFramesOption = None,
    size: SizeOption = None,
    script: ScriptOption = None,
    transition: TransitionOption = None,
    transition_seconds: TransitionSecondsOption = None,
    interactive: InteractiveOption = False,
    prompts_from: PromptsFromOption = None,
    realtime: RealtimeOption = None,
    lead: LeadOption = None,
    from_video: FromOption = None,
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
    vram: VramOption = None,
    offload: OffloadOption = None,
    offline: OfflineOption = False,
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
    from streamdit_cli.producing import Target
    from streamdit_cli.repeat import Settings, repeat, typed_names
    from streamdit_cli.speaking import Speaking, read_words

    speaking = Speaking(
        interactive=interactive,
        prompts_from=prompts_from,
        realtime=realtime,
        lead=lead,
        transition=transition,
        transition_seconds=transition_seconds,
    )
    speaking.check(output, preview=preview, words=[*(prompt or ()), script])
    console.configure(quiet=quiet, verbose=verbose, typed=speaking.is_typed)
    is_needed = not speaking.is_live and from_video is None
    words, timed = read_words(prompt, script, no_prompt=no_prompt, is_needed=is_needed)
    settings = Settings(
        prompts=words,
        script=timed,
        negative_prompt=negative_prompt,
        seconds=seconds,
        num_frames=num_frames,
        size=size,
        seed=seed,
        start=start,
        guidance_scale=guidance_scale,
        model=model,
        decoder=decoder,
        loras=tuple(lora or ()),
        random_weights=random_weights,
        vram=vram,
        offload=offload,
        offline=offline,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    target = Target(
        name=output or "",
        codec=codec,
        pipe_format=pipe_format,
        overwrite=overwrite,
        json_path=json_path,
        health=health,
        contact_sheet=contact_sheet,
        preview=preview,
        quiet=quiet,
        lead=speaking.lead_of(output),
        is_live=speaking.is_live,
    )
    said: Mapping[str, str] = {}
    if from_video is not None:
        settings, said = repeat(settings, Path(from_video), typed_names(ctx))
    _make(settings, speaking, target, said, is_dry=dry_run)


def _make(
    settings: Settings,
    speaking: Speaking,
    target: Target,
    said: Mapping[str, str],
    *,
    is_dry: bool,
) -> None:
    """Make the video of settings, or say what it would be.

    Args:
        settings: with what comes from a video that is repeated.
        speaking: who speaks meanwhile.
        target: where it goes; an empty name is made from the prompt.
        said: what the repeated video says about itself.
        is_dry: only say it.
    """
    from streamdit_cli import console
    from streamdit_cli.model_source import find_source
    from streamdit_cli.output import free_name
    from streamdit_cli.plan import check_wishes
    from streamdit_cli.producing import produce, read_plan
    from streamdit_cli.signals import Signals

    wishes = _wishes(settings, speaking)
    check_wishes(wishes)
    if not target.name:
        first = wishes.prompts[0] if wishes.prompts else ""
        target = replace(target, name=free_name(first))
    source = find_source(
        settings.model,
        decoder=settings.decoder,
        loras=settings.loras,
        random_weights=settings.random_weights,
        vram=settings.vram,
        offload=settings.offload,
        device=settings.device,
        dtype=settings.dtype,
        download=not (is_dry or settings.offline),
        before_download=target.check,
    )
    if is_dry:
        target.check()
        line = f"{read_plan(wishes, source).line} -> {target.name}"
        console.plain(f"{line}; nothing was made (--dry-run)")
        return
    with Signals() as signals:
        loading = {name: getattr(settings, name) for name in ("device", "dtype", "threads")}
        begin = speaking.begin(target.lead, signals, said)
        produce(wishes, source, target, loading, signals, begin=begin)


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
    )
