"""From a stream to a video: the loop, what is said on the way, and how each way out ends.

Every ordered end (all frames made, a signal, an error of the model, no memory) leaves a video that
plays, says how much of it there is, and raises what the exit code is made from.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli import console
from streamdit_cli.errors import Stopped
from streamdit_cli.records import Records
from streamdit_cli.segments import SegmentWriter
from streamdit_cli.signals import Signals
from streamdit_cli.watching import Watchers
from streamdit_cli.writer import Writer

if TYPE_CHECKING:
    import torch

    from streamdit_cli.live import LiveStream
    from streamdit_cli.material import Material
    from streamdit_model.stream import Stream
    from streamdit_model.weights import Model

__all__ = [
    "explained",
    "fastest_dtype",
    "load_model",
    "make",
    "stream_threads",
    "video_metadata",
    "where_and_how",
]

# Seconds that a reader who has stopped reading gets after a signal.
PIPE_SECONDS = 1.0
MEMORY_HINT = "a smaller model (-m), --dtype bfloat16 or another --device needs less"


def load_model(
    folder: Path, *, device: str | None, dtype: str | None, threads: int | None
) -> Model:
    """Load a model in what is fastest on this machine, where nothing else is asked for.

    Args:
        folder: of the model.
        device: a device name; None is a CUDA GPU if there is one, else the CPU.
        dtype: "float32" or "bfloat16"; None is bfloat16 where it is multiplied in hardware.
        threads: of the CPU; None leaves what torch chose.
    """
    from streamdit_model.weights import load

    place, number_type = where_and_how(device=device, dtype=dtype, threads=threads)
    return load(folder, device=place, dtype=number_type)


def where_and_how(
    *, device: str | None, dtype: str | None, threads: int | None
) -> tuple[torch.device, torch.dtype]:
    """Set the threads and return device and dtype of the networks; args as in `load_model`.

    Raises:
        DeviceError: there is no such device.
    """
    import torch

    from streamdit_model.errors import DeviceError

    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA GPU is there", hint="use the device cpu")
    return place, getattr(torch, dtype) if dtype else fastest_dtype(place)


def stream_threads() -> int:
    """Return how many CPU threads the network of a stream gets where nothing else is asked for.

    Choice: one fewer than there are cores, since decoding and encoding need one beside the network;
    as many as `OMP_NUM_THREADS` says where it is set.
    """
    import torch

    spare = 0 if "OMP_NUM_THREADS" in os.environ else 1
    return max(1, torch.get_num_threads() - spare)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where it is multiplied in hardware, else float32.

    Choice: measured on CPUs; with AMX or AVX512_BF16 bfloat16 is two to four times faster than
    float32, and without them four times slower.
    """
    import torch

    if device.type != "cpu":
        return torch.bfloat16
    has_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def video_metadata(words: dict[str, str], stream: Stream | LiveStream) -> dict[str, str]:
    """Return what a video says about itself: what makes the same frames again, and the versions.

    Args:
        words: prompt, seed, model, and whatever was not left as it is.
        stream: its plan is added.
    """
    versions = {name: importlib.metadata.version(name) for name in ("streamdit", "av")}
    return {**words, **versions, **stream.plan}


def make(
    stream: Stream | LiveStream,
    writer: Writer | SegmentWriter,
    *,
    fps: float,
    seconds: float | None,
    micro_steps: int,
    signals: Signals,
    records: Records,
    watchers: Watchers | None = None,
    memory_hint: str = MEMORY_HINT,
    first_frame: int = 0,
    material: Material | None = None,
) -> None:
    """Write a stream to its end or to a signal, and end the video.

    Args:
        stream: not read yet.
        writer: of the same size.
        fps: frames in a second of video.
        seconds: length of the whole video; None is without end.
        micro_steps: denoising steps of a chunk.
        signals: the first one ends the video after this chunk, the second one at once, though the
            stream still waits for the network call that is running.
        records, watchers: for programs; what looks at the frames too.
        memory_hint: what needs less memory, for the message when it runs out.
        first_frame: of the stream in the video; the stream may begin later, where the video holds
            some frames already.
        material: what the video is made from beside words; the frames it opens with come first.

    Raises:
        Stopped: a signal came; the video is complete up to there.
        BrokenPipeError: the reader closed its end.
        OutputError: the disk is full or the device failed.
        DeviceError, NumericsError: the model failed; the video holds all earlier chunks.
    """
    begun = first_frame + writer.frames_written
    rest = None if seconds is None else seconds - writer.frames_written / fps
    progress = console.Progress(rest, fps)
    watchers, ended = watchers or Watchers(), "complete"

    def ask() -> None:
        writer.hurry(PIPE_SECONDS)
        if material is not None:
            material.give_up()

    signals.be_patient(ask, writer.cancel)
    try:
        watchers.begin(fps, progress)
        for frames in () if material is None else material.opening():
            writer.write(frames)
        for chunk in stream:
            writer.write(chunk.frames)
            watchers.chunk(chunk)
            step_ms = chunk.statistics["denoise_ms"] / micro_steps
            progress.update(chunk.first_frame + len(chunk.frames) - begun, step_ms=step_ms)
            records.chunk(chunk, step_ms=step_ms)
            records.reached(first_frame + writer.frames_written)
            watchers.reached(first_frame + writer.frames_written)
            if signals.received:
                break
        writer.close()
        if signals.received:
            raise Stopped(signals.received, "")
    except BaseException as error:
        _end_early(writer, error)
        told = explained(error, writer.kept, memory_hint)
        ended = signals.name or type(told).__name__
        if told is error:
            raise
        raise told from error
    finally:
        stream.close()
        progress.close()
        records.reached(first_frame + writer.frames_written)
        _summarize(writer, progress, fps, ended, records)
        watchers.end(first_frame + writer.frames_written)


def _end_early(writer: Writer | SegmentWriter, error: BaseException) -> None:
    """End the video with all its frames, or, after a second signal, with those encoded so far."""
    try:
        if not isinstance(error, Stopped):
            writer.close()
    except Exception as second:  # the first error is the one that is told
        console.detail(f"while ending the video: {second}")
    finally:
        writer.abort()


def explained(error: BaseException, kept: str, memory_hint: str = MEMORY_HINT) -> BaseException:
    """Return the error in the words of the command line: with what was kept, and a way out.

    Args:
        error: that ended a video.
        kept: what there is of the video, e.g. "1.5 s are kept in out.mp4"; empty for nothing.
        memory_hint: what needs less memory.
    """
    from streamdit_model.errors import DeviceError, NumericsError

    rest = f"; {kept}" if kept else ""
    if isinstance(error, NumericsError):
        return NumericsError(f"{error}{rest}", error.hint or "another --seed, or --dtype float32")
    if isinstance(error, DeviceError):
        return DeviceError(f"{error}{rest}", error.hint)
    if _is_out_of_memory(error):
        return DeviceError(f"out of memory{_peak()}{rest}", memory_hint)
    return error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a CPU torch says so only in the words of a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _peak() -> str:
    """Say how much memory this process had at most, where the system tells."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU)"
    try:
        import resource
    except ImportError:
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f" (peak {peak * (1 if sys.platform == 'darwin' else 1024) / 2**30:.1f} GiB)"


def _summarize(
    writer: Writer | SegmentWriter,
    progress: console.Progress,
    fps: float,
    ended: str,
    records: Records,
) -> None:
    """Say in one line, and in a record, what was made and how fast."""
    made = writer.frames_written
    rate, factor = progress.frames_per_second, progress.realtime_factor
    first = progress.first_frame_seconds
    records.summary(
        {
            "ended": ended,
            "num_frames": made,
            "seconds": made / fps,
            "fps": rate,
            "realtime_factor": factor,
            "first_frame_seconds": first,
            "output": writer.place,
        }
    )
    parts = [f"{made / fps:.1f} s of video ({made} frames)"]
    if rate is not None and factor is not None:
        parts.append(f"{rate:.1f} FPS ({factor:.2f}x realtime)")
    if first is not None:
        parts.append(f"first frame after {first:.2f} s")
    how = {"complete": ""}.get(
        ended, f"ended by {ended}: " if ended[:3] == "SIG" else "ended early: "
    )
    console.summary(f"{how}{', '.join(parts)}{f' -> {writer.place}' if made else ''}")
