"""The tensors of the umT5 encoder: their sizes, their names in two layouts, and how they are read.

Wan's own files and those of transformers name the same tensors differently. Which layout a file
has is decided by all its names together, never by the file's name; files that fit neither are
refused. This file knows neither transformers nor how the encoder computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.storage import TensorEntry, quoted
from streamdit_model.wan.files import check_entries, read_headers, read_in_dtype

__all__ = ["UMT5_XXL", "WanTextConfig", "num_parameters", "read_encoder", "tensor_names"]

_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3  # problems named in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class WanTextConfig:
    """Sizes of a umT5 encoder.

    Args:
        vocabulary: number of token ids.
        width: width of a token.
        head_width: width of an attention head; num_heads * head_width may differ from width.
        num_heads: attention heads.
        mlp_width: width inside the gated feed-forward layer.
        depth: number of layers.
        num_buckets: buckets of relative positions, even; each layer has its own table of them.
        max_distance: tokens, from here on all distances share a bucket.
        max_tokens: rows of the result; a longer prompt is cut.

    Raises:
        ConfigError: a number is out of range.
    """

    vocabulary: int
    width: int
    head_width: int
    num_heads: int
    mlp_width: int
    depth: int
    num_buckets: int
    max_distance: int
    max_tokens: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"text {field.name} {value} is not at least 1")
        if self.num_buckets % 4:
            raise ConfigError(f"text num_buckets {self.num_buckets} is not a multiple of 4")
        if self.max_distance <= self.num_buckets // 4:
            raise ConfigError(
                f"text max_distance {self.max_distance} is not above num_buckets / 4 ="
                f" {self.num_buckets // 4}"
            )


UMT5_XXL = WanTextConfig(
    vocabulary=256_384,
    width=4096,
    head_width=64,
    num_heads=64,
    mlp_width=10_240,
    depth=24,
    num_buckets=32,
    max_distance=128,
    max_tokens=512,
)
"""The encoder of all Wan models: 5,680,910,336 parameters in 242 tensors."""


def tensor_names(config: WanTextConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return transformers name -> (name in Wan's own layout, shape) of every tensor.

    The embedding stands in it once, as `shared.weight`; the encoder's second name for it is in
    neither layout. The pair of the gated layer: `wi_0` and `gate.0` go through the GELU, `wi_1`
    and `fc1` do not.
    """
    width, inner = config.width, config.num_heads * config.head_width
    names: dict[str, tuple[str, tuple[int, ...]]] = {
        "shared.weight": ("token_embedding.weight", (config.vocabulary, width))
    }
    layer = {
        "layer.0.layer_norm": ("norm1", (width,)),
        "layer.0.SelfAttention.q": ("attn.q", (inner, width)),
        "layer.0.SelfAttention.k": ("attn.k", (inner, width)),
        "layer.0.SelfAttention.v": ("attn.v", (inner, width)),
        "layer.0.SelfAttention.o": ("attn.o", (width, inner)),
        "layer.0.SelfAttention.relative_attention_bias": (
            "pos_embedding.embedding",
            (config.num_buckets, config.num_heads),
        ),
        "layer.1.layer_norm": ("norm2", (width,)),
        "layer.1.DenseReluDense.wi_0": ("ffn.gate.0", (config.mlp_width, width)),
        "layer.1.DenseReluDense.wi_1": ("ffn.fc1", (config.mlp_width, width)),
        "layer.1.DenseReluDense.wo": ("ffn.fc2", (width, config.mlp_width)),
    }
    for index in range(config.depth):
        for name, (original, shape) in layer.items():
            full = f"encoder.block.{index}.{name}.weight"
            names[full] = (f"blocks.{index}.{original}.weight", shape)
    names["encoder.final_layer_norm.weight"] = ("norm.weight", (width,))
    return names


def num_parameters(config: WanTextConfig) -> int:
    """Return the number of parameters; times the bytes of a dtype it is the memory needed."""
    return sum(prod(shape) for _, shape in tensor_names(config).values())


def read_encoder(
    paths: Sequence[Path], config: WanTextConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the encoder's tensors by their transformers names, in a dtype, on a device.

    Tensors go to the device one by one, so the files are never in memory as a whole beside it.

    Args:
        paths: safetensors files that together hold the encoder, in either layout.
        config: the sizes it must have.
        dtype: bfloat16, float32 or float64.
        device: where the tensors end.

    Raises:
        ConfigError: another dtype, or no file.
        WeightsError: a file is missing, damaged, a pickle, or fits no known layout; or a shape or
            dtype is wrong; or a value is not finite.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype} of the text encoder is not one of {_listed(_DTYPES)}")
    if not paths:
        raise ConfigError("no file of the text encoder is given, at least one is needed")
    entries, homes = read_headers(paths)
    names = tensor_names(config)
    stored = _stored_names(entries, names)
    check_entries(
        "text encoder",
        entries,
        {stored[name]: shape for name, (_, shape) in names.items()},
        hint="only umT5-XXL encoders have the sizes of Wan models",
    )
    return read_in_dtype(stored, homes, dtype, device)


def _stored_names(
    entries: Mapping[str, TensorEntry], names: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, str]:
    """Return transformers name -> name in the files, by the layout that fits exactly."""
    layouts = {
        "transformers": {name: name for name in names},
        "original": {name: original for name, (original, _) in names.items()},
    }
    for stored in layouts.values():
        if entries.keys() == set(stored.values()):
            return stored
    nearest = max(layouts, key=lambda layout: len(entries.keys() & layouts[layout].values()))
    missing = [key for key in layouts[nearest].values() if key not in entries]
    unexpected = sorted(entries.keys() - set(layouts[nearest].values()))
    parts = [
        f"{len(keys)} {what} ({', '.join(map(quoted, keys[:_SHOWN]))}"
        f"{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    raise WeightsError(
        f"text encoder weights fit no known layout; nearest is the {nearest} one:"
        f" {', '.join(parts)}",
        hint="take all files of the umT5-XXL encoder in the transformers or the Wan layout",
    )


def _listed(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
