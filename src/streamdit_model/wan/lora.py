"""LoRA files: small differences of a network's weights, read, checked and merged into it.

A layer's weight becomes weight + scale * (alpha / rank) * up @ down. The names in a file are those
of the network it was made for; a key map gives our layer for each of them, and a name that it does
not know is refused, as is a file that is not safetensors. Alpha is a tensor beside the layer, or
one number in the file's metadata, or in `adapter_config.json` beside a file of the peft layout;
without any it equals the rank.

Layouts, all with the prefix of their tool or none:
    LAYER.lora_A.weight, LAYER.lora_B.weight; also with the adapter's name before `weight`
    LAYER.lora_down.weight, LAYER.lora_up.weight, LAYER.alpha; also LAYER.lora.down.weight
    lora_unet_LAYER.lora_down.weight ..., the layer's dots written as underscores
    LAYER.diff and LAYER.diff_b, whole differences of weight and bias

Choice: merged, since a stream then pays nothing for it at any step.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.shards import PICKLE_SUFFIXES, finite
from streamdit_model.storage import (
    NO_PICKLE,
    parse_json,
    quoted,
    read_bytes,
    read_header,
    read_tensors,
)

__all__ = ["KeyMap", "Lora", "LoraLayer", "layer_map", "merge_loras", "parse_lora", "read_lora"]

KeyMap = Callable[[str], str | None]
"""key_map(layer in the file, without its prefix) -> our layer, or None when there is none."""

_PEFT = "base_model.model."
_PREFIXES = (_PEFT, "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_")
_NAME = re.compile(
    r"(?P<layer>.+)\.(?:(?P<side>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)"
    r"(?:\.[^.]+)?\.weight|(?P<other>alpha|diff|diff_b))"
)
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_FILE_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_SETTINGS_KEY = "lora_adapter_metadata"
_MAX_SETTINGS_BYTES = 2**20
_SHOWN = 3  # names in a message


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """The difference of one layer's weight: strength * up @ down.

    Args:
        down: (rank, inputs), of a convolution (rank, inputs, *kernel).
        up: (outputs, rank), of a convolution with a kernel of ones behind.
        strength: alpha / rank.
    """

    down: Tensor
    up: Tensor
    strength: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it fits."""
        return (self.up.shape[0], *self.down.shape[1:])

    def difference(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return what is added to the weight at scale 1, in the shape of the weight."""
        up = self.up.to(device=device, dtype=dtype).flatten(1)
        down = self.down.to(device=device, dtype=dtype).flatten(1)
        return (self.strength * (up @ down)).view(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """What a LoRA file says, by the names of our network.

    Args:
        name: of the file, for messages.
        layers: weight ("LAYER.weight") -> its difference in two factors.
        differences: parameter ("LAYER.weight", "LAYER.bias") -> its whole difference.
    """

    name: str
    layers: dict[str, LoraLayer]
    differences: dict[str, Tensor]


def parse_lora(text: str) -> tuple[Path, float]:
    """Split `PATH[:SCALE]`; the scale is 1 when it is not said.

    Raises:
        ConfigError: an empty path, or a scale that is not a finite number.
    """
    head, colon, tail = text.rpartition(":")
    try:
        scale = float(tail) if colon else 1.0
    except ValueError:
        if head.endswith(".safetensors"):
            raise ConfigError(
                f"LoRA scale {quoted(tail)} is not a number",
                hint="type --lora PATH:SCALE, as in --lora style.safetensors:0.8",
            ) from None
        head, colon, scale = text, "", 1.0  # a colon of the path itself
    path = head if colon else text
    if not path or not math.isfinite(scale):
        raise ConfigError(
            f"LoRA {quoted(text)} is not a path and a finite scale",
            hint="type --lora PATH or --lora PATH:SCALE",
        )
    return Path(path), scale


def layer_map(layers: Mapping[str, str]) -> KeyMap:
    """Return the key map of foreign layer names -> ours, for names with dots and with underscores.

    A name with underscores that could mean two layers is not known.
    """
    names = dict(layers)
    flat: dict[str, str | None] = {}
    for name, ours in layers.items():
        short = name.replace(".", "_")
        flat[short] = None if short in flat else ours
    return lambda name: names.get(name, flat.get(name))


def read_lora(path: Path, key_map: KeyMap) -> Lora:
    """Read a LoRA file for the network whose layers a key map knows.

    Args:
        path: a safetensors file in one of the layouts above.
        key_map: see `KeyMap`; all the layers of a file must be known to it.

    Raises:
        WeightsError: the file is missing, damaged, a pickle or no LoRA; it names what fits nothing;
            factors do not fit each other; a value is not finite; or it needs a kind of LoRA that
            is not known here (DoRA, rank-stabilised, alpha by pattern).
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(f"{path.name} is not a safetensors file", hint=NO_PICKLE)
    try:
        entries = read_header(path)
        tensors = read_tensors(path)
        alpha = _stated_alpha(path, peft=any(key.startswith(_PEFT) for key in entries))
    except OSError as error:
        raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from error
    for key, entry in entries.items():
        if entry.dtype not in _FILE_DTYPES:
            raise WeightsError(
                f"{path.name}: {quoted(key)} is {entry.dtype}, not a float of a LoRA"
            )
    layers: dict[str, LoraLayer] = {}
    differences: dict[str, Tensor] = {}
    for ours, kinds in _sorted_keys(path.name, entries, key_map).items():
        part = {
            kind: finite(path.name, {key: tensors[key]}, tensors[key].dtype)[key]
            for kind, key in kinds.items()
        }
        if "diff" in part:
            differences[f"{ours}.weight"] = part.pop("diff")
        if "diff_b" in part:
            differences[f"{ours}.bias"] = part.pop("diff_b")
        if part:
            layers[f"{ours}.weight"] = _layer(f"{path.name}: {quoted(ours)}", part, alpha)
    return Lora(path.name, layers, differences)


def merge_loras(weights: Mapping[str, Tensor], loras: Sequence[tuple[Lora, float]]) -> None:
    """Add LoRAs to the weights of a network, in place; all of them or, after an error, none.

    The sum is made in float32 (float64 for such weights) and rounded to the weight's dtype once.

    Args:
        weights: parameter name -> parameter, as `dict(network.named_parameters())`.
        loras: each with its scale; 0 leaves everything as it is.

    Raises:
        WeightsError: a layer or shape that the network does not have.
    """
    for lora, _ in loras:
        wanted = {name: layer.shape for name, layer in lora.layers.items()}
        for name, shape in _all_shapes(lora, wanted):
            if name not in weights:
                raise WeightsError(f"{lora.name}: the network has no {quoted(name)}")
            if tuple(weights[name].shape) != shape:
                raise WeightsError(
                    f"{lora.name}: {quoted(name)} is {shape}, in the network it is"
                    f" {tuple(weights[name].shape)}",
                    hint="a LoRA fits only the size of model it was made for",
                )
    touched = {name for lora, _ in loras for name in (*lora.layers, *lora.differences)}
    with torch.no_grad():
        for name in sorted(touched):
            weight = weights[name]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            total = weight.to(dtype, copy=True)
            for lora, scale in loras:
                if name in lora.layers:
                    total += scale * lora.layers[name].difference(weight.device, dtype)
                if name in lora.differences:
                    total += scale * lora.differences[name].to(weight.device, dtype)
            weight.copy_(total)


def _all_shapes(
    lora: Lora, factored: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...]]]:
    whole = [(name, tuple(tensor.shape)) for name, tensor in lora.differences.items()]
    return [*factored.items(), *whole]


def _sorted_keys(
    file_name: str, keys: Mapping[str, object], key_map: KeyMap
) -> dict[str, dict[str, str]]:
    """Return our layer -> kind of tensor ("down", "up", "alpha", "diff", "diff_b") -> key."""
    sorted_keys: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in keys:
        found = _NAME.fullmatch(key)
        ours = key_map(_bare(found["layer"])) if found else None
        if not found or ours is None:
            unknown.append(key)
            continue
        kind = found["other"] or _SIDES[re.split(r"[._]", found["side"])[-1]]
        other = sorted_keys.setdefault(ours, {}).setdefault(kind, key)
        if other != key:
            raise WeightsError(f"{file_name}: {quoted(other)} and {quoted(key)} mean the same")
    if unknown:
        more = ", ..." if len(unknown) > _SHOWN else ""
        shown = ", ".join(map(quoted, sorted(unknown)[:_SHOWN]))
        raise WeightsError(
            f"{file_name} does not fit this network: {len(unknown)} of {len(keys)} tensors belong"
            f" to no layer of it ({shown}{more})",
            hint="take a LoRA made for this model, as safetensors",
        )
    if not sorted_keys:
        raise WeightsError(f"{file_name} holds no tensor, a LoRA has at least two")
    return sorted_keys


def _bare(layer: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), "")
    return layer.removeprefix(prefix)


def _layer(what: str, part: Mapping[str, Tensor], stated_alpha: float | None) -> LoraLayer:
    """Join the factors of a layer after checking that they fit each other."""
    missing = {"down", "up"} - part.keys()
    if missing:
        raise WeightsError(f"{what} has no {' and no '.join(sorted(missing))} factor")
    down, up = part["down"], part["up"]
    rank = down.shape[0] if down.dim() > 1 else 0
    if not rank or up.dim() < 2 or up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
        raise WeightsError(
            f"{what} has factors {tuple(up.shape)} and {tuple(down.shape)} that cannot be joined"
        )
    if "alpha" not in part:
        return LoraLayer(down, up, 1.0 if stated_alpha is None else stated_alpha / rank)
    if part["alpha"].numel() != 1:
        raise WeightsError(f"{what} has an alpha of shape {tuple(part['alpha'].shape)}, not one")
    return LoraLayer(down, up, float(part["alpha"]) / rank)


def _stated_alpha(path: Path, *, peft: bool) -> float | None:
    """Return the alpha for the whole file: of its metadata, or of peft's file beside it."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_SETTINGS_KEY)
    beside = path.with_name("adapter_config.json")
    if text is not None:
        settings = parse_json(text.encode("utf-8"), f"{_SETTINGS_KEY} of {path.name}")
    elif peft and beside.exists():
        settings = parse_json(read_bytes(beside, _MAX_SETTINGS_BYTES), beside.name)
    else:
        return None
    if not isinstance(settings, dict):
        raise WeightsError(f"{path.name}: its LoRA settings are not a table")
    said = {key.removeprefix("transformer."): value for key, value in settings.items()}
    for key in ("use_dora", "use_rslora", "alpha_pattern"):
        if said.get(key):
            raise WeightsError(
                f"{path.name} needs {key}, which is not known here",
                hint="take a plain LoRA, or one merged into its model",
            )
    alpha = said.get("lora_alpha")
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(f"{path.name}: lora_alpha {quoted(str(alpha))} is not a number")
    return float(alpha)
