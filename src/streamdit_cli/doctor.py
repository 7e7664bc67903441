"""`doctor`: what works on this machine, found by trying it, as text that can be pasted.

Nothing is sent anywhere, no token is shown, and the home folder is written as `~`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamdit_cli.machine import all_devices, cpu, devices, memory, size_words, versions
from streamdit_cli.options import (
    JsonOption,
    OverwriteOption,
    RandomWeightsOption,
    complete_model,
)

if TYPE_CHECKING:
    import torch

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = (
    "streamdit doctor",
    "streamdit doctor --json -",
    "streamdit doctor --probe rolling-1.3b --video street.mp4",
)

_VARIABLES = (
    *("STREAMDIT_MODEL", "STREAMDIT_DEVICE", "STREAMDIT_DTYPE", "STREAMDIT_THREADS"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"),
)
_ATTENTION = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
_NO_KERNEL = ("No available kernel", "No viable backend")  # what torch says, at great length
_SIDE = 64  # pixels of the frame that is encoded
_WORKS = "works"


ProbeOption = Annotated[
    str | None,
    typer.Option(
        "--probe",
        metavar="MODEL",
        autocompletion=complete_model,
        show_default=False,
        help="Instead: put a clip through a model once; do its weights follow our conventions?",
    ),
]

ProbeVideoOption = Annotated[
    Path | None,
    typer.Option(
        "--video",
        metavar="FILE",
        show_default=False,
        help="--probe: the clip, any video of some seconds. Without it: moving shapes.",
    ),
]


def doctor(
    probe: ProbeOption = None,
    video: ProbeVideoOption = None,
    random_weights: RandomWeightsOption = False,
    json_path: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what works on this machine, to be pasted into a question.

    Every line was tried: attention on every device, and each encoder with one frame. The exit code
    is 0 when a video can be made, 5 without a model, 6 without an encoder and 7 without a device.
    With --probe it is 0 when the weights follow our conventions, and 5 when they do not.
    """
    from streamdit_cli.answers import answer
    from streamdit_cli.errors import UsageError

    if probe is not None:
        _probe(probe, video, random_weights, json_path, overwrite=overwrite)
        return
    if video is not None or random_weights:
        option = "--video" if video is not None else "--random-weights"
        raise UsageError(f"{option} has no effect without --probe", "streamdit doctor --help")
    record = {
        "versions": versions(),
        "cpu": cpu(),
        "memory": memory(),
        "devices": devices(),
        "attention": _attention(),
        "encoders": _encoders(),
        "folders": _folders(),
        "model": _model(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    rows = [
        [part if index == 0 else "", key, _words(value)]
        for part, facts in record.items()
        for index, (key, value) in enumerate(facts.items())
    ]
    answer("streamdit doctor", record, ["", "", ""], rows, json_path, overwrite=overwrite)
    _refuse_if_useless(record)


def _probe(
    name: str, video: Path | None, random_weights: bool, json_path: str | None, *, overwrite: bool
) -> None:
    """Answer whether the weights of a model follow our conventions.

    Raises:
        WeightsError: they do not, or it is not clear.
    """
    from streamdit_cli import console
    from streamdit_cli.answers import answer
    from streamdit_cli.probing import probe_model
    from streamdit_model.errors import WeightsError

    record, columns, rows = probe_model(name, video, random_weights=random_weights)
    title = f"{record['model']}, error of one step from {record['video']}"
    answer(title, record, columns, rows, json_path, overwrite=overwrite)
    if json_path is None:
        console.result(f"verdict: {record['verdict']}")
    if record["fits"] is False:
        raise WeightsError(
            f"{record['model']}: {record['verdict']}", "please report it with the table"
        )


def _refuse_if_useless(record: dict[str, dict[str, Any]]) -> None:
    """Raise what a command that makes video would raise here.

    Raises:
        DeviceError, OutputError, MissingWeights: see `doctor`.
    """
    from streamdit_cli.errors import MissingWeights, OutputError
    from streamdit_model.errors import DeviceError

    if _WORKS not in record["attention"].values():
        raise DeviceError("attention runs on no device", "reinstall torch: pip install torch")
    if record["encoders"]["libx264 in .mp4"] != _WORKS:
        raise OutputError("the encoder libx264 does not open", "reinstall PyAV: pip install av")
    if "missing" in record["model"]:
        raise MissingWeights(record["model"]["missing"], "streamdit info shapes")


def _words(value: object) -> str:
    """Return a value for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def _attention() -> dict[str, str]:
    """Try each kind of attention on each device, in the number type that is used there."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from streamdit_cli.making import fastest_dtype

    def attend(device: torch.device, name: str) -> None:
        query = torch.ones(1, 2, 16, 64, device=device, dtype=fastest_dtype(device))
        with sdpa_kernel(getattr(SDPBackend, name)):
            result = scaled_dot_product_attention(query, query, query)
        if not bool((result.cpu() == 1).all()):  # the mean of ones
            raise RuntimeError("it gives wrong numbers")

    return {
        f"{name.lower()} on {device}": _try(lambda: attend(device, name))  # noqa: B023
        for device in all_devices()
        for name in _ATTENTION
    }


def _try(call: Callable[[], None]) -> str:
    """Return `works`, or why a call does not, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except (ImportError, LookupError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith(_NO_KERNEL):
            reason = "torch has none for this device and number type"
        return f"no: {_home_as_tilde(reason)}"
    return _WORKS


def _encoders() -> dict[str, str]:
    """Encode one frame with each encoder, and read the file again."""
    with tempfile.TemporaryDirectory(prefix="streamdit-doctor-") as folder:
        return {
            **{
                f"{codec} in {suffix}": _try(lambda: _encode(Path(folder), suffix, codec))  # noqa: B023
                for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".mkv", "ffv1"))
            },
            "png": _try(_encode_png),
        }


def _encode(folder: Path, suffix: str, codec: str) -> None:
    """Write a video of one frame as commands do, and count its frames."""
    from streamdit_cli.part import PartFile
    from streamdit_cli.video import probe
    from streamdit_cli.video_encoder import VideoEncoder

    target = PartFile(folder / f"{codec}{suffix}", overwrite=False, describe=str)
    try:
        encoder = VideoEncoder(
            target, suffix, codec, width=_SIDE, height=_SIDE, fps=Fraction(16), metadata={}
        )
        encoder.encode(_picture())
        encoder.finish(flush=True)
        video = probe(target.finish())
    finally:
        target.keep()
    if video.num_frames != 1:
        raise ValueError(f"{video.num_frames} frames of 1 were written")


def _encode_png() -> None:
    """Write a picture."""
    from streamdit_cli.video_encoder import encode_png

    if not encode_png(_picture()).startswith(b"\x89PNG"):
        raise ValueError("what was written is no PNG")


def _picture() -> torch.Tensor:
    """Return a frame: uint8 (height, width, 3)."""
    import torch

    return torch.full((_SIDE, _SIDE, 3), 128, dtype=torch.uint8)


def _folders() -> dict[str, str]:
    """Return the folders that are written to, with the space that is left there."""
    from streamdit_cli.cache import cache_folder

    folders = {
        "this folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "model cache": cache_folder(),
    }
    return {name: _describe_folder(path) for name, path in folders.items()}


def _describe_folder(path: Path) -> str:
    """Return a folder with its free space, or that of the nearest folder above it that exists."""
    nearest = next(
        (folder for folder in (path, *path.parents) if folder.is_dir()), Path(path.anchor)
    )
    state = "" if nearest == path else ", not made yet"
    if not os.access(nearest, os.W_OK):
        state += ", cannot be written to"
    try:
        free = size_words(shutil.disk_usage(nearest).free)
    except OSError as error:
        free = error.strerror or "unknown"
    return f"{_home_as_tilde(str(path))}: {free} free{state}"


def _home_as_tilde(text: str) -> str:
    """Return a text without the name of the home folder."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def _model() -> dict[str, str]:
    """Return the model that commands take where none is named, and whether it can be read."""
    from streamdit_cli.cache import cache_folder
    from streamdit_cli.catalogue import find_files
    from streamdit_cli.default_model import default_model
    from streamdit_cli.errors import TerminalError
    from streamdit_cli.presets import find_model, open_preset
    from streamdit_model.errors import StreamDiTError
    from streamdit_model.weights import describe

    try:
        name = default_model()
        preset = open_preset(name)
        if preset is not None:
            find_files(preset)
            return {"name": name, "folder": _home_as_tilde(str(cache_folder()))}
        folder, _ = find_model(name)
        facts = describe(folder)
    except (StreamDiTError, TerminalError) as error:
        return {"missing": _home_as_tilde(str(error))}
    return {"name": facts["name"], "folder": _home_as_tilde(str(folder))}
