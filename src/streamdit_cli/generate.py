"""`generate`: prompts and a length in, a video file or a pipe of frames out.

What can be wrong with the words of the command line is found first, then the output is taken, then
torch and the model are loaded. Every way out that is not a kill ends the video properly.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from streamdit_cli.keep_options import (
    ContinueOption,
    NoMetadataOption,
    ResumeStateOption,
    SaveEveryOption,
    SaveStateOption,
    SegmentOption,
)
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
from streamdit_cli.video_options import (
    CodecOption,
    DryRunOption,
    NegativePromptOption,
    NoPromptOption,
    PipeFormatOption,
    SizeOption,
    StartOption,
)

__all__ = ["EXAMPLES", "generate"]

EXAMPLES = (
    'streamdit generate -p "a red star bouncing" -o star.mp4 --contact-sheet star.png --preview',
    'streamdit generate -p "a blue circle" -p "a green square" --seconds 1:00 --health two.jsonl',
    'streamdit generate -p "a yellow triangle" --seconds inf -o - | mpv -',
)


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
    segment: SegmentOption = None,
    no_metadata: NoMetadataOption = False,
    save_state: SaveStateOption = None,
    save_every: SaveEveryOption = None,
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
    from streamdit_cli.keeping import Keeping
    from streamdit_cli.model_source import find_source
    from streamdit_cli.output import free_name
    from streamdit_cli.plan import Wishes, check_wishes
    from streamdit_cli.producing import Target, open_stream, plan_only, produce
    from streamdit_cli.prompts import read_prompts
    from streamdit_cli.resuming import find_resumption
    from streamdit_cli.signals import Signals

    console.configure(quiet=quiet, verbose=verbose)
    resumption = find_resumption(resume_state, output, go_on=go_on, no_prompt=no_prompt)
    words = {"name": model, "decoder": decoder, "random_weights": random_weights}
    words["loras"] = list(lora or ())
    loading = {"device": device, "dtype": dtype, "threads": threads}
    keeping = Keeping(
        save_state=save_state, save_every=save_every, segment=segment, metadata=not no_metadata
    )
    begin, encoder = open_stream, codec
    decided = {
        "negative_prompt": negative_prompt,
        "size": size,
        "seed": seed,
        "start": start,
        "guidance_scale": guidance_scale,
    }
    if resumption is None:
        decided["seed"] = secrets.randbelow(2**32) if seed is None else seed
        wishes = Wishes(
            prompts=read_prompts(prompt, no_prompt=no_prompt),
            seconds=seconds,
            num_frames=num_frames,
            **decided,
        )
    else:
        prompts = read_prompts(prompt) if prompt else []
        length = {"seconds": seconds, "num_frames": num_frames}
        wishes = resumption.wishes(prompts, **length, decided=decided)
        words, loading = resumption.model_words(words), resumption.loading(loading)
        keeping, encoder = resumption.keeping(keeping, codec)
        begin = resumption.open_stream
    check_wishes(wishes)
    source = find_source(**words)
    target = Target(
        name=output or free_name(wishes.prompts[0] if wishes.prompts else ""),
        codec=encoder,
        pipe_format=pipe_format,
        overwrite=overwrite,
        json_path=json_path,
        health=health,
        contact_sheet=contact_sheet,
        preview=preview,
        quiet=quiet,
        keeping=replace(keeping, words={**words, "size": wishes.size}),
        resumption=resumption,
    )
    if dry_run:
        plan_only(wishes, source, target)
        return
    with Signals() as signals:
        produce(wishes, source, target, loading, signals, begin=begin)
