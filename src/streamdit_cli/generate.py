"""`generate`: prompts and a length in, a video file or a pipe of frames out.

What can be wrong with the words of the command line is found first, then the output is taken, then
torch and the model are loaded. Every way out that is not a kill ends the video properly.
"""

from __future__ import annotations

import secrets

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
    from streamdit_cli.model_source import find_source
    from streamdit_cli.output import free_name
    from streamdit_cli.plan import Wishes, check_wishes
    from streamdit_cli.producing import Target, produce, read_plan
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
    target = Target(
        name=output or free_name(wishes.prompts[0] if wishes.prompts else ""),
        codec=codec,
        pipe_format=pipe_format,
        overwrite=overwrite,
        json_path=json_path,
        health=health,
        contact_sheet=contact_sheet,
        preview=preview,
        quiet=quiet,
    )
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
        before_download=target.check,
    )
    if dry_run:
        target.check()
        line = f"{read_plan(wishes, source).line} -> {target.name}"
        console.plain(f"{line}; nothing was made (--dry-run)")
        return
    with Signals() as signals:
        loading = {"device": device, "dtype": dtype, "threads": threads}
        produce(wishes, source, target, loading, signals)
