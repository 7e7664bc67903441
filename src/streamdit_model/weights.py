"""A model folder: `config.json` and safetensors files, loaded strictly or not at all.

The folder holds `transformer`, `autoencoder` and `text`, each as `NAME.safetensors` or, when it is
large, as numbered shards with `NAME.safetensors.index.json`. `config.json` is the only source of
the architecture and of how to sample; nothing is inferred from names. No pickle is ever opened.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from streamdit_model.autoencoder import Autoencoder
from streamdit_model.errors import ConfigError, DeviceError, WeightsError
from streamdit_model.model_config import FORMAT, ModelConfig
from streamdit_model.sampling import Stepper, Velocity, Window
from streamdit_model.shards import (
    MAX_JSON_BYTES,
    PICKLE_SUFFIXES,
    finite,
    part_entries,
    read_part,
    write_part,
)
from streamdit_model.storage import (
    NO_PICKLE,
    TensorEntry,
    new_folder,
    parse_json,
    quoted,
    read_bytes,
    remove_leftovers,
    write_text,
)
from streamdit_model.text import TextEncoder
from streamdit_model.transformer import FrameText, StreamDiT

__all__ = [
    "FORMAT",
    "Model",
    "ModelConfig",
    "WithoutDraws",
    "describe",
    "load",
    "load_states",
    "meta_modules",
    "read_config",
    "save",
]

PARTS = ("transformer", "autoencoder", "text")
_FILE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_DRAWS = (Tensor.normal_, Tensor.uniform_)
_SHOWN = 3  # problems named in a message

States = dict[str, dict[str, Tensor]]
"""Part ("transformer", "autoencoder", "text") -> parameter name -> tensor."""


@dataclass(slots=True, eq=False)
class Model:
    """A loaded model; the parts are in evaluation mode and have no gradients.

    Args:
        config: what `config.json` said.
        transformer, autoencoder, text_encoder: the parts, on one device, in one dtype.
        device: where they are.
        dtype: float dtype of the parameters.
    """

    config: ModelConfig
    transformer: StreamDiT
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    device: torch.device
    dtype: torch.dtype

    def velocity(self, window: Window) -> Tensor:
        """Return the predicted velocity of a window, float32, shape of its latents.

        Args:
            window: its text is a `FrameText`.
        """
        text = window.text
        assert isinstance(text, FrameText), type(text)
        latents = window.latents.to(self.dtype)
        return self.transformer(latents, window.tau, window.slots, text).float()

    def new_velocity(self) -> Velocity:
        """Return the velocity of a new stream; this model keeps nothing of a stream."""
        return self.velocity

    def new_stepper(self) -> str | Stepper:
        """Return how a new stream makes its micro steps, see `sampling.cycle`."""
        return self.config.stepper

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """What holds the weights that frames depend on."""
        return self.transformer, self.autoencoder, self.text_encoder

    @property
    def text_limit(self) -> str:
        """How much of a prompt is read, in words."""
        return f"{self.config.text.max_bytes} bytes"


def read_config(folder: Path | str) -> ModelConfig:
    """Read `config.json` of a model folder.

    Raises:
        WeightsError: there is none, or it does not fit; the key is named.
    """
    folder = Path(folder)
    with _reading(folder):
        raw = read_bytes(folder / "config.json", MAX_JSON_BYTES)
    try:
        return ModelConfig.from_dict(parse_json(raw, f"config.json in {folder}"))
    except ConfigError as error:
        raise WeightsError(f"config.json in {folder}: {error}", error.hint) from None


def load(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Model:
    """Load a model, strictly: names, shapes, dtypes and finiteness.

    Args:
        folder: of `save`.
        device: where the model goes.
        dtype: of the parameters: float32, bfloat16 or float64. None is float32 on the CPU and
            bfloat16 elsewhere.

    Raises:
        WeightsError: something is missing, damaged, in another format, or does not fit.
        ConfigError: a dtype that models do not run in.
        DeviceError: the device is not there.
    """
    device = _available(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype} is not one of {', '.join(map(str, _DTYPES))}")
    folder = Path(folder)
    config = read_config(folder)
    with _reading(folder):
        modules = _checked_modules(folder, config)
        states = {part: read_part(folder, part, dtype, device) for part in PARTS}
    for part, state in states.items():
        module = modules[part]
        module.load_state_dict(state, strict=True, assign=True)
        module.eval().requires_grad_(False)
    transformer, autoencoder, text = (modules[part] for part in PARTS)
    assert isinstance(transformer, StreamDiT) and isinstance(autoencoder, Autoencoder)
    assert isinstance(text, TextEncoder)
    return Model(config, transformer, autoencoder, text, device, dtype)


def load_states(folder: Path | str) -> tuple[ModelConfig, States]:
    """Return configuration and float32 tensors of a model, to start a training from.

    Raises:
        WeightsError: as in `load`.
    """
    folder, device = Path(folder), torch.device("cpu")
    config = read_config(folder)
    with _reading(folder):
        _checked_modules(folder, config)
        states = {part: read_part(folder, part, torch.float32, device) for part in PARTS}
    return config, states


def describe(folder: Path | str) -> dict[str, Any]:
    """Return plain facts of a model folder, its files checked but no tensor read.

    Returns:
        `name`, `config` (as in config.json), `parameters` and `bytes` (each by part, and `total`),
        `dtypes` (of the files).

    Raises:
        WeightsError: as in `load`, but for values that are not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    with _reading(folder):
        modules = _checked_modules(folder, config)
        entries = {part: part_entries(folder, part) for part in PARTS}
    parameters = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in modules.items()
    }
    sizes = {part: sum(e.size_bytes for e in found.values()) for part, found in entries.items()}
    dtypes = {str(e.dtype).removeprefix("torch.") for f in entries.values() for e in f.values()}
    return {
        "name": config.name,
        "config": config.to_dict(),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "bytes": {**sizes, "total": sum(sizes.values())},
        "dtypes": sorted(dtypes),
    }


def save(
    folder: Path | str,
    config: ModelConfig,
    transformer_state: Mapping[str, Tensor],
    autoencoder_state: Mapping[str, Tensor],
    text_state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.bfloat16,
    *,
    card: str = "",
    max_shard_bytes: int = 10**9,
) -> None:
    """Write a model folder, whole or not at all; a model that is there already is replaced.

    Args:
        folder: absent, empty or a model folder, which is replaced with all that is in it.
        config: what the states were made with.
        transformer_state, autoencoder_state, text_state: state dicts; they must fit the config.
        dtype: of float tensors in the files: float32, bfloat16 or float16.
        card: text of README.md; none is written when empty.
        max_shard_bytes: a larger part is cut into numbered files of about this size.

    Raises:
        WeightsError: a state does not fit the config, or is not finite, or the folder is another's.
        OSError: the disk is full or refuses; what was there is as it was.
    """
    if dtype not in _FILE_DTYPES:
        raise ConfigError(f"dtype {dtype} is not one of {', '.join(map(str, _FILE_DTYPES))}")
    folder = Path(folder).absolute()
    states = dict(zip(PARTS, (transformer_state, autoencoder_state, text_state), strict=True))
    modules = meta_modules(config)
    for part, state in states.items():
        found = {name: TensorEntry(t.dtype, tuple(t.shape), 0) for name, t in state.items()}
        _check_fit(f"{part} state", found, modules[part], (*_FILE_DTYPES, torch.float64))
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, re.compile(re.escape(folder.name)))
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is not empty and holds no model", "save to a new folder")
    with new_folder(folder) as partial:
        for part, state in states.items():
            write_part(partial, part, finite(part, state, dtype), max_shard_bytes)
        if card:
            write_text(partial / "README.md", card)
        write_text(partial / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


class WithoutDraws(TorchFunctionMode):
    """Leave out the random initial values of modules.

    On the meta device they cost seconds: the first draw there imports the whole compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def meta_modules(config: ModelConfig) -> dict[str, nn.Module]:
    """Build transformer, autoencoder and text on the meta device: shapes without memory."""
    with torch.device("meta"), WithoutDraws():
        return {
            "transformer": StreamDiT(config.transformer),
            "autoencoder": Autoencoder(config.autoencoder),
            "text": TextEncoder(config.text),
        }


def _checked_modules(folder: Path, config: ModelConfig) -> dict[str, nn.Module]:
    """Build the parts on the meta device after comparing them with the headers of the files."""
    entries = {part: part_entries(folder, part) for part in PARTS}
    blocks = (*config.autoencoder.encoder_blocks, *config.autoencoder.decoder_blocks)
    depths = (config.transformer.depth, sum(blocks), config.text.depth)
    for part, depth in zip(PARTS, depths, strict=True):
        # Before anything is built: a layer has tensors, so a file cannot have fewer than layers.
        if depth > len(entries[part]):
            raise WeightsError(
                f"{part} in {folder} has {len(entries[part])} tensors, config.json wants {depth}"
                " layers"
            )
    modules = meta_modules(config)
    for part, module in modules.items():
        _check_fit(f"{part} in {folder}", entries[part], module, _FILE_DTYPES)
    return modules


def _check_fit(
    what: str,
    found: Mapping[str, TensorEntry],
    module: nn.Module,
    float_dtypes: tuple[torch.dtype, ...],
) -> None:
    """Compare names, shapes and dtypes with what a module needs."""
    expected = module.state_dict()
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    problems = [f"{quoted(name)} is missing" for name in sorted(missing)]
    problems += [f"{quoted(name)} is unknown" for name in sorted(unknown)]
    for name, tensor in expected.items():
        entry = found.get(name)
        if entry is None:
            continue
        allowed = float_dtypes if tensor.is_floating_point() else (tensor.dtype,)
        if entry.shape != tuple(tensor.shape):
            problems.append(f"{quoted(name)} is {entry.shape}, expected {tuple(tensor.shape)}")
        elif entry.dtype not in allowed:
            problems.append(f"{quoted(name)} is {entry.dtype}, expected {allowed[0]}")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"{what} does not fit config.json: {'; '.join(problems[:_SHOWN])}{more}",
            hint="weights and config.json must come from the same training run",
        )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn what the system reports while a model folder is read into a WeightsError."""
    if folder.suffix.lower() in PICKLE_SUFFIXES and not folder.is_dir():
        raise WeightsError(f"{folder.name} is not a model folder", hint=NO_PICKLE)
    try:
        yield
    except OSError as error:
        file = Path(error.filename or folder).name
        raise WeightsError(f"{file} in {folder} cannot be read: {error.strerror}") from error


def _available(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"{quoted(str(device))} is not a device", hint="use cpu or cuda"
        ) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA GPU is there", hint="use the device cpu")
    return found
