"""`v2v`: a video and prompts in, the video as the prompts say out, frame for frame.

Everything but the input is as in `generate`: what can be wrong with the words is found first, then
the output is taken, the input opened, and the model loaded.
"""

from __future__ import annotations

import math

import typer

from streamdit_cli.input_options import (
    FitOption,
    FpsOption,
    InputArgument,
    InputFpsOption,
    InputSizeOption,
    NoAudioOption,
    StrengthOption,
)
from streamdit_cli.keep_options import NoMetadataOption
from streamdit_cli.live_options import (
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

__all__ = ["EXAMPLES", "v2v"]

EXAMPLES = (
    'streamdit v2v in.mp4 -p "a blue star bouncing" -o blue.mp4',
    'streamdit v2v in.mov -p "a ring" --strength 0.7 --fit pad --fps source -o ring.mp4',
    'ffmpeg -i URL -f yuv4mpegpipe -pix_fmt yuv420p - | streamdit v2v - -p "a star" -o - | mpv -',
)

PARTIAL = 3  # the exit code of an input that was damaged; `ExitCode.PARTIAL` of the app


def v2v(
    input_path: InputArgument,
    prompt: PromptOption = None,
    no_prompt: NoPromptOption = False,
    negative_prompt: NegativePromptOption = None,
    seconds: SecondsOption = None,
    num_frames: NumFramesOption = None,
    size: SizeOption = None,
    strength: StrengthOption = None,
    fit: FitOption = "crop",
    input_size: InputSizeOption = None,
    input_fps: InputFpsOption = None,
    fps: FpsOption = None,
    no_audio: NoAudioOption = False,
    script: ScriptOption = None,
    transition: TransitionOption = None,
    transition_seconds: TransitionSecondsOption = None,
    interactive: InteractiveOption = False,
    prompts_from: PromptsFromOption = None,
    realtime: RealtimeOption = None,
    lead: LeadOption = None,
    output: OutputOption = None,
    pipe_format: PipeFormatOption = "y4m",
    codec: CodecOption = None,
    overwrite: OverwriteOption = False,
    no_metadata: NoMetadataOption = False,
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
    guidance_scale: GuidanceOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Change a video as words say, from a file or as it arrives.

    Frame k of the input becomes frame k of the output, with its sound, to the end of the input or
    of --seconds. --strength says how much is left of it; the level that is used is shown. The exit
    code is 3 when the input was damaged or cut off: what could be read is there.
    """
    from streamdit_cli import console
    from streamdit_cli.edited_video import EditedVideo
    from streamdit_cli.keeping import Keeping
    from streamdit_cli.producing import Target
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
    check_video_source(input_path, [*(prompt or ()), script, *speaking.sources])
    speaking.check(output, preview=preview, words=[*(prompt or ()), script])
    console.configure(quiet=quiet, verbose=verbose, typed=speaking.is_typed)
    words, timed = read_words(prompt, script, no_prompt=no_prompt, is_needed=not speaking.is_live)
    video = EditedVideo(
        path=input_path,
        strength=strength,
        fit=fit,
        input_size=input_size,
        input_fps=input_fps,
        every_frame=fps is not None,
        with_audio=not no_audio,
        seconds=None if seconds == math.inf else seconds,
        wanted_frames=num_frames,
    )
    settings = Settings(
        prompts=words,
        script=timed,
        negative_prompt=negative_prompt,
        seconds=seconds,
        num_frames=num_frames,
        size=size,
        seed=seed,
        material=video,
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
        keeping=Keeping(metadata=not no_metadata),
    )
    make_video(settings, speaking, target, is_dry=dry_run)
    if video.damage:
        raise typer.Exit(PARTIAL)
