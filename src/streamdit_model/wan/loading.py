"""Load a model of open Wan weights: the prompts first, then the network, then the decoder.

The text encoder is larger than everything else, so it comes first, encodes what it is known to be
asked for, and leaves before the network arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from streamdit_model.errors import ConfigError
from streamdit_model.wan.files import fill_module
from streamdit_model.wan.keys import LAYOUTS, find_layout, key_map
from streamdit_model.wan.lora import layer_map, merge_loras, read_lora
from streamdit_model.wan.model import WanModel
from streamdit_model.wan.model_config import WanModelConfig
from streamdit_model.wan.offload import Offload
from streamdit_model.wan.prompts import EncodedPrompts, RandomPrompts
from streamdit_model.wan.text import WanTextEncoder, load_text_encoder
from streamdit_model.wan.text_cache import EncoderIdentity, TextCache
from streamdit_model.wan.text_weights import num_parameters
from streamdit_model.wan.tiny import TinyAutoencoder, TinyAutoencoderConfig
from streamdit_model.wan.transformer import WanTransformer
from streamdit_model.wan.vae import WanAutoencoder
from streamdit_model.wan.vae_config import WanAutoencoderConfig
from streamdit_model.wan.vae_keys import translated
from streamdit_model.weights import WithoutDraws

_Module = TypeVar("_Module", bound=nn.Module)

__all__ = [
    "TEXT_DTYPE",
    "WanFiles",
    "build_autoencoder",
    "load_wan",
    "merge_lora_files",
    "on_meta",
    "random_wan",
]

DTYPES = (torch.bfloat16, torch.float32)
RANDOM_SEED = 0
TEXT_DTYPE = torch.bfloat16
_ROOM = 2 * 2**30  # bytes beside the text encoder's weights, where it computes


@dataclass(frozen=True, kw_only=True, slots=True)
class WanFiles:
    """Where the parts of a model lie.

    Args:
        transformer, autoencoder, text_encoder: safetensors files, each in a known layout.
        tokenizer: `tokenizer.json` of umT5.
        text_hashes: sha256 of the text encoder's files and of the tokenizer's.
        text_folder: where encoded prompts are kept.
    """

    transformer: tuple[Path, ...]
    autoencoder: tuple[Path, ...]
    text_encoder: tuple[Path, ...]
    tokenizer: Path
    text_hashes: tuple[str, ...]
    text_folder: Path


def load_wan(
    config: WanModelConfig,
    files: WanFiles,
    *,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    offload: Offload = "text",
    text_device: torch.device | None = None,
    on_problem: Callable[[str], None] = lambda line: None,
) -> WanModel:
    """Load a model, strictly: names, shapes, dtypes and finiteness.

    Every tensor goes from its file to where it stays by itself.

    Args:
        config: what the files must hold.
        files: where they are.
        prompts: encoded before the network is loaded; "" is the null prompt of guidance.
        device: where the networks go.
        dtype: of their parameters, bfloat16 or float32.
        offload: what does not stay on the device, see `Offload`; on a CPU "cpu" is "text".
        text_device: where the text encoder runs; None is the device, if it fits there by itself.
            A prompt that comes later is encoded on the CPU where it does not fit beside the rest.
        on_problem: called with one line when an encoded prompt cannot be kept on the disk.

    Raises:
        WeightsError: a file is missing, damaged, in another format, or does not fit.
        ConfigError: another dtype, or the package of the text encoder is not installed.
    """
    _check_dtype(dtype)
    place = text_device or _text_device(config, device)
    after = "keep" if offload == "none" else "free"
    text = EncodedPrompts(_text_cache(config, files, place, device, after, on_problem))
    for prompt in prompts:
        text.encode([prompt])
    rests = offload == "cpu" and device.type != "cpu"
    transformer = fill_module(
        "transformer",
        on_meta(lambda: WanTransformer(config.transformer)),
        files.transformer,
        lambda keys: {ours: key for key, ours in find_layout(keys, config.transformer).items()},
        dtype,
        torch.device("cpu") if rests else device,
    )
    if rests:
        transformer.offload_blocks(device)
    decoder = _decoder(config, files, dtype, device)
    if offload != "none" and place.type == "cuda" and not _has_room(config, device):
        cpu = torch.device("cpu")
        text.use(_text_cache(config, files, cpu, device, after, on_problem))
    return WanModel(config, transformer, decoder, text, device, dtype)


def random_wan(
    config: WanModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offload: Offload = "text",
) -> WanModel:
    """Return a model of random weights, always the same ones: for trying out size and speed.

    Args:
        config: what it is.
        device, dtype: of the networks.
        offload: as in `load_wan`; there is no text encoder. Its numbers are those of a CPU where
            the blocks rest there.

    Raises:
        ConfigError: another dtype.
    """
    _check_dtype(dtype)
    rests = offload == "cpu" and device.type != "cpu"
    place = torch.device("cpu") if rests else device
    transformer = on_meta(lambda: WanTransformer(config.transformer))
    autoencoder = on_meta(lambda: build_autoencoder(config.autoencoder))
    for module, where in ((transformer, place), (autoencoder, device)):
        module.to(dtype).to_empty(device=where).eval().requires_grad_(False)
    generator = _generator(place)
    transformer.init_weights(generator)
    _draw(autoencoder, generator if place == device else _generator(device))
    if rests:
        transformer.offload_blocks(device)
    text = RandomPrompts(config.text, device, dtype)
    return WanModel(config, transformer, autoencoder, text, device, dtype)


def merge_lora_files(model: WanModel, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRA files to the transformer's weights; all of them or, after an error, none.

    Args:
        model: is changed.
        loras: files, each with its scale.

    Raises:
        WeightsError: a file is missing, damaged, or not for this network.
    """
    layers: dict[str, str] = {}
    for layout in LAYOUTS:
        names = key_map(model.config.transformer, layout)
        layers |= {
            theirs.removesuffix(".weight"): ours.removesuffix(".weight")
            for theirs, ours in names.items()
            if theirs.endswith(".weight")
        }
    known = layer_map(layers)
    read = [(read_lora(path, known), scale) for path, scale in loras]
    merge_loras(dict(model.transformer.named_parameters()), read)


def _text_cache(
    config: WanModelConfig,
    files: WanFiles,
    place: torch.device,
    device: torch.device,
    after: str,
    on_problem: Callable[[str], None],
) -> TextCache:
    """Return what encodes prompts at a place, with nothing loaded yet."""
    identity = EncoderIdentity(
        file_hashes=files.text_hashes,
        config=config.text,
        dtype=TEXT_DTYPE,
        device_type=place.type,
    )

    def make() -> WanTextEncoder:
        return load_text_encoder(
            files.text_encoder, files.tokenizer, config.text, TEXT_DTYPE, place
        )

    return TextCache(files.text_folder, identity, device, make, after=after, on_problem=on_problem)


def _text_device(config: WanModelConfig, device: torch.device) -> torch.device:
    """Return where the text encoder runs: on the device if it fits there by itself."""
    if device.type != "cuda":
        return torch.device("cpu")
    needed = num_parameters(config.text) * TEXT_DTYPE.itemsize + _ROOM
    whole = torch.cuda.get_device_properties(device).total_memory
    return device if needed <= whole else torch.device("cpu")


def _has_room(config: WanModelConfig, device: torch.device) -> bool:
    """Whether a text encoder fits on a GPU beside the loaded networks and what they will make."""
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * num_parameters(config.text) * TEXT_DTYPE.itemsize <= free


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(RANDOM_SEED)


def build_autoencoder(
    config: WanAutoencoderConfig | TinyAutoencoderConfig,
) -> WanAutoencoder | TinyAutoencoder:
    """Build the autoencoder of a configuration, full or small."""
    if isinstance(config, TinyAutoencoderConfig):
        return TinyAutoencoder(config)
    return WanAutoencoder(config)


def _decoder(
    config: WanModelConfig, files: WanFiles, dtype: torch.dtype, device: torch.device
) -> WanAutoencoder | TinyAutoencoder:
    module = on_meta(lambda: build_autoencoder(config.autoencoder))
    if isinstance(module, TinyAutoencoder):
        names = module.check_keys
        return fill_module("small decoder", module, files.autoencoder, names, dtype, device)
    sizes = module.config
    return fill_module(
        "autoencoder",
        module,
        files.autoencoder,
        lambda keys: translated(keys, sizes),
        dtype,
        device,
    )


def on_meta(build: Callable[[], _Module]) -> _Module:
    """Build a module without memory and without draws."""
    with torch.device("meta"), WithoutDraws():
        return build()


@torch.no_grad()
def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights so that a signal keeps its size: normal, variance 1 / inputs; norms are 1."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            parameter.fill_(1.0)
        elif parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.zero_()


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        allowed = " and ".join(str(one).removeprefix("torch.") for one in DTYPES)
        raise ConfigError(f"dtype {dtype} is not one of open weights; allowed: {allowed}")
