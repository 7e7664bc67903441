"""`generate`: prompts and a length in, a video file or a pipe of frames out.

What can be wrong with the words of the command line is found first, then the output is taken, then
torch and the model are loaded. Every way out that is not a kill ends the video properly.
"""

from __future__ import annotations

from pathlib import Path

import typer

from streamdit_cli.input_options import KeepStartOption, StartVideoOption
from streamdit_cli.keep_options import (
    ContinueOption,
    FullStateOption,
    NoMetadataOption,
    ResumeStateOption,
    SaveEveryOption,
    SaveStateOption,
    SegmentOption,
)
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
)

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
    segment: SegmentOption = None,
    no_metadata: NoMetadataOption = False,
    save_state: SaveStateOption = None,
    save_every: SaveEveryOption = None,
    full_state: FullStateOption = False,
    resume_state: ResumeStateOption = None,
    go_on: ContinueOption = False,
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
    start: StartVideoOption = None,
    keep_start: KeepStartOption = False,
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
    from streamdit_cli.first_video import read_start
    from streamdit_cli.keeping import Keeping
    from streamdit_cli.producing import Target
    from streamdit_cli.repeat import repeat, typed_names
    from streamdit_cli.resuming import find_resumption
    from streamdit_cli.settings import Settings, make_video
    from streamdit_cli.speaking import Speaking, check_video_source, read_words

    speaking = Speaking(
        interactive=interactive,
        prompts_from=prompts_from,
        realtime=realtime,
        lead=lead,
        transition=transition,
        transition_seconds=transition_seconds,
    )
    check_video_source(start, [*(prompt or ()), script, *speaking.sources])
    speaking.check(output, preview=preview, words=[*(prompt or ()), script])
    console.configure(quiet=quiet, verbose=verbose, typed=speaking.is_typed)
    resumption = find_resumption(resume_state, output, go_on=go_on, no_prompt=no_prompt)
    plain_start, first_video = read_start(start, keep=keep_start, goes_on=resumption is not None)
    is_needed = not (speaking.is_live or from_video or resumption)
    words, timed = read_words(prompt, script, no_prompt=no_prompt, is_needed=is_needed)
    settings = Settings(
        prompts=words,
        script=timed,
        negative_prompt=negative_prompt,
        seconds=seconds,
        num_frames=num_frames,
        size=size,
        seed=seed,
        start=plain_start,
        material=first_video,
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
        keeping=Keeping(
            save_state=save_state,
            save_every=save_every,
            full_state=full_state,
            segment=segment,
            metadata=not no_metadata,
        ),
        resumption=resumption,
    )
    said = None
    if from_video is not None:
        settings, said = repeat(settings, Path(from_video), typed_names(ctx))
    make_video(settings, speaking, target, said=said, is_dry=dry_run)
